//! The process that unmounts when the daemon cannot.

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::exit;
use std::time::Duration;

use log::{error, info, warn};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid, setsid};

use crate::daemon::background::release_stdio;
use crate::daemon::mount::mounted::Mounted;
use crate::daemon::wait_until;
use crate::process::close_all_but;

/// How long the watchdog may take to unmount while we wait for it.
const TAKEOVER: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A process that unmounts when this one is killed, or cannot do it itself: a mount without its daemon
/// would answer every access with "Transport endpoint is not connected", and stay.
pub struct Watchdog {
    pid: Pid,
    /// Closed, it says that the watchdog is to unmount.
    pipe: Option<PipeWriter>,
}

impl Watchdog {
    /// Starts it. To be called while there is one thread only, and before anything is opened that must end
    /// with this process. `open_log` runs in the watchdog, once it has unmounted.
    ///
    /// # Errors
    /// When the system is out of processes or descriptors.
    pub fn start(open_log: impl FnOnce()) -> io::Result<Watchdog> {
        let (read, write) = io::pipe()?;
        let parent = getpid();
        // SAFETY: there is no other thread yet, so the child may do anything.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Watchdog {
                pid: child,
                pipe: Some(write),
            }),
            ForkResult::Child => {
                drop(write);
                watch(read, parent, open_log);
                exit(0);
            }
        }
    }

    /// Tells it what to take care of.
    pub fn watch(&mut self, mounted: &Mounted) {
        let unique = mounted.unique.unwrap_or_default();
        let mut message = format!("{} {unique} {} ", mounted.id, mounted.device).into_bytes();
        message.extend(mounted.point.as_os_str().as_bytes());
        message.push(0);
        if let Some(Err(e)) = self.pipe.as_mut().map(|pipe| pipe.write_all(&message)) {
            warn!("the process that unmounts after a crash is gone: {e}");
        }
    }

    /// Unmounts: by the watchdog where this process cannot, as when it may start no other.
    ///
    /// # Errors
    /// Why it is still mounted.
    pub fn unmount(&mut self, mounted: &Mounted) -> io::Result<()> {
        mounted.unmount().or_else(|e| {
            self.pipe = None;
            let running = Ok(WaitStatus::StillAlive);
            let has_ended = || waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) != running;
            wait_until(TAKEOVER, POLL_INTERVAL, has_ended);
            match mounted.is_there() {
                true => Err(io::Error::other(format!("{}: {e}", mounted.point.display()))),
                false => Ok(()),
            }
        })
    }

    /// Tells it that there is nothing left to do, unless it was told to unmount.
    pub fn dismiss(mut self) {
        let _ = self.pipe.as_mut().map(|pipe| pipe.write_all(&[0]));
    }
}

/// The watchdog itself.
fn watch(mut pipe: PipeReader, parent: Pid, open_log: impl FnOnce()) {
    // Whatever else was inherited must not be kept open here.
    close_all_but(3, pipe.as_raw_fd());
    // The daemon gets these too and ends in good order, or does not: then it is our turn.
    let _ = SigSet::all().thread_block();
    let _ = setsid();
    let _ = std::env::set_current_dir("/");
    let _ = release_stdio();
    let message = read_until_parent_dies(&mut pipe, parent);
    // A NUL ends the mount's path; another one says that the daemon ended in order.
    let told = message.strip_suffix(b"\0").filter(|told| !told.contains(&0));
    let Some(mounted) = told.and_then(parse).filter(Mounted::is_there) else {
        return;
    };
    let done = mounted.unmount_dead();
    open_log();
    let point = mounted.point.display();
    match done {
        Ok(()) => info!("{point}: its daemon did not unmount it; unmounted"),
        Err(e) => error!("{point}: its daemon did not unmount it, and: {e}"),
    }
}

/// Everything that the daemon says until it ends, or its main thread does: a killed process keeps its end
/// of the pipe for as long as one of its threads waits in the kernel.
fn read_until_parent_dies(pipe: &mut PipeReader, parent: Pid) -> Vec<u8> {
    let mut message = Vec::new();
    let death: SigSet = [Signal::SIGUSR1].into_iter().collect();
    let deaths = set_pdeathsig(Signal::SIGUSR1)
        .and_then(|()| SignalFd::with_flags(&death, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK))
        .inspect_err(|e| warn!("the end of the daemon may go unnoticed: {e}"))
        .ok();
    // As the kernel sends it, it is the parent's; anybody else's says nothing.
    let is_parents = |deaths: &SignalFd| {
        let signal = deaths.read_signal().ok().flatten();
        signal.is_some_and(|signal| i32::try_from(signal.ssi_pid) == Ok(parent.as_raw()))
    };
    let mut buffer = [0; 4096];
    while getppid() == parent {
        let mut fds = vec![PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        fds.extend(deaths.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue;
        }
        if fds[0].any() != Some(false) {
            match pipe.read(&mut buffer) {
                Ok(0) | Err(_) => return message,
                Ok(n) => message.extend(&buffer[..n]),
            }
        } else if deaths.as_ref().is_some_and(is_parents) {
            break;
        }
    }
    // What is in the pipe is still said; and it may have ended in good order just now.
    if fcntl(&*pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).is_ok() {
        let _ = pipe.read_to_end(&mut message);
    }
    message
}

/// Reads what [`Watchdog::watch`] wrote.
fn parse(message: &[u8]) -> Option<Mounted> {
    let mut fields = message.splitn(4, |b| *b == b' ');
    let mut word = || std::str::from_utf8(fields.next()?).ok();
    let (id, unique, device) = (word()?.parse().ok()?, word()?.parse().ok()?, word()?.to_owned());
    let point = fields.next()?.to_vec();
    Some(Mounted {
        id,
        unique: (unique != 0).then_some(unique),
        device,
        point: PathBuf::from(OsString::from_vec(point)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_watchdog_is_told() {
        let (mut read, write) = io::pipe().unwrap();
        let mounted = Mounted {
            id: 7,
            unique: Some(1 << 40),
            device: "0:98".into(),
            point: "/mnt/a b".into(),
        };
        let mut watchdog = Watchdog {
            pid: getpid(),
            pipe: Some(write),
        };
        watchdog.watch(&mounted);
        watchdog.dismiss();
        let mut message = Vec::new();
        read.read_to_end(&mut message).unwrap();
        assert_eq!(message.pop(), Some(0));
        assert_eq!(parse(message.strip_suffix(b"\0").unwrap()), Some(mounted));
        assert_eq!(parse(b""), None);
    }
}
