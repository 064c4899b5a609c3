//! Listings and values: from QEMU now, or from what was asked for before the kernel asks.

use std::result::Result as StdResult;
use std::sync::Arc;
use std::time::Instant;

use super::{Error, Ino, Process, ROOT, Result, Tree, Wait};
use crate::fs::dir::listing::{Entry, Listing};
use crate::fs::dir::open::Sizes;
use crate::fs::error::Doing;
use crate::fs::prefetch::ahead::{InFlight, ListingRequest, Stamp};
use crate::fs::prefetch::batch::Batch;
use crate::fs::prefetch::lookahead::{NEAR_END, Plan};
use crate::fs::prefetch::walk::{Mode, Opened, WINDOW};
use crate::limits::LISTING_BYTES;
use crate::qom::{self, Charge, Path, PendingReply, Property, Reason, Request, Valued};

/// A listing that takes less may go beyond that, by half of it.
const SMALL_LISTING: usize = 1 << 20;

/// The listing of an object as it came, with the values if they were asked for.
struct FetchedListing {
    properties: Vec<Property>,
    sent: Instant,
    values: Option<(Vec<Valued>, Stamp)>,
    /// Until the listing is made of it.
    _charge: Option<Charge>,
}

impl FetchedListing {
    fn names(ask: PendingReply<Vec<Property>>) -> StdResult<FetchedListing, qom::Error> {
        let sent = ask.sent();
        let (properties, charge) = ask.wait_charged()?;
        Ok(FetchedListing {
            properties,
            sent,
            values: None,
            _charge: charge,
        })
    }

    fn values(
        (values, charge): (Vec<Valued>, Option<Charge>),
        sent: Instant,
        stamp: Stamp,
    ) -> FetchedListing {
        FetchedListing {
            properties: values.iter().map(|v| v.property.clone()).collect(),
            sent,
            values: Some((values, stamp)),
            _charge: charge,
        }
    }

    /// Takes the value of a property out of it.
    fn take(&mut self, name: &str) -> Option<StdResult<String, qom::Error>> {
        let (values, _) = self.values.as_mut()?;
        let it = values.iter_mut().find(|v| *v.property.name == *name)?;
        it.text.take()
    }
}

impl Tree {
    /// The listing of a directory, from memory or from QEMU.
    pub(crate) fn listing(&self, ino: Ino, wait: Wait) -> Result<Arc<Listing>> {
        self.listing_for(ino, None, wait)
    }

    /// The same for a process that reads the directory: if it reads what it lists, with values.
    pub(crate) fn listing_for(&self, ino: Ino, process: Option<Process>, wait: Wait) -> Result<Arc<Listing>> {
        if let Some(listing) = self.listings.get(ino) {
            return Ok(listing);
        }
        let path = self.object(ino)?;
        let generation = self.listings.generation();
        let came = match wait {
            Wait::Yes => self.ask_or_take_listing(&path, process, generation),
            Wait::No => Ok(self
                .received_listing(&path, process, generation)
                .ok_or(libc::EWOULDBLOCK)?),
        };
        match came {
            Ok(mut came) => {
                if let Some(process) = process {
                    self.store_values(process, ino, &path, &mut came);
                }
                self.ensure_alive(ino)?;
                self.inodes.lock().errors.clear(ino);
                let listing = Listing::new(came.properties, &self.entries, |count| {
                    self.inodes.lock().reserve(count)
                });
                self.make_room(&listing, &path)?;
                Ok(self.listings.put(ino, listing, came.sent, generation))
            }
            Err(e) => Err(self.record_error(ino, Error::from_qom(&e, Doing::List))),
        }
    }

    /// A listing that was asked for ahead, or is asked for now.
    fn ask_or_take_listing(
        &self,
        path: &Path,
        process: Option<Process>,
        generation: u64,
    ) -> StdResult<FetchedListing, qom::Error> {
        let now = || {
            let values = process.is_some_and(|process| self.wants_values(process));
            self.ask_listing(path, values, process)
                .and_then(|listed| self.finish(path, listed))
        };
        process.map_or(Ok(()), |process| self.ask_along(process, path))?;
        match self.ahead.take_listing(process, path, generation) {
            Some(listed) => self.finish(path, listed).or_else(|e| match e.reason() {
                Reason::Undecodable => now(),
                _ => Err(e),
            }),
            None => now(),
        }
    }

    /// A listing that was asked for ahead and has come.
    fn received_listing(
        &self,
        path: &Path,
        process: Option<Process>,
        generation: u64,
    ) -> Option<FetchedListing> {
        if !self.ahead.is_ready(process?, path, generation) {
            return None;
        }
        let listed = self.ahead.take_listing(process, path, generation)?;
        let (sent, stamp) = (listed.sent(), listed.stamp);
        match listed.ask {
            ListingRequest::Names(ask) => FetchedListing::names(ask).ok(),
            ListingRequest::Values(batch, index) => {
                Some(FetchedListing::values(batch.take(index).ok()??, sent, stamp))
            }
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
            self.walks.lock().forget_all();
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
        let (properties, _charge) = self.qom.ask(Request::list(path))?.wait_charged()?;
        Ok(Listing::new(properties, &self.entries, |_| ROOT))
    }

    /// Whether the next listing for this process should come with values.
    pub(crate) fn wants_values(&self, process: Process) -> bool {
        self.is_foreseen(process)
            && self.qom.has_list_get()
            && self.walks.lock().of(process).reads_what_it_lists()
    }

    /// What a request that is sent now will have to be judged by.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp {
            generation: self.listings.generation(),
            writes: self.ahead.writes(),
        }
    }

    fn ask_listing(
        &self,
        path: &Path,
        values: bool,
        process: Option<Process>,
    ) -> StdResult<InFlight, qom::Error> {
        let stamp = self.stamp();
        let ask = if values {
            let ask = self.qom.ask(Request::list_get(std::slice::from_ref(path)))?;
            ListingRequest::Values(Batch::new(ask, 1), 0)
        } else {
            ListingRequest::Names(self.qom.ask(Request::list(path))?)
        };
        Ok(InFlight { ask, process, stamp })
    }

    /// Waits for a listing.
    fn finish(&self, path: &Path, listed: InFlight) -> StdResult<FetchedListing, qom::Error> {
        let (sent, stamp) = (listed.sent(), listed.stamp);
        let (batch, index) = match listed.ask {
            ListingRequest::Names(ask) => return FetchedListing::names(ask),
            ListingRequest::Values(batch, index) => (batch, index),
        };
        let failed = match batch.take(index) {
            Ok(Some(came)) => return Ok(FetchedListing::values(came, sent, stamp)),
            Ok(None) => None,
            Err(e) => Some(e),
        };
        let reason = failed.as_ref().map(qom::Error::reason);
        if batch.is_shared() && matches!(reason, None | Some(Reason::NotFound | Reason::Undecodable)) {
            // Perhaps it is another object that is gone, or they were too much together.
            let alone = self.ask_listing(path, true, listed.process)?;
            return self.finish(path, alone);
        }
        match failed {
            Some(e) => match e.reason() {
                Reason::NotFound | Reason::Timeout | Reason::Disconnected => return Err(e),
                Reason::NoCommand => self.qom.lacks_list_get(),
                _ => {}
            },
            None => self.qom.lacks_list_get(),
        }
        FetchedListing::names(self.qom.ask(Request::list(path))?)
    }

    /// Keeps the values that came with an object's listing for the process that reads them.
    fn store_values(&self, process: Process, ino: Ino, path: &Path, came: &mut FetchedListing) {
        let Some((values, stamp)) = came.values.take() else {
            return;
        };
        let count = values.len();
        self.ahead.store(process, path, came.sent, stamp.writes, values);
        let useful = self.ahead.has_values(process, path);
        self.walks.lock().of(process).asked_whole(ino, count, useful);
    }

    /// The value of a property for a process that opens it.
    pub(crate) fn value_for(
        &self,
        parent: Ino,
        path: &Path,
        entry: &Arc<Entry>,
        process: Process,
    ) -> StdResult<String, qom::Error> {
        if !self.is_foreseen(process) {
            return self.qom.request(Request::get(path, &entry.name));
        }
        let (opened, next) = self.learn_open(parent, entry, process);
        if self.qom.has_list_get() {
            self.ask_objects(process, next);
            self.value_of_many((parent, path), entry, process, opened.whole)
        } else {
            self.value_in_turn(path, entry, process, &opened, next)
        }
    }

    /// The same if it came with the object's other values.
    pub(crate) fn value_at_hand(
        &self,
        parent: Ino,
        path: &Path,
        entry: &Arc<Entry>,
        process: Process,
    ) -> Option<StdResult<String, qom::Error>> {
        let served = self.ahead.take(process, path, &entry.name)?;
        let (_, next) = self.learn_open(parent, entry, process);
        self.ask_objects(process, next);
        Some(served)
    }

    /// Learns from an open, and says which objects to ask for now.
    fn learn_open(&self, parent: Ino, entry: &Arc<Entry>, process: Process) -> (Opened, Option<Plan>) {
        let has_list_get = self.qom.has_list_get();
        let mut walks = self.walks.lock();
        let walk = walks.of(process);
        let opened = walk.opened(parent, entry);
        let next = match (walk.mode(), opened.left) {
            (Some(_), Some(0)) if !has_list_get => Plan::of(walk, false, 0),
            (Some(Mode::Reading), Some(NEAR_END)) if has_list_get => Plan::of(walk, true, 0),
            _ => None,
        };
        (opened, next)
    }

    /// On a QEMU with `qom-list-get`: with the object's other values, when they are read too.
    fn value_of_many(
        &self,
        object: (Ino, &Path),
        entry: &Entry,
        process: Process,
        whole: bool,
    ) -> StdResult<String, qom::Error> {
        let (parent, path) = object;
        let at_hand = || self.ahead.take(process, path, &entry.name);
        if let Some(served) = at_hand() {
            return served;
        }
        if !self.ahead.has_values(process, path) {
            let generation = self.listings.generation();
            if let Some(asked) = self.ahead.take_values(process, path, generation) {
                let mut came = self.finish(path, asked)?;
                self.store_values(process, parent, path, &mut came);
                if let Some(served) = at_hand() {
                    return served;
                }
            } else if whole {
                let asked = self.ask_listing(path, true, Some(process))?;
                let mut came = self.finish(path, asked)?;
                // What the open itself asked for stands, however long it took.
                let own = came.take(&entry.name);
                self.store_values(process, parent, path, &mut came);
                if let Some(own) = own {
                    return own;
                }
            }
        }
        // Its getter failed, or it was served before.
        self.qom.request(Request::get(path, &entry.name))
    }

    /// On an older QEMU: with the next one in the order of the listing asked for ahead.
    fn value_in_turn(
        &self,
        path: &Path,
        entry: &Entry,
        process: Process,
        opened: &Opened,
        next_object: Option<Plan>,
    ) -> StdResult<String, qom::Error> {
        let get = || Request::get(path, &entry.name);
        let ahead = self.ahead.take_value(process, path, &entry.name);
        let was_ahead = ahead.is_some();
        let ask = match ahead {
            Some(ask) => ask,
            None => self.qom.ask(get())?,
        };
        match &opened.next {
            Some(next) => self.ask_value(process, path, next),
            None => self.ask_objects(process, next_object),
        }
        let sent = ask.sent();
        let answer = ask.wait();
        // A refusal grows old as a value does; and a reply may have been too long to be held.
        let undecodable = matches!(&answer, Err(e) if e.reason() == Reason::Undecodable);
        let is_good = sent.elapsed() <= WINDOW && !undecodable;
        // What the open itself asked for stands, however long it took.
        if is_good || !was_ahead {
            return answer;
        }
        self.qom.request(get())
    }

    /// How long the values are that came with a listing, for a process that reads them next.
    pub(crate) fn sizes_at_hand(&self, ino: Ino, listing: &Listing, process: Process) -> Option<Sizes> {
        let path = self.inodes.lock().object(ino)?;
        let names = listing.values().iter().map(|entry| &*entry.name);
        let lengths = self.ahead.lengths(process, &path, names)?;
        let shown = |length: Option<usize>| length.map(|length| length as u64 + 1);
        let others = listing.entries().len() - listing.values().len();
        Some(
            lengths
                .into_iter()
                .map(shown)
                .chain(std::iter::repeat_n(None, others))
                .collect(),
        )
    }
}
