//! Symbolic links that stand under a name of no property, to be renamed over a link.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Ino, Inodes, Node};
use crate::fs::dir::listing::Entry;
use crate::limits::TEMPORARY_LINKS;
use crate::qom::Kind;

/// How long such a link has to be renamed.
pub const LIFETIME: Duration = Duration::from_secs(5);

/// Such a link.
#[derive(Debug)]
pub struct Temporary {
    pub target: String,
    ends: Instant,
}

impl Inodes {
    /// Makes one.
    ///
    /// # Errors
    /// EEXIST; ENOSPC when there are too many.
    pub fn make_temporary(&mut self, parent: Ino, file: &str, target: &str) -> Result<(), i32> {
        if self.temporary_named(parent, file).is_some() {
            return Err(libc::EEXIST);
        }
        if self.temporaries.len() >= TEMPORARY_LINKS {
            return Err(libc::ENOSPC);
        }
        let entry = Entry {
            name: "".into(),
            file: file.into(),
            declared: "".into(),
            kind: Kind::Link,
        };
        let mut node = Node::new(parent, Arc::new(entry));
        node.size = Some(target.len() as u64);
        node.temporary = Some(Box::new(Temporary {
            target: target.to_owned(),
            ends: Instant::now() + LIFETIME,
        }));
        let ino = self.reserve(1);
        self.insert(ino, node);
        self.temporaries.push(ino);
        Ok(())
    }

    fn temporary_named(&self, parent: Ino, file: &str) -> Option<Ino> {
        let is_it = |ino: &Ino| {
            let node = self.nodes.get(ino);
            node.is_some_and(|node| node.parent == parent && *node.entry.file == *file)
        };
        self.temporaries.iter().copied().find(is_it)
    }

    /// Finds one, and counts it as given to the kernel once more.
    pub fn look_up_temporary(&mut self, parent: Ino, file: &str) -> Option<Ino> {
        let ino = self.temporary_named(parent, file)?;
        self.nodes.get_mut(&ino)?.lookups += 1;
        Some(ino)
    }

    /// Where a temporary link leads; `None` for any other inode.
    pub fn temporary_target(&self, ino: Ino) -> Option<&str> {
        Some(&self.nodes.get(&ino)?.temporary.as_ref()?.target)
    }

    /// Takes one away and gives its target. Its inode is dead for as long as the kernel knows it.
    pub fn remove_temporary(&mut self, parent: Ino, file: &str) -> Option<(Ino, String)> {
        let ino = self.temporary_named(parent, file)?;
        Some((ino, self.end_temporary(ino)?))
    }

    fn end_temporary(&mut self, ino: Ino) -> Option<String> {
        self.temporaries.retain(|temporary| *temporary != ino);
        let node = self.nodes.get_mut(&ino)?;
        node.dead = true;
        let temporary = node.temporary.take();
        self.forget(ino, 0); // at once, if the kernel never knew it
        temporary.map(|temporary| temporary.target)
    }

    /// Takes those away whose time has ended: their names and targets; and when the next one's ends.
    pub fn remove_old_temporaries(&mut self) -> (Vec<(Arc<str>, String)>, Option<Instant>) {
        let now = Instant::now();
        let ends_of = |nodes: &Self, ino: &Ino| nodes.nodes.get(ino)?.temporary.as_ref().map(|t| t.ends);
        let (old, others): (Vec<Ino>, Vec<Ino>) = self
            .temporaries
            .iter()
            .partition(|ino| ends_of(self, ino).is_none_or(|ends| ends <= now));
        let next = others.iter().filter_map(|ino| ends_of(self, ino)).min();
        let end = |ino: Ino| {
            let file = self.nodes.get(&ino)?.entry.file.clone();
            Some((file, self.end_temporary(ino)?))
        };
        (old.into_iter().filter_map(end).collect(), next)
    }

    /// Makes the inode of one that was renamed the entry's, under whose name the kernel now knows it.
    pub fn adopt(&mut self, ino: Ino, parent: Ino, entry: Arc<Entry>) {
        let lookups = self.nodes.get(&ino).map_or(0, |node| node.lookups);
        self.forget(ino, lookups);
        if let Some(old) = self.named(parent, &entry.file) {
            self.detach(old);
        }
        let mut node = Node::new(parent, entry);
        node.lookups = lookups;
        self.enter(ino, node);
    }
}
