//! What one directory holds.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::fs::dir::names::file_names;
use crate::fs::inode::table::Ino;
use crate::qom::{Kind, Property};

/// One name in a directory. Equal ones are shared (see [`Entries`]): two hundred CPUs have the
/// same four hundred properties.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The name in QEMU.
    pub name: Arc<str>,
    /// The name in the filesystem.
    pub file: Arc<str>,
    /// The declared type.
    pub declared: Arc<str>,
    pub kind: Kind,
}

/// Every entry in use, each once.
#[derive(Default)]
pub struct Entries {
    known: Mutex<Known>,
    /// What all listings together take, in bytes.
    held: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Known {
    entries: HashSet<Arc<Entry>>,
    /// Purged of what nobody uses when it grows beyond this.
    purge_at: usize,
}

impl Known {
    /// The one of it that is in use; adds what it takes if it is the first.
    fn share(&mut self, entry: Entry, weight: &mut usize) -> Arc<Entry> {
        if let Some(known) = self.entries.get(&entry) {
            return known.clone();
        }
        *weight += entry.weight();
        if self.entries.len() >= self.purge_at.max(4096) {
            self.purge();
        }
        let entry = Arc::new(entry);
        self.entries.insert(entry.clone());
        entry
    }

    fn purge(&mut self) {
        self.entries.retain(|e| Arc::strong_count(e) > 1);
        self.entries.shrink_to_fit();
        self.purge_at = self.entries.len() * 2;
    }
}

impl Entry {
    /// About what it takes, in bytes.
    pub fn weight(&self) -> usize {
        160 + self.name.len() + self.file.len() + self.declared.len()
    }
}

impl Entries {
    /// About what all listings take that are in use, in bytes.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Lets go of entries that no listing and no inode has.
    pub fn forget_unused(&self) {
        self.known.lock().purge();
    }
}

/// The entries of a directory: values first, then links, then children, so that a walker reads
/// one object in one go before it descends; within each in QEMU's order.
#[derive(Debug)]
pub struct Listing {
    entries: Vec<Arc<Entry>>,
    /// Indices into `entries`, sorted by file name.
    by_name: Vec<u32>,
    /// Where links and children begin.
    links: usize,
    children: usize,
    /// The first of the numbers that are reserved for the entries.
    first: Ino,
    weight: Weight,
}

/// What a listing takes, counted until it is dropped.
#[derive(Debug)]
struct Weight {
    bytes: usize,
    held: Arc<AtomicUsize>,
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Listing {
    pub fn new(properties: Vec<Property>, shared: &Entries, reserve: impl FnOnce(usize) -> Ino) -> Listing {
        let mut properties: Vec<(Kind, Property)> = properties.into_iter().map(|p| (p.kind(), p)).collect();
        let rank = |kind: &Kind| match kind {
            Kind::Value => 0,
            Kind::Link => 1,
            Kind::Child => 2,
        };
        // Names are settled in QEMU's order, whatever the kinds.
        let files: Vec<Arc<str>> = file_names(properties.iter().map(|(_, p)| &*p.name))
            .into_iter()
            .zip(&properties)
            .map(|(file, (_, p))| {
                if *file == *p.name {
                    p.name.clone()
                } else {
                    file.into()
                }
            })
            .collect();
        let mut bytes = properties.len() * (size_of::<Arc<Entry>>() + size_of::<u32>());
        let mut known = shared.known.lock();
        let mut entries: Vec<Arc<Entry>> = properties
            .drain(..)
            .zip(files)
            .map(|((kind, Property { name, declared }), file)| {
                let entry = Entry {
                    name,
                    file,
                    declared,
                    kind,
                };
                known.share(entry, &mut bytes)
            })
            .collect();
        drop(known);
        entries.sort_by_key(|e| rank(&e.kind));
        let start_of = |kind: Kind| entries.partition_point(|e| rank(&e.kind) < rank(&kind));
        let (links, children) = (start_of(Kind::Link), start_of(Kind::Child));
        let mut by_name: Vec<u32> = (0..).take(entries.len()).collect();
        by_name.sort_unstable_by(|a, b| entries[*a as usize].file.cmp(&entries[*b as usize].file));
        shared.held.fetch_add(bytes, Ordering::Relaxed);
        Listing {
            weight: Weight {
                bytes,
                held: shared.held.clone(),
            },
            first: reserve(entries.len()),
            entries,
            by_name,
            links,
            children,
        }
    }

    /// About what it takes, in bytes, beside entries that others have too.
    pub fn weight(&self) -> usize {
        self.weight.bytes
    }

    /// All entries, in the order in which they are listed.
    pub fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// The number reserved for the entry at a place in the order.
    pub fn reserved(&self, index: usize) -> Ino {
        self.first + index as Ino
    }

    /// The plain properties.
    pub fn values(&self) -> &[Arc<Entry>] {
        &self.entries[..self.links]
    }

    /// The objects in this one.
    pub fn children(&self) -> &[Arc<Entry>] {
        &self.entries[self.children..]
    }

    /// Which of the children is shown under a file name.
    pub fn child(&self, file: &str) -> Option<usize> {
        self.find(file)?.0.checked_sub(self.children)
    }

    /// The entry shown under a file name, and its place in the order.
    pub fn find(&self, file: &str) -> Option<(usize, &Arc<Entry>)> {
        let at = self
            .by_name
            .binary_search_by(|i| (*self.entries[*i as usize].file).cmp(file))
            .ok()?;
        let index = self.by_name[at] as usize;
        Some((index, &self.entries[index]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(properties: &[(&str, &str)], shared: &Entries) -> Listing {
        let properties = properties.iter().map(|(name, declared)| Property {
            name: (*name).into(),
            declared: (*declared).into(),
        });
        Listing::new(properties.collect(), shared, |_| 100)
    }

    #[test]
    fn order_and_search() {
        let l = listing(
            &[
                ("z", "child<x>"),
                ("b", "int"),
                ("l", "link<x>"),
                ("a", "bool"),
                ("a/", "bool"),
                (r"a\x2f", "link<y>"),
            ],
            &Entries::default(),
        );
        let files: Vec<_> = l.entries().iter().map(|e| &*e.file).collect();
        assert_eq!(files, ["b", "a", r"a\x2f", "l", r"a\x2f~2", "z"]);
        assert_eq!((l.values().len(), l.children().len()), (3, 1));
        assert_eq!((l.child("z"), l.child("a"), l.child("q")), (Some(0), None, None));
        assert_eq!(l.find(r"a\x2f").map(|(i, e)| (i, &*e.name)), Some((2, "a/")));
        assert_eq!(
            l.find(r"a\x2f~2").map(|(i, e)| (i, &*e.name)),
            Some((4, r"a\x2f"))
        );
        assert!(l.find("a/").is_none());
    }

    #[test]
    fn entries_are_shared_and_forgotten() {
        let shared = Entries::default();
        let (one, two) = (
            listing(&[("a", "int")], &shared),
            listing(&[("a", "int")], &shared),
        );
        assert!(Arc::ptr_eq(&one.entries()[0], &two.entries()[0]));
        assert_eq!(shared.held(), one.entries()[0].weight() + 2 * 12);
        drop((one, two));
        for i in 0..20_000 {
            listing(&[(&i.to_string(), "int")], &shared);
        }
        assert!(shared.known.lock().entries.len() <= 4096);
        assert_eq!(shared.held(), 0);
    }
}
