//! What was asked of QEMU before the kernel asks, and values that came along with others.
//!
//! The rules of docs/semantics.md: each value serves one open at most, for [`WINDOW`] at most after its
//! request was sent, and not past a write.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fs::prefetch::batch::Batch;
use crate::fs::prefetch::walk::WINDOW;
use crate::limits::{REQUESTS_AHEAD, VALUES_AHEAD_BYTES};
use crate::qom::{Error, Path, PendingReply, Property, Valued};

/// Requests for listings ahead of one walk that it has not come to yet: without values, and with them,
/// where it leaves some behind at each level that it goes down from.
const MAX_NAMES: usize = 4;
const MAX_BATCHES: usize = 8;
/// When a listing without values that its walk did not come to is given up, at the latest.
const GIVE_UP: Duration = Duration::from_secs(1);

/// A listing that was asked for, with or without the values.
pub enum ListingRequest {
    Names(PendingReply<Vec<Property>>),
    /// One object of several; its place among them.
    Values(Arc<Batch>, usize),
}

/// What a request was sent under: the generation of listings, and how many writes there had been.
#[derive(Clone, Copy)]
pub struct Stamp {
    pub generation: u64,
    pub writes: u64,
}

/// A request for a listing.
pub struct InFlight {
    pub ask: ListingRequest,
    /// The process whose walk it was sent for, if any.
    pub process: Option<u32>,
    /// Just before it was sent.
    pub stamp: Stamp,
}

impl InFlight {
    pub fn sent(&self) -> Instant {
        match &self.ask {
            ListingRequest::Names(ask) => ask.sent(),
            ListingRequest::Values(batch, _) => batch.sent(),
        }
    }

    fn has_values(&self) -> bool {
        matches!(self.ask, ListingRequest::Values(..))
    }
}

/// The kernel's number for no process.
const ANYBODY: u32 = 0;

/// How many requests these come from.
fn requests<'a>(listings: impl Iterator<Item = &'a InFlight>) -> usize {
    let (mut alone, mut batches) = (0, HashSet::new());
    for listed in listings {
        match &listed.ask {
            ListingRequest::Names(_) => alone += 1,
            ListingRequest::Values(batch, _) => _ = batches.insert(Arc::as_ptr(batch)),
        }
    }
    alone + batches.len()
}

struct Value {
    path: Path,
    name: Arc<str>,
    ask: PendingReply<String>,
    writes: u64,
}

/// The values of one object as one reply had them.
struct Snapshot {
    sent: Instant,
    writes: u64,
    /// About what they took when they came.
    bytes: usize,
    texts: HashMap<Arc<str>, Result<String, Error>>,
}

/// Everything that is ahead. Values that were asked for the walk of one process are for that one only: what
/// one reads in a row must not be served to another's single read.
pub struct Ahead {
    /// For how long listings hold.
    entry_timeout: Duration,
    /// By process where they come with values, else under [`ANYBODY`].
    listings: Mutex<HashMap<(u32, Path), InFlight>>,
    /// One per process.
    values: Mutex<HashMap<u32, Value>>,
    snapshots: Mutex<HashMap<(u32, Path), Snapshot>>,
    /// Counts what may have changed values.
    writes: AtomicU64,
}

impl Ahead {
    /// With the time for which listings hold.
    pub fn new(entry_timeout: Duration) -> Ahead {
        Ahead {
            entry_timeout,
            listings: Mutex::default(),
            values: Mutex::default(),
            snapshots: Mutex::default(),
            writes: AtomicU64::new(0),
        }
    }

    /// To be called before and after a write: nothing that was read before holds afterwards.
    pub fn note_write(&self) {
        self.writes.fetch_add(1, Ordering::SeqCst);
    }

    /// The count to give to [`Ahead::store`], read before the values are asked for.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// Whether a listing may still be used for a process, by its age and by the `generation` that there is now.
    /// With values that may not be served, it is better asked for again: else a second request would
    /// follow, for them.
    fn is_good(&self, listed: &InFlight, process: Option<u32>, generation: u64) -> bool {
        let limit = if listed.has_values() {
            WINDOW
        } else if listed.process == process {
            self.entry_timeout.clamp(WINDOW, GIVE_UP)
        } else {
            self.entry_timeout.min(GIVE_UP)
        };
        let written = listed.has_values() && listed.stamp.writes != self.writes();
        listed.stamp.generation == generation && !written && listed.sent().elapsed() < limit
    }

    /// Gives a listing that was asked for ahead and is good for a process to `look`: with values if there
    /// is one, for that process.
    fn find<T>(
        &self,
        process: u32,
        path: &Path,
        generation: u64,
        look: impl Fn(&InFlight) -> Option<T>,
    ) -> Option<T> {
        let listings = self.listings.lock();
        [process, ANYBODY].into_iter().find_map(|of| {
            let listed = listings.get(&(of, path.clone()))?;
            let good = self.is_good(listed, Some(process), generation);
            good.then(|| look(listed)).flatten()
        })
    }

    /// Whether the listing of an object was asked for ahead of the walk of a process, with its values if
    /// these are needed, and waits to be taken.
    pub fn is_listed(&self, process: u32, path: &Path, values: bool, generation: u64) -> bool {
        let look = |listed: &InFlight| (listed.has_values() || !values).then_some(());
        self.find(process, path, generation, look).is_some()
    }

    /// Whether such a listing has come.
    pub fn is_ready(&self, process: u32, path: &Path, generation: u64) -> bool {
        let look = |listed: &InFlight| match &listed.ask {
            ListingRequest::Names(ask) => Some(ask.is_ready()),
            ListingRequest::Values(batch, index) => Some(batch.is_ready(*index)),
        };
        self.find(process, path, generation, look) == Some(true)
    }

    /// How many more requests for listings may be made ahead of the walk of a process.
    pub fn room(&self, process: u32, values: bool, generation: u64) -> usize {
        let mut listings = self.listings.lock();
        listings.retain(|_, listed| self.is_good(listed, listed.process, generation));
        let of_this = listings.values().filter(|l| l.process == Some(process));
        let most = if values { MAX_BATCHES } else { MAX_NAMES };
        let left = REQUESTS_AHEAD.saturating_sub(requests(listings.values()));
        most.saturating_sub(requests(of_this)).min(left)
    }

    pub fn put_listing(&self, path: Path, listed: InFlight) {
        let of = match listed.process {
            Some(process) if listed.has_values() => process,
            _ => ANYBODY,
        };
        self.listings.lock().insert((of, path), listed);
    }

    /// A listing that was asked for ahead, unless something changed since.
    pub fn take_listing(&self, process: Option<u32>, path: &Path, generation: u64) -> Option<InFlight> {
        let mut listings = self.listings.lock();
        let own = process.into_iter().chain([ANYBODY]);
        own.filter_map(|of| listings.remove(&(of, path.clone())))
            .find(|listed| self.is_good(listed, process, generation))
    }

    /// The same, only if its reply has the values.
    pub fn take_values(&self, process: u32, path: &Path, generation: u64) -> Option<InFlight> {
        let listed = self.listings.lock().remove(&(process, path.clone()))?;
        self.is_good(&listed, Some(process), generation).then_some(listed)
    }

    pub fn put_value(
        &self,
        process: u32,
        path: Path,
        name: Arc<str>,
        ask: PendingReply<String>,
        writes: u64,
    ) {
        let mut values = self.values.lock();
        values.retain(|_, value| value.ask.sent().elapsed() < WINDOW);
        if values.len() >= REQUESTS_AHEAD {
            return;
        }
        values.insert(
            process,
            Value {
                path,
                name,
                ask,
                writes,
            },
        );
    }

    /// The value that was asked for ahead for this process, if it is this one.
    pub fn take_value(&self, process: u32, path: &Path, name: &str) -> Option<PendingReply<String>> {
        let value = self.values.lock().remove(&process)?;
        let is_it = value.path == *path && *value.name == *name && value.writes == self.writes();
        is_it.then_some(value.ask)
    }

    /// Keeps the values of an object's reply for a process.
    pub fn store(&self, process: u32, path: &Path, sent: Instant, writes: u64, values: Vec<Valued>) {
        let texts: HashMap<_, _> = values
            .into_iter()
            .filter_map(|v| Some((v.property.name, v.text?)))
            .collect();
        let length = |text: &Result<String, Error>| 128 + text.as_ref().map_or(0, String::len);
        let bytes = texts.values().map(length).sum();
        let mut snapshots = self.snapshots.lock();
        snapshots.retain(|_, snapshot| snapshot.sent.elapsed() < WINDOW);
        let held: usize = snapshots.values().map(|snapshot| snapshot.bytes).sum();
        if held + bytes <= VALUES_AHEAD_BYTES {
            let snapshot = Snapshot {
                sent,
                writes,
                bytes,
                texts,
            };
            snapshots.insert((process, path.clone()), snapshot);
        }
    }

    /// Whether the values of an object are at hand, be they served already.
    pub fn has_values(&self, process: u32, path: &Path) -> bool {
        self.with(process, path, |_| Some(())).is_some()
    }

    /// The value of a property, to be served once.
    pub fn take(&self, process: u32, path: &Path, name: &str) -> Option<Result<String, Error>> {
        self.with(process, path, |snapshot| snapshot.texts.remove(name))
    }

    /// The lengths of the values at hand, for properties in the order given.
    pub fn lengths<'a>(
        &self,
        process: u32,
        path: &Path,
        names: impl Iterator<Item = &'a str>,
    ) -> Option<Vec<Option<usize>>> {
        let length = |text: &Result<String, Error>| text.as_ref().ok().map(String::len);
        self.with(process, path, |snapshot| {
            Some(
                names
                    .map(|name| snapshot.texts.get(name).and_then(length))
                    .collect(),
            )
        })
    }

    fn with<T>(
        &self,
        process: u32,
        path: &Path,
        use_it: impl FnOnce(&mut Snapshot) -> Option<T>,
    ) -> Option<T> {
        let key = (process, path.clone());
        let mut snapshots = self.snapshots.lock();
        let snapshot = snapshots.get_mut(&key)?;
        if snapshot.sent.elapsed() > WINDOW || snapshot.writes != self.writes() {
            snapshots.remove(&key);
            return None;
        }
        use_it(snapshot)
    }

    /// Lets go of what can no longer be served.
    pub fn forget_old(&self) {
        self.listings
            .lock()
            .retain(|_, listed| self.is_good(listed, listed.process, listed.stamp.generation));
        self.values
            .lock()
            .retain(|_, value| value.ask.sent().elapsed() < WINDOW);
        self.snapshots
            .lock()
            .retain(|_, snapshot| snapshot.sent.elapsed() < WINDOW);
    }

    /// Nothing holds any more.
    pub fn clear(&self) {
        self.note_write();
        self.listings.lock().clear();
        self.values.lock().clear();
        self.snapshots.lock().clear();
    }
}
