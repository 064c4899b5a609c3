//! The first words of a connection.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::process::Pid;
use socket2::Socket;

use super::address::Address;
use super::connect::connect;
use super::error::NotConnected;
use super::lines::LineReader;
use super::wire::{self, Greeting, Message};

/// The reading side of the socket, under a deadline until the handshake is done.
pub(super) struct Incoming {
    socket: Arc<Socket>,
    deadline: Option<Instant>,
}

impl Incoming {
    pub fn new(socket: Arc<Socket>, deadline: Instant) -> Incoming {
        Incoming {
            socket,
            deadline: Some(deadline),
        }
    }

    /// What is read from now on must come before this.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// Reads without a deadline from now on.
    ///
    /// # Errors
    /// When the socket failed.
    pub fn lift_deadline(&mut self) -> io::Result<()> {
        self.deadline = None;
        self.socket.set_read_timeout(None)
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            // Not even what is there is read: a peer that never pauses would never be given up.
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // What the kernel rounds to zero would mean no timeout at all.
            self.socket
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        }
        (&*self.socket).read(buffer).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => e,
        })
    }
}

/// A monitor that has greeted and takes commands, and that nobody reads yet.
pub(super) struct Greeted {
    pub socket: Arc<Socket>,
    pub lines: LineReader<Incoming>,
    pub peer: Peer,
    /// The process that listens at the address, if it is known.
    pub listener: Option<Pid>,
    /// QEMU has made it for us: it keeps nobody from the address.
    pub is_own: bool,
}

impl Greeted {
    /// Connects and does the handshake, within `timeout`.
    pub fn at(address: &Address, timeout: Duration) -> Result<Greeted, NotConnected> {
        let deadline = Instant::now() + address.limit(timeout);
        let socket = connect(address, deadline).map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut if !matches!(address, Address::Tcp { .. }) => {
                NotConnected::Crowded(timeout)
            }
            _ => e.into(),
        })?;
        Greeted::on(socket, deadline, timeout)
    }

    /// The same on a connected socket. What is read from it must come before the deadline, until that is lifted.
    pub fn on(socket: Socket, deadline: Instant, timeout: Duration) -> Result<Greeted, NotConnected> {
        let socket = Arc::new(socket);
        let mut lines = LineReader::new(Incoming::new(socket.clone(), deadline));
        let peer = handshake(&mut lines, timeout)?;
        let listener = getsockopt(&*socket, PeerCredentials).ok();
        Ok(Greeted {
            listener: listener.and_then(|listener| Pid::from_raw(listener.pid())),
            is_own: false,
            socket,
            lines,
            peer,
        })
    }
}

/// Who answers.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) greeting: Greeting,
    /// It takes no request before it has answered the last one.
    pub(super) one_at_a_time: bool,
}

/// What is waited for.
enum State {
    Greeting,
    /// The reply to `qmp_capabilities`.
    Capabilities(Greeting),
    /// The reply to `query-version`, from libvirt's proxy: it greets with the version of the host's QEMU, which need
    /// not be that of the domain's.
    Version,
}

/// Reads the greeting, leaves capability negotiation mode, and asks for what the greeting does not tell.
///
/// # Errors
/// [`NotConnected`]
pub(super) fn handshake(lines: &mut LineReader<Incoming>, timeout: Duration) -> Result<Peer, NotConnected> {
    let socket = lines.source_mut().socket.clone();
    let ask = |command| (&*socket).write_all(&wire::command(command));
    let not_qmp = |what: String| Err(NotConnected::NotQmp(what));
    let mut state = State::Greeting;
    loop {
        let message = match lines.next() {
            Ok(Some(line)) => wire::decode(line),
            Ok(None) => return Err(state.closed()),
            Err(e) => return Err(state.failed(e, &socket, timeout)),
        };
        state = match (state, message) {
            // A proxy may have kept them for its next client.
            (state, Message::Event(_) | Message::BadEvent(_)) => state,
            (State::Greeting, Message::Greeting(greeting)) => {
                ask("qmp_capabilities")?;
                State::Capabilities(greeting)
            }
            (State::Greeting, other) => {
                return not_qmp(format!("no greeting, but {}", other.kind()));
            }
            (State::Capabilities(greeting), Message::Reply(Ok(_))) if greeting.is_libvirts() => {
                ask("query-version")?;
                State::Version
            }
            (State::Capabilities(greeting), Message::Reply(Ok(_))) => {
                return Ok(Peer {
                    greeting,
                    one_at_a_time: false,
                });
            }
            (State::Version, Message::Reply(Ok(version))) => {
                return match wire::words(version) {
                    Ok(greeting) => Ok(Peer {
                        greeting,
                        one_at_a_time: true,
                    }),
                    Err(e) => not_qmp(format!("query-version: {e}")),
                };
            }
            (state, Message::Reply(Err(e))) => {
                let command = state.asked().unwrap_or_default();
                return not_qmp(format!("it refused {command}: {e}"));
            }
            (_, other) => return not_qmp(other.kind()),
        };
    }
}

impl State {
    /// The command that is to be answered.
    fn asked(&self) -> Option<&'static str> {
        match self {
            State::Greeting => None,
            State::Capabilities(_) => Some("qmp_capabilities"),
            State::Version => Some("query-version"),
        }
    }

    /// What it means that the peer closes the connection.
    fn closed(&self) -> NotConnected {
        let Some(command) = self.asked() else {
            return NotConnected::NotQmp("it closed the connection at once".into());
        };
        let why = match self {
            State::Capabilities(greeting) if !greeting.is_libvirts() => "QEMU has ended",
            _ => "libvirt refuses it, or the domain has ended",
        };
        let why = format!("it greeted, but closed the connection over {command}: {why}");
        io::Error::new(io::ErrorKind::UnexpectedEof, why).into()
    }

    /// What it means that reading failed.
    fn failed(&self, error: io::Error, socket: &Socket, timeout: Duration) -> NotConnected {
        match error.kind() {
            io::ErrorKind::TimedOut => match (stopped_peer(socket), self) {
                (Some(pid), _) => NotConnected::Stopped(pid),
                (None, State::Greeting) => NotConnected::NoGreeting(timeout),
                (None, _) => {
                    let why = format!(
                        "QEMU greets, but answers nothing within {timeout:?}: it hangs, or is stopped"
                    );
                    io::Error::new(io::ErrorKind::TimedOut, why).into()
                }
            },
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                NotConnected::NotQmp(error.to_string())
            }
            _ => error.into(),
        }
    }
}

/// The process that listens at the other end of a Unix socket, if it is stopped, be it by a debugger.
fn stopped_peer(socket: &Socket) -> Option<i32> {
    let pid = getsockopt(socket, PeerCredentials).ok()?.pid();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may have blanks and brackets.
    let (_, state) = stat.rsplit_once(") ")?;
    state.starts_with(['T', 't']).then_some(pid)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::thread;

    pub const GREETING: &[u8] =
        b"{\"QMP\":{\"version\":{\"qemu\":{\"major\":7,\"minor\":2,\"micro\":0},\"package\":\"\"},\"capabilities\":[]}}\n";

    /// A handshake with a peer that says `first`, then `again` without end, up to 20 s.
    fn flooded(first: &'static [u8], again: &'static [u8], pause: Duration) -> NotConnected {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let start = Instant::now();
        let flood = thread::spawn(move || {
            let mut sent = peer.write_all(first);
            while sent.is_ok() && start.elapsed() < Duration::from_secs(20) {
                thread::sleep(pause);
                sent = peer.write_all(again);
            }
        });
        let socket = Arc::new(Socket::from(OwnedFd::from(ours)));
        let timeout = Duration::from_millis(300);
        let mut lines = LineReader::new(Incoming::new(socket, start + timeout));
        let outcome = handshake(&mut lines, timeout);
        let took = start.elapsed();
        drop(lines);
        flood.join().unwrap();
        assert!(took >= timeout && took < 20 * timeout, "{took:?}");
        outcome.unwrap_err()
    }

    #[test]
    fn a_peer_that_never_pauses_is_given_up_in_time() {
        const MILLISECOND: Duration = Duration::from_millis(1);
        for (first, again, pause, words) in [
            (
                GREETING,
                b"{\"event\":\"X\"}\n".as_slice(),
                Duration::ZERO,
                "hangs",
            ),
            (GREETING, b" ", MILLISECOND / 5, "hangs"),
            (b"", b" ", MILLISECOND / 5, "no QMP greeting"),
            (b"", b"{\"event\":\"X\"}\n", Duration::ZERO, "no QMP greeting"),
        ] {
            let error = flooded(first, again, pause).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
