//! Memory that is counted: what all of one kind may hold together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// A limit in bytes, and what is held of it.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    held: Mutex<usize>,
    given_back: Condvar,
}

/// A part of a budget, given back when it is dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub fn new(limit: usize) -> Arc<Budget> {
        Arc::new(Budget {
            limit,
            held: Mutex::new(0),
            given_back: Condvar::new(),
        })
    }

    /// Takes a part of it, if there is room.
    pub fn charge(self: &Arc<Budget>, bytes: usize) -> Option<Charge> {
        let mut held = self.held.lock();
        (*held + bytes <= self.limit).then(|| self.take(&mut held, bytes))
    }

    /// The same, waiting for room. What is more than the limit gets in when nothing else is held.
    pub fn charge_within(self: &Arc<Budget>, bytes: usize, patience: Duration) -> Option<Charge> {
        let until = Instant::now() + patience;
        let mut held = self.held.lock();
        let full = |held: &mut usize| *held > 0 && *held + bytes > self.limit;
        let waited = self.given_back.wait_while_until(&mut held, full, until);
        (!waited.timed_out()).then(|| self.take(&mut held, bytes))
    }

    fn take(self: &Arc<Budget>, held: &mut usize, bytes: usize) -> Charge {
        *held += bytes;
        Charge {
            budget: self.clone(),
            bytes,
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        *self.budget.held.lock() -= self.bytes;
        self.budget.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn room_for_some_or_for_one_that_is_too_large() {
        let budget = Budget::new(100);
        assert!(budget.charge(101).is_none());
        let huge = budget.charge_within(1000, Duration::ZERO).unwrap();
        assert!(budget.charge(1).is_none());
        assert!(budget.charge_within(1, Duration::from_millis(1)).is_none());
        let start = Instant::now();
        let leaving = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(huge);
        });
        let next = budget.charge_within(40, Duration::from_secs(20)).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(50), "it did not wait");
        leaving.join().unwrap();
        let beside = budget.charge(60).unwrap();
        assert!(budget.charge(1).is_none());
        drop(next);
        assert!(budget.charge(41).is_none());
        drop((budget.charge(40).unwrap(), beside));
        assert_eq!(*budget.held.lock(), 0);
    }
}
