//! What was asked ahead of each process: in flight, then ready, then taken.
//!
//! The rules of docs/semantics.md: a value serves one open of the process that it was asked for, which begins
//! at most [`WINDOW`] after the request was sent, and not past a change.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fs::dir::listing::{Entry, Listing};
use crate::fs::dir::open::Sizes;
use crate::fs::prefetch::Fetched;
use crate::fs::prefetch::plan::{MAX_WINDOW, Need, What};
use crate::fs::prefetch::walk::{WINDOW, Walk};
use crate::fs::{Process, Wait};
use crate::limits::{REQUESTS_AHEAD, VALUES_AHEAD_BYTES};
use crate::qom::{Error, Path, PendingReply, Property, Valued};

/// Requests for listings ahead of one walk that it has not come to yet: without values, and with them,
/// where it leaves some behind at each level that it goes down from.
const MAX_NAMES: usize = 4;
const MAX_BATCHES: usize = 8;
/// What the objects of one reply may take together, in bytes, for those to be kept that are not needed yet.
/// Eight CPUs take two fifths of it.
const MAX_KEPT: usize = 1 << 20;
/// A value must have been read for so many that were evaluated, or its object is not asked for as a whole again.
const WORTH_A_READ: usize = 16;
/// Processes that are remembered at once, and for how long one that does nothing.
const MAX_READERS: usize = 64;
const IDLE: Duration = Duration::from_secs(1);

/// When something was sent, or an operation began; and the generation of listings then.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    pub at: Instant,
    pub generation: u64,
}

impl Stamp {
    /// Whether what was sent then may be served to an operation that began at `began`.
    pub fn is_fresh(self, began: Stamp, limit: Duration) -> bool {
        self.generation == began.generation && !self.is_older(began, limit)
    }

    fn is_older(self, began: Stamp, limit: Duration) -> bool {
        began.at.saturating_duration_since(self.at) > limit
    }
}

/// A request that was sent.
pub enum Asked {
    Listing(Path, PendingReply<Vec<Property>>),
    Objects(Vec<Path>, PendingReply<Vec<Vec<Valued>>>),
    Value(Path, Arc<str>, PendingReply<String>),
}

pub struct InFlight {
    pub stamp: Stamp,
    pub asked: Asked,
}

impl InFlight {
    fn has_come(&self) -> bool {
        match &self.asked {
            Asked::Listing(_, pending) => pending.is_ready(),
            Asked::Objects(_, pending) => pending.is_ready(),
            Asked::Value(_, _, pending) => pending.is_ready(),
        }
    }

    /// Whether it is about more than one object: then a failure may be another one's.
    pub fn is_shared(&self) -> bool {
        matches!(&self.asked, Asked::Objects(paths, _) if paths.len() > 1)
    }

    fn lists(&self, object: &Path) -> bool {
        matches!(&self.asked, Asked::Listing(path, _) if path == object)
    }

    fn has_values_of(&self, object: &Path) -> bool {
        matches!(&self.asked, Asked::Objects(paths, _) if paths.contains(object))
    }

    fn is_value(&self, object: &Path, property: &str) -> bool {
        matches!(&self.asked, Asked::Value(path, name, _) if path == object && **name == *property)
    }
}

/// One object as a reply had it.
struct Snapshot {
    stamp: Stamp,
    /// Its place among the objects of the reply, and how many these are.
    index: usize,
    objects: usize,
    /// About what it took when it came.
    bytes: usize,
    /// How many values there were, and how many of them were read that had not been asked for by the open itself.
    values: usize,
    read: usize,
    /// Until it is listed.
    properties: Option<Vec<Property>>,
    texts: HashMap<Arc<str>, Result<String, Error>>,
}

impl Snapshot {
    fn new(stamp: Stamp, index: usize, objects: usize, values: Vec<Valued>) -> Snapshot {
        let weight = |valued: &Valued| {
            let Property { name, declared } = &valued.property;
            let text = valued.text.as_ref().and_then(|text| text.as_ref().ok());
            128 + name.len() + declared.len() + text.map_or(0, String::len)
        };
        Snapshot {
            stamp,
            index,
            objects,
            bytes: values.iter().map(weight).sum(),
            values: values.len(),
            read: 0,
            properties: Some(values.iter().map(|valued| valued.property.clone()).collect()),
            texts: values
                .into_iter()
                .filter_map(|valued| Some((valued.property.name, valued.text?)))
                .collect(),
        }
    }
}

/// A process, its walk, and what was asked ahead of it.
pub struct Reader {
    pub walk: Walk,
    /// How many objects to ask for in one request with their values.
    pub window: usize,
    in_flight: Vec<InFlight>,
    ready: HashMap<Path, Snapshot>,
}

impl Reader {
    fn new(now: Instant) -> Reader {
        Reader {
            walk: Walk::new(now),
            window: MAX_WINDOW,
            in_flight: Vec::new(),
            ready: HashMap::new(),
        }
    }

    /// Before the walk goes on from the object listed last: if it was the last one of a reply, and
    /// half of the time was enough for all of them, twice as many may be asked for.
    pub fn judge_pace(&mut self, now: Stamp) {
        let done = self.walk.present().and_then(|(path, _)| self.ready.get(path));
        if let Some(done) = done
            && done.index + 1 == done.objects
            && !done.stamp.is_older(now, WINDOW / 2)
        {
            self.window = self.window.max(2 * done.objects).min(MAX_WINDOW);
        }
    }

    /// The listing of an object that came with its values.
    pub fn take_listing(&mut self, path: &Path, began: Stamp) -> Option<Fetched> {
        let snapshot = self.ready.get_mut(path)?;
        if !snapshot.stamp.is_fresh(began, WINDOW) {
            return None;
        }
        Some(Fetched {
            properties: snapshot.properties.take()?,
            sent: snapshot.stamp.at,
            _charge: None,
        })
    }

    /// The values of an object that may still be served.
    fn snapshot(&self, path: &Path, began: Stamp) -> Option<&Snapshot> {
        let snapshot = self.ready.get(path);
        snapshot.filter(|snapshot| snapshot.stamp.is_fresh(began, WINDOW))
    }

    /// Whether asking for an object as a whole is of no use: the values are there, and some were served or cannot be
    /// read; or they were, and hardly any was read in time.
    pub fn is_useless(&self, path: &Path, began: Stamp) -> bool {
        let snapshot = self.ready.get(path);
        snapshot.is_some_and(|snapshot| {
            snapshot.stamp.is_fresh(began, WINDOW) || snapshot.read * WORTH_A_READ < snapshot.values
        })
    }

    /// A value that came with its object.
    pub fn take_value(&mut self, path: &Path, name: &str, began: Stamp) -> Option<Result<String, Error>> {
        let snapshot = self.ready.get_mut(path)?;
        if snapshot.stamp.is_fresh(began, WINDOW) {
            snapshot.read += usize::from(snapshot.stamp.at < began.at);
            return snapshot.texts.remove(name);
        }
        if snapshot.stamp.is_older(began, WINDOW) && !snapshot.texts.is_empty() {
            self.window = snapshot.index.clamp(1, self.window);
        }
        snapshot.texts.clear();
        None
    }

    /// How long the values of a listing are as files.
    pub fn sizes(&self, path: &Path, listing: &Listing, began: Stamp) -> Option<Sizes> {
        let snapshot = self.snapshot(path, began)?;
        let length =
            |entry: &Arc<Entry>| Some(snapshot.texts.get(&entry.name)?.as_ref().ok()?.len() as u64 + 1);
        let values = listing.values().iter().map(length);
        let others = listing.entries().len() - listing.values().len();
        Some(values.chain(std::iter::repeat_n(None, others)).collect())
    }

    /// The request for a value that is on its way, alone or with its object.
    pub fn take_value_in_flight(&mut self, path: &Path, name: &str, began: Stamp) -> Option<InFlight> {
        let is_it = |sent: &InFlight| sent.is_value(path, name) || sent.has_values_of(path);
        self.take(began, WINDOW, is_it)
    }

    fn has(&self, now: Stamp, limit: Duration, is_it: impl Fn(&InFlight) -> bool) -> bool {
        let mut in_flight = self.in_flight.iter();
        in_flight.any(|sent| sent.stamp.is_fresh(now, limit) && is_it(sent))
    }

    fn take(&mut self, now: Stamp, limit: Duration, is_it: impl Fn(&InFlight) -> bool) -> Option<InFlight> {
        let is_it = |sent: &InFlight| sent.stamp.is_fresh(now, limit) && is_it(sent);
        let place = self.in_flight.iter().position(is_it)?;
        Some(self.in_flight.remove(place))
    }

    /// Lets go of what came and is too old. What was not even listed by then was too much.
    fn drop_old(&mut self, now: Stamp) {
        let window = &mut self.window;
        self.ready.retain(|_, snapshot| {
            let is_fresh = snapshot.stamp.is_fresh(now, WINDOW);
            if snapshot.properties.is_some() && snapshot.stamp.is_older(now, WINDOW) {
                *window = snapshot.index.clamp(1, *window);
            }
            is_fresh
        });
    }
}

/// All processes.
pub struct Readers {
    /// How long listings hold.
    entry_timeout: Duration,
    by_process: HashMap<Process, Reader>,
}

impl Readers {
    pub fn new(entry_timeout: Duration) -> Readers {
        Readers {
            entry_timeout,
            by_process: HashMap::new(),
        }
    }

    pub fn get(&self, process: Process) -> Option<&Reader> {
        self.by_process.get(&process)
    }

    /// The process that does something now.
    pub fn of(&mut self, process: Process, now: Instant) -> &mut Reader {
        if self.by_process.len() >= MAX_READERS && !self.by_process.contains_key(&process) {
            let oldest = self
                .by_process
                .iter()
                .min_by_key(|(_, reader)| reader.walk.last());
            if let Some(oldest) = oldest.map(|(process, _)| *process) {
                self.by_process.remove(&oldest);
            }
        }
        let reader = self.by_process.entry(process);
        let reader = reader.or_insert_with(|| Reader::new(now));
        if !reader.walk.goes_on(now) {
            reader.window = MAX_WINDOW;
        }
        reader
    }

    /// Lets go of processes that did nothing for some time.
    pub fn forget_idle(&mut self) {
        self.by_process
            .retain(|_, reader| reader.walk.last().elapsed() < IDLE);
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        self.by_process.clear();
    }

    /// Takes the request for a listing: with values if that is on its way for this process, else that for
    /// anybody. One that was asked for this process serves it for [`WINDOW`] at the least.
    pub fn take_listing(
        &mut self,
        process: Process,
        path: &Path,
        began: Stamp,
        wait: Wait,
    ) -> Option<InFlight> {
        let may_wait = |sent: &InFlight| wait == Wait::Yes || sent.has_come();
        let lists = |sent: &InFlight| sent.lists(path) && may_wait(sent);
        let entry_timeout = self.entry_timeout;
        let own = self.by_process.get_mut(&process)?;
        own.take(began, WINDOW, |sent| sent.has_values_of(path) && may_wait(sent))
            .or_else(|| own.take(began, entry_timeout.max(WINDOW), lists))
            .or_else(|| {
                let mut all = self.by_process.values_mut();
                all.find_map(|reader| reader.take(began, entry_timeout, lists))
            })
    }

    /// Whether something of an object is ready for a process, or was asked for.
    pub fn have(&self, process: Process, path: &Path, need: Need, now: Stamp) -> bool {
        let has_values = |own: &Reader| {
            own.snapshot(path, now).is_some() || own.has(now, WINDOW, |sent| sent.has_values_of(path))
        };
        let is_listed = |reader: &Reader| reader.has(now, self.entry_timeout, |sent| sent.lists(path));
        self.get(process).is_some_and(has_values)
            || need == Need::Listing && self.by_process.values().any(is_listed)
    }

    /// Keeps a request that was sent ahead of a process.
    pub fn put(&mut self, process: Process, sent: InFlight) {
        if let Some(own) = self.by_process.get_mut(&process) {
            own.in_flight.push(sent);
        }
    }

    /// Whether there is room for such a request ahead of a process. Lets go of what is too old.
    pub fn has_room(&mut self, process: Process, what: &What, now: Stamp) -> bool {
        let entry_timeout = self.entry_timeout;
        let Some(own) = self.by_process.get_mut(&process) else {
            return false;
        };
        own.in_flight.retain(|sent| match (&sent.asked, what) {
            (Asked::Value(..), What::Value(..)) => false,
            (Asked::Listing(..), _) => sent.stamp.is_fresh(now, entry_timeout.max(WINDOW)),
            _ => sent.stamp.is_fresh(now, WINDOW),
        });
        let is_listing = |sent: &&InFlight| matches!(sent.asked, Asked::Listing(..));
        let names = own.in_flight.iter().filter(is_listing).count();
        let few = match what {
            What::Listing(_) => names < MAX_NAMES,
            What::Objects(_) => own.in_flight.len() - names < MAX_BATCHES,
            What::Value(..) => true,
        };
        let all = self.by_process.values().map(|reader| reader.in_flight.len());
        few && all.sum::<usize>() < 2 * REQUESTS_AHEAD
    }

    /// Keeps the objects of a reply for a process; gives the properties of the one that is needed now.
    pub fn keep(
        &mut self,
        process: Process,
        stamp: Stamp,
        objects: Vec<(Path, Vec<Valued>)>,
        needed: &Path,
    ) -> Option<Vec<Property>> {
        let now = Stamp {
            at: Instant::now(),
            ..stamp
        };
        let count = objects.len();
        let objects = objects.into_iter().enumerate();
        let mut objects: Vec<_> = objects
            .map(|(index, (path, values))| (path, Snapshot::new(stamp, index, count, values)))
            .collect();
        let fits = objects.iter().map(|(_, snapshot)| snapshot.bytes).sum::<usize>() <= MAX_KEPT;
        objects.retain(|(path, _)| fits || path == needed);
        let mut properties = None;
        for (path, mut snapshot) in objects {
            if path == *needed {
                properties = snapshot.properties.take();
            }
            if self.held() + snapshot.bytes > VALUES_AHEAD_BYTES {
                self.by_process
                    .values_mut()
                    .for_each(|reader| reader.drop_old(now));
            }
            let fits = self.held() + snapshot.bytes <= VALUES_AHEAD_BYTES;
            if fits && let Some(own) = self.by_process.get_mut(&process) {
                own.drop_old(now);
                own.ready.insert(path, snapshot);
            }
        }
        properties
    }

    /// What all that is ready took when it came, in bytes.
    fn held(&self) -> usize {
        let ready = self.by_process.values().flat_map(|reader| reader.ready.values());
        ready.map(|snapshot| snapshot.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A_MOMENT: Duration = Duration::from_millis(1);

    fn readers() -> (Readers, Stamp) {
        let mut readers = Readers::new(Duration::from_secs(1));
        let began = Stamp {
            at: Instant::now() + WINDOW,
            generation: 1,
        };
        readers.of(7, began.at);
        (readers, began)
    }

    fn object(n: usize) -> Path {
        Path::root().child(&format!("o{n}")).unwrap()
    }

    /// Objects with two hundred values each, as they come of one request.
    fn keep(readers: &mut Readers, sent: Stamp, objects: std::ops::Range<usize>) {
        let valued = |n: usize| Valued {
            property: Property {
                name: format!("v{n}").into(),
                declared: "int".into(),
            },
            text: Some(Ok(n.to_string())),
        };
        let objects = objects.map(|n| (object(n), (0..200).map(valued).collect()));
        readers.keep(7, sent, objects.collect(), &Path::root());
    }

    fn later(stamp: Stamp, by: Duration) -> Stamp {
        let at = stamp.at + by;
        Stamp { at, ..stamp }
    }

    #[test]
    fn a_value_serves_one_open_that_begins_in_time() {
        let (mut readers, sent) = readers();
        keep(&mut readers, sent, 0..2);
        let mut take = |n, name: &str, began: Stamp| {
            let taken = readers.of(7, began.at).take_value(&object(n), name, began);
            taken.and_then(Result::ok)
        };
        let changed = Stamp {
            generation: 2,
            ..sent
        };
        assert_eq!(take(0, "v1", changed), None, "not past a write");
        assert_eq!(take(1, "v1", sent), Some("1".into()));
        assert_eq!(take(1, "v1", sent), None, "once only");
        assert_eq!(take(1, "v2", later(sent, WINDOW)), Some("2".into()));
        assert_eq!(take(1, "v3", later(sent, WINDOW + A_MOMENT)), None);
        let other = readers.of(8, sent.at).take_value(&object(1), "v4", sent);
        assert!(other.is_none(), "for the process that it was asked for");
    }

    #[test]
    fn as_many_at_once_as_are_read_in_time() {
        let (mut readers, sent) = readers();
        keep(&mut readers, sent, 0..8);
        let reader = readers.of(7, sent.at);
        assert_eq!(reader.window, MAX_WINDOW);
        let too_late = later(sent, WINDOW + A_MOMENT);
        assert!(reader.take_value(&object(1), "v1", later(sent, WINDOW)).is_some());
        assert!(reader.take_value(&object(2), "v1", too_late).is_none());
        assert_eq!(reader.window, 2);
        // Half of the time was enough for the last one, or not.
        let listing = Arc::new(Listing::new(Vec::new(), &Default::default(), |_| 2));
        for (took, window) in [(WINDOW / 2 + A_MOMENT, 2), (WINDOW / 2, 4)] {
            keep(&mut readers, too_late, 8..10);
            let reader = readers.of(7, sent.at);
            reader.walk.listed(&object(9), "o9", &listing);
            reader.judge_pace(later(too_late, took));
            assert_eq!(reader.window, window, "{took:?}");
        }
    }

    #[test]
    fn what_comes_too_late_is_not_asked_for_again() {
        for (reads, useless) in [(12, true), (13, false)] {
            let (mut readers, sent) = readers();
            keep(&mut readers, sent, 0..1);
            let reader = readers.of(7, sent.at);
            assert!(
                reader.take_value(&object(0), "v0", sent).is_some(),
                "the open's own"
            );
            let began = later(sent, A_MOMENT);
            for n in 0..reads {
                assert!(
                    reader
                        .take_value(&object(0), &format!("v{}", n + 1), began)
                        .is_some()
                );
            }
            assert!(reader.is_useless(&object(0), began), "it is there");
            let too_late = later(sent, WINDOW + A_MOMENT);
            assert!(reader.take_value(&object(0), "v99", too_late).is_none());
            assert_eq!(reader.is_useless(&object(0), too_late), useless, "{reads}");
        }
    }

    #[test]
    fn a_pause_ends_a_walk_and_processes_are_bounded() {
        let (mut readers, now) = readers();
        let paused = later(now, WINDOW + A_MOMENT);
        readers.of(7, now.at).window = 1;
        assert_eq!(readers.of(7, later(now, WINDOW).at).window, 1);
        assert_eq!(readers.of(7, later(paused, WINDOW).at).window, MAX_WINDOW);
        for process in 1..1000 {
            readers.of(process, now.at);
        }
        assert_eq!(readers.by_process.len(), MAX_READERS);
    }
}
