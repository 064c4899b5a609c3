//! The one way to come to listings and values: from what was asked of QEMU before the kernel asks, or from a request
//! of one's own.

mod plan;
mod store;
mod walk;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::fs::dir::listing::{Entry, Listing};
use crate::fs::dir::open::Sizes;
use crate::fs::{Process, Settings, Wait};
use crate::qom::{Charge, Error, Path, PendingReply, Property, Qom, Reason, Request, Urgency, Valued};

use plan::{Planner, What};
use store::{InFlight, Reply, Store};

/// No process in particular. All of another PID namespace have this number, and so nobody knows what one of them
/// does next.
pub const UNKNOWN: Process = 0;

/// When something was sent, or an operation began; and the generation of listings then.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    pub at: Instant,
    pub generation: u64,
}

impl Stamp {
    /// Whether what was sent then may be served to an operation that began at `began`.
    fn is_fresh(self, began: Stamp, limit: Duration) -> bool {
        self.generation == began.generation && began.at.saturating_duration_since(self.at) <= limit
    }
}

/// A process lists an object or reads a property of it, and when that began.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    pub process: Process,
    pub path: &'a Path,
    pub began: Stamp,
}

/// The properties of an object as they came.
pub struct Fetched {
    pub properties: Vec<Property>,
    /// When they were asked for.
    pub sent: Instant,
    /// What the reply takes, until the listing is made of it.
    pub charge: Option<Charge>,
}

/// Asks QEMU for listings and values, for a process that reads one after another before it asks.
pub struct Prefetcher {
    qom: Arc<Qom>,
    /// Whether anything may be asked ahead.
    enabled: bool,
    /// Tells which listings need not be asked for.
    is_cached: Box<dyn Fn(&Path) -> bool + Send + Sync>,
    store: Mutex<Store>,
}

impl Prefetcher {
    pub fn new(
        qom: Arc<Qom>,
        settings: &Settings,
        is_cached: impl Fn(&Path) -> bool + Send + Sync + 'static,
    ) -> Prefetcher {
        Prefetcher {
            qom,
            enabled: settings.readahead,
            is_cached: Box::new(is_cached),
            store: Mutex::new(Store::new(settings.entry_timeout)),
        }
    }

    /// What was asked ahead, unless nothing may be for this process.
    fn store(&self, process: Process) -> Option<MutexGuard<'_, Store>> {
        (self.enabled && process != UNKNOWN).then(|| self.store.lock())
    }

    /// The present properties of an object, without values.
    ///
    /// # Errors
    /// QEMU's, or why it did not answer.
    pub fn plain_listing(&self, path: &Path) -> Result<Fetched, Error> {
        properties(self.qom.ask(Urgency::Needed, Request::list(path))?)
    }

    /// The properties of an object that a process lists: with their values, if it reads what it lists. None where
    /// that has to wait.
    ///
    /// # Errors
    /// QEMU's, or why it did not answer.
    pub fn listing(&self, access: Access<'_>, wait: Wait) -> Result<Option<Fetched>, Error> {
        let path = access.path;
        let Some(mut store) = self.store(access.process) else {
            let listing = (wait == Wait::Yes).then(|| self.plain_listing(path));
            return listing.transpose();
        };
        let ready = store.reader(access).take_listing(access);
        if ready.is_some() {
            return Ok(ready);
        }
        let sent = match store.take_listing(access, wait) {
            None if wait == Wait::No => return Ok(None),
            sent => sent.ok_or_else(|| self.plan(&mut store, access, |planner| planner.listing(path))),
        };
        drop(store);
        let mut sent = sent.or_else(|what| self.ask(what, access, Urgency::Needed))?;
        loop {
            let is_shared = sent.what.is_shared();
            let fetched = self.receive_listing(sent, access)?;
            if fetched.is_some() || wait == Wait::No {
                return Ok(fetched);
            }
            let simpler = match is_shared {
                true => What::Objects(vec![path.clone()]),
                false => What::Listing(path.clone()),
            };
            sent = self.ask(simpler, access, Urgency::Needed)?;
        }
    }

    /// Waits for a listing that was asked for. None if it is to be asked for in a simpler way.
    fn receive_listing(&self, sent: InFlight, access: Access<'_>) -> Result<Option<Fetched>, Error> {
        match sent.reply {
            Reply::Listing(reply) => match properties(reply) {
                Err(e) if is_too_long(&e, sent.sent, access) => Ok(None),
                listing => listing.map(Some),
            },
            Reply::Objects(reply) => {
                self.receive_objects(sent.what, sent.sent, reply, access)?;
                Ok(self.store.lock().reader(access).take_listing(access))
            }
            Reply::Value(_) => Ok(None),
        }
    }

    /// Waits for objects with their values, and keeps what came.
    fn receive_objects(
        &self,
        what: What,
        sent: Stamp,
        reply: PendingReply<Vec<Vec<Valued>>>,
        access: Access<'_>,
    ) -> Result<(), Error> {
        let is_shared = what.is_shared();
        match (reply.wait_charged(), what) {
            (Ok((objects, _charge)), What::Objects(paths)) if objects.len() == paths.len() => {
                let objects = paths.into_iter().zip(objects).collect();
                if self.store.lock().keep(access, sent, objects) {
                    return Ok(());
                }
            }
            // No QEMU's: without a part for each, nobody can tell whose they are.
            (Ok(_), _) if is_shared => {}
            (Ok(_), _) => self.qom.lacks_list_get(),
            (Err(e), _) => match e.reason() {
                // Perhaps it is another object that is gone, or they were too much together.
                Reason::NotFound | Reason::Undecodable if is_shared => {}
                Reason::NotFound | Reason::Timeout | Reason::Disconnected => return Err(e),
                Reason::NoCommand => self.qom.lacks_list_get(),
                _ => {}
            },
        }
        if let Some(window) = self.store.lock().reader(access).walk.window_of(access.path) {
            *window = 1;
        }
        Ok(())
    }

    /// A process was told a listing, whose parent shows it as `file`: asks for what it needs next. Gives the
    /// sizes of what came with the listing.
    pub fn listed(&self, access: Access<'_>, file: &str, listing: &Arc<Listing>) -> Option<Sizes> {
        let mut store = self.store(access.process)?;
        let reader = store.reader(access);
        reader.widen(access.began);
        reader.walk.listed(access.path, file, listing);
        let sizes = reader.sizes(access, listing);
        self.ask_ahead(&mut store, access);
        sizes
    }

    /// A value that came with its object, be it a link's.
    pub fn value_at_hand(&self, access: Access<'_>, name: &str) -> Option<Result<String, Error>> {
        self.store(access.process)?
            .reader(access)
            .take_value(access, name)
    }

    /// The value of a property that a process opens. None where that has to wait.
    ///
    /// # Errors
    /// QEMU's, or why it did not answer.
    pub fn value(&self, access: Access<'_>, entry: &Arc<Entry>, wait: Wait) -> Result<Option<String>, Error> {
        let (path, name) = (access.path, &entry.name);
        let Some(mut store) = self.store(access.process) else {
            let value = (wait == Wait::Yes).then(|| self.qom.request(Request::get(path, name)));
            return value.transpose();
        };
        let reader = store.reader(access);
        let at_hand = reader.take_value(access, name);
        if at_hand.is_none() && wait == Wait::No {
            return Ok(None);
        }
        reader.walk.opened(path, entry);
        if at_hand.is_some() {
            self.ask_ahead(&mut store, access);
            return at_hand.transpose();
        }
        let useless = reader.is_useless(access);
        let sent = store.take_value(access, name);
        let sent =
            sent.ok_or_else(|| self.plan(&mut store, access, |planner| planner.value(path, name, useless)));
        drop(store);
        let sent = sent.or_else(|what| self.ask(what, access, Urgency::Needed))?;
        // Behind what is waited for.
        self.ask_ahead(&mut self.store.lock(), access);
        self.receive_value(sent, access, name).map(Some)
    }

    fn receive_value(&self, sent: InFlight, access: Access<'_>, name: &str) -> Result<String, Error> {
        match sent.reply {
            Reply::Value(reply) => match reply.wait() {
                Err(e) if is_too_long(&e, sent.sent, access) => {}
                answer => return answer,
            },
            Reply::Objects(reply) => {
                self.receive_objects(sent.what, sent.sent, reply, access)?;
                if let Some(answer) = self.value_at_hand(access, name) {
                    return answer;
                }
            }
            Reply::Listing(_) => {}
        }
        // Its getter failed, or it came in a reply that could not be used.
        self.qom.request(Request::get(access.path, name))
    }

    /// Decides what to ask for.
    fn plan<T>(&self, store: &mut Store, access: Access<'_>, decide: impl FnOnce(&Planner<'_>) -> T) -> T {
        store.plan(access, self.qom.features(), &self.is_cached, decide)
    }

    /// Asks for what a process needs next.
    fn ask_ahead(&self, store: &mut Store, access: Access<'_>) {
        for what in self.plan(store, access, |planner| planner.ahead()) {
            if !store.has_room(access, &what) {
                return;
            }
            match self.ask(what, access, Urgency::Ahead) {
                Ok(sent) => store.in_flight.push(sent),
                Err(_) => return,
            }
        }
    }

    fn ask(&self, what: What, access: Access<'_>, urgency: Urgency) -> Result<InFlight, Error> {
        let qom = &self.qom;
        let reply = match &what {
            What::Listing(path) => Reply::Listing(qom.ask(urgency, Request::list(path))?),
            What::Objects(paths) => Reply::Objects(qom.ask(urgency, Request::list_get(paths))?),
            What::Value(path, name) => Reply::Value(qom.ask(urgency, Request::get(path, name))?),
        };
        Ok(InFlight::new(access, what, reply))
    }

    /// Lets go of what only a walk that is over needed.
    pub fn forget_old(&self) {
        self.store.lock().forget_old();
    }

    /// Lets go of everything.
    pub fn clear(&self) {
        self.store.lock().clear();
    }
}

fn properties(reply: PendingReply<Vec<Property>>) -> Result<Fetched, Error> {
    let sent = reply.sent();
    let (properties, charge) = reply.wait_charged()?;
    Ok(Fetched {
        properties,
        sent,
        charge,
    })
}

/// Whether a reply that was asked for ahead may only have been too long to be held.
fn is_too_long(error: &Error, sent: Stamp, access: Access<'_>) -> bool {
    error.reason() == Reason::Undecodable && sent.at < access.began.at
}
