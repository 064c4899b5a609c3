//! What was asked of QEMU ahead: in flight, then ready, then taken.
//!
//! The rules of docs/semantics.md are in [`Sent::serves`]: how old what was asked for may be when an operation begins,
//! and for whom it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fs::dir::listing::{Entry, Listing};
use crate::fs::dir::open::Sizes;
use crate::fs::prefetch::plan::{MAX_WINDOW, Need, Planner, What};
use crate::fs::prefetch::walk::{WINDOW, Walk};
use crate::fs::prefetch::{Access, Fetched, Stamp};
use crate::fs::{Process, Wait};
use crate::limits::{REQUESTS_AHEAD, VALUES_AHEAD_BYTES};
use crate::qom::{Error, Features, Kind, Path, PendingReply, Property, Valued};

/// Requests for listings ahead of one walk that it has not come to yet: without values, and with them,
/// where it leaves some behind at each level that it goes down from.
const MAX_NAMES: usize = 4;
const MAX_BATCHES: usize = 8;
/// What the objects of one reply may take together, in bytes, for those to be kept that are not needed yet.
/// Eight CPUs take two fifths of it.
const MAX_KEPT: usize = 1 << 20;
/// One value is opened for so many that are evaluated, before their object is asked for as a whole again.
const WORTH_A_READ: usize = 16;
/// Processes that are remembered at once.
const MAX_READERS: usize = 64;
/// When a listing that its walk did not come to is given up, at the latest.
const GIVE_UP: Duration = Duration::from_secs(1);

/// The reply to a request, which is on its way.
pub enum Reply {
    Listing(PendingReply<Vec<Property>>),
    Objects(PendingReply<Vec<Vec<Valued>>>),
    Value(PendingReply<String>),
}

/// A request that was sent.
pub struct InFlight {
    /// The process that it was sent for.
    pub process: Process,
    pub what: What,
    pub sent: Stamp,
    pub reply: Reply,
}

/// One object as a reply had it.
struct Snapshot {
    sent: Stamp,
    /// Its place among the objects of the reply, and how many these are.
    index: usize,
    objects: usize,
    /// About what it took when it came.
    bytes: usize,
    /// How many values there were, how many were read by later opens than the one that asked, and how many after they
    /// were too old.
    values: usize,
    read: usize,
    missed: usize,
    /// It was too old when it came.
    was_late: bool,
    /// Until it is listed.
    properties: Option<Vec<Property>>,
    texts: HashMap<Arc<str>, Result<String, Error>>,
}

/// A process that reads.
pub struct Reader {
    pub walk: Walk,
    ready: HashMap<Path, Snapshot>,
}

/// All that was asked ahead, and for whom.
pub struct Store {
    /// How long listings hold.
    entry_timeout: Duration,
    readers: HashMap<Process, Reader>,
    pub in_flight: Vec<InFlight>,
}

impl InFlight {
    pub fn new(access: Access<'_>, what: What, reply: Reply) -> InFlight {
        let at = match &reply {
            Reply::Listing(reply) => reply.sent(),
            Reply::Objects(reply) => reply.sent(),
            Reply::Value(reply) => reply.sent(),
        };
        let sent = Stamp { at, ..access.began };
        let process = access.process;
        InFlight {
            process,
            what,
            sent,
            reply,
        }
    }

    /// Whether it may be used for a process that began something then. A listing without values is for anybody, and
    /// for the one that it was asked for holds for [`WINDOW`] at the least.
    fn serves(&self, process: Process, began: Stamp, entry_timeout: Duration) -> bool {
        let limit = match (&self.what, self.process == process) {
            (What::Listing(_), true) => entry_timeout.clamp(WINDOW, GIVE_UP),
            (What::Listing(_), false) => entry_timeout.min(GIVE_UP),
            (_, true) => WINDOW,
            (_, false) => return false,
        };
        self.sent.is_fresh(began, limit)
    }

    fn has_come(&self) -> bool {
        match &self.reply {
            Reply::Listing(reply) => reply.is_ready(),
            Reply::Objects(reply) => reply.is_ready(),
            Reply::Value(reply) => reply.is_ready(),
        }
    }
}

impl Snapshot {
    fn new(sent: Stamp, now: Stamp, (index, objects): (usize, usize), values: Vec<Valued>) -> Snapshot {
        let text = |valued: Valued| Some((valued.property.name, valued.text?));
        Snapshot {
            sent,
            index,
            objects,
            bytes: values.iter().map(weight).sum(),
            values: values.len(),
            read: 0,
            missed: 0,
            was_late: !sent.is_fresh(now, WINDOW),
            properties: Some(values.iter().map(|valued| valued.property.clone()).collect()),
            texts: values.into_iter().filter_map(text).collect(),
        }
    }

    /// Lets go of what it has. What remains tells how useful it was.
    fn empty(&mut self) {
        (self.bytes, self.properties) = (0, None);
        self.texts = HashMap::new();
    }
}

impl Reader {
    /// What came of an object, if it may still be served. If it is too old by now, so many are not to be asked for
    /// at once.
    fn ready(&mut self, access: Access<'_>) -> Option<&mut Snapshot> {
        let snapshot = self.ready.get_mut(access.path)?;
        if snapshot.sent.is_fresh(access.began, WINDOW) {
            return Some(snapshot);
        }
        if !snapshot.texts.is_empty() {
            if let Some(window) = self.walk.window_of(access.path) {
                *window = snapshot.index.clamp(1, *window);
            }
            snapshot.empty();
        }
        None
    }

    /// Before the walk goes on from the object listed last: if it was the last one of a reply, and
    /// half of the time was enough for all of them, twice as many may be asked for.
    pub fn widen(&mut self, now: Stamp) {
        let Some(path) = self.walk.present().map(|(path, ..)| path.clone()) else {
            return;
        };
        if let Some(done) = self.ready.get(&path)
            && done.index + 1 == done.objects
            && done.sent.is_fresh(now, WINDOW / 2)
            && let Some(window) = self.walk.window_of(&path)
        {
            *window = (*window).max(2 * done.objects).min(MAX_WINDOW);
        }
    }

    /// The listing of an object that came with its values.
    pub fn take_listing(&mut self, access: Access<'_>) -> Option<Fetched> {
        let snapshot = self.ready(access)?;
        Some(Fetched {
            properties: snapshot.properties.take()?,
            sent: snapshot.sent.at,
            charge: None,
        })
    }

    /// A value that came with its object.
    pub fn take_value(&mut self, access: Access<'_>, name: &str) -> Option<Result<String, Error>> {
        let snapshot = self.ready(access)?;
        let text = snapshot.texts.remove(name)?;
        snapshot.read += usize::from(snapshot.sent.at < access.began.at);
        Some(text)
    }

    /// Whether there is no use in asking for an object as a whole: it is there, and what is not was served or cannot be
    /// read; or it grew old, and too few values were opened since. If it came too late, the next will too.
    pub fn is_useless(&mut self, access: Access<'_>) -> bool {
        if self.ready(access).is_some() {
            return true;
        }
        self.ready.get_mut(access.path).is_some_and(|old| {
            let enough = if old.was_late {
                old.values
            } else {
                old.values / WORTH_A_READ
            };
            old.missed += 1;
            old.read + old.missed <= enough
        })
    }

    /// How long the values of a listing are as files, where they came with it.
    pub fn sizes(&mut self, access: Access<'_>, listing: &Listing) -> Option<Sizes> {
        let texts = &self.ready(access)?.texts;
        let size = |entry: &Arc<Entry>| {
            let text = texts.get(&entry.name)?.as_ref().ok()?;
            (entry.kind == Kind::Value).then_some(text.len() as u64 + 1)
        };
        Some(listing.entries().iter().map(size).collect())
    }
}

impl Store {
    pub fn new(entry_timeout: Duration) -> Store {
        Store {
            entry_timeout,
            readers: HashMap::new(),
            in_flight: Vec::new(),
        }
    }

    /// The process that does something now.
    pub fn reader(&mut self, access: Access<'_>) -> &mut Reader {
        let (process, now) = (access.process, access.began.at);
        if self.readers.len() >= MAX_READERS && !self.readers.contains_key(&process) {
            let oldest = self.readers.iter().min_by_key(|(_, reader)| reader.walk.last);
            if let Some(oldest) = oldest.map(|(process, _)| *process) {
                self.readers.remove(&oldest);
            }
        }
        let reader = self.readers.entry(process).or_insert_with(|| Reader {
            walk: Walk::new(now),
            ready: HashMap::new(),
        });
        reader.walk.go_on(now);
        reader
    }

    /// Has it decided what to ask for. `is_cached` tells which listings need not be asked for.
    pub fn plan<T>(
        &mut self,
        access: Access<'_>,
        features: Features,
        is_cached: &dyn Fn(&Path) -> bool,
        decide: impl FnOnce(&Planner<'_>) -> T,
    ) -> T {
        self.reader(access);
        let reader = &self.readers[&access.process];
        decide(&Planner {
            walk: &reader.walk,
            window: reader.walk.window(),
            features,
            have: &|path, need| {
                self.have(Access { path, ..access }, need) || need == Need::Listing && is_cached(path)
            },
        })
    }

    /// Lets go of what only a walk that is over needed.
    pub fn forget_old(&mut self) {
        let old = |since: Instant, limit| since.elapsed() > limit;
        self.readers.retain(|_, reader| !old(reader.walk.last, WINDOW));
        self.in_flight.retain(|sent| !old(sent.sent.at, GIVE_UP));
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        *self = Store::new(self.entry_timeout);
    }

    fn find(&self, access: Access<'_>, is_it: impl Fn(&What) -> bool) -> Option<usize> {
        let Access { process, began, .. } = access;
        let is_it = |sent: &InFlight| sent.serves(process, began, self.entry_timeout) && is_it(&sent.what);
        self.in_flight.iter().position(is_it)
    }

    /// Whether something of an object is ready for a process, or was asked for.
    fn have(&self, access: Access<'_>, need: Need) -> bool {
        let own = self.readers.get(&access.process);
        let ready = own.and_then(|own| own.ready.get(access.path));
        let is_it =
            |what: &What| what.has_values_of(access.path) || need == Need::Listing && what.lists(access.path);
        ready.is_some_and(|ready| ready.sent.is_fresh(access.began, WINDOW))
            || self.find(access, is_it).is_some()
    }

    /// The request for a listing that is on its way: with values, if there is one.
    pub fn take_listing(&mut self, access: Access<'_>, wait: Wait) -> Option<InFlight> {
        let with_values = self.find(access, |what| what.has_values_of(access.path));
        let place = with_values.or_else(|| self.find(access, |what| what.lists(access.path)))?;
        let may_be_taken = wait == Wait::Yes || self.in_flight[place].has_come();
        may_be_taken.then(|| self.in_flight.remove(place))
    }

    /// The request for a value that is on its way, alone or with its object.
    pub fn take_value(&mut self, access: Access<'_>, name: &str) -> Option<InFlight> {
        let is_it = |what: &What| what.is_value(access.path, name) || what.has_values_of(access.path);
        let place = self.find(access, is_it)?;
        Some(self.in_flight.remove(place))
    }

    /// Whether one more request may be sent ahead of a process. Lets go of what is too old.
    pub fn has_room(&mut self, access: Access<'_>, what: &What) -> bool {
        let Access { process, began, .. } = access;
        self.in_flight
            .retain(|sent| sent.serves(sent.process, began, self.entry_timeout));
        let is_alike =
            |sent: &&InFlight| sent.process == process && sent.what.is_listing() == what.is_listing();
        let most = if what.is_listing() { MAX_NAMES } else { MAX_BATCHES };
        self.in_flight.iter().filter(is_alike).count() < most && self.in_flight.len() < 2 * REQUESTS_AHEAD
    }

    /// Keeps the objects of a reply for the process that they were asked for; in any case the one that it accesses.
    /// False when they were too much together for the others.
    pub fn keep(&mut self, access: Access<'_>, sent: Stamp, objects: Vec<(Path, Vec<Valued>)>) -> bool {
        let now = Stamp {
            at: Instant::now(),
            ..sent
        };
        self.reader(access)
            .ready
            .retain(|_, old| old.sent.is_fresh(now, WINDOW));
        let count = objects.len();
        let fits = objects
            .iter()
            .flat_map(|(_, values)| values)
            .map(weight)
            .sum::<usize>()
            <= MAX_KEPT;
        for (index, (path, values)) in objects.into_iter().enumerate() {
            if !fits && path != *access.path {
                continue;
            }
            let mut snapshot = Snapshot::new(sent, now, (index, count), values);
            let ready = self.readers.values().flat_map(|reader| reader.ready.values());
            if ready.map(|other| other.bytes).sum::<usize>() + snapshot.bytes > VALUES_AHEAD_BYTES {
                snapshot.empty();
            }
            self.reader(access).ready.insert(path, snapshot);
        }
        fits
    }
}

/// About what a property with its value takes, in bytes.
fn weight(valued: &Valued) -> usize {
    let Property { name, declared } = &valued.property;
    let text = valued.text.as_ref().and_then(|text| text.as_ref().ok());
    128 + name.len() + declared.len() + text.map_or(0, String::len)
}

#[cfg(test)]
mod tests;
