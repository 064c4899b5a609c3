//! A monitor of the mount's own: QEMU makes it over the given one, which serves others then. QEMU removes it when
//! our end closes, for whatever reason.

use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use log::{debug, warn};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use super::address::Address;
use super::error::{Error, NotConnected};
use super::handshake::Greeted;
use super::monitor::MonitorOptions;
use super::wire::{self, Message, Version};
use crate::text::printable;

/// The first QEMU that makes monitors on demand.
const SINCE: Version = Version {
    major: 11,
    minor: 1,
    micro: 0,
};
/// How long a new monitor has to greet.
const GREETING: Duration = Duration::from_secs(2);
/// The most names that are tried: one for each mount of the machine.
const MAX_NAMES: u32 = 64;
/// What QEMU calls the new monitor's socket until it is in use; another client may use the same name.
const SOCKET_NAME: &str = "qom-fuse";

/// Which monitor is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MonitorChoice {
    /// One of our own where QEMU makes one, else the given one.
    Auto,
    /// One of our own.
    Own,
    /// The given one.
    Given,
}

/// Why there is no monitor of our own.
enum Failure {
    /// The given one can still be used.
    Refused(String),
    /// It cannot.
    Lost(io::Error),
}

/// Opens what is used: the monitor at an address, or one of our own that is made over it.
///
/// # Errors
/// When there is no connection, or one of our own was asked for and cannot be.
pub(super) fn open(address: &Address, options: &MonitorOptions) -> Result<Greeted, NotConnected> {
    let mut given = Greeted::at(address, options.timeout)?;
    let wanted = options.choice == MonitorChoice::Own;
    // Nobody else could use a descriptor that was given to us.
    if options.choice == MonitorChoice::Given || matches!(address, Address::Fd(_)) {
        return Ok(given);
    }
    if let Some(why) = why_not(&given, address) {
        return if wanted {
            Err(NotConnected::NoOwnMonitor(why))
        } else {
            Ok(given)
        };
    }
    let keeps = "QEMU makes no monitor for this mount, which keeps the given one";
    // That another client had to be waited for is no reason to fail now.
    given
        .lines
        .source_mut()
        .set_deadline(Instant::now() + options.timeout);
    match take(&mut given, options.timeout.min(GREETING)) {
        Ok((mut own, id)) => {
            (own.listener, own.is_own) = (given.listener, true);
            debug!("{address}: QEMU has made the monitor {id} for this mount; the given one serves others");
            Ok(own)
        }
        Err(Failure::Refused(why)) if wanted => Err(NotConnected::NoOwnMonitor(why)),
        Err(Failure::Refused(why)) => {
            warn!("{address}: {keeps}: {}", printable(&why));
            Ok(given)
        }
        // A peer that is no QEMU may close the connection over what it does not know.
        Err(Failure::Lost(e))
            if !wanted && matches!(e.kind(), UnexpectedEof | BrokenPipe | ConnectionReset) =>
        {
            warn!("{address}: {keeps}: {e}");
            drop(given);
            Greeted::at(address, options.timeout)
        }
        Err(Failure::Lost(e)) => Err(e.into()),
    }
}

/// Why QEMU need not be asked.
fn why_not(given: &Greeted, address: &Address) -> Option<String> {
    if matches!(address.found(), Some(Address::Tcp { .. })) {
        return Some("only a Unix socket passes one on, and this is TCP".into());
    }
    if given.peer.one_at_a_time {
        return Some("libvirt passes no socket on".into());
    }
    let greeting = &given.peer.greeting;
    (greeting.version < SINCE).then(|| format!("{greeting} does not make them, QEMU does from 11.1 on"))
}

/// Has QEMU make a monitor under the first name that is free, which is returned too.
fn take(given: &mut Greeted, timeout: Duration) -> Result<(Greeted, String), Failure> {
    let mut last = Failure::Refused(String::new());
    for number in 1..=MAX_NAMES {
        let id = match number {
            1 => "qom-fuse".to_owned(),
            number => format!("qom-fuse-{number}"),
        };
        match make(given, &id, timeout) {
            Ok(own) => return Ok((own, id)),
            Err(Failure::Refused(why)) if is_taken(&why) => last = Failure::Refused(why),
            Err(failure) => return Err(failure),
        }
    }
    Err(last)
}

/// Whether QEMU refuses a name since something else has it: `chardev-add` and `object-add` have different words.
fn is_taken(why: &str) -> bool {
    why.contains("already exists") || why.contains("duplicate")
}

/// Has QEMU make a monitor of this name. What was made is removed where it fails.
fn make(given: &mut Greeted, id: &str, timeout: Duration) -> Result<Greeted, Failure> {
    let (ours, theirs) = UnixStream::pair()?;
    given.ask("getfd", &json!({ "fdname": SOCKET_NAME }), Some(theirs.as_fd()))?;
    drop(theirs);
    let socket = json!({ "type": "fd", "data": { "str": SOCKET_NAME } });
    let backend = json!({ "type": "socket", "data": { "addr": socket, "server": false } });
    let chardev = json!({ "id": id, "backend": backend });
    let monitor = json!({ "qom-type": "monitor-qmp", "id": id, "chardev": id, "close-action": "delete" });
    if let Err(failure) = given.ask("chardev-add", &chardev, None) {
        return Err(given.undo(failure, &[("closefd", json!({ "fdname": SOCKET_NAME }))]));
    }
    if let Err(failure) = given.ask("object-add", &monitor, None) {
        return Err(given.undo(failure, &[("chardev-remove", json!({ "id": id }))]));
    }
    Greeted::on(OwnedFd::from(ours).into(), Instant::now() + timeout, timeout).map_err(|e| {
        let failure = Failure::Refused(match e {
            NotConnected::NoGreeting(after) => format!("no greeting on it within {after:?}"),
            NotConnected::NotQmp(what) => format!("no QMP on it: {what}"),
            e => e.to_string(),
        });
        let id = json!({ "id": id });
        given.undo(failure, &[("object-del", id.clone()), ("chardev-remove", id)])
    })
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Lost(error)
    }
}

impl Greeted {
    /// Executes a command, before anything else does, and waits for its reply. A descriptor goes with it.
    fn ask(
        &mut self,
        command: &str,
        arguments: &Value,
        descriptor: Option<BorrowedFd>,
    ) -> Result<(), Failure> {
        let request = wire::request(command, arguments);
        // In one message: QEMU keeps only the descriptors of the last one that it has read.
        let descriptors: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let rights = &rights[..descriptors.len()];
        let (socket, flags) = (self.socket.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
        let sent = sendmsg::<()>(socket, &[IoSlice::new(&request)], rights, flags, None);
        if sent.map_err(io::Error::from)? < request.len() {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        let failed = |kind, why| Failure::Lost(io::Error::new(kind, why));
        loop {
            let line = self.lines.next().map_err(|e| {
                let why = format!("QEMU greets, but does not answer {command}: {e}");
                failed(e.kind(), why)
            })?;
            match line.map(wire::decode) {
                Some(Message::Reply(Ok(_))) => return Ok(()),
                Some(Message::Reply(Err(Error::Refused { desc, .. }))) => return Err(Failure::Refused(desc)),
                // Nothing was asked yet that they could be about.
                Some(Message::Event(_) | Message::BadEvent(_)) => {}
                Some(other) => {
                    let why = format!("{} in answer to {command}", other.kind());
                    return Err(failed(io::ErrorKind::InvalidData, why));
                }
                None => {
                    let why = format!("it closed the connection over {command}");
                    return Err(failed(UnexpectedEof, why));
                }
            }
        }
    }

    /// Takes back what was made before something failed, and gives that failure, or a worse one. It may be gone
    /// already.
    fn undo(&mut self, failure: Failure, commands: &[(&str, Value)]) -> Failure {
        if matches!(failure, Failure::Lost(_)) {
            return failure;
        }
        // What was waited for before may have taken all the time that there was.
        let deadline = Instant::now() + GREETING;
        self.lines.source_mut().set_deadline(deadline);
        for (command, arguments) in commands {
            // A reply that is still to come would be taken for another request's.
            if let Err(lost @ Failure::Lost(_)) = self.ask(command, arguments, None) {
                return lost;
            }
        }
        failure
    }
}
