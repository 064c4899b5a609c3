//! Symbolic links that stand under a name of no property, to be renamed over a link.

use std::sync::Arc;
use std::time::Instant;

use super::{Ino, Inodes, Node};
use crate::fs::dir::listing::Entry;
use crate::limits::TEMPORARY_LINKS;
use crate::qom::Kind;

/// Such a link.
#[derive(Debug)]
pub struct Temporary {
    pub ino: Ino,
    target: Box<str>,
    /// When it was made.
    since: Instant,
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
        let ino = self.reserve(1);
        self.insert(ino, node);
        self.temporaries.push(Temporary {
            ino,
            target: target.into(),
            since: Instant::now(),
        });
        Ok(())
    }

    /// The place of one in the order in which they were made.
    fn temporary_named(&self, parent: Ino, file: &str) -> Option<usize> {
        self.temporaries.iter().position(|temporary| {
            let node = self.nodes.get(&temporary.ino);
            node.is_some_and(|node| node.parent == parent && *node.entry.file == *file)
        })
    }

    /// Finds one, and counts it as given to the kernel once more.
    pub fn look_up_temporary(&mut self, parent: Ino, file: &str) -> Option<Ino> {
        let ino = self.temporaries[self.temporary_named(parent, file)?].ino;
        self.nodes.get_mut(&ino)?.lookups += 1;
        Some(ino)
    }

    /// Where a temporary link leads; `None` for any other inode.
    pub fn temporary_target(&self, ino: Ino) -> Option<&str> {
        let temporary = self.temporaries.iter().find(|temporary| temporary.ino == ino);
        temporary.map(|temporary| &*temporary.target)
    }

    /// Takes one away and gives its target. Its inode is dead for as long as the kernel knows it.
    pub fn remove_temporary(&mut self, parent: Ino, file: &str) -> Option<(Ino, Box<str>)> {
        let index = self.temporary_named(parent, file)?;
        let Temporary { ino, target, .. } = self.temporaries.remove(index);
        self.nodes.get_mut(&ino)?.dead = true;
        self.forget(ino, 0); // at once, if the kernel never knew it
        Some((ino, target))
    }

    /// The oldest one, its name and target, and when it was made.
    pub fn oldest_temporary(&self) -> Option<(Ino, Arc<str>, &str, Instant)> {
        let Temporary { ino, target, since } = self.temporaries.first()?;
        let node = self.nodes.get(ino)?;
        Some((node.parent, node.entry.file.clone(), target, *since))
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
