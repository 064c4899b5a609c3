//! The walks of all processes.

use std::collections::HashMap;
use std::time::Instant;

use crate::fs::prefetch::walk::{WINDOW, Walk};

/// Processes that are remembered at once.
const MAX_WALKS: usize = 64;

/// The walks of all processes, by process id as the kernel gives it.
#[derive(Default)]
pub struct Walks {
    by_process: HashMap<u32, Walk>,
}

impl Walks {
    /// Lets go of walks that are over.
    pub fn forget_old(&mut self) {
        self.by_process.retain(|_, walk| walk.last.elapsed() <= WINDOW);
    }

    /// Lets go of all.
    pub fn forget_all(&mut self) {
        self.by_process.clear();
    }

    /// The walk of a process, begun anew after a pause.
    pub fn of(&mut self, process: u32) -> &mut Walk {
        let now = Instant::now();
        if self.by_process.len() >= MAX_WALKS && !self.by_process.contains_key(&process) {
            self.forget_old();
            let oldest = self.by_process.iter().min_by_key(|(_, walk)| walk.last);
            if self.by_process.len() >= MAX_WALKS
                && let Some((oldest, _)) = oldest
            {
                let oldest = *oldest;
                self.by_process.remove(&oldest);
            }
        }
        let walk = self.by_process.entry(process).or_insert_with(|| Walk::new(now));
        if now - walk.last > WINDOW {
            walk.begin_anew(now);
        }
        walk.last = now;
        walk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::prefetch::walk::tests::listing;
    use std::time::Duration;

    #[test]
    fn a_pause_ends_it() {
        let mut walks = Walks::default();
        let top = listing("a b");
        walks.of(7).opened(1, &top.values()[0]);
        assert!(!walks.of(8).opened(1, &top.values()[1]).whole, "another process");
        std::thread::sleep(WINDOW + Duration::from_millis(5));
        assert!(!walks.of(7).opened(1, &top.values()[1]).whole);
        for process in 0..1000 {
            walks.of(process);
        }
        assert!(walks.by_process.len() <= MAX_WALKS);
    }
}
