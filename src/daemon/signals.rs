//! Signals: those that end the mount, and what whoever started us has made of them.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, sigaction,
};
use nix::unistd::{Pid, getpid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::register_conditional_shutdown;
use signal_hook::iterator::Signals;

use crate::cli::{Config, Wanted};
use crate::daemon::events::{Event, spawn};

/// What whoever started us has handed on, for a QEMU that we start. We rely on other things ourselves:
/// children that can be waited for, and signals that arrive.
#[derive(Clone, Copy)]
pub struct Inherited {
    on_child: SigAction,
    mask: SigSet,
}

impl Inherited {
    /// Takes it, and sets what we rely on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take() -> io::Result<Inherited> {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        let used = [Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];
        let mut mask = SigSet::empty();
        pthread_sigmask(
            SigmaskHow::SIG_UNBLOCK,
            Some(&used.into_iter().collect()),
            Some(&mut mask),
        )?;
        // SAFETY: no handler is installed.
        let on_child = unsafe { sigaction(Signal::SIGCHLD, &default) }?;
        Ok(Inherited { on_child, mask })
    }

    /// Gives it to this process. Async-signal-safe.
    pub fn restore(&self) -> io::Result<()> {
        // SAFETY: it was so before, and no handler of ours.
        unsafe { sigaction(Signal::SIGCHLD, &self.on_child) }?;
        Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None)?)
    }
}

/// Signals that end the mount: those that whoever started us did not have ignored, as `nohup` has
/// SIGHUP and a shell SIGINT of what it runs in the background. QEMU inherits that.
fn ending() -> impl Iterator<Item = i32> {
    [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|s| !is_ignored(*s))
}

/// Has these signals end the mount.
///
/// # Errors
/// When they cannot be handled.
pub(super) fn watch_signals(events: &Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new(ending())?;
    let sender = events.clone();
    spawn("signals", events, move || {
        for signal in &mut signals {
            let _ = sender.send(Event::Signal(signal));
        }
    })
}

/// While we connect, these signals end the process at once, until this is dropped. The kernel does that by itself,
/// but not for the first process of a container.
pub(super) struct EndAtOnce(Arc<AtomicBool>);

impl EndAtOnce {
    /// Begins where need be: not if there will be a QEMU that must end with us.
    ///
    /// # Errors
    /// When they cannot be handled.
    pub fn begin(config: &Config) -> io::Result<EndAtOnce> {
        let active = Arc::new(AtomicBool::new(true));
        if getpid() == Pid::from_raw(1) && !matches!(config.machine, Wanted::Command(_)) {
            for signal in ending() {
                register_conditional_shutdown(signal, 128 + signal, active.clone())?;
            }
        }
        Ok(EndAtOnce(active))
    }
}

impl Drop for EndAtOnce {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action, sigaction only fills in the present one, if it succeeds.
    unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
