//! Asking QEMU for what a walk comes to next, before the kernel asks.

use std::sync::Arc;

use crate::fs::dir::listing::{Entry, Listing};
use crate::fs::prefetch::ahead::{InFlight, ListingRequest, Stamp};
use crate::fs::prefetch::batch::Batch;
use crate::fs::prefetch::walk::{Mode, Walk};
use crate::fs::{Ino, Process, Tree};
use crate::qom::{self, Path, PendingReply, Request, Valued};

/// How many values of an object may be unread when the next object is asked for: enough to
/// keep QEMU busy, few enough for the values to be fresh when it is their turn.
pub(crate) const NEAR_END: usize = 64;

/// Objects that a walk lists next.
pub(crate) struct Plan {
    parent: Ino,
    objects: Vec<Arc<Entry>>,
    /// How many of them to ask for, beginning with the first that was not asked for yet.
    batch: usize,
    /// How many of those that come first may have been asked for already. If it is more, there
    /// is no hurry.
    lead: usize,
    /// With their values.
    values: bool,
}

impl Plan {
    pub(crate) fn of(walk: &Walk, values: bool, lead: usize) -> Option<Plan> {
        let row = walk.next_objects()?;
        let (batch, lead) = match row.batch() {
            _ if !values => (lead + 1, lead),
            // The walk is slow.
            1 => (1, 0),
            // The next batch should be asked for before the walk is through with this one.
            batch => (batch, lead.max(batch / 4)),
        };
        Some(Plan {
            parent: row.parent,
            objects: row.objects.iter().take(lead + batch).cloned().collect(),
            batch,
            lead,
            values,
        })
    }
}

impl Tree {
    /// Whether anything may be asked ahead of a process. Those of another PID namespace all have the
    /// number 0, and so nobody knows what one of them does next.
    pub(crate) fn is_foreseen(&self, process: Process) -> bool {
        self.settings.readahead && process != 0
    }

    /// A process has opened a directory; asks for what its walk comes to next.
    pub(crate) fn look_ahead(&self, ino: Ino, listing: &Arc<Listing>, process: Process) {
        if !self.is_foreseen(process) {
            return;
        }
        let Some((parent, entry)) = self.inodes.lock().get(ino) else {
            return;
        };
        // Some ahead, so that QEMU has no pause; it takes long to give the kernel a large listing.
        let lead = if listing.values().len() > NEAR_END { 3 } else { 1 };
        let mut walks = self.walks.lock();
        let walk = walks.of(process);
        walk.listed(ino, parent, &entry.file, listing);
        match walk.mode() {
            None => {}
            Some(Mode::Listing) => {
                let next = Plan::of(walk, false, lead);
                drop(walks);
                self.ask_objects(process, next);
            }
            Some(Mode::Reading) if self.qom.has_list_get() => {
                let near = listing.values().len() <= NEAR_END;
                let next = if near { Plan::of(walk, true, lead) } else { None };
                drop(walks);
                self.ask_objects(process, next);
            }
            Some(Mode::Reading) => {
                let first = walk.first_value().cloned();
                drop(walks);
                if let (Some(entry), Ok(path)) = (first, self.object(ino)) {
                    self.ask_value(process, &path, &entry);
                }
            }
        }
    }

    /// Where nothing is asked ahead: asks for an object that is to be listed with its values, together with
    /// those that the walk comes to next.
    pub(crate) fn ask_along(&self, process: Process, path: &Path) -> Result<(), qom::Error> {
        let generation = self.listings.generation();
        if !self.qom.is_one_at_a_time()
            || !self.wants_values(process)
            || self.ahead.is_listed(process, path, true, generation)
        {
            return Ok(());
        }
        let next = Plan::of(self.walks.lock().of(process), true, 0);
        let wanted = next.map_or_else(Vec::new, |next| self.wanted(process, &next));
        if wanted.first() == Some(path) {
            let stamp = self.stamp();
            let ask = self.qom.ask(Request::list_get(&wanted))?;
            self.put_batch(process, wanted, ask, stamp);
        }
        Ok(())
    }

    /// Asks for listings ahead, as many as are wanted and not at hand.
    pub(crate) fn ask_objects(&self, process: Process, next: Option<Plan>) {
        let Some(next) = next else {
            return;
        };
        let wanted = self.wanted(process, &next);
        if !next.values {
            self.ask_names(process, wanted);
        } else if !wanted.is_empty() {
            let stamp = self.stamp();
            if let Some(ask) = self.qom.ask_ahead(Request::list_get(&wanted)) {
                self.put_batch(process, wanted, ask, stamp);
            }
        }
    }

    /// Those of the objects that come next that are to be asked for now: they are not at hand, and there is
    /// room for them.
    fn wanted(&self, process: Process, next: &Plan) -> Vec<Path> {
        let Ok(parent) = self.object(next.parent) else {
            return Vec::new();
        };
        let generation = self.listings.generation();
        let mut asked = 0;
        let mut wanted = Vec::with_capacity(next.batch);
        for entry in &next.objects {
            let Some(path) = parent.child(&entry.name) else {
                continue;
            };
            let known = if next.values {
                self.ahead.has_values(process, &path)
            } else {
                let ino = self.inodes.lock().named(next.parent, &entry.file);
                ino.is_some_and(|ino| self.listings.get(ino).is_some())
            };
            if !known && !self.ahead.is_listed(process, &path, next.values, generation) {
                wanted.push(path);
            } else if wanted.is_empty() {
                asked += 1;
            }
        }
        let room = self.ahead.room(process, next.values, generation);
        wanted.truncate(match next.values {
            _ if asked > next.lead => 0,
            true if room > 0 => next.batch,
            _ => next.batch.min(room),
        });
        wanted
    }

    /// Keeps what was asked for: several objects with their values in one request.
    fn put_batch(
        &self,
        process: Process,
        paths: Vec<Path>,
        ask: PendingReply<Vec<Vec<Valued>>>,
        stamp: Stamp,
    ) {
        let batch = Batch::new(ask, paths.len());
        for (index, path) in paths.into_iter().enumerate() {
            let listed = InFlight {
                ask: ListingRequest::Values(batch.clone(), index),
                process: Some(process),
                stamp,
            };
            self.ahead.put_listing(path, listed);
        }
    }

    /// Asks for the listings of objects, without values.
    fn ask_names(&self, process: Process, paths: Vec<Path>) {
        for path in paths {
            let stamp = self.stamp();
            let Some(ask) = self.qom.ask_ahead(Request::list(&path)) else {
                return;
            };
            let listed = InFlight {
                ask: ListingRequest::Names(ask),
                process: Some(process),
                stamp,
            };
            self.ahead.put_listing(path, listed);
        }
    }

    /// Asks for the value that a process reads next.
    pub(crate) fn ask_value(&self, process: Process, path: &Path, entry: &Entry) {
        let writes = self.ahead.writes();
        if let Some(ask) = self.qom.ask_ahead(Request::get(path, &entry.name)) {
            self.ahead
                .put_value(process, path.clone(), entry.name.clone(), ask, writes);
        }
    }
}
