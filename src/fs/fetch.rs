//! Listings: from memory, or as they come.

use std::result::Result as StdResult;
use std::sync::Arc;
use std::time::Instant;

use super::{Error, Ino, Process, ROOT, Result, Tree, Wait};
use crate::fs::dir::listing::Listing;
use crate::fs::error::Doing;
use crate::fs::prefetch::{Access, Stamp, UNKNOWN};
use crate::limits::LISTING_BYTES;
use crate::qom::{self, Path};

/// A listing that takes less may go beyond that, by half of it.
const SMALL_LISTING: usize = 1 << 20;

impl Tree {
    /// A process accesses an object now.
    pub(crate) fn access<'a>(&self, process: Process, path: &'a Path) -> Access<'a> {
        let (at, generation) = (Instant::now(), self.listings.generation());
        let began = Stamp { at, generation };
        Access { process, path, began }
    }

    /// The listing of a directory, from memory or from QEMU.
    pub(crate) fn listing(&self, ino: Ino, wait: Wait) -> Result<Arc<Listing>> {
        self.listing_for(ino, UNKNOWN, wait)
    }

    /// The same for a process that reads the directory.
    pub(crate) fn listing_for(&self, ino: Ino, process: Process, wait: Wait) -> Result<Arc<Listing>> {
        if let Some(listing) = self.listings.get(ino) {
            return Ok(listing);
        }
        let path = self.object(ino)?;
        let access = self.access(process, &path);
        let fetched = self.prefetcher.listing(access, wait).transpose();
        match fetched.ok_or(libc::EWOULDBLOCK)? {
            Ok(fetched) => {
                self.ensure_alive(ino)?;
                self.inodes.lock().errors.clear(ino);
                let listing = Listing::new(fetched.properties, &self.entries, |count| {
                    self.inodes.lock().reserve(count)
                });
                drop(fetched.charge);
                self.make_room(&listing, &path)?;
                Ok(self
                    .listings
                    .put(ino, listing, fetched.sent, access.began.generation))
            }
            Err(e) => Err(self.record_error(ino, Error::from_qom(&e, Doing::List))),
        }
    }

    /// Makes room for a listing, if others take too much: lets go of those that nobody needs.
    ///
    /// # Errors
    /// ENOMEM when somebody does need them.
    fn make_room(&self, listing: &Listing, path: &Path) -> Result<()> {
        // A small one is not to fail because of large ones that somebody else holds.
        let most = match listing.weight() {
            ..SMALL_LISTING => LISTING_BYTES * 3 / 2,
            _ => LISTING_BYTES,
        };
        let others = || self.entries.held() - listing.weight();
        if others() > most {
            self.prefetcher.clear();
            self.listings.drop_all();
        }
        if others() > most {
            let why = format!("{path}: open directories hold more than {most} bytes");
            return Err(Error::refused(libc::ENOMEM, &why));
        }
        Ok(())
    }

    /// The present listing of an object that is only looked through, by its path.
    pub(crate) fn listing_at(&self, path: &Path) -> StdResult<Listing, qom::Error> {
        let fetched = self.prefetcher.plain_listing(path)?;
        let listing = Listing::new(fetched.properties, &self.entries, |_| ROOT);
        drop(fetched.charge);
        Ok(listing)
    }
}
