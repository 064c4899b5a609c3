//! What was asked of QEMU before the kernel asks, and values that came along with others.
//!
//! The rules of design §5: each value serves one open at most, for [`WINDOW`] at most after its
//! request was sent, and not past a write.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::walk::WINDOW;
use crate::qom::{Ask, Error, Path, Property, Valued};

/// Listings asked for ahead of one walk that it has not come to yet.
const MOST_PER_WALK: usize = 2;
/// When a listing that nobody came for is given up.
const GIVE_UP: Duration = Duration::from_secs(1);
/// Listings asked for ahead of all walks together.
const MOST_LISTINGS: usize = 32;
/// Values held at once, in bytes. What does not fit is asked for one by one.
const MOST_BYTES: usize = 16 << 20;

/// A listing that was asked for, with or without the values.
pub enum ListAsk {
    Names(Ask<Vec<Property>>),
    Values(Ask<Vec<Vec<Valued>>>),
}

/// A request for a listing, with what was true when it was sent.
pub struct Listed {
    pub ask: ListAsk,
    /// The process whose walk it was sent for, if any.
    pub process: Option<u32>,
    pub changes: u64,
    pub writes: u64,
}

impl Listed {
    pub fn sent(&self) -> Instant {
        match &self.ask {
            ListAsk::Names(ask) => ask.sent(),
            ListAsk::Values(ask) => ask.sent(),
        }
    }
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
    /// The length of all texts when they came.
    bytes: usize,
    texts: HashMap<Arc<str>, Result<String, Error>>,
}

/// Everything that is ahead.
#[derive(Default)]
pub struct Ahead {
    listings: Mutex<HashMap<Path, Listed>>,
    /// One per process.
    values: Mutex<HashMap<u32, Value>>,
    /// By process too: what one reads in a row must not be served to another's single read.
    snapshots: Mutex<HashMap<(u32, Path), Snapshot>>,
    /// Counts what may have changed values.
    writes: AtomicU64,
}

impl Ahead {
    /// To be called before and after a write: nothing that was read before holds afterwards.
    pub fn wrote(&self) {
        self.writes.fetch_add(1, Ordering::SeqCst);
    }

    /// The count to give to [`Ahead::keep`], read before the values are asked for.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// Whether the walk of a process may have one more listing asked for ahead.
    pub fn may_list(&self, process: u32, path: &Path) -> bool {
        let mut listings = self.listings.lock();
        listings.retain(|_, listed| listed.sent().elapsed() < GIVE_UP);
        let of_this = listings.values().filter(|l| l.process == Some(process)).count();
        of_this < MOST_PER_WALK && listings.len() < MOST_LISTINGS && !listings.contains_key(path)
    }

    pub fn put_listing(&self, path: Path, listed: Listed) {
        self.listings.lock().insert(path, listed);
    }

    /// A listing that was asked for ahead, unless something changed since.
    pub fn take_listing(&self, path: &Path, changes: u64) -> Option<Listed> {
        let listed = self.listings.lock().remove(path)?;
        (listed.changes == changes && listed.sent().elapsed() < GIVE_UP).then_some(listed)
    }

    /// The same, only if its reply has the values, for this process.
    pub fn take_values(&self, process: u32, path: &Path) -> Option<Listed> {
        let mut listings = self.listings.lock();
        let listed = listings.get(path)?;
        let has_values = matches!(listed.ask, ListAsk::Values(_)) && listed.process == Some(process);
        if has_values { listings.remove(path) } else { None }
    }

    pub fn put_value(&self, process: u32, path: Path, name: Arc<str>, ask: Ask<String>, writes: u64) {
        let mut values = self.values.lock();
        values.retain(|_, value| value.ask.sent().elapsed() < WINDOW);
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
        let length = |text: &Result<String, Error>| text.as_ref().map_or(0, String::len);
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
            .retain(|_, listed| listed.sent().elapsed() < GIVE_UP);
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
