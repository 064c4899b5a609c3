//! Listings that were fetched not long ago.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fs::dir::listing::Listing;
use crate::fs::inode::table::Ino;

/// Listings by the inode of their directory, each for a lifetime from when it was asked for.
pub struct ListingCache {
    lifetime: Duration,
    cached: Mutex<Cached>,
    /// Counts what made listings and values stale. What was asked for under another count is not kept.
    generation: AtomicU64,
}

struct Cached {
    by_ino: HashMap<Ino, (Arc<Listing>, Instant)>,
    purge_at: Instant,
}

impl ListingCache {
    pub fn new(lifetime: Duration) -> ListingCache {
        ListingCache {
            lifetime,
            cached: Mutex::new(Cached {
                by_ino: HashMap::new(),
                purge_at: Instant::now(),
            }),
            generation: AtomicU64::new(0),
        }
    }

    pub fn get(&self, ino: Ino) -> Option<Arc<Listing>> {
        let cached = self.cached.lock();
        let (listing, asked) = cached.by_ino.get(&ino)?;
        (asked.elapsed() < self.lifetime).then(|| listing.clone())
    }

    /// How long a listing of this directory holds from now on: not at all if something is known to
    /// have changed since it was asked for.
    pub fn ttl(&self, ino: Ino, listing: &Arc<Listing>) -> Duration {
        match self.cached.lock().by_ino.get(&ino) {
            Some((cached, asked)) if Arc::ptr_eq(cached, listing) => {
                self.lifetime.saturating_sub(asked.elapsed())
            }
            _ => Duration::ZERO,
        }
    }

    /// The count to give to [`ListingCache::put`], read before the listing is asked for.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Keeps a listing for as long as it holds. One that was asked for before the last change is
    /// what QEMU answered, but nothing to build on.
    pub fn put(&self, ino: Ino, listing: Listing, asked: Instant, generation: u64) -> Arc<Listing> {
        let listing = Arc::new(listing);
        let mut cached = self.cached.lock();
        let now = Instant::now();
        if now >= cached.purge_at {
            self.purge(&mut cached, now);
        }
        if generation == self.generation() && now - asked < self.lifetime {
            cached.by_ino.insert(ino, (listing.clone(), asked));
        }
        listing
    }

    fn purge(&self, cached: &mut Cached, now: Instant) {
        let lifetime = self.lifetime;
        cached.by_ino.retain(|_, (_, asked)| now - *asked < lifetime);
        if cached.by_ino.capacity() > 4 * cached.by_ino.len() {
            cached.by_ino.shrink_to_fit();
        }
        cached.purge_at = now + lifetime.max(Duration::from_millis(100));
    }

    /// Lets go of what has expired.
    pub fn forget_old(&self) {
        self.purge(&mut self.cached.lock(), Instant::now());
    }

    /// The inode is forgotten, and what it listed with it.
    pub fn forget(&self, ino: Ino) {
        self.cached.lock().by_ino.remove(&ino);
    }

    /// Something changed: what is on its way may be older.
    pub fn note_change(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// The object under this inode changed.
    pub fn drop_one(&self, ino: Ino) {
        self.note_change();
        self.cached.lock().by_ino.remove(&ino);
    }

    /// Anything may have changed.
    pub fn drop_all(&self) {
        self.note_change();
        self.cached.lock().by_ino.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Listing {
        Listing::new(Vec::new(), &crate::fs::dir::listing::Entries::default(), |_| 2)
    }

    #[test]
    fn served_for_its_lifetime_only() {
        let listings = ListingCache::new(Duration::from_millis(50));
        let kept = listings.put(2, empty(), Instant::now(), listings.generation());
        assert!(listings.ttl(2, &kept) > Duration::ZERO && listings.get(2).is_some());
        let old = Instant::now() - Duration::from_millis(60);
        let old = listings.put(3, empty(), old, listings.generation());
        assert!(listings.ttl(3, &old).is_zero() && listings.get(3).is_none());
        listings.drop_one(2);
        assert!(listings.ttl(2, &kept).is_zero() && listings.get(2).is_none());
        let anew = listings.put(2, empty(), Instant::now(), listings.generation());
        assert!(listings.ttl(2, &kept).is_zero() && !listings.ttl(2, &anew).is_zero());
    }

    #[test]
    fn not_kept_when_something_changed_meanwhile() {
        let listings = ListingCache::new(Duration::from_secs(10));
        let generation = listings.generation();
        listings.drop_one(7);
        let listing = listings.put(2, empty(), Instant::now(), generation);
        assert!(listings.ttl(2, &listing).is_zero() && listings.get(2).is_none());
    }
}
