//! The first words of a connection.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use socket2::Socket;

use super::error::ConnectError;
use super::lines::LineReader;
use super::wire::{self, Greeting, Message};
use crate::text::printable;

/// The reading side of the socket, under a deadline until the handshake is done.
pub(super) struct Incoming {
    pub(super) socket: Arc<Socket>,
    pub(super) deadline: Option<Instant>,
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

/// Who answers.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) greeting: Greeting,
    /// It takes no request before it has answered the last one.
    pub(super) one_at_a_time: bool,
}

/// Reads the greeting, leaves capability negotiation mode, and asks for what the greeting does not tell.
///
/// # Errors
/// [`ConnectError`]
pub(super) fn handshake(
    socket: &Socket,
    lines: &mut LineReader<Incoming>,
    address: &str,
    timeout: Duration,
) -> Result<Peer, ConnectError> {
    let not_qmp = |what: String| ConnectError::NotQmp {
        address: address.to_owned(),
        what: printable(&what),
    };
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::TimedOut => match stopped_peer(socket) {
            Some(pid) => ConnectError::Stopped {
                address: address.to_owned(),
                pid,
            },
            None => ConnectError::NoGreeting {
                address: address.to_owned(),
                after: timeout,
            },
        },
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => not_qmp(e.to_string()),
        _ => ConnectError::Io {
            address: address.to_owned(),
            source: e,
        },
    };
    let mut message = || match lines.next() {
        Ok(line) => Ok(line.map(wire::decode)),
        Err(e) => Err(failed(e)),
    };
    let mut greeting = loop {
        match message()? {
            Some(Message::Greeting(greeting)) => break greeting,
            // A proxy may have kept them for its next client.
            Some(Message::Event(_) | Message::BadEvent(_)) => {}
            Some(other) => return Err(not_qmp(format!("no greeting, but {}", other.kind()))),
            None => return Err(not_qmp("it closed the connection at once".into())),
        }
    };
    let one_at_a_time = greeting.is_libvirts();
    let broken = |kind: io::ErrorKind, why: String| ConnectError::Io {
        address: address.to_owned(),
        source: io::Error::new(kind, why),
    };
    let hangs = || {
        let why = format!("QEMU greets, but answers nothing within {timeout:?}: it hangs, or is stopped");
        broken(io::ErrorKind::TimedOut, why)
    };
    let left = |command: &str| {
        let why = match one_at_a_time {
            true => "libvirt refuses it, or the domain has ended",
            false => "QEMU has ended",
        };
        let why = format!("it greeted, but closed the connection over {command}: {why}");
        broken(io::ErrorKind::UnexpectedEof, why)
    };
    let mut ask = |command: &str| {
        let mut ready = socket;
        io::Write::write_all(&mut ready, &wire::command(command)).map_err(failed)?;
        loop {
            let answer = message().map_err(|e| match e {
                ConnectError::NoGreeting { .. } => hangs(),
                other => other,
            });
            match answer? {
                Some(Message::Reply(Ok(reply))) => return Ok(reply),
                Some(Message::Reply(Err(e))) => return Err(not_qmp(format!("it refused {command}: {e}"))),
                Some(Message::Event(_) | Message::BadEvent(_)) => {}
                Some(other) => return Err(not_qmp(other.kind())),
                None => return Err(left(command)),
            }
        }
    };
    ask("qmp_capabilities")?;
    if one_at_a_time {
        // libvirt's proxy greets with the version of the host's QEMU, which need not be that of the domain's.
        let version = ask("query-version")?;
        greeting = wire::parse_version(&version).map_err(|e| not_qmp(format!("query-version: {e}")))?;
    }
    Ok(Peer {
        greeting,
        one_at_a_time,
    })
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
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::thread;

    pub const GREETING: &[u8] =
        b"{\"QMP\":{\"version\":{\"qemu\":{\"major\":7,\"minor\":2,\"micro\":0},\"package\":\"\"},\"capabilities\":[]}}\n";

    /// A handshake with a peer that says `first`, then `again` without end, up to 20 s.
    fn flooded(first: &'static [u8], again: &'static [u8], pause: Duration) -> ConnectError {
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
        let mut lines = LineReader::new(Incoming {
            socket: socket.clone(),
            deadline: Some(start + timeout),
        });
        let outcome = handshake(&socket, &mut lines, "vm.sock", timeout);
        let took = start.elapsed();
        drop((socket, lines));
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
