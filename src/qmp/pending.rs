//! A request that was sent, and where its reply is put.

use std::mem::replace;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::connection::Connection;
use super::error::Error;
use super::reply::Reply;

/// The place of one request in the order of replies.
pub(super) struct Slot {
    progress: Mutex<Progress>,
    changed: Condvar,
    pub sent: Instant,
    /// Nobody waits for it yet, and perhaps nobody will.
    pub ahead: bool,
    /// The request for the log, at debug level only.
    pub shown: Option<String>,
}

enum Progress {
    /// QEMU owes the reply.
    Owed,
    Answered(Result<Reply, Error>),
    /// Nobody waits any more: the reply was taken, or its time ran out, and it is dropped when it comes.
    Over,
}

impl Slot {
    pub fn new(ahead: bool, shown: Option<String>) -> Arc<Slot> {
        Arc::new(Slot {
            progress: Mutex::new(Progress::Owed),
            changed: Condvar::new(),
            sent: Instant::now(),
            ahead,
            shown,
        })
    }

    /// Puts the reply there; false when it comes too late.
    pub fn fill(&self, reply: Result<Reply, Error>) -> bool {
        let mut progress = self.progress.lock();
        let in_time = matches!(*progress, Progress::Owed);
        if in_time {
            *progress = Progress::Answered(reply);
        }
        drop(progress);
        self.changed.notify_all();
        in_time
    }

    /// Whether there is nobody who waits for the reply.
    pub fn is_over(&self) -> bool {
        matches!(*self.progress.lock(), Progress::Over)
    }

    /// Waits until the deadline for the reply, or for whoever waits for it to give up.
    pub fn settle(&self, deadline: Instant) {
        let mut progress = self.progress.lock();
        let owed = |progress: &mut Progress| matches!(progress, Progress::Owed);
        self.changed.wait_while_until(&mut progress, owed, deadline);
    }

    /// Takes the reply; `None` when it has not come, and will be nobody's.
    fn take(&self) -> Option<Result<Reply, Error>> {
        let taken = replace(&mut *self.progress.lock(), Progress::Over);
        self.changed.notify_all();
        match taken {
            Progress::Answered(reply) => Some(reply),
            Progress::Owed | Progress::Over => None,
        }
    }
}

/// A request that was sent. Dropping it gives the reply up, not its place in the order.
pub struct Pending {
    pub(super) connection: Arc<Connection>,
    pub(super) slot: Arc<Slot>,
    /// When its time is over, which began when it was to be sent.
    pub(super) deadline: Instant,
    /// QEMU's socket took only the beginning at first.
    pub(super) cut_off: bool,
}

impl Pending {
    /// When the request was sent.
    pub fn sent(&self) -> Instant {
        self.slot.sent
    }

    /// Whether a result has come: no error, after which more may have to be asked.
    pub fn is_ready(&self) -> bool {
        matches!(*self.slot.progress.lock(), Progress::Answered(Ok(_)))
    }

    /// Waits for the reply until the timeout, counted from when the request was to be sent.
    ///
    /// # Errors
    /// What QEMU answered, or [`Error::Timeout`], or [`Error::Closed`].
    pub fn wait(self) -> Result<Reply, Error> {
        if self.cut_off && !self.is_ready() {
            self.connection.send_rest(&self.slot, self.deadline)?;
        }
        self.slot.settle(self.deadline);
        let too_late = Err(Error::Timeout(self.connection.timeout));
        self.slot.take().unwrap_or(too_late)
    }
}
