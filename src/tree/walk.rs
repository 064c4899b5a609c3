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

/// The most objects that are asked for in one request. More would save hardly anything: of the time
/// that QEMU takes over a request, what it takes over the request itself is an eighth then.
pub const MOST_IN_BATCH: usize = 8;

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
    /// How long it was from one object that it listed to the next.
    pace: Duration,
    listed: Instant,
    /// The object listed last, and the objects around it that were listed before.
    levels: Vec<Level>,
    /// A second child of one object was listed: this is no single `ls`.
    walking: bool,
    /// The values of the object listed before the last one were read, all of them.
    reading: bool,
    /// The property opened last, and the object that it is of.
    opened: Option<(Ino, Arc<Entry>)>,
}

struct Level {
    ino: Ino,
    listing: Arc<Listing>,
    /// Which of its children was listed last, and when.
    child: Option<usize>,
    listed: Instant,
    /// How long it was from one child to the next, with all that is in it.
    pace: Option<Duration>,
    /// The children are listed in the order of the listing: the next one can be told.
    in_order: bool,
    /// Which of its values comes next if they are read in order.
    next_value: usize,
}

impl Level {
    /// The children that were not listed yet, if they are listed in order.
    fn rest(&self) -> &[Arc<Entry>] {
        let next = self.child.map_or(0, |child| child + 1);
        self.listing.children().get(next..).unwrap_or_default()
    }
}

/// Objects in the order in which a walk lists them.
pub struct Row<'a> {
    /// The object that they are in.
    pub parent: Ino,
    pub objects: &'a [Arc<Entry>],
    pace: Duration,
}

impl Row<'_> {
    /// How many may be asked for in one request with their values, for the walk to come to the
    /// last of them while these may still be served.
    pub fn batch(&self) -> usize {
        let reached = (WINDOW / 2).as_micros() / self.pace.as_micros().max(1);
        usize::try_from(reached).map_or(MOST_IN_BATCH, |n| n.clamp(1, MOST_IN_BATCH))
    }
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
            pace: WINDOW,
            listed: now,
            levels: Vec::new(),
            walking: false,
            reading: false,
            opened: None,
        }
    }

    /// Whether the values of the object listed last were read, all of them: then those of the
    /// next one will be too. An object without any tells nothing.
    pub fn reads_what_it_lists(&self) -> bool {
        self.levels
            .last()
            .is_some_and(|level| match level.listing.values().len() {
                0 => self.reading,
                values => level.next_value >= values,
            })
    }

    /// The process lists an object: `file` in `parent`.
    pub fn listed(&mut self, ino: Ino, parent: Ino, file: &str, listing: &Arc<Listing>) {
        self.reading = self.reads_what_it_lists();
        let now = self.last;
        self.pace = now - self.listed;
        self.listed = now;
        while self
            .levels
            .last()
            .is_some_and(|level| level.ino != parent || level.ino == ino)
        {
            self.levels.pop();
        }
        if let Some(above) = self.levels.last_mut() {
            let child = above.listing.child(file);
            if above.child.is_some() {
                self.walking |= above.child != child;
                // A slow one among fast ones is likely not the last.
                let before = above.pace.unwrap_or_default() / 2;
                above.pace = Some(before.max(now - above.listed));
            }
            above.in_order = child == Some(above.child.map_or(0, |child| child + 1));
            above.child = child;
            above.listed = now;
        }
        self.levels.push(Level {
            ino,
            listing: listing.clone(),
            child: None,
            listed: now,
            pace: None,
            in_order: true,
            next_value: 0,
        });
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
    /// (its siblings) soon. `None` when it goes by another order, or has come to its end.
    pub fn next_objects(&self) -> Option<Row<'_>> {
        let mut rows = self.levels.iter().rev().map(|level| (level, level.rest()));
        let (level, objects) = rows.find(|(_, rest)| !rest.is_empty())?;
        level.in_order.then_some(Row {
            parent: level.ino,
            objects,
            pace: level.pace.unwrap_or(self.pace),
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
        let objects = walk.next_objects().map_or(&[][..], |row| row.objects);
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
    fn who_goes_by_another_order_is_not_foreseen() {
        let (mut walk, top, leaf) = (Walk::new(Instant::now()), listing("A B C D"), listing("v"));
        walk.listed(1, 1, "", &top);
        walk.listed(2, 1, "B", &leaf);
        assert_eq!(next(&walk), [] as [&str; 0]);
        walk.listed(3, 1, "A", &leaf);
        assert_eq!(next(&walk), [] as [&str; 0]);
        walk.listed(4, 1, "B", &leaf);
        assert_eq!(next(&walk), ["C", "D"]);
    }

    #[test]
    fn an_object_without_values_makes_no_reader() {
        let mut walk = Walk::new(Instant::now());
        walk.listed(1, 1, "", &listing("A B"));
        walk.listed(2, 1, "A", &listing("C"));
        walk.listed(3, 1, "B", &listing("v"));
        assert_eq!(walk.pace(), Some(Pace::Listing));
    }

    #[test]
    fn the_faster_the_walk_the_more_at_once() {
        let (top, leaf) = (listing("A B C D E F"), listing("v"));
        let mut walk = Walk::new(Instant::now());
        let mut after = |millis, file: &str| {
            walk.last += Duration::from_millis(millis);
            let (ino, listing) = if file.is_empty() { (1, &top) } else { (2, &leaf) };
            walk.listed(ino, 1, file, listing);
            walk.next_objects().map(|row| row.batch())
        };
        assert_eq!(
            after(1, ""),
            Some(8),
            "no child was listed yet: as fast as before"
        );
        after(20, "A");
        assert_eq!(after(20, "B"), Some(2));
        assert_eq!(after(1, "C"), Some(5), "slowed down by the one before");
        assert_eq!(after(1, "D"), Some(8));
        assert_eq!(after(90, "E"), Some(1));
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
