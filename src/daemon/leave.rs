//! The end of a mount, for whatever reason.

use std::io;
use std::time::Duration;

use log::{error, info, warn};

use super::events::Event;
use super::{Daemon, Error};
use crate::text::printable;

/// How long the last requests have to be answered when the mount ends.
const LAST_REPLIES: Duration = Duration::from_secs(1);

/// How often it is looked whether a QEMU that is no longer mounted has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Daemon {
    /// Unmounts, says why, and ends; gives the exit status: that of the machine if we started it.
    ///
    /// # Errors
    /// The reason, if it is one.
    pub(super) fn leave(mut self, reason: Result<Event, Error>) -> Result<u8, Error> {
        // By somebody else, or only its connection was cut, which leaves a dead mount: then there is something to do.
        let unmounted = self.unmount();
        self.ends_machine |= reason.is_err();
        // What there is to say is said once it is unmounted.
        let mut status = reason.map(|event| explain(event, &printable(&self.config.source)));
        if let Err(e) = unmounted {
            error!("cannot unmount {e}");
            status = status.map(|_| 1);
        }
        if let Some(of_machine) = self.wait_for_machine() {
            status = status.map(|_| of_machine);
        }
        // Who waits for QEMU's answer is to get it, or the error that there is instead.
        self.tree.qom().monitor().hang_up();
        self.finder.iter().for_each(|finder| finder.close());
        let answered = self.pool.take().is_none_or(|pool| pool.wait_idle(LAST_REPLIES));
        if let (Some(mounted), Some(connection)) = (&self.mounted, &self.connection) {
            mounted.abort(connection);
        }
        match answered {
            true => self.watchdog.dismiss(),
            false => warn!("some requests could not be answered any more"),
        }
        status
    }

    fn unmount(&mut self) -> io::Result<()> {
        match &self.mounted {
            Some(mounted) => self.watchdog.unmount(mounted),
            None => Ok(()),
        }
    }

    /// Waits for a QEMU that we started; a signal ends it. Gives the exit status of its command.
    fn wait_for_machine(&mut self) -> Option<u8> {
        self.machine.as_ref()?;
        while !self.ends_machine {
            if let Some(status) = self.machine.as_mut()?.exit_status() {
                return Some(status);
            }
            if let Ok(event) = self.events.recv_timeout(POLL_INTERVAL) {
                self.handle(event);
            }
        }
        Some(self.machine.as_mut()?.end(self.tree.qom().monitor()))
    }
}

/// Says why a mount has ended; gives the exit status for that.
fn explain(reason: Event, source: &str) -> u8 {
    match reason {
        Event::Signal(signal) => info!("signal {signal}: unmounting {source}"),
        Event::Unmounted(Ok(())) => info!("{source} was unmounted"),
        Event::MonitorLost(why) if why.is_orderly() => warn!("{why}; unmounting {source}"),
        Event::Unmounted(Err(e)) => {
            error!("the connection to the kernel failed: {e}");
            return 1;
        }
        Event::MonitorLost(why) => {
            error!("{why}; unmounting {source}");
            return 1;
        }
        Event::Broken(thread) => {
            error!("internal error in the thread '{thread}'; unmounting {source}");
            return 1;
        }
        Event::MonitorBack(_) | Event::GuestShutDown => {}
    }
    0
}
