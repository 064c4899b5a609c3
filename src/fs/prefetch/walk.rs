//! What a process does next, judged by what it did just now.
//!
//! A walker (`find`, `grep -r`, `tar`) lists an object, reads its properties in the order of
//! the listing, and then goes down to its children, in the order of the listing too. That is
//! all that is assumed, and only of a process that was seen doing it within [`WINDOW`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fs::dir::listing::{Entry, Listing};
use crate::fs::inode::table::Ino;

/// How long a pause ends a walk.
pub const WINDOW: Duration = Duration::from_millis(100);

/// The most objects that are asked for in one request. More would save hardly anything: of the time
/// that QEMU takes over a request, what it takes over the request itself is an eighth then.
pub const MAX_IN_BATCH: usize = 8;

/// So many values take QEMU about as long to evaluate in one request as one in a request of its own.
const WORTH_A_READ: usize = 16;

/// The walk of one process.
pub struct Walk {
    /// When the process did something last.
    pub last: Instant,
    /// How long it was from one object that it listed to the next.
    pace: Duration,
    listed: Instant,
    /// The object listed last, and the objects around it that were listed before.
    frames: Vec<Frame>,
    /// A second child of one object was listed: this is no single `ls`.
    walking: bool,
    /// The values of the object listed before the last one were read, all of them.
    reading: bool,
    /// The property opened last, and the object that it is of.
    opened: Option<(Ino, Arc<Entry>)>,
    /// The object whose values were asked for all together last, and how many of them must be opened before
    /// that is worth doing again.
    whole: Option<(Ino, usize)>,
}

struct Frame {
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

impl Frame {
    /// The children that were not listed yet, if they are listed in order.
    fn rest(&self) -> &[Arc<Entry>] {
        let next = self.child.map_or(0, |child| child + 1);
        self.listing.children().get(next..).unwrap_or_default()
    }
}

/// Objects in the order in which a walk lists them.
pub struct Siblings<'a> {
    /// The object that they are in.
    pub parent: Ino,
    pub objects: &'a [Arc<Entry>],
    pace: Duration,
}

impl Siblings<'_> {
    /// How many may be asked for in one request with their values, for the walk to come to the
    /// last of them while these may still be served.
    pub fn batch(&self) -> usize {
        let reached = (WINDOW / 2).as_micros() / self.pace.as_micros().max(1);
        usize::try_from(reached).map_or(MAX_IN_BATCH, |n| n.clamp(1, MAX_IN_BATCH))
    }
}

/// What reading one property tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Another property of the same object was read just before, and it is worth while to ask for all of them.
    pub whole: bool,
    /// The property that comes next when they are read in the order of the listing, as they are.
    pub next: Option<Arc<Entry>>,
    /// How many values of the object have not been read yet, if the walk listed it.
    pub left: Option<usize>,
}

impl Walk {
    pub fn new(now: Instant) -> Walk {
        Walk {
            last: now,
            pace: WINDOW,
            listed: now,
            frames: Vec::new(),
            walking: false,
            reading: false,
            opened: None,
            whole: None,
        }
    }

    /// After a pause. It may have been a reply that took long: what is known of that stays.
    pub fn begin_anew(&mut self, now: Instant) {
        let whole = self.whole;
        *self = Walk::new(now);
        self.whole = whole;
    }

    /// All values of an object were asked for, so many. If they came too late to be used, or could not
    /// be held, the others will be too. If not, they may have to be asked for again, as their time runs out
    /// under a slow reader: each is read for so many that are evaluated, at the least.
    pub fn asked_whole(&mut self, of: Ino, values: usize, useful: bool) {
        let before_again = if useful { values / WORTH_A_READ } else { values };
        self.whole = Some((of, before_again));
    }

    /// Whether the values of the object listed last were read, all of them: then those of the
    /// next one will be too. An object without any tells nothing.
    pub fn reads_what_it_lists(&self) -> bool {
        self.frames
            .last()
            .is_some_and(|frame| match frame.listing.values().len() {
                0 => self.reading,
                values => frame.next_value >= values,
            })
    }

    /// The process lists an object: `file` in `parent`.
    pub fn listed(&mut self, ino: Ino, parent: Ino, file: &str, listing: &Arc<Listing>) {
        self.reading = self.reads_what_it_lists();
        let now = self.last;
        self.pace = now - self.listed;
        self.listed = now;
        while self
            .frames
            .last()
            .is_some_and(|frame| frame.ino != parent || frame.ino == ino)
        {
            self.frames.pop();
        }
        if let Some(above) = self.frames.last_mut() {
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
        self.frames.push(Frame {
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
    pub fn mode(&self) -> Option<Mode> {
        match (self.reading, self.walking) {
            (true, _) => Some(Mode::Reading),
            (false, true) => Some(Mode::Listing),
            (false, false) => None,
        }
    }

    /// The objects that are listed next: the first one surely, if the walk goes on, the others
    /// (its siblings) soon. `None` when it goes by another order, or has come to its end.
    pub fn next_objects(&self) -> Option<Siblings<'_>> {
        let mut siblings = self.frames.iter().rev().map(|frame| (frame, frame.rest()));
        let (frame, objects) = siblings.find(|(_, rest)| !rest.is_empty())?;
        frame.in_order.then_some(Siblings {
            parent: frame.ino,
            objects,
            pace: frame.pace.unwrap_or(self.pace),
        })
    }

    /// The first value of the object listed last.
    pub fn first_value(&self) -> Option<&Arc<Entry>> {
        self.frames.last()?.listing.values().first()
    }

    /// The process reads a property of the object `of`.
    pub fn opened(&mut self, of: Ino, entry: &Arc<Entry>) -> Opened {
        let before = self.opened.replace((of, entry.clone()));
        let second = before.is_some_and(|(ino, other)| ino == of && other != *entry);
        let mut whole = second;
        if let Some((object, before_again)) = &mut self.whole
            && *object == of
        {
            whole &= *before_again == 0;
            *before_again = before_again.saturating_sub(1);
        }
        let Some(frame) = self.frames.last_mut().filter(|frame| frame.ino == of) else {
            return Opened {
                whole,
                ..Opened::default()
            };
        };
        let values = frame.listing.values();
        let in_order = values.get(frame.next_value) == Some(entry);
        if in_order {
            frame.next_value += 1;
        }
        let goes_on = in_order && (second || self.reading);
        Opened {
            whole,
            next: if goes_on {
                values.get(frame.next_value).cloned()
            } else {
                None
            },
            left: in_order.then(|| values.len() - frame.next_value),
        }
    }
}

/// How a walk proceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It lists objects and reads no values.
    Listing,
    /// It lists objects and reads all of their values.
    Reading,
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::fs::dir::listing::Entries;
    use crate::qom::Property;

    pub fn listing(names: &str) -> Arc<Listing> {
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
        assert_eq!((walk.mode(), next(&walk)), (None, vec!["A".into(), "B".into()]));
        walk.listed(2, 1, "A", &listing("v C"));
        assert_eq!((walk.mode(), next(&walk)), (None, vec!["C".into()]));
        walk.listed(3, 2, "C", &listing("v"));
        assert_eq!((walk.mode(), next(&walk)), (None, vec!["B".into()]));
        walk.listed(4, 1, "B", &listing("v"));
        assert_eq!((walk.mode(), next(&walk)), (Some(Mode::Listing), vec![]));
    }

    #[test]
    fn a_reader_shows_when_it_read_everything() {
        let (mut walk, top) = (Walk::new(Instant::now()), listing("a b c A"));
        walk.listed(1, 1, "", &top);
        let [a, b, c] = top.values() else { panic!() };
        assert_eq!(
            walk.opened(1, a),
            Opened {
                left: Some(2),
                ..Opened::default()
            }
        );
        assert_eq!(
            walk.opened(1, b),
            Opened {
                whole: true,
                next: Some(c.clone()),
                left: Some(1)
            }
        );
        assert!(!walk.reads_what_it_lists());
        assert_eq!(walk.opened(1, c).next, None);
        assert!(walk.reads_what_it_lists());
        walk.listed(2, 1, "A", &listing("x y"));
        assert_eq!(walk.mode(), Some(Mode::Reading));
        // It does not read this one: no reader any more.
        walk.listed(3, 1, "A", &listing("x y"));
        assert_eq!(walk.mode(), None);
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
        assert_eq!(walk.mode(), Some(Mode::Listing));
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
        assert!(walk.opened(1, &top.values()[1]).whole);
        assert!(!walk.opened(2, &top.values()[0]).whole);
    }

    #[test]
    fn what_comes_too_late_is_not_asked_for_again() {
        let names: Vec<String> = (0..64).map(|n| format!("v{n}")).collect();
        let (mut walk, top) = (Walk::new(Instant::now()), listing(&names.join(" ")));
        let worth = |walk: &mut Walk, range: std::ops::Range<usize>| {
            let values = top.values()[range].iter();
            values.filter(|value| walk.opened(1, value).whole).count()
        };
        assert_eq!(worth(&mut walk, 0..2), 1);
        walk.asked_whole(1, 64, true);
        assert_eq!(worth(&mut walk, 2..6), 0, "a few, for so many that are evaluated");
        assert_eq!(worth(&mut walk, 6..7), 1);
        walk.asked_whole(1, 64, false);
        assert_eq!(worth(&mut walk, 7..64), 0);
    }
}
