//! The wait for a reason to end.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use log::{info, warn};
use parking_lot::Mutex;

use super::Daemon;
use super::events::{Event, spawn};
use super::machine::Machine;
use crate::fs::Tree;
use crate::qmp::Closed;
use crate::qom::Identity;

/// How often it is looked whether a QEMU of ours, or one that was named, has ended. Its monitor announces that in most
/// cases.
const LOOK: Duration = Duration::from_secs(1);

/// When a QEMU that does not say which machine it is gets asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Daemon {
    /// Waits for the first reason to end. Several may have happened: then the kernel's word decides.
    pub(super) fn wait(&mut self) -> Event {
        let mut reasons = Vec::new();
        while reasons.is_empty() {
            let event = self.next_event();
            reasons.extend(self.handle(event));
        }
        while let Ok(event) = self.events.try_recv() {
            reasons.extend(self.handle(event));
        }
        let is_unmount = |event: &Event| matches!(event, Event::Unmounted(Ok(())));
        let decisive = reasons.iter().position(is_unmount);
        reasons.swap_remove(decisive.unwrap_or(0))
    }

    /// Waits for what happens next. Meanwhile a machine may end whose monitor stays open, since something else that
    /// its command started has inherited it.
    fn next_event(&mut self) -> Event {
        let is_known = self.machine.is_some() || self.finder.is_some();
        let look = if is_known { LOOK } else { Duration::MAX };
        let mut had_ended = false;
        loop {
            if let Ok(event) = self.events.recv_timeout(look) {
                return event;
            }
            let has_ended = self.machine.as_mut().is_some_and(Machine::has_ended);
            let monitor = self.tree.qom().monitor();
            if had_ended && has_ended && !monitor.current().is_closed() {
                warn!("QEMU has ended, and what it or its wrapper started still holds its monitor");
                monitor.hang_up();
            }
            had_ended = has_ended;
            if let Some(end) = self.end_of_named() {
                return end;
            }
        }
    }

    /// Looks whether a machine that was named has ended, whoever keeps its monitor open.
    fn end_of_named(&self) -> Option<Event> {
        let (finder, monitor) = (self.finder.as_ref()?, self.tree.qom().monitor());
        let has_ended = finder.has_ended();
        if has_ended && !self.reconnects() {
            return Some(Event::MonitorLost(Arc::new(Closed::Eof)));
        }
        if has_ended || finder.is_in_doubt() {
            monitor.disconnect();
        }
        None
    }

    /// Whether the mount stays for the next machine.
    fn reconnects(&self) -> bool {
        self.config.mount.reconnect && self.tree.qom().monitor().reconnects()
    }

    /// Whether a lost connection is to be sought again although the machine's end is the mount's.
    fn is_lent_again(&self) -> bool {
        let finder = self.finder.as_ref();
        finder.is_some_and(|finder| finder.is_libvirts() && !finder.has_ended())
    }

    /// Handles what happened; gives it back if it is a reason to end.
    pub(super) fn handle(&mut self, event: Event) -> Option<Event> {
        match event {
            Event::MonitorLost(why)
                if (self.reconnects() || self.is_lent_again()) && !matches!(*why, Closed::Internal(_)) =>
            {
                // Nothing is told of a machine that is gone.
                self.tree.invalidate_all();
                match self.is_lent_again() {
                    true => warn!("libvirt has closed the connection ({why}); connecting again"),
                    false => warn!("{why}; waiting for it to come back"),
                }
                return None;
            }
            Event::GuestShutDown => {
                self.finder.iter().for_each(|finder| finder.guest_shut_down());
                return None;
            }
            Event::MonitorBack(greeting) => {
                self.finder.iter().for_each(|finder| finder.connected());
                info!("connected again: {greeting}");
                if let Err(e) = self.identify() {
                    warn!("cannot ask which machine it is: {e}");
                }
                return None;
            }
            Event::Signal(_) => self.ends_machine = true,
            _ => {}
        }
        Some(event)
    }

    /// Learns which machine it is, on a thread of its own, if there may be another one later.
    pub(super) fn identify(&self) -> io::Result<()> {
        if !self.reconnects() {
            return Ok(());
        }
        let (tree, last) = (self.tree.clone(), self.last_machine.clone());
        spawn("identity", &self.sender, move || identify(&tree, &last))
    }
}

/// Asks which machine it is until it says so or is gone, and says if it is another one than the last.
fn identify(tree: &Tree, last: &Mutex<Option<Identity>>) {
    let monitor = tree.qom().monitor();
    let connection = monitor.connection_number();
    while connection.is_some() {
        let identity = Identity::ask(tree.qom());
        if monitor.connection_number() != connection {
            return;
        }
        if let Some(now) = identity {
            let before = last.lock().replace(now.clone());
            if let Some(before) = before.filter(|before| *before != now) {
                warn!("connected again, to another machine: {now}; before: {before}");
            }
            return;
        }
        // It may only be busy.
        thread::sleep(ASK_AGAIN);
    }
}
