//! Where one request's reply is put.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::budget::Text;
use super::error::Error;

/// A reply as it came.
pub(super) type Reply = Result<Text, Error>;

/// One request that was sent, or is about to be.
pub(super) struct Slot {
    outcome: Mutex<Outcome>,
    ready: Condvar,
    pub sent: Instant,
    /// Nobody waits for it yet, and perhaps nobody will.
    ahead: bool,
    /// For the log, at debug level only.
    pub text: Option<String>,
}

enum Outcome {
    Waiting,
    /// The time ran out; the reply is dropped when it comes.
    Overdue,
    Done(Reply),
    Taken,
}

impl Slot {
    pub fn new(ahead: bool, text: Option<String>) -> Arc<Slot> {
        Arc::new(Slot {
            outcome: Mutex::new(Outcome::Waiting),
            ready: Condvar::new(),
            sent: Instant::now(),
            ahead,
            text,
        })
    }

    /// Puts the reply there. True when it comes too late.
    pub fn fill(&self, reply: Reply) -> bool {
        let mut outcome = self.outcome.lock();
        let reply = reply.and_then(|mut text| {
            if self.ahead && !text.set_aside() {
                return Err(Error::Undecodable("a reply too long to be held ahead".into()));
            }
            Ok(text)
        });
        let late = matches!(*outcome, Outcome::Overdue);
        *outcome = Outcome::Done(reply);
        self.ready.notify_all();
        late
    }

    /// Whether the reply is there and no error, and taking it waits for nothing.
    pub fn has_result(&self) -> bool {
        matches!(&*self.outcome.lock(), Outcome::Done(Ok(text)) if text.has_room())
    }

    /// Takes the reply, waiting for it until the deadline. `None` when it has not come; `overdue` is
    /// called then before it can come.
    pub fn take(&self, deadline: Instant, overdue: impl FnOnce()) -> Option<Reply> {
        let mut outcome = self.outcome.lock();
        while matches!(*outcome, Outcome::Waiting) {
            if self.ready.wait_until(&mut outcome, deadline).timed_out() {
                break;
            }
        }
        if let Outcome::Done(reply) = std::mem::replace(&mut *outcome, Outcome::Taken) {
            drop(outcome);
            return Some(reply.and_then(Text::take_up));
        }
        *outcome = Outcome::Overdue;
        overdue();
        None
    }
}
