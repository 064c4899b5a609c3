//! Which thread answers a request of the kernel.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use log::error;

use super::busy_poll::BusyPoll;
use super::reply::Answer;
use crate::fs::{Result, Tree, Wait};
use crate::fuse::pool::Pool;

/// Threads that take requests from the kernel. One of them is always free of QEMU, for what
/// the cache can answer.
pub const THREADS: usize = 4;

/// Runs operations of the filesystem for the kernel's requests.
pub struct Dispatch {
    pub tree: Arc<Tree>,
    pool: Arc<Pool>,
    busy_poll: BusyPoll,
}

/// Which threads of the pool an operation waits on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Those that READs have for themselves: an OPEN that makes the kernel's size grow waits in the kernel
    /// until a READ is answered.
    Reads,
    Others,
}

impl Dispatch {
    /// `device` is the connection to the kernel that requests come from.
    pub fn new(tree: Arc<Tree>, device: OwnedFd) -> Dispatch {
        Dispatch {
            tree,
            pool: Arc::new(Pool::new(THREADS - 1)),
            busy_poll: BusyPoll::new(device),
        }
    }

    /// The threads that may be waiting for QEMU.
    pub fn pool(&self) -> Arc<Pool> {
        self.pool.clone()
    }

    /// Answers a request on the thread that took it, if the operation need not wait; else it is done again,
    /// where it may.
    pub fn run<T>(
        &self,
        reply: impl Answer<T> + Send + 'static,
        operation: impl Fn(&Tree, Wait) -> Result<T> + Send + 'static,
    ) {
        self.run_then(Queue::Others, operation, |_, result| reply.answer(result));
    }

    /// The same on threads of a kind, for a reply that is made in another way.
    pub fn run_then<T>(
        &self,
        queue: Queue,
        operation: impl Fn(&Tree, Wait) -> Result<T> + Send + 'static,
        reply: impl FnOnce(&Tree, Result<T>) + Send + 'static,
    ) {
        catch_panic(|| match operation(&self.tree, Wait::No) {
            Err(e) if e.would_block() => {
                self.busy_poll.stop();
                let tree = self.tree.clone();
                let job = move || catch_panic(|| reply(&tree, operation(&tree, Wait::Yes)));
                match queue {
                    Queue::Reads => self.pool.run_read(job),
                    Queue::Others => self.pool.run(job),
                }
            }
            result => reply(&self.tree, result),
        });
        self.busy_poll.poll_next();
    }
}

/// Contains a panic: the reply that it drops tells the caller EIO, and the thread goes on.
pub(super) fn catch_panic(job: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        error!("internal error: a request failed with a panic; its caller got EIO");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_request_that_panics_is_contained() {
        let pool = Pool::new(0);
        pool.run(|| catch_panic(|| panic!("for a test")));
        let (tx, rx) = std::sync::mpsc::channel();
        pool.run(move || catch_panic(|| tx.send(7).unwrap_or_default()));
        assert_eq!(rx.recv_timeout(Duration::from_secs(10)), Ok(7));
    }
}
