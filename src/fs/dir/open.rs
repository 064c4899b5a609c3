//! Open directories.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::fs::dir::listing::Listing;
use crate::fs::{Found, Ino, Process, Result, Tree, Wait};

/// The sizes of a listing's entries, where they are known.
pub(crate) type Sizes = Arc<[Option<u64>]>;

/// An open directory.
pub struct Directory {
    ino: Ino,
    parent: Ino,
    /// Who opened it.
    process: Process,
    /// Since it was first read.
    shown: Mutex<Option<Shown>>,
}

/// What an open directory shows until it is rewound.
#[derive(Clone)]
pub struct Shown {
    ino: Ino,
    parent: Ino,
    listing: Arc<Listing>,
    /// What the values that came with the listing are long, in its order.
    sizes: Option<Sizes>,
}

/// One line of a directory.
pub enum Item<'a> {
    /// `.` or `..`, which the kernel does not count.
    Dots(Ino, &'a str),
    Entry(Found, &'a str),
}

impl Tree {
    /// Opens a directory. Nothing is asked for yet: `df` and a shell's `cd` do not read it.
    ///
    /// # Errors
    /// ENOENT when its object is known to be gone, or has a name that QEMU cannot find; ENOTDIR.
    pub fn open_directory(&self, ino: Ino, process: Process) -> Result<u64> {
        self.object(ino)?;
        let (parent, _) = self.inodes.lock().get(ino).ok_or(libc::ENOENT)?;
        Ok(self.directories.open(Directory {
            ino,
            parent,
            process,
            shown: Mutex::default(),
        }))
    }

    pub fn close_directory(&self, handle: u64) {
        self.directories.close(handle);
        self.prefetcher.forget_old();
    }

    /// Gives the lines of an open directory from `offset` on to `take`, with the offset of the
    /// next one, until that returns true for "full".
    ///
    /// # Errors
    /// ENOMEM when the kernel holds too many inodes.
    pub fn read_directory(
        &self,
        directory: &Shown,
        offset: u64,
        mut take: impl FnMut(Item<'_>, u64) -> bool,
    ) -> Result<()> {
        let Shown { listing, sizes, .. } = directory;
        // Looked up once it is read: it may have been dropped since it was opened.
        let left = self.listings.ttl(directory.ino, listing);
        for (index, name) in [(0, "."), (1, "..")] {
            let ino = if index == 0 {
                directory.ino
            } else {
                directory.parent
            };
            if offset <= index && take(Item::Dots(ino, name), index + 1) {
                return Ok(());
            }
        }
        let first = offset.saturating_sub(2).min(listing.entries().len() as u64);
        for (entry, next) in listing.entries()[first as usize..].iter().zip(first + 3..) {
            let index = next as usize - 3;
            let reserved = listing.reserved(index);
            let at_hand = sizes.as_ref().and_then(|sizes| sizes[index]);
            let found = match self.enter(directory.ino, entry, reserved, at_hand, left) {
                Ok(found) => found,
                // With an error the kernel would take none of those before, which are counted.
                Err(_) if next > offset + 1 => break,
                Err(e) => return Err(e),
            };
            let ino = found.attributes.ino;
            if take(Item::Entry(found, &entry.file), next) {
                self.forget(ino, 1);
                break;
            }
        }
        Ok(())
    }

    /// What an open directory shows from this offset on. Rewound, it is looked up again.
    ///
    /// # Errors
    /// EBADF, or why QEMU does not list it.
    pub fn shown(&self, handle: u64, offset: u64, wait: Wait) -> Result<Shown> {
        let directory = self.directories.get(handle).ok_or(libc::EBADF)?;
        let mut shown = match wait {
            Wait::No => directory.shown.try_lock().ok_or(libc::EWOULDBLOCK)?,
            Wait::Yes => directory.shown.lock(),
        };
        let listing = match &*shown {
            Some(known) if offset > 0 => return Ok(known.clone()),
            Some(_) => self.listing(directory.ino, wait)?,
            None => self.listing_for(directory.ino, directory.process, wait)?,
        };
        Ok(self.show(&directory, &mut shown, listing))
    }

    fn show(&self, directory: &Directory, shown: &mut Option<Shown>, listing: Arc<Listing>) -> Shown {
        let mut sizes = None;
        let found = self.inodes.lock().get(directory.ino);
        if shown.is_none()
            && let (Some((_, entry)), Ok(path)) = (found, self.object(directory.ino))
        {
            let access = self.access(directory.process, &path);
            sizes = self.prefetcher.listed(access, &entry.file, &listing);
        }
        shown
            .insert(Shown {
                ino: directory.ino,
                parent: directory.parent,
                listing,
                sizes,
            })
            .clone()
    }
}
