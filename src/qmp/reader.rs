//! The reading side of a connection: a thread that gives out what comes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use log::warn;

use super::budget::{Budget, Text};
use super::error::Closed;
use super::handshake::Incoming;
use super::lines::LineReader;
use super::slot::Reply;
use super::wire::{self, Event, Message};
use crate::text::printable;

/// Called from the reader thread; must not wait for a reply.
pub(super) trait Listener: Send + Sync + 'static {
    fn event(&self, event: Event);
    fn closed(&self, why: &Arc<Closed>);
}

/// The reader thread: every line until the end of the connection, which is returned. `answer` gives a reply
/// to the request that it is of; false when there is none.
pub(super) fn read_all(
    mut lines: LineReader<Incoming>,
    answer: impl Fn(Reply) -> bool,
    listener: &dyn Listener,
) -> Closed {
    catch_unwind(AssertUnwindSafe(|| read_lines(&mut lines, answer, listener)))
        .unwrap_or_else(|_| Closed::Internal("the reader panicked".into()))
}

fn read_lines(
    lines: &mut LineReader<Incoming>,
    answer: impl Fn(Reply) -> bool,
    listener: &dyn Listener,
) -> Closed {
    let budget = Arc::new(Budget::default());
    loop {
        let line = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => return Closed::Eof,
            Err(e) => return e.into(),
        };
        // Before it is copied.
        let charge = budget.charge(line);
        match wire::decode(line) {
            Message::Reply(reply) => {
                if !answer(reply.and_then(|raw| Ok(Text::new(raw, charge?)))) {
                    return Closed::Garbage("a reply that no request asked for".into());
                }
            }
            Message::Event(event) => listener.event(event),
            Message::BadEvent(what) => warn!("an event that cannot be decoded: {}", printable(&what)),
            Message::Greeting(_) => return Closed::Garbage("a second greeting".into()),
            Message::Garbage(what) => return Closed::Garbage(what),
        }
    }
}
