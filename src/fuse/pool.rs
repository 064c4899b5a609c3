//! Threads for what may wait for QEMU.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use log::error;
use parking_lot::{Condvar, Mutex};

use crate::limits::{READ_THREADS, WORKER_THREADS};

type Job = Box<dyn FnOnce() + Send>;

const IDLE: Duration = Duration::from_secs(5);

/// Runs a job on the calling thread where that leaves other callers free, which saves a
/// switch between threads; else on a thread of its own.
pub struct Pool {
    /// How many callers may be busy at once.
    inline: usize,
    busy: AtomicUsize,
    shared: Arc<Shared>,
    /// Threads of their own for what the others may wait for.
    reads: Arc<Shared>,
}

struct Shared {
    max_threads: usize,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Pool {
    pub fn new(inline: usize) -> Pool {
        Pool {
            inline,
            busy: AtomicUsize::new(0),
            shared: Shared::new(WORKER_THREADS),
            reads: Shared::new(READ_THREADS),
        }
    }

    /// Runs a job, now or soon. A job must not panic.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.run_or_queue(job, &self.shared);
    }

    /// The same for a READ, which never queues behind other jobs: they may wait for it.
    pub fn run_read(&self, job: impl FnOnce() + Send + 'static) {
        self.run_or_queue(job, &self.reads);
    }

    fn run_or_queue(&self, job: impl FnOnce() + Send + 'static, queue: &Arc<Shared>) {
        if self.busy.fetch_add(1, Ordering::AcqRel) < self.inline {
            job();
            self.busy.fetch_sub(1, Ordering::AcqRel);
        } else {
            self.busy.fetch_sub(1, Ordering::AcqRel);
            queue.push(Box::new(job));
        }
    }

    /// Waits until no job is under way, at most for `limit`; false when one still is.
    pub fn wait_idle(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            let quiet = self.shared.is_idle() && self.reads.is_idle();
            if quiet && self.busy.load(Ordering::Acquire) == 0 {
                return true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        false
    }
}

impl Shared {
    fn new(max_threads: usize) -> Arc<Shared> {
        Arc::new(Shared {
            max_threads,
            state: Mutex::default(),
            work: Condvar::new(),
        })
    }

    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.jobs.is_empty() && state.idle == state.threads
    }

    fn push(self: &Arc<Self>, job: Job) {
        let mut state = self.state.lock();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() || state.threads >= self.max_threads {
            self.work.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let shared = self.clone();
        let spawned = thread::Builder::new()
            .name("worker".into())
            .spawn(move || shared.work());
        if let Err(e) = spawned {
            error!("cannot start a thread: {e}");
            let mut state = self.state.lock();
            state.threads -= 1;
            // Without any thread nobody would ever do it.
            if state.threads == 0
                && let Some(job) = state.jobs.pop_back()
            {
                drop(state);
                job();
            }
        }
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            let timed_out = self.work.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::mpsc::channel;

    #[test]
    fn callers_beyond_the_limit_do_not_wait() {
        let pool = Arc::new(Pool::new(1));
        let gate = Arc::new(Barrier::new(2));
        let (held, caller) = (gate.clone(), pool.clone());
        let inline = thread::spawn(move || {
            caller.run(move || {
                held.wait();
            });
        });
        while pool.busy.load(Ordering::Acquire) == 0 {
            thread::yield_now();
        }
        let (tx, rx) = channel();
        for i in 0..100 {
            let tx = tx.clone();
            pool.run(move || tx.send(i).unwrap_or_default());
        }
        let mut done: Vec<i32> = rx.iter().take(100).collect();
        done.sort_unstable();
        assert_eq!(done, (0..100).collect::<Vec<_>>());
        assert!(
            !pool.wait_idle(Duration::from_millis(20)),
            "one job is still held"
        );
        gate.wait();
        inline.join().unwrap();
        assert!(pool.wait_idle(Duration::from_secs(60)));
    }
}
