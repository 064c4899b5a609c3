//! Replies of a size of which there should not be many at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::value::RawValue;

/// From here on a line is large, in bytes.
const LARGE: usize = 1 << 20;
/// How long the next large line waits for its turn: whoever has the one before only has to decode it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Lets one large reply in at a time. Many callers may ask for values of tens of MiB at once, and what
/// each of them decodes takes several times the value; so the reader does not go on before the last one is done.
#[derive(Default)]
pub(super) struct Gate {
    inside: Mutex<usize>,
    left: Condvar,
}

/// A place inside, until it is dropped.
pub(super) struct Place(Arc<Gate>);

/// The JSON text of a reply's `return`.
pub struct Text {
    raw: Box<RawValue>,
    /// Given up when the text is dropped.
    _place: Option<Place>,
}

impl Gate {
    /// A place for a line of this length, if it needs one.
    pub fn enter(self: &Arc<Gate>, length: usize) -> Option<Place> {
        if length < LARGE {
            return None;
        }
        let until = Instant::now() + PATIENCE;
        let mut inside = self.inside.lock();
        while *inside > 0 {
            if self.left.wait_until(&mut inside, until).timed_out() {
                break;
            }
        }
        *inside += 1;
        Some(Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.inside.lock() -= 1;
        self.0.left.notify_all();
    }
}

impl Text {
    pub(super) fn new(raw: Box<RawValue>, place: Option<Place>) -> Text {
        Text { raw, _place: place }
    }

    /// The text itself.
    pub fn get(&self) -> &str {
        self.raw.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn one_large_reply_at_a_time() {
        let gate = Arc::new(Gate::default());
        assert!(gate.enter(LARGE - 1).is_none());
        let first = gate.enter(LARGE);
        assert!(first.is_some());
        let left = Instant::now();
        let leaving = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(first);
        });
        let second = gate.enter(LARGE);
        assert!(left.elapsed() >= Duration::from_millis(50), "it did not wait");
        leaving.join().unwrap();
        // One that is never taken does not hold up the others for ever.
        let third = gate.enter(LARGE);
        assert_eq!(*gate.inside.lock(), 2);
        drop((second, third));
        assert_eq!(*gate.inside.lock(), 0);
    }
}
