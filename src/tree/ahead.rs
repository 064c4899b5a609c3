//! What was asked of QEMU before the kernel asks, and values that came along with others.
//!
//! The rules of design §5: each value serves one open at most, for [`WINDOW`] at most after its
//! request was sent, and not past a write.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::batch::Batch;
use super::walk::WINDOW;
use crate::qom::{Ask, Error, Path, Property, Valued};

/// Requests for listings ahead of one walk that it has not come to yet: without values, and with them,
/// where it leaves some behind at each level that it goes down from.
const MOST_NAMES: usize = 4;
const MOST_BATCHES: usize = 8;
/// When a listing without values that its walk did not come to is given up, at the latest.
const GIVE_UP: Duration = Duration::from_secs(1);
/// Such requests ahead of all walks together, and as many for single values.
const MOST_REQUESTS: usize = 32;
/// Values held at once, in bytes. What does not fit is asked for one by one.
const MOST_BYTES: usize = 16 << 20;

/// A listing that was asked for, with or without the values.
pub enum ListAsk {
    Names(Ask<Vec<Property>>),
    /// One object of several; its place among them.
    Values(Arc<Batch>, usize),
}

/// How many changes of listings and how many writes there have been.
#[derive(Clone, Copy)]
pub struct Moment {
    pub changes: u64,
    pub writes: u64,
}

/// A request for a listing.
pub struct Listed {
    pub ask: ListAsk,
    /// The process whose walk it was sent for, if any.
    pub process: Option<u32>,
    /// Just before it was sent.
    pub moment: Moment,
}

impl Listed {
    pub fn sent(&self) -> Instant {
        match &self.ask {
            ListAsk::Names(ask) => ask.sent(),
            ListAsk::Values(batch, _) => batch.sent(),
        }
    }

    fn has_values(&self) -> bool {
        matches!(self.ask, ListAsk::Values(..))
    }
}

/// The kernel's number for no process.
const ANYBODY: u32 = 0;

/// How many requests these come from.
fn requests<'a>(listings: impl Iterator<Item = &'a Listed>) -> usize {
    let (mut alone, mut batches) = (0, HashSet::new());
    for listed in listings {
        match &listed.ask {
            ListAsk::Names(_) => alone += 1,
            ListAsk::Values(batch, _) => _ = batches.insert(Arc::as_ptr(batch)),
        }
    }
    alone + batches.len()
}

struct Value {
    path: Path,
    name: Arc<str>,
    ask: Ask<String>,
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
    listings: Mutex<HashMap<(u32, Path), Listed>>,
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
    pub fn wrote(&self) {
        self.writes.fetch_add(1, Ordering::SeqCst);
    }

    /// The count to give to [`Ahead::keep`], read before the values are asked for.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// Whether a listing may still be used for a process, by its age and by the `changes` that there were.
    /// With values that may not be served, it is better asked for again: else a second request would
    /// follow, for them.
    fn is_good(&self, listed: &Listed, process: Option<u32>, changes: u64) -> bool {
        let limit = if listed.has_values() {
            WINDOW
        } else if listed.process == process {
            self.entry_timeout.clamp(WINDOW, GIVE_UP)
        } else {
            self.entry_timeout.min(GIVE_UP)
        };
        let written = listed.has_values() && listed.moment.writes != self.writes();
        listed.moment.changes == changes && !written && listed.sent().elapsed() < limit
    }

    /// Gives a listing that was asked for ahead and is good for a process to `look`: with values if there
    /// is one, for that process.
    fn find<T>(
        &self,
        process: u32,
        path: &Path,
        changes: u64,
        look: impl Fn(&Listed) -> Option<T>,
    ) -> Option<T> {
        let listings = self.listings.lock();
        [process, ANYBODY].into_iter().find_map(|of| {
            let listed = listings.get(&(of, path.clone()))?;
            let good = self.is_good(listed, Some(process), changes);
            good.then(|| look(listed)).flatten()
        })
    }

    /// Whether the listing of an object was asked for ahead of the walk of a process, with its values if
    /// these are needed, and waits to be taken.
    pub fn is_listed(&self, process: u32, path: &Path, values: bool, changes: u64) -> bool {
        let look = |listed: &Listed| (listed.has_values() || !values).then_some(());
        self.find(process, path, changes, look).is_some()
    }

    /// Whether such a listing has come.
    pub fn is_ready(&self, process: u32, path: &Path, changes: u64) -> bool {
        let look = |listed: &Listed| match &listed.ask {
            ListAsk::Names(ask) => Some(ask.is_ready()),
            ListAsk::Values(batch, index) => Some(batch.is_ready(*index)),
        };
        self.find(process, path, changes, look) == Some(true)
    }

    /// How many more requests for listings may be made ahead of the walk of a process.
    pub fn room(&self, process: u32, values: bool, changes: u64) -> usize {
        let mut listings = self.listings.lock();
        listings.retain(|_, listed| self.is_good(listed, listed.process, changes));
        let of_this = listings.values().filter(|l| l.process == Some(process));
        let most = if values { MOST_BATCHES } else { MOST_NAMES };
        let left = MOST_REQUESTS.saturating_sub(requests(listings.values()));
        most.saturating_sub(requests(of_this)).min(left)
    }

    pub fn put_listing(&self, path: Path, listed: Listed) {
        let of = match listed.process {
            Some(process) if listed.has_values() => process,
            _ => ANYBODY,
        };
        self.listings.lock().insert((of, path), listed);
    }

    /// A listing that was asked for ahead, unless something changed since.
    pub fn take_listing(&self, process: Option<u32>, path: &Path, changes: u64) -> Option<Listed> {
        let mut listings = self.listings.lock();
        let own = process.into_iter().chain([ANYBODY]);
        own.filter_map(|of| listings.remove(&(of, path.clone())))
            .find(|listed| self.is_good(listed, process, changes))
    }

    /// The same, only if its reply has the values.
    pub fn take_values(&self, process: u32, path: &Path, changes: u64) -> Option<Listed> {
        let listed = self.listings.lock().remove(&(process, path.clone()))?;
        self.is_good(&listed, Some(process), changes).then_some(listed)
    }

    pub fn put_value(&self, process: u32, path: Path, name: Arc<str>, ask: Ask<String>, writes: u64) {
        let mut values = self.values.lock();
        values.retain(|_, value| value.ask.sent().elapsed() < WINDOW);
        if values.len() >= MOST_REQUESTS {
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
    pub fn take_value(&self, process: u32, path: &Path, name: &str) -> Option<Ask<String>> {
        let value = self.values.lock().remove(&process)?;
        let is_it = value.path == *path && *value.name == *name && value.writes == self.writes();
        is_it.then_some(value.ask)
    }

    /// Keeps the values of an object's reply for a process.
    pub fn keep(&self, process: u32, path: &Path, sent: Instant, writes: u64, values: Vec<Valued>) {
        let texts: HashMap<_, _> = values
            .into_iter()
            .filter_map(|v| Some((v.property.name, v.text?)))
            .collect();
        let length = |text: &Result<String, Error>| 128 + text.as_ref().map_or(0, String::len);
        let bytes = texts.values().map(length).sum();
        let mut snapshots = self.snapshots.lock();
        snapshots.retain(|_, snapshot| snapshot.sent.elapsed() < WINDOW);
        let held: usize = snapshots.values().map(|snapshot| snapshot.bytes).sum();
        if held + bytes <= MOST_BYTES {
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
    pub fn serve(&self, process: u32, path: &Path, name: &str) -> Option<Result<String, Error>> {
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
            .retain(|_, listed| self.is_good(listed, listed.process, listed.moment.changes));
        self.values
            .lock()
            .retain(|_, value| value.ask.sent().elapsed() < WINDOW);
        self.snapshots
            .lock()
            .retain(|_, snapshot| snapshot.sent.elapsed() < WINDOW);
    }

    /// Nothing holds any more.
    pub fn clear(&self) {
        self.wrote();
        self.listings.lock().clear();
        self.values.lock().clear();
        self.snapshots.lock().clear();
    }
}
