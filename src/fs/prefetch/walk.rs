//! What a process does next, judged by what it did just now.
//!
//! A walker (`find`, `grep -r`, `tar`) lists an object, reads its properties in the order of
//! the listing, and then goes down to its children, in the order of the listing too. That is
//! all that is assumed, and only of a process that was seen doing it within [`WINDOW`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fs::dir::listing::{Entry, Listing};
use crate::fs::prefetch::plan::MAX_WINDOW;
use crate::qom::Path;

/// How long a pause ends a walk, and how old a value that was asked for ahead may be when an open begins.
pub const WINDOW: Duration = Duration::from_millis(100);

/// The walk of one process.
pub struct Walk {
    /// When the process did something last.
    pub last: Instant,
    /// The object listed last, and before it those around it that were listed.
    frames: Vec<Frame>,
    /// A second child of one object was listed: this is no single `ls`.
    pub walking: bool,
    /// The values of the object listed before the last one were read, all of them.
    pub reading: bool,
    /// The property opened last, and the object that it is of.
    opened: Option<(Path, Arc<Entry>)>,
    pub step: Step,
}

/// What a process did last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Listed,
    /// `second`: another property of the same object was opened just before. `left`: how many values of the
    /// object listed last come after this one, if they are read in order.
    Opened {
        second: bool,
        left: Option<usize>,
    },
}

struct Frame {
    path: Path,
    listing: Arc<Listing>,
    /// Which of its children was listed last.
    child: Option<usize>,
    /// The children are listed in the order of the listing: the next one can be told.
    in_order: bool,
    /// Which of its values comes next if they are read in order.
    next_value: usize,
    /// How many of its children to ask for in one request with their values.
    window: usize,
}

impl Frame {
    /// The children that were not listed yet, if they are listed in order.
    fn rest(&self) -> &[Arc<Entry>] {
        let next = self.child.map_or(0, |child| child + 1);
        self.listing.children().get(next..).unwrap_or_default()
    }
}

impl Walk {
    pub fn new(now: Instant) -> Walk {
        Walk {
            last: now,
            frames: Vec::new(),
            walking: false,
            reading: false,
            opened: None,
            step: Step::Listed,
        }
    }

    /// The process does something. If it paused, its walk begins anew.
    pub fn go_on(&mut self, now: Instant) {
        if now.saturating_duration_since(self.last) > WINDOW {
            *self = Walk::new(now);
        }
        self.last = now;
    }

    /// The process lists an object, which its parent shows as `file`.
    pub fn listed(&mut self, path: &Path, file: &str, listing: &Arc<Listing>) {
        self.reading = self.reads_what_it_lists();
        let parent = path.parent();
        while self
            .frames
            .last()
            .is_some_and(|frame| Some(&frame.path) != parent.as_ref())
        {
            self.frames.pop();
        }
        if let Some(above) = self.frames.last_mut() {
            let child = above.listing.child(file);
            self.walking |= above.child.is_some() && above.child != child;
            above.in_order = child == Some(above.child.map_or(0, |child| child + 1));
            above.child = child;
        }
        self.frames.push(Frame {
            path: path.clone(),
            listing: listing.clone(),
            child: None,
            in_order: true,
            next_value: 0,
            window: MAX_WINDOW,
        });
        self.step = Step::Listed;
    }

    /// The process opens a property of an object.
    pub fn opened(&mut self, object: &Path, entry: &Arc<Entry>) {
        let before = self.opened.replace((object.clone(), entry.clone()));
        let mut left = None;
        if let Some(frame) = self.frames.last_mut().filter(|frame| frame.path == *object) {
            let values = frame.listing.values();
            if values.get(frame.next_value) == Some(entry) {
                frame.next_value += 1;
                left = Some(values.len() - frame.next_value);
            }
        }
        self.step = Step::Opened {
            second: before.is_some_and(|(of, other)| of == *object && other != *entry),
            left,
        };
    }

    /// Whether the values of the object listed last were read, all of them: then those of the
    /// next one will be too. An object without any tells nothing.
    pub fn reads_what_it_lists(&self) -> bool {
        let last = self.frames.last();
        last.is_some_and(|frame| match frame.listing.values().len() {
            0 => self.reading,
            values => frame.next_value >= values,
        })
    }

    /// The object listed last, its values, and which of them comes next if they are read in order.
    pub fn present(&self) -> Option<(&Path, &[Arc<Entry>], usize)> {
        let frame = self.frames.last()?;
        Some((&frame.path, frame.listing.values(), frame.next_value))
    }

    fn next_frame(&self) -> Option<&Frame> {
        self.frames.iter().rev().find(|frame| !frame.rest().is_empty())
    }

    /// How many of the objects that are listed next to ask for in one request with their values.
    pub fn window(&self) -> usize {
        self.next_frame().map_or(MAX_WINDOW, |frame| frame.window)
    }

    /// The same for an object and its siblings, to be changed.
    pub fn window_of(&mut self, object: &Path) -> Option<&mut usize> {
        let parent = object.parent()?;
        let frame = self.frames.iter_mut().rev().find(|frame| frame.path == parent)?;
        Some(&mut frame.window)
    }

    /// The objects that are listed next: the first one surely, if the walk goes on, the others
    /// (its siblings) soon. None when it goes by another order, or has come to its end.
    pub fn next_objects(&self) -> impl Iterator<Item = Path> {
        let frame = self.next_frame().filter(|frame| frame.in_order);
        frame.into_iter().flat_map(|frame| {
            let rest = frame.rest().iter();
            rest.filter_map(|entry| frame.path.child(&entry.name))
        })
    }
}
