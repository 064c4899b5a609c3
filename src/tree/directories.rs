//! Open directories.

use std::sync::Arc;

use parking_lot::Mutex;

use super::listing::Listing;
use super::{Found, Ino, Process, Result, Tree};

/// The sizes of a listing's entries, where they are known.
pub(super) type Sizes = Arc<[Option<u64>]>;

/// An open directory: the listing that it showed when it was opened or last rewound.
pub struct Directory {
    ino: Ino,
    parent: Ino,
    shown: Mutex<Shown>,
}

struct Shown {
    listing: Arc<Listing>,
    /// What the values that came with the listing are long, in its order.
    sizes: Option<Sizes>,
    /// Something was read: offset 0 means "again".
    begun: bool,
}

/// One line of a directory.
pub enum Item<'a> {
    /// `.` or `..`, which the kernel does not count.
    Dots(Ino, &'a str),
    Entry(Found, &'a str),
}

impl Tree {
    /// Opens a directory, if that can be done without asking QEMU.
    pub fn open_directory_cached(&self, ino: Ino, process: Process) -> Option<u64> {
        let listing = self.listings.get(ino)?;
        self.look_ahead(ino, &listing, process);
        Some(self.opened(ino, listing, process))
    }

    /// Whether the listing of a directory was asked for ahead and came, so that opening it should wait
    /// for nothing.
    pub fn is_listing_at_hand(&self, ino: Ino, process: Process) -> bool {
        let changes = self.listings.changes();
        self.object(ino)
            .is_ok_and(|path| self.ahead.is_ready(process, &path, changes))
    }

    /// Opens a directory and fixes what it shows.
    ///
    /// # Errors
    /// Why QEMU does not list it.
    pub fn open_directory(&self, ino: Ino, process: Process) -> Result<u64> {
        let listing = self.listing_for(ino, Some(process))?;
        self.look_ahead(ino, &listing, process);
        Ok(self.opened(ino, listing, process))
    }

    fn opened(&self, ino: Ino, listing: Arc<Listing>, process: Process) -> u64 {
        let parent = self.inodes.lock().parent(ino);
        let sizes = self.sizes_at_hand(ino, &listing, process);
        self.directories.open(Directory {
            ino,
            parent,
            shown: Mutex::new(Shown {
                listing,
                sizes,
                begun: false,
            }),
        })
    }

    pub fn close_directory(&self, handle: u64) {
        self.directories.close(handle);
        self.walks.lock().forget_old();
        self.ahead.forget_old();
    }

    /// Gives the lines of an open directory from `offset` on to `take`, with the offset of the
    /// next one, until that returns true for "full".
    ///
    /// # Errors
    /// EBADF; or why QEMU does not list it, when it is read again from the start.
    pub fn read_directory(
        &self,
        handle: u64,
        offset: u64,
        mut take: impl FnMut(Item<'_>, u64) -> bool,
    ) -> Result<()> {
        let directory = self.directories.get(handle).ok_or(libc::EBADF)?;
        let (listing, sizes) = self.shown(&directory, offset)?;
        // Looked up once it is read: it may have been dropped since it was opened.
        let left = self.listings.left(directory.ino, &listing);
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
            if let Some(size) = at_hand {
                self.inodes.lock().show_size(ino, size);
            }
        }
        Ok(())
    }

    /// Whether reading an open directory from this offset on needs no answer from QEMU.
    pub fn is_shown(&self, handle: u64, offset: u64) -> bool {
        offset != 0
            || self
                .directories
                .get(handle)
                .is_none_or(|directory| directory.shown.try_lock().is_some_and(|shown| !shown.begun))
    }

    /// What an open directory shows from this offset on. Rewound, it is looked up again.
    fn shown(&self, directory: &Directory, offset: u64) -> Result<(Arc<Listing>, Option<Sizes>)> {
        let mut shown = directory.shown.lock();
        if offset == 0 && std::mem::replace(&mut shown.begun, true) {
            shown.listing = self.listing(directory.ino)?;
            shown.sizes = None;
        }
        Ok((shown.listing.clone(), shown.sizes.clone()))
    }
}
