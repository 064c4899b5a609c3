//! The reading side of a connection: what comes, in its order.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use log::warn;

use super::connection::Connection;
use super::error::Closed;
use super::handshake::Incoming;
use super::lines::LineReader;
use super::wire::{self, Event, Message};
use crate::text::printable;

/// Gives out every line until the end of the connection, and says why it ended. An event is dealt with before any
/// later reply is given out.
pub(super) fn read_all(
    connection: &Connection,
    mut lines: LineReader<Incoming>,
    on_event: impl Fn(Event),
) -> Arc<Closed> {
    let read = AssertUnwindSafe(|| read_lines(connection, &mut lines, on_event));
    let why = catch_unwind(read).unwrap_or_else(|_| Closed::Internal("the reader panicked".into()));
    connection.close(why)
}

fn read_lines(connection: &Connection, lines: &mut LineReader<Incoming>, on_event: impl Fn(Event)) -> Closed {
    loop {
        let line = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => return Closed::Eof,
            Err(e) => return e.into(),
        };
        match wire::decode(line) {
            Message::Reply(reply) => {
                if !connection.answer(reply) {
                    return Closed::Garbage("a reply that no request asked for".into());
                }
            }
            Message::Event(event) => on_event(event),
            Message::BadEvent(what) => warn!("an event that cannot be decoded: {}", printable(&what)),
            Message::Greeting(_) => return Closed::Garbage("a second greeting".into()),
            Message::Garbage(what) => return Closed::Garbage(what),
        }
    }
}
