//! The one way to come to listings and values: from what was asked of QEMU before the kernel asks, or from a request
//! of one's own.

mod plan;
mod reader;
mod walk;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fs::dir::listing::{Entry, Listing};
use crate::fs::dir::open::Sizes;
use crate::fs::{Process, Wait};
use crate::qmp::Charge;
use crate::qom::{Error, Path, PendingReply, Property, Qom, Reason, Request, Urgency, Valued};

use plan::{Need, Planner, What};
pub use reader::Stamp;
use reader::{Asked, InFlight, Readers};

/// No process in particular. All of another PID namespace have this number, and so nobody knows what one of them
/// does next.
pub const UNKNOWN: Process = 0;

/// The properties of an object as they came.
pub struct Fetched {
    pub properties: Vec<Property>,
    /// When they were asked for.
    pub sent: Instant,
    /// What the reply takes, until the listing is made of it.
    pub _charge: Option<Charge>,
}

/// Where something that is needed now comes from.
enum Source {
    /// It was asked for ahead.
    Sent(InFlight),
    Needed(What),
}

/// Asks QEMU for listings and values, for a process that reads one after another before it asks.
pub struct Prefetcher {
    qom: Arc<Qom>,
    /// Whether anything may be asked ahead.
    enabled: bool,
    readers: Mutex<Readers>,
}

impl Prefetcher {
    pub fn new(qom: Arc<Qom>, enabled: bool, entry_timeout: Duration) -> Prefetcher {
        Prefetcher {
            qom,
            enabled,
            readers: Mutex::new(Readers::new(entry_timeout)),
        }
    }

    /// Whether anything may be asked ahead of a process.
    fn foresees(&self, process: Process) -> bool {
        self.enabled && process != UNKNOWN
    }

    /// The properties of an object that a process lists: with their values, if it reads what it lists. None where
    /// that has to wait.
    ///
    /// # Errors
    /// QEMU's, or why it did not answer.
    pub fn listing(
        &self,
        process: Process,
        path: &Path,
        began: Stamp,
        wait: Wait,
    ) -> Option<Result<Fetched, Error>> {
        if !self.foresees(process) {
            return (wait == Wait::Yes).then(|| self.plain_listing(path));
        }
        let mut readers = self.readers.lock();
        if let Some(fetched) = readers.of(process, began.at).take_listing(path, began) {
            return Some(Ok(fetched));
        }
        let source = match readers.take_listing(process, path, began, wait) {
            Some(sent) => Source::Sent(sent),
            None if wait == Wait::No => return None,
            None => Source::Needed(self.plan(&readers, process, began, |_| false)?.listing(path)),
        };
        drop(readers);
        match wait {
            Wait::No => self
                .receive_listing(process, self.send(source, began).ok()?, path, began)
                .ok()?
                .map(Ok),
            Wait::Yes => Some(self.fetch_listing(process, source, path, began)),
        }
    }

    fn fetch_listing(
        &self,
        process: Process,
        source: Source,
        path: &Path,
        began: Stamp,
    ) -> Result<Fetched, Error> {
        let sent = self.send(source, began)?;
        let is_shared = sent.is_shared();
        if let Some(fetched) = self.receive_listing(process, sent, path, began)? {
            return Ok(fetched);
        }
        if is_shared && self.qom.features().list_get {
            let alone = What::Objects(vec![path.clone()]);
            let alone = self.send(Source::Needed(alone), began)?;
            if let Some(fetched) = self.receive_listing(process, alone, path, began)? {
                return Ok(fetched);
            }
        }
        self.plain_listing(path)
    }

    /// The present properties of an object, without values.
    ///
    /// # Errors
    /// QEMU's, or why it did not answer.
    pub fn plain_listing(&self, path: &Path) -> Result<Fetched, Error> {
        properties(self.qom.ask(Urgency::Needed, Request::list(path))?)
    }

    /// Waits for a listing that was asked for. None if it is to be asked for in another way.
    fn receive_listing(
        &self,
        process: Process,
        sent: InFlight,
        path: &Path,
        began: Stamp,
    ) -> Result<Option<Fetched>, Error> {
        match sent.asked {
            Asked::Objects(paths, pending) => self.receive_objects(process, sent.stamp, paths, pending, path),
            Asked::Listing(_, pending) => match properties(pending) {
                // It may have been too long to be held.
                Err(e) if e.reason() == Reason::Undecodable && sent.stamp.at < began.at => Ok(None),
                listing => listing.map(Some),
            },
            Asked::Value(..) => Ok(None),
        }
    }

    /// Waits for objects with their values, and keeps these for the process. None if that of `needed` is to be asked
    /// for in another way.
    fn receive_objects(
        &self,
        process: Process,
        stamp: Stamp,
        paths: Vec<Path>,
        pending: PendingReply<Vec<Vec<Valued>>>,
        needed: &Path,
    ) -> Result<Option<Fetched>, Error> {
        let is_shared = paths.len() > 1;
        match pending.wait_charged() {
            Ok((objects, charge)) if objects.len() == paths.len() => {
                let objects = paths.into_iter().zip(objects).collect();
                let properties = self.readers.lock().keep(process, stamp, objects, needed);
                let sent = stamp.at;
                return Ok(properties.map(|properties| Fetched {
                    properties,
                    sent,
                    _charge: charge,
                }));
            }
            // No QEMU's: without a part for each, nobody can tell whose they are.
            Ok(_) if !is_shared => self.qom.lacks_list_get(),
            Ok(_) => {}
            Err(e) => match e.reason() {
                // Perhaps it is another object that is gone, or they were too much together.
                Reason::NotFound | Reason::Undecodable if is_shared => {}
                Reason::NotFound | Reason::Timeout | Reason::Disconnected => return Err(e),
                Reason::NoCommand => self.qom.lacks_list_get(),
                _ => {}
            },
        }
        self.readers.lock().of(process, stamp.at).window = 1;
        Ok(None)
    }

    /// A process was told a listing: asks for what it needs next, unless that is in the cache.
    pub fn listed(
        &self,
        process: Process,
        path: &Path,
        file: &str,
        listing: &Arc<Listing>,
        began: Stamp,
        cached: impl Fn(&Path) -> bool,
    ) {
        if self.foresees(process) {
            let mut readers = self.readers.lock();
            let reader = readers.of(process, began.at);
            reader.judge_pace(began);
            reader.walk.listed(path, file, listing);
            self.ask_ahead(&mut readers, process, began, cached);
        }
    }

    /// A value that came with its object, be it a link's.
    pub fn value_at_hand(
        &self,
        process: Process,
        path: &Path,
        name: &str,
        began: Stamp,
    ) -> Option<Result<String, Error>> {
        if !self.foresees(process) {
            return None;
        }
        let mut readers = self.readers.lock();
        readers.of(process, began.at).take_value(path, name, began)
    }

    /// The value of a property that a process opens. None where that has to wait.
    ///
    /// # Errors
    /// QEMU's, or why it did not answer.
    pub fn value(
        &self,
        process: Process,
        path: &Path,
        entry: &Arc<Entry>,
        began: Stamp,
        wait: Wait,
        cached: impl Fn(&Path) -> bool,
    ) -> Option<Result<String, Error>> {
        let name = &entry.name;
        if !self.foresees(process) {
            return (wait == Wait::Yes).then(|| self.qom.request(Request::get(path, name)));
        }
        let mut readers = self.readers.lock();
        let reader = readers.of(process, began.at);
        let at_hand = reader.take_value(path, name, began);
        if at_hand.is_none() && wait == Wait::No {
            return None;
        }
        reader.walk.opened(path, entry);
        if at_hand.is_some() {
            self.ask_ahead(&mut readers, process, began, cached);
            return at_hand;
        }
        let useless = reader.is_useless(path, began);
        let source = match reader.take_value_in_flight(path, name, began) {
            Some(sent) => Source::Sent(sent),
            None => Source::Needed(
                self.plan(&readers, process, began, |_| false)?
                    .value(path, name, useless),
            ),
        };
        drop(readers);
        let sent = match self.send(source, began) {
            Ok(sent) => sent,
            Err(e) => return Some(Err(e)),
        };
        // Behind what is waited for.
        self.ask_ahead(&mut self.readers.lock(), process, began, cached);
        Some(self.receive_value(process, sent, path, name, began))
    }

    fn receive_value(
        &self,
        process: Process,
        sent: InFlight,
        path: &Path,
        name: &str,
        began: Stamp,
    ) -> Result<String, Error> {
        match sent.asked {
            Asked::Value(_, _, pending) => match pending.wait() {
                // It may have been too long to be held.
                Err(e) if e.reason() == Reason::Undecodable && sent.stamp.at < began.at => {}
                answer => return answer,
            },
            Asked::Objects(paths, pending) => {
                self.receive_objects(process, sent.stamp, paths, pending, path)?;
                if let Some(answer) = self.value_at_hand(process, path, name, began) {
                    return answer;
                }
            }
            Asked::Listing(..) => {}
        }
        // Its getter failed, or it came in a reply that could not be used.
        self.qom.request(Request::get(path, name))
    }

    /// How long the values are that came with a listing, in its order, for a process that reads them next.
    pub fn sizes(&self, process: Process, path: &Path, listing: &Listing, began: Stamp) -> Option<Sizes> {
        if !self.foresees(process) {
            return None;
        }
        let mut readers = self.readers.lock();
        readers.of(process, began.at).sizes(path, listing, began)
    }

    /// What decides on the next requests of a process. `cached` tells whether a listing is in the cache.
    fn plan<'a>(
        &self,
        readers: &'a Readers,
        process: Process,
        now: Stamp,
        cached: impl Fn(&Path) -> bool + 'a,
    ) -> Option<Planner<'a, impl Fn(&Path, Need) -> bool + 'a>> {
        let reader = readers.get(process)?;
        Some(Planner {
            walk: &reader.walk,
            window: reader.window,
            features: self.qom.features(),
            have: move |path: &Path, need| {
                readers.have(process, path, need, now) || need == Need::Listing && cached(path)
            },
        })
    }

    /// Asks for what a process needs next.
    fn ask_ahead(&self, readers: &mut Readers, process: Process, now: Stamp, cached: impl Fn(&Path) -> bool) {
        let planner = self.plan(readers, process, now, cached);
        for what in planner.map_or_else(Vec::new, |planner| planner.ahead()) {
            if !readers.has_room(process, &what, now) {
                return;
            }
            let Ok(sent) = self.ask(what, now, Urgency::Ahead) else {
                return;
            };
            readers.put(process, sent);
        }
    }

    /// What is waited for, sent now if it was not yet.
    fn send(&self, source: Source, began: Stamp) -> Result<InFlight, Error> {
        match source {
            Source::Sent(sent) => Ok(sent),
            Source::Needed(what) => self.ask(what, began, Urgency::Needed),
        }
    }

    fn ask(&self, what: What, began: Stamp, urgency: Urgency) -> Result<InFlight, Error> {
        let (qom, generation) = (&self.qom, began.generation);
        let (at, asked) = match what {
            What::Listing(path) => {
                let pending = qom.ask(urgency, Request::list(&path))?;
                (pending.sent(), Asked::Listing(path, pending))
            }
            What::Objects(paths) => {
                let pending = qom.ask(urgency, Request::list_get(&paths))?;
                (pending.sent(), Asked::Objects(paths, pending))
            }
            What::Value(path, name) => {
                let pending = qom.ask(urgency, Request::get(&path, &name))?;
                (pending.sent(), Asked::Value(path, name, pending))
            }
        };
        let stamp = Stamp { at, generation };
        Ok(InFlight { stamp, asked })
    }

    /// Lets go of what only a walk that is over needed.
    pub fn forget_idle(&self) {
        self.readers.lock().forget_idle();
    }

    /// Lets go of everything.
    pub fn clear(&self) {
        self.readers.lock().clear();
    }
}

fn properties(pending: PendingReply<Vec<Property>>) -> Result<Fetched, Error> {
    let sent = pending.sent();
    let (properties, charge) = pending.wait_charged()?;
    Ok(Fetched {
        properties,
        sent,
        _charge: charge,
    })
}
