//! Inodes: numbered once per path, counted with the kernel, forgotten with it.

mod temporary;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::fs::dir::listing::Entry;
use crate::fs::dir::names::file_name;
use crate::fs::inode::by_name::ByName;
use crate::fs::inode::last_errors::LastErrors;
use crate::limits::INODE_BYTES;
use crate::qom::{Kind, Path};
use temporary::Temporary;

/// The number of an inode, as the kernel uses it.
pub type Ino = u64;

/// The root of the mount. The kernel never forgets it.
pub const ROOT: Ino = 1;

/// What a file or link shows as its size before its value was read, as in sysfs.
pub const UNREAD_SIZE: u64 = 4096;

#[derive(Debug)]
struct Node {
    parent: Ino,
    entry: Arc<Entry>,
    /// How often the kernel was given this inode and has not forgotten it.
    lookups: u64,
    /// The length of the value that was opened last, or else came with a listing.
    size: Option<u64>,
    /// The kernel's own idea of the size is not below this: the least that it was told, or may have made of a
    /// truncation or of a short read through its page cache.
    kernel_size: u64,
    /// Nodes of which this is the parent; they need it for their path.
    children: u32,
    /// The object is gone; another one may have its path now.
    dead: bool,
}

/// The inodes that the kernel knows.
pub struct Inodes {
    /// Numbers grow, and a walk touches those of one directory: a tree keeps them together.
    nodes: BTreeMap<Ino, Node>,
    /// By file name.
    names: ByName,
    /// Those that stand under another name than their own in QEMU would give alone, by that own name.
    odd: ByName,
    /// Why the last operation on an inode failed.
    pub errors: LastErrors,
    /// Symbolic links that are no property of QEMU's, but to be renamed over one; the oldest first.
    temporaries: Vec<Temporary>,
    next: Ino,
    /// About what all this takes, in bytes.
    weight: usize,
    /// The most nodes that there were since memory was given back.
    peak: usize,
}

/// Below this many nodes it is not worth while to give memory back before all are forgotten.
const SHRINK_ABOVE: usize = 4096;

impl Default for Inodes {
    fn default() -> Self {
        let root = Node::new(
            ROOT,
            Arc::new(Entry {
                name: "".into(),
                file: "".into(),
                declared: "".into(),
                kind: Kind::Child,
            }),
        );
        Inodes {
            nodes: BTreeMap::from([(ROOT, root)]),
            names: ByName::default(),
            odd: ByName::default(),
            errors: LastErrors::default(),
            temporaries: Vec::new(),
            next: ROOT + 1,
            weight: 0,
            peak: 0,
        }
    }
}

impl Node {
    fn new(parent: Ino, entry: Arc<Entry>) -> Node {
        Node {
            parent,
            entry,
            lookups: 0,
            size: None,
            kernel_size: u64::MAX,
            children: 0,
            dead: false,
        }
    }
}

impl Inodes {
    /// Numbers for the entries of a listing, for those that the kernel comes to know: the first.
    pub fn reserve(&mut self, entries: usize) -> Ino {
        let first = self.next;
        self.next += entries as Ino;
        first
    }

    /// The inode of an entry, counted as given to the kernel once more. It gets the `reserved`
    /// number if it has none yet. An entry that changed its type is another one and gets a new
    /// number. `size` is that of its value, where that came with a listing: of a value that somebody has
    /// opened, the size is what he reads. `None` when there are too many.
    pub fn lookup(
        &mut self,
        parent: Ino,
        entry: &Arc<Entry>,
        reserved: Ino,
        size: Option<u64>,
    ) -> Option<Ino> {
        if let Some(ino) = self.names.get(parent, &entry.file) {
            match self.nodes.get_mut(&ino) {
                Some(node) if node.entry == *entry => {
                    node.lookups += 1;
                    node.size = node.size.or(size);
                    return Some(ino);
                }
                _ => self.detach(ino),
            }
        }
        if self.weight > INODE_BYTES {
            return None;
        }
        // Once the kernel has forgotten it, the same listing may name it again; while it has not,
        // the number stays with the one that is gone.
        let ino = if self.nodes.contains_key(&reserved) {
            self.reserve(1)
        } else {
            reserved
        };
        let mut node = Node::new(parent, entry.clone());
        (node.lookups, node.size) = (1, size);
        self.enter(ino, node);
        Some(ino)
    }

    /// Adds a node under its names.
    fn enter(&mut self, ino: Ino, node: Node) {
        let Entry { name, file, .. } = &*node.entry;
        self.names.insert(node.parent, file.clone(), ino);
        if **file != *file_name(name) {
            self.odd.insert(node.parent, name.clone(), ino);
        }
        self.insert(ino, node);
    }

    /// Adds a node under no name.
    fn insert(&mut self, ino: Ino, node: Node) {
        if let Some(parent) = self.nodes.get_mut(&node.parent) {
            parent.children += 1;
        }
        self.weight += node.entry.weight();
        self.nodes.insert(ino, node);
        self.peak = self.peak.max(self.nodes.len());
    }

    /// The inode under a file name, if the kernel knows it.
    pub fn named(&self, parent: Ino, file: &str) -> Option<Ino> {
        self.names.get(parent, file)
    }

    /// The inode of a child by its name in QEMU, if the kernel knows it.
    pub fn child(&self, parent: Ino, name: &str) -> Option<Ino> {
        let is_it = |ino: &Ino| {
            let node = self.nodes.get(ino);
            node.is_some_and(|n| {
                n.parent == parent && !n.dead && n.entry.kind == Kind::Child && *n.entry.name == *name
            })
        };
        let likely = self.named(parent, &file_name(name)).filter(is_it);
        // Its file name may have been another's first.
        likely.or_else(|| self.odd.get(parent, name).filter(is_it))
    }

    /// The object that an inode is in, and its entry there; `None` when it is gone, with or without its
    /// parents. The root is in itself.
    pub fn get(&self, ino: Ino) -> Option<(Ino, Arc<Entry>)> {
        let node = self.nodes.get(&ino)?;
        self.ancestors(node)?;
        Some((node.parent, node.entry.clone()))
    }

    /// The path of an object. `None` when it is gone, when the inode is no object, or when QEMU
    /// cannot find the object by its path.
    pub fn object(&self, ino: Ino) -> Option<Path> {
        if ino == ROOT {
            return Some(Path::root());
        }
        let node = self.nodes.get(&ino)?;
        if node.entry.kind != Kind::Child {
            return None;
        }
        let above = self.ancestors(node)?;
        let names = above.iter().rev().map(|node| &*node.entry.name);
        Path::from_names(names.chain([&*node.entry.name]))
    }

    /// The nodes from this one's parent up to below the root; `None` when one is gone.
    fn ancestors<'a>(&'a self, node: &'a Node) -> Option<Vec<&'a Node>> {
        let mut above = Vec::new();
        let mut at = node;
        while !at.dead {
            if at.parent == ROOT {
                return Some(above);
            }
            at = self.nodes.get(&at.parent)?;
            above.push(at);
        }
        None
    }

    /// The size that the kernel is told of an inode; 0 where it has none.
    pub fn tell_size(&mut self, ino: Ino) -> u64 {
        let Some(node) = self.nodes.get_mut(&ino) else {
            return 0;
        };
        let size = node.size.unwrap_or(UNREAD_SIZE);
        node.kernel_size = node.kernel_size.min(size);
        size
    }

    /// Remembers the length of the value that was opened. True when the kernel was told another.
    pub fn set_size(&mut self, ino: Ino, size: u64) -> bool {
        let Some(node) = self.nodes.get_mut(&ino) else {
            return false;
        };
        node.size.replace(size).unwrap_or(UNREAD_SIZE) != size
    }

    /// The kernel may have made the size of an inode this small, without asking.
    pub fn kernel_lowered(&mut self, ino: Ino, size: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.kernel_size = node.kernel_size.min(size);
        }
    }

    /// Whether the kernel may believe that a value is shorter than this. Telling it once changes nothing of
    /// that: what lowers its size may be on its way.
    pub fn kernel_must_grow(&self, ino: Ino, size: u64) -> bool {
        self.nodes.get(&ino).is_some_and(|node| node.kernel_size < size)
    }

    /// The object or property of this inode is gone: whatever has its path from now on is
    /// another one, and gets another inode.
    pub fn detach(&mut self, ino: Ino) {
        let Some(node) = self.nodes.get_mut(&ino).filter(|_| ino != ROOT) else {
            return;
        };
        node.dead = true;
        self.names.remove(node.parent, &node.entry.file, ino);
        self.odd.remove(node.parent, &node.entry.name, ino);
    }

    /// The kernel gives back `count` of the times that it was given this inode. True when so
    /// many are forgotten by now that it is worth while to give memory back.
    pub fn forget(&mut self, ino: Ino, count: u64) -> bool {
        let Some(node) = self.nodes.get_mut(&ino) else {
            return false;
        };
        node.lookups = node.lookups.saturating_sub(count);
        let mut ino = ino;
        // A parent may have waited for its last child only.
        while let Some(node) = self.nodes.get(&ino)
            && ino != ROOT
            && node.lookups == 0
            && node.children == 0
        {
            let parent = node.parent;
            self.weight -= node.entry.weight();
            self.detach(ino);
            self.nodes.remove(&ino);
            self.errors.clear(ino);
            self.temporaries.retain(|temporary| temporary.ino != ino);
            if let Some(above) = self.nodes.get_mut(&parent) {
                above.children -= 1;
            }
            ino = parent;
        }
        let none = self.nodes.len() == 1 && self.peak > 1;
        let few = none || (self.peak > SHRINK_ABOVE && self.nodes.len() < self.peak / 8);
        if few {
            self.names.shrink();
            self.odd.shrink();
            self.peak = self.nodes.len();
        }
        few
    }
}

#[cfg(test)]
mod tests;
