//! Which thread answers a request of the kernel.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use log::error;

use super::busy_poll::BusyPoll;
use crate::pool::Pool;
use crate::tree::Tree;

/// Threads that take requests from the kernel. One of them is always free of QEMU, for what
/// the cache can answer.
pub const THREADS: usize = 4;

/// The tree, and who works on it.
pub struct Threads {
    pub tree: Arc<Tree>,
    pool: Arc<Pool>,
    busy_poll: BusyPoll,
}

impl Threads {
    /// `device` is the connection to the kernel that requests come from.
    pub fn new(tree: Arc<Tree>, device: OwnedFd) -> Threads {
        Threads {
            tree,
            pool: Arc::new(Pool::new(THREADS - 1)),
            busy_poll: BusyPoll::new(device),
        }
    }

    /// The threads that may be waiting for QEMU.
    pub fn pool(&self) -> Arc<Pool> {
        self.pool.clone()
    }

    /// Answers a request from memory, or finds out what it takes, on the thread that took it.
    pub fn answer(&self, job: impl FnOnce(&Tree)) {
        catch_panic(|| job(&self.tree));
        self.busy_poll.poll_next();
    }

    /// Does what nobody waits for, on the thread that took it.
    pub fn note(&self, job: impl FnOnce(&Tree)) {
        catch_panic(|| job(&self.tree));
    }

    /// Runs what may wait for QEMU.
    pub fn wait(&self, job: impl FnOnce(&Tree) + Send + 'static) {
        self.busy_poll.stop();
        self.hardly_wait(job);
    }

    /// Runs a READ that may wait for QEMU. It never stands behind an OPEN that makes the kernel's size
    /// grow, for which the kernel waits until such a READ is answered.
    pub fn wait_to_read(&self, job: impl FnOnce(&Tree) + Send + 'static) {
        self.busy_poll.stop();
        let tree = self.tree.clone();
        self.pool.run_read(move || catch_panic(|| job(&tree)));
    }

    /// Runs what waits for QEMU only if what is at hand proves to be of no use: counted all the same among
    /// those that may be waiting.
    pub fn hardly_wait(&self, job: impl FnOnce(&Tree) + Send + 'static) {
        let tree = self.tree.clone();
        self.pool.run(move || catch_panic(|| job(&tree)));
    }
}

/// Contains a panic: the reply that it drops tells the caller EIO, and the thread goes on.
fn catch_panic(job: impl FnOnce()) {
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
