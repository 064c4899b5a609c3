//! What can go wrong between us and a QMP monitor.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::address::Address;
use crate::text::printable;

/// Why a request got no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// QEMU answered with an error: its class (`GenericError`, `DeviceNotFound`, …) and its words.
    #[error("{}", printable(desc))]
    Refused { class: String, desc: String },
    /// The request was sent and no reply came in time; it may still take effect.
    #[error("QEMU has not replied within {0:?}; the request may still take effect")]
    Timeout(Duration),
    /// The request was never sent: QEMU owes replies to earlier ones, or does not read its socket, or it was
    /// not this one's turn in time.
    #[error(
        "QEMU does not answer (a reply is overdue, its socket is full, or others wait for it); this request \
         was not sent"
    )]
    Stalled,
    /// The request was never sent: the peer would break off.
    #[error("too long for libvirt: {0} bytes, at most {1}; this request was not sent")]
    TooLong(usize, usize),
    /// The connection ended before the reply came.
    #[error("not connected to QEMU: {0}")]
    Closed(Arc<Closed>),
    /// The request was never sent: the connection has ended.
    #[error("not connected to QEMU: {0}")]
    Unsent(Arc<Closed>),
    /// The request was never sent: its monitor was let go of, and cannot be had now.
    #[error("the monitor serves others when it is not used (-o idle), and cannot be had again: {0}")]
    Away(Arc<ConnectError>),
    /// The request was never sent: it is about what an earlier connection had.
    #[error("QEMU was connected again since this file was opened, and may be another one: open it again")]
    Reconnected,
    /// QEMU's reply to this request makes no sense; later ones are not affected.
    #[error("QEMU's reply cannot be decoded: {}", printable(.0))]
    Undecodable(String),
    /// QEMU's reply was dropped: there are too many large ones at once.
    #[error("QEMU replies with more than there is memory for")]
    TooMuch,
}

/// Why a connection ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Closed {
    /// The monitor closed it: QEMU ended, or the monitor was removed.
    #[error("QEMU closed the monitor")]
    Eof,
    /// The socket failed.
    #[error("the monitor's socket failed: {0}")]
    Io(String),
    /// The peer sent something that is not QMP; nothing it says can be trusted any more.
    #[error("the monitor does not speak QMP: {}", printable(.0))]
    Garbage(String),
    /// A part of qom-fuse itself broke (a panic in the reader).
    #[error("internal error: {0}")]
    Internal(String),
    /// We let go of it, for others; seen only when QEMU is not there any more.
    #[error("QEMU has ended since its monitor was last used")]
    Idle,
    /// We closed it.
    #[error("disconnected")]
    Ours,
}

impl Closed {
    /// True when QEMU simply went away, which is no failure of anybody's.
    pub fn is_orderly(&self) -> bool {
        matches!(self, Closed::Eof | Closed::Io(_) | Closed::Idle | Closed::Ours)
    }
}

impl From<io::Error> for Closed {
    fn from(error: io::Error) -> Closed {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, InvalidData, UnexpectedEof};
        match error.kind() {
            // The peer ended, with or without having read all that we sent.
            UnexpectedEof | ConnectionReset | BrokenPipe => Closed::Eof,
            InvalidData => Closed::Garbage(error.to_string()),
            _ => Closed::Io(error.to_string()),
        }
    }
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum NotConnected {
    #[error("{}{}", .0, hint(.0))]
    Io(#[from] io::Error),
    #[error(
        "no QMP greeting within {0:?}: another client holds this monitor (a QMP socket serves one client at a \
         time). End that client, or give QEMU a second monitor: -qmp unix:/path/to/second.sock,server=on,wait=off"
    )]
    NoGreeting(Duration),
    #[error(
        "no connection within {0:?}: others wait for it already: another client holds this monitor (a QMP socket \
         serves one client at a time), or QEMU is stopped (state T in ps)"
    )]
    Crowded(Duration),
    /// The number of the process.
    #[error(
        "QEMU (process {0}) is stopped and answers nothing: let it go on (kill -CONT {0}), or let its debugger \
         do so"
    )]
    Stopped(i32),
    #[error(
        "connected, but this is no QMP monitor: {}. Give the socket of -qmp (or of -mon …,mode=control), not that \
         of a human monitor, serial port or guest agent",
        printable(.0)
    )]
    NotQmp(String),
    #[error("QEMU makes no monitor for this mount (-o monitor=own): {}", printable(.0))]
    NoOwnMonitor(String),
}

/// The same, with the address.
#[derive(Debug, thiserror::Error)]
#[error("{}{address}: {why}", if matches!(why, NotConnected::Io(_)) { "cannot connect to " } else { "" })]
pub struct ConnectError {
    address: String,
    why: NotConnected,
}

impl ConnectError {
    pub fn new(address: &Address, why: NotConnected) -> ConnectError {
        ConnectError {
            address: address.to_string(),
            why,
        }
    }

    /// Whether QEMU may be there, and only does not get to us: another client is served, or it is stopped.
    pub fn is_held(&self) -> bool {
        match &self.why {
            NotConnected::NoGreeting(_) | NotConnected::Crowded(_) | NotConnected::Stopped(_) => true,
            NotConnected::Io(error) => error.kind() == io::ErrorKind::TimedOut,
            NotConnected::NotQmp(_) | NotConnected::NoOwnMonitor(_) => false,
        }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            " (is QEMU running, and was it started with -qmp unix:PATH,server=on,wait=off?)"
        }
        io::ErrorKind::ConnectionRefused => {
            " (the QEMU that made this socket has ended, or does not listen there)"
        }
        io::ErrorKind::PermissionDenied => {
            " (the socket belongs to another user: see ls -l, or run as that user)"
        }
        _ => "",
    }
}
