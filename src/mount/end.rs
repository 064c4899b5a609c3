//! The end of a mount: what brings it about, and what is done then.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;
use std::time::Duration;

use log::{error, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::device::Mounted;
use super::machine::Machine;
use crate::qmp::{Closed, Monitor, printable};

/// Why a mount ends.
pub(super) enum End {
    Signal(i32),
    /// The kernel closed the connection: somebody unmounted it.
    Unmounted(io::Result<()>),
    Lost(Arc<Closed>),
    /// A part of qom-fuse itself broke, in the thread of this name.
    Broken(&'static str),
}

/// Starts a thread that the mount cannot do without: if it panics, the mount ends.
pub(super) fn spawn(
    name: &'static str,
    ends: &Sender<End>,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let ends = ends.clone();
    let contained = move || {
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            let _ = ends.send(End::Broken(name));
        }
    };
    thread::Builder::new()
        .name(name.into())
        .spawn(contained)
        .map(drop)
}

/// Signals that end the mount.
///
/// # Errors
/// When they cannot be handled.
pub(super) fn watch_signals(ends: Sender<End>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    spawn("signals", &ends.clone(), move || {
        for signal in &mut signals {
            let _ = ends.send(End::Signal(signal));
        }
    })
}

/// Waits for the first reason to end, unmounts, and says what the exit status is: that of the
/// machine if we started it.
pub(super) fn wait_for_end(
    ended: &Receiver<End>,
    mounted: &Mounted,
    source: &str,
    machine: Option<&Machine>,
    monitor: &Monitor,
) -> u8 {
    let source = printable(source);
    let mut machine_status = None;
    let mut unmounted = Ok(());
    let mut unmount = || {
        unmounted = mounted.unmount();
        if let Err(e) = &unmounted {
            error!("cannot unmount {}: {e}", mounted.point.display());
        }
    };
    let end = match ended.recv() {
        // Both may have happened: then the kernel's word decides.
        Ok(other) => ended
            .try_iter()
            .find(|end| matches!(end, End::Unmounted(Ok(()))))
            .map_or(Ok(other), Ok),
        closed => closed,
    };
    let status = match end {
        Ok(End::Signal(signal)) => {
            info!("signal {signal}: unmounting {source}");
            machine_status = machine.map(|machine| machine.end(monitor));
            unmount();
            0
        }
        Ok(End::Unmounted(Ok(()))) => {
            // By somebody else: there is nothing left to take away.
            info!("{source} was unmounted");
            0
        }
        Ok(End::Unmounted(Err(e))) => {
            error!("the connection to the kernel failed: {e}");
            unmount();
            1
        }
        Ok(End::Lost(why)) if why.is_orderly() => {
            warn!("{why}; unmounting {source}");
            unmount();
            0
        }
        Ok(End::Lost(why)) => {
            error!("{why}; unmounting {source}");
            unmount();
            1
        }
        Ok(End::Broken(thread)) => {
            error!("internal error in the thread '{thread}'; unmounting {source}");
            unmount();
            1
        }
        Err(_) => 1,
    };
    match machine {
        Some(machine) => machine_status.unwrap_or_else(|| outlive(machine, ended, monitor)),
        None if unmounted.is_err() => 1,
        None => status,
    }
}

/// Waits for a machine that is no longer mounted; a signal still ends it.
fn outlive(machine: &Machine, ended: &Receiver<End>, monitor: &Monitor) -> u8 {
    loop {
        if let Some(status) = machine.wait_for(Duration::from_millis(100)) {
            return status;
        }
        if let Ok(End::Signal(_)) = ended.try_recv() {
            return machine.end(monitor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_thread_that_breaks_ends_the_mount() {
        let (ends, ended) = channel();
        spawn("test", &ends, || panic!("for a test")).unwrap();
        assert!(matches!(
            ended.recv_timeout(Duration::from_secs(10)),
            Ok(End::Broken("test"))
        ));
    }
}
