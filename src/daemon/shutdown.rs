//! The end of a mount: what brings it about, and what is done then.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use parking_lot::Mutex;

use crate::daemon::machine::Machine;
use crate::daemon::machine::finder::Finder;
use crate::fs::Tree;
use crate::qmp::{Closed, Monitor};
use crate::text::printable;

/// How often it is looked for what nothing announces.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Why a mount ends.
pub(crate) enum End {
    Signal(i32),
    /// The kernel closed the connection: somebody unmounted it.
    Unmounted(io::Result<()>),
    Lost(Arc<Closed>),
    /// A part of qom-fuse itself broke, in the thread of this name.
    Broken(&'static str),
}

/// Starts a thread that the mount cannot do without: if it panics, the mount ends.
pub(crate) fn spawn(
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

/// Tries whether so many threads can be started. fuser says only once it serves that it could not.
///
/// # Errors
/// When they cannot.
pub(crate) fn try_threads(count: usize) -> io::Result<()> {
    let counted = || fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let (before, gate) = (counted(), Mutex::new(()));
    let closed = gate.lock();
    thread::scope(|scope| {
        let start = |_| thread::Builder::new().spawn_scoped(scope, || drop(gate.lock()));
        let started: io::Result<Vec<_>> = (0..count).map(start).collect();
        drop(closed);
        started.map(drop)
    })?;
    // The kernel counts them for a moment longer.
    let until = Instant::now() + POLL_INTERVAL;
    while counted() > before && Instant::now() < until {
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Notices a machine that ends and whose monitor stays open, since something else that its command
/// started has inherited it.
///
/// # Errors
/// When no thread can be started.
pub(crate) fn watch_machine(machine: &Machine, tree: &Arc<Tree>, ends: &Sender<End>) -> io::Result<()> {
    let (machine, tree) = (machine.clone(), tree.clone());
    spawn("machine", ends, move || {
        while !machine.ends_within(Duration::from_secs(3600)) {}
        let monitor = tree.qom().monitor();
        let until = Instant::now() + Duration::from_secs(1);
        while !monitor.is_closed() {
            if Instant::now() > until {
                monitor.hang_up();
                return warn!("QEMU has ended, and what it or its wrapper started still holds its monitor");
            }
            thread::sleep(POLL_INTERVAL);
        }
    })
}

/// Notices the end of a machine that was found by its name, whatever holds its monitor open.
///
/// # Errors
/// When no thread can be started.
pub(crate) fn watch_found(
    finder: &Arc<Finder>,
    reconnect: bool,
    tree: &Arc<Tree>,
    ends: &Sender<End>,
) -> io::Result<()> {
    let (finder, tree, lost) = (finder.clone(), tree.clone(), ends.clone());
    spawn("machine", ends, move || {
        loop {
            finder.wait_for_end();
            if !reconnect {
                let _ = lost.send(End::Lost(Arc::new(Closed::Eof)));
                return;
            }
            tree.qom().monitor().current().hang_up();
            warn!("QEMU has ended; waiting for it to come back");
            finder.wait_for_next();
        }
    })
}

/// Waits for the first reason to end, unmounts, and says what the exit status is: that of the
/// machine if we started it. What there is to say is said once it is unmounted.
pub(crate) fn wait_for_end(
    ended: &Receiver<End>,
    unmount: impl FnOnce() -> io::Result<()>,
    source: &str,
    machine: Option<&Machine>,
    monitor: &Monitor,
) -> u8 {
    let source = printable(source);
    let mut ends: Vec<End> = ended.recv().into_iter().chain(ended.try_iter()).collect();
    // By somebody else, or only its connection was cut, which leaves a dead mount: then there is something to do.
    let unmounted = unmount();
    let signalled = ends.iter().any(|end| matches!(end, End::Signal(_)));
    // Several may have happened: then the kernel's word decides.
    let decisive = ends.iter().position(|end| matches!(end, End::Unmounted(Ok(()))));
    let end = (!ends.is_empty()).then(|| ends.swap_remove(decisive.unwrap_or(0)));
    let status = match end {
        Some(End::Signal(signal)) => {
            info!("signal {signal}: unmounting {source}");
            0
        }
        Some(End::Unmounted(Ok(()))) => {
            info!("{source} was unmounted");
            0
        }
        Some(End::Unmounted(Err(e))) => {
            error!("the connection to the kernel failed: {e}");
            1
        }
        Some(End::Lost(why)) if why.is_orderly() => {
            warn!("{why}; unmounting {source}");
            0
        }
        Some(End::Lost(why)) => {
            error!("{why}; unmounting {source}");
            1
        }
        Some(End::Broken(thread)) => {
            error!("internal error in the thread '{thread}'; unmounting {source}");
            1
        }
        None => 1,
    };
    if let Err(e) = &unmounted {
        error!("cannot unmount {e}");
    }
    match machine {
        Some(machine) if signalled => machine.end(monitor),
        Some(machine) => wait_for_exit(machine, ended, monitor),
        None if unmounted.is_err() => 1,
        None => status,
    }
}

/// Waits for a machine that is no longer mounted; a signal still ends it.
fn wait_for_exit(machine: &Machine, ended: &Receiver<End>, monitor: &Monitor) -> u8 {
    loop {
        if let Some(status) = machine.wait_for(POLL_INTERVAL) {
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
