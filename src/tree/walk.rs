//! What a process does next, judged by what it did just now.
//!
//! A walker (`find`, `grep -r`, `tar`) lists an object, reads its properties in the order of
//! the listing, and then goes down to its children, in the order of the listing too. That is
//! all that is assumed, and only of a process that was seen doing it within [`WINDOW`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::inodes::Ino;
use super::listing::{Entry, Listing};

/// How long a pause ends a walk (design §5).
pub const WINDOW: Duration = Duration::from_millis(100);

/// Processes that are remembered at once.
const MOST_WALKS: usize = 64;

/// The walks of all processes, by process id as the kernel gives it.
#[derive(Default)]
pub struct Walks {
    by_process: HashMap<u32, Walk>,
}

/// The walk of one process.
pub struct Walk {
    last: Instant,
    /// The object listed last, and the objects around it that were listed before.
    levels: Vec<Level>,
    /// A second child of one object was listed: this is no single `ls`.
    walking: bool,
    /// The values of the object listed before the last one were read, all of them.
    reading: bool,
    /// Names in objects that it listed were looked up: it wants to know their files.
    looking: bool,
    /// The property opened last, and the object that it is of.
    opened: Option<(Ino, Arc<Entry>)>,
}

struct Level {
    ino: Ino,
    listing: Arc<Listing>,
    /// Which of its children was listed last.
    child: Option<usize>,
    /// Which of its values comes next if they are read in order.
    next_value: usize,
}

/// What reading one property tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Another property of the same object was read just before.
    pub second: bool,
    /// The property that comes next when they are read in the order of the listing, as they are.
    pub next: Option<Arc<Entry>>,
    /// How many values of the object have not been read yet, if the walk listed it.
    pub left: Option<usize>,
}

impl Walks {
    /// Lets go of walks that are over.
    pub fn forget_old(&mut self) {
        self.by_process.retain(|_, walk| walk.last.elapsed() <= WINDOW);
    }

    /// The walk of a process, begun anew after a pause.
    pub fn of(&mut self, process: u32) -> &mut Walk {
        let now = Instant::now();
        if self.by_process.len() >= MOST_WALKS && !self.by_process.contains_key(&process) {
            self.forget_old();
            if self.by_process.len() >= MOST_WALKS {
                self.by_process.clear();
            }
        }
        let walk = self.by_process.entry(process).or_insert_with(|| Walk::new(now));
        if now - walk.last > WINDOW {
            *walk = Walk::new(now);
        }
        walk.last = now;
        walk
    }
}

impl Walk {
    fn new(now: Instant) -> Walk {
        Walk {
            last: now,
            levels: Vec::new(),
            walking: false,
            reading: false,
            looking: false,
            opened: None,
        }
    }

    /// Whether the values of the object listed last were read, all of them: then those of the
    /// next one will be too.
    pub fn reads_what_it_lists(&self) -> bool {
        self.levels
            .last()
            .is_some_and(|level| level.next_value >= level.listing.values().len())
    }

    /// The process lists an object: `file` in `parent`.
    pub fn listed(&mut self, ino: Ino, parent: Ino, file: &str, listing: &Arc<Listing>) {
        self.reading = self.reads_what_it_lists();
        while self
            .levels
            .last()
            .is_some_and(|level| level.ino != parent || level.ino == ino)
        {
            self.levels.pop();
        }
        if let Some(above) = self.levels.last_mut() {
            let child = above.listing.child(file);
            self.walking |= above.child.is_some() && above.child != child;
            above.child = child;
        }
        self.levels.push(Level {
            ino,
            listing: listing.clone(),
            child: None,
            next_value: 0,
        });
    }

    /// The process looks up a name in an object: one that lists and stats, if it listed it last.
    pub fn looked_up(&mut self, parent: Ino) {
        self.looking |= self.levels.last().is_some_and(|level| level.ino == parent);
    }

    /// Whether the process wants more of a listing than names: it stats or reads what it lists.
    pub fn wants_files(&self) -> bool {
        self.looking || self.reading || self.opened.is_some()
    }

    /// Whether requests may be made ahead of this walk; and whether it reads what it lists.
    pub fn pace(&self) -> Option<Pace> {
        match (self.reading, self.walking) {
            (true, _) => Some(Pace::Reading),
            (false, true) => Some(Pace::Listing),
            (false, false) => None,
        }
    }

    /// The objects that are listed next: the first one surely, if the walk goes on, the others
    /// (its siblings) soon. With the inode of the object that they are in.
    pub fn next_objects(&self, most: usize) -> Option<(Ino, Vec<Arc<Entry>>)> {
        self.levels.iter().rev().find_map(|level| {
            let next = level.child.map_or(0, |child| child + 1);
            let rest = level.listing.children().get(next..)?;
            (!rest.is_empty()).then(|| (level.ino, rest.iter().take(most).cloned().collect()))
        })
    }

    /// The first value of the object listed last.
    pub fn first_value(&self) -> Option<&Arc<Entry>> {
        self.levels.last()?.listing.values().first()
    }

    /// The process reads a property of the object `of`.
    pub fn opened(&mut self, of: Ino, entry: &Arc<Entry>) -> Opened {
        let before = self.opened.replace((of, entry.clone()));
        let second = before.is_some_and(|(ino, other)| ino == of && other != *entry);
        let Some(level) = self.levels.last_mut().filter(|level| level.ino == of) else {
            return Opened {
                second,
                ..Opened::default()
            };
        };
        let values = level.listing.values();
        let in_order = values.get(level.next_value) == Some(entry);
        if in_order {
            level.next_value += 1;
        }
        let goes_on = in_order && (second || self.reading);
        Opened {
            second,
            next: if goes_on {
                values.get(level.next_value).cloned()
            } else {
                None
            },
            left: in_order.then(|| values.len() - level.next_value),
        }
    }
}

/// How a walk proceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// It lists objects and reads no values.
    Listing,
    /// It lists objects and reads all of their values.
    Reading,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qom::Property;
    use crate::tree::listing::Entries;

    fn listing(names: &str) -> Arc<Listing> {
        let property = |name: &str| Property {
            name: name.into(),
            declared: if name.starts_with(char::is_uppercase) {
                "child<x>"
            } else {
                "int"
            }
            .into(),
        };
        let properties = names.split_whitespace().map(property).collect();
        Arc::new(Listing::new(properties, &Entries::default(), |_| 2))
    }

    fn next(walk: &Walk) -> Vec<String> {
        let objects = walk
            .next_objects(2)
            .map(|(_, entries)| entries)
            .unwrap_or_default();
        objects.iter().map(|e| e.file.to_string()).collect()
    }

    #[test]
    fn a_walk_shows_with_the_second_child() {
        let mut walk = Walk::new(Instant::now());
        walk.listed(1, 1, "", &listing("v A B"));
        assert_eq!((walk.pace(), next(&walk)), (None, vec!["A".into(), "B".into()]));
        walk.listed(2, 1, "A", &listing("v C"));
        assert_eq!((walk.pace(), next(&walk)), (None, vec!["C".into()]));
        walk.listed(3, 2, "C", &listing("v"));
        assert_eq!((walk.pace(), next(&walk)), (None, vec!["B".into()]));
        walk.listed(4, 1, "B", &listing("v"));
        assert_eq!((walk.pace(), next(&walk)), (Some(Pace::Listing), vec![]));
    }

    #[test]
    fn a_reader_shows_when_it_read_everything() {
        let (mut walk, top) = (Walk::new(Instant::now()), listing("a b c A"));
        walk.listed(1, 1, "", &top);
        let [a, b, c] = top.values() else { panic!() };
        assert_eq!(
            walk.opened(1, a),
            Opened {
                second: false,
                next: None,
                left: Some(2)
            }
        );
        assert_eq!(
            walk.opened(1, b),
            Opened {
                second: true,
                next: Some(c.clone()),
                left: Some(1)
            }
        );
        assert!(!walk.reads_what_it_lists());
        assert_eq!(walk.opened(1, c).next, None);
        assert!(walk.reads_what_it_lists());
        walk.listed(2, 1, "A", &listing("x y"));
        assert_eq!(walk.pace(), Some(Pace::Reading));
        // It does not read this one: no reader any more.
        walk.listed(3, 1, "A", &listing("x y"));
        assert_eq!(walk.pace(), None);
    }

    #[test]
    fn one_property_again_and_again_is_no_walk() {
        let (mut walk, top) = (Walk::new(Instant::now()), listing("a b"));
        for _ in 0..3 {
            let opened = walk.opened(1, &top.values()[0]);
            assert_eq!(opened, Opened::default());
        }
        assert!(walk.opened(1, &top.values()[1]).second);
        assert!(!walk.opened(2, &top.values()[0]).second);
    }

    #[test]
    fn who_stats_what_it_lists_wants_files() {
        let mut walk = Walk::new(Instant::now());
        walk.looked_up(1);
        assert!(!walk.wants_files(), "the way to a folder is no walk in it");
        walk.listed(1, 1, "", &listing("a A"));
        assert!(!walk.wants_files());
        walk.looked_up(1);
        walk.listed(2, 1, "A", &listing("a b"));
        assert!(walk.wants_files());
    }

    #[test]
    fn a_pause_ends_it() {
        let mut walks = Walks::default();
        let top = listing("a b");
        walks.of(7).opened(1, &top.values()[0]);
        assert!(!walks.of(8).opened(1, &top.values()[1]).second, "another process");
        std::thread::sleep(WINDOW + Duration::from_millis(5));
        assert!(!walks.of(7).opened(1, &top.values()[1]).second);
        for process in 0..1000 {
            walks.of(process);
        }
        assert!(walks.by_process.len() <= MOST_WALKS);
    }
}
