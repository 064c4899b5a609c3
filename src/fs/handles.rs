//! Open files and directories by number.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The open things of one kind. Numbers are never used twice.
pub struct Handles<T> {
    open: Mutex<(u64, HashMap<u64, Arc<T>>)>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Handles {
            open: Mutex::new((0, HashMap::new())),
        }
    }
}

impl<T> Handles<T> {
    pub fn open(&self, thing: T) -> u64 {
        let mut open = self.open.lock();
        open.0 += 1;
        let number = open.0;
        open.1.insert(number, Arc::new(thing));
        number
    }

    pub fn get(&self, number: u64) -> Option<Arc<T>> {
        self.open.lock().1.get(&number).cloned()
    }

    pub fn close(&self, number: u64) -> Option<Arc<T>> {
        self.open.lock().1.remove(&number)
    }
}
