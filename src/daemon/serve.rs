//! The stages that follow: mounting, answering the kernel, going to the background.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use fuser::{Session, SessionACL};
use log::{info, warn};
use parking_lot::Mutex;
use sd_notify::NotifyState;

use super::background::Readiness;
use super::events::{Event, spawn};
use super::{Daemon, Error, direct_log, failed, mount, wait_until};
use crate::fuse::notify::KernelCaches;
use crate::fuse::{Fuse, THREADS};
use crate::text::printable;

impl Daemon {
    /// Mounts; gives the connection to the kernel.
    pub(super) fn mount(&mut self) -> io::Result<OwnedFd> {
        let options = &self.config.mount;
        let source = options.fsname.as_ref().unwrap_or(&self.config.source);
        let (device, mounted) = mount::mount(source, options)?;
        self.watchdog.watch(&mounted);
        self.mounted = Some(mounted);
        self.connection = Some(device.try_clone()?);
        Ok(device)
    }

    /// Starts to answer the kernel.
    pub(super) fn serve(&mut self, device: OwnedFd) -> io::Result<()> {
        let options = &self.config.mount;
        let mut session_config = fuser::Config::default();
        session_config.acl = match (options.allow_other, options.allow_root) {
            (true, _) => SessionACL::All,
            (false, true) => SessionACL::RootAndOwner,
            (false, false) => SessionACL::Owner,
        };
        session_config.n_threads = Some(THREADS);
        let fuse = Fuse::new(self.tree.clone(), device.try_clone()?);
        self.pool = Some(fuse.pool());
        let notifications = device.try_clone()?;
        let session = Session::from_fd(fuse, device, session_config.acl, session_config)?;
        let kernel = KernelCaches::new(session.notifier(), notifications)?;
        self.tree.set_kernel(Box::new(kernel));
        try_threads(1 + THREADS)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot start enough threads: {e}")))?;
        let sender = self.sender.clone();
        spawn("fuse", &self.sender, move || {
            let ended = session.run().or_else(|e| match e.raw_os_error() {
                // The connection ended while a request was being read from it: somebody unmounted it.
                Some(libc::ECONNABORTED) => Ok(()),
                _ => Err(e),
            });
            let _ = sender.send(Event::Unmounted(ended));
        })
    }

    /// Lets go of the terminal and the working directory, and lets whoever started us go on: the mount answers.
    pub(super) fn go_to_background(&self, readiness: Option<Readiness>) -> Result<(), Error> {
        direct_log(&self.config)?;
        if let Some(readiness) = readiness {
            readiness
                .ready()
                .map_err(failed("cannot let go of the terminal"))?;
        }
        std::env::set_current_dir("/").map_err(failed("/"))?;
        if let Err(e) = sd_notify::notify(&[NotifyState::Ready]) {
            warn!("cannot tell the service manager: {e}");
        }
        info!(
            "{} is mounted on {}: {}",
            printable(&self.config.source),
            self.config.mount.fs.mount_point.display(),
            self.tree.qom().monitor().current().greeting()
        );
        Ok(())
    }
}

/// Tries whether so many threads can be started. fuser says only once it serves that it could not.
///
/// # Errors
/// When they cannot.
fn try_threads(count: usize) -> io::Result<()> {
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
    let (moment, pause) = (Duration::from_millis(100), Duration::from_micros(100));
    wait_until(moment, pause, || counted() <= before);
    Ok(())
}
