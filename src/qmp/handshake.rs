//! The first words of a connection.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::error::ConnectError;
use super::lines::LineReader;
use super::wire::{self, Greeting, Message, printable};

/// The reading side of the socket, under a deadline until the handshake is done.
pub(super) struct Incoming {
    pub(super) socket: Arc<Socket>,
    pub(super) deadline: Option<Instant>,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            // Zero would mean no timeout at all.
            self.socket
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        }
        (&*self.socket).read(buffer).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => e,
        })
    }
}

/// Reads the greeting and leaves capability negotiation mode.
///
/// # Errors
/// [`ConnectError`]
pub(super) fn handshake(
    socket: &Socket,
    lines: &mut LineReader<Incoming>,
    address: &str,
    timeout: Duration,
) -> Result<Greeting, ConnectError> {
    let not_qmp = |what: String| ConnectError::NotQmp {
        address: address.to_owned(),
        what: printable(&what),
    };
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::TimedOut => ConnectError::NoGreeting {
            address: address.to_owned(),
            after: timeout,
        },
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => not_qmp(e.to_string()),
        _ => ConnectError::Io {
            address: address.to_owned(),
            source: e,
        },
    };
    let mut message = || match lines.next() {
        Ok(Some(line)) => Ok(wire::decode(line)),
        Ok(None) => Err(not_qmp("it closed the connection at once".into())),
        Err(e) => Err(failed(e)),
    };
    let greeting = match message()? {
        Message::Greeting(greeting) => greeting,
        other => return Err(not_qmp(format!("no greeting, but {}", other.kind()))),
    };
    let mut ready = socket;
    io::Write::write_all(&mut ready, &wire::command("qmp_capabilities")).map_err(failed)?;
    loop {
        match message()? {
            Message::Reply(Ok(_)) => return Ok(greeting),
            Message::Reply(Err(e)) => return Err(not_qmp(format!("it refused qmp_capabilities: {e}"))),
            Message::Event(_) | Message::BadEvent(_) => {}
            other => return Err(not_qmp(other.kind())),
        }
    }
}
