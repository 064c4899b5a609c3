//! A QEMU of our own: started with a monitor that nobody else has.

pub mod discover;
pub mod finder;
mod libvirt;
pub mod names;
mod namespace;
mod pidfd;

use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use log::warn;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt};
use parking_lot::{Condvar, Mutex};

use crate::daemon::background::hide_monitor;
use crate::daemon::machine::pidfd::Process;
use crate::daemon::signals::Inherited;
use crate::qmp::{self, Monitor};

/// How long QEMU has to end after each thing that is said to it.
const TERM_TIMEOUT: Duration = Duration::from_secs(3);
/// How often it is looked for what nothing announces.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A QEMU that we started, by a command that may be QEMU itself, a wrapper around it, or one that QEMU
/// leaves behind (`-daemonize`).
#[derive(Clone)]
pub struct Machine(Arc<Processes>);

struct Processes {
    command: Process,
    /// Of the command, once it has ended.
    status: Mutex<Option<u8>>,
    ended: Condvar,
    /// The process that speaks at the monitor, once it has spoken.
    qemu: OnceLock<Process>,
}

/// A command that could not be started, and the exit status that shells give for that.
#[derive(Debug, thiserror::Error)]
#[error("cannot run {program}: {source}")]
pub struct StartError {
    program: String,
    source: io::Error,
}

impl StartError {
    /// 127 when there is no such program, else 126, as shells have it.
    pub fn status(&self) -> u8 {
        if self.source.kind() == io::ErrorKind::NotFound {
            127
        } else {
            126
        }
    }
}

/// Starts QEMU with one end of a socket pair as its monitor, and returns the other end. QEMU keeps the
/// terminal and everything else that we have, and gets the signals as we got them.
///
/// # Errors
/// When the command cannot be started.
pub fn start(command: &[OsString], inherited: Inherited) -> Result<(Machine, UnixStream), StartError> {
    let failed = |source| StartError {
        program: command
            .first()
            .map(|p| p.to_string_lossy().into_owned())
            .unwrap_or_default(),
        source,
    };
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    // So that what QEMU sends tells which process it is.
    setsockopt(&ours, sockopt::PassCred, &true).map_err(|e| failed(e.into()))?;
    let monitor = theirs.as_raw_fd();
    let mut process = Command::new(program);
    process
        .args(arguments)
        .args(["-chardev", &format!("socket,id=qom-fuse,fd={monitor}")])
        // The same as `-mon chardev=qom-fuse,mode=control`, of which QEMU 11.1 complains.
        .args(["-qmp", "chardev:qom-fuse"]);
    hide_monitor(&mut process);
    // SAFETY: between fork and exec only functions are called that are async-signal-safe.
    unsafe {
        process.pre_exec(move || match libc::fcntl(monitor, libc::F_SETFD, 0) {
            0 => inherited.restore(),
            _ => Err(io::Error::last_os_error()),
        });
    }
    // Before there is a command: nothing may fail after that and leave it alone.
    let (started, awaited) = channel::<(Child, Arc<Processes>)>();
    let wait = move || {
        let Ok((mut child, processes)) = awaited.recv() else {
            return;
        };
        let status = child.wait().map_or(1, status_of);
        *processes.status.lock() = Some(status);
        processes.ended.notify_all();
    };
    let spawned = thread::Builder::new().name("command".into()).spawn(wait);
    spawned.map_err(failed)?;
    let child = process.spawn().map_err(failed)?;
    let processes = Arc::new(Processes {
        command: Process::of(i32::try_from(child.id()).unwrap_or(i32::MAX)),
        status: Mutex::default(),
        ended: Condvar::new(),
        qemu: OnceLock::new(),
    });
    let _ = started.send((child, processes.clone()));
    Ok((Machine(processes), ours))
}

impl Machine {
    /// Waits until QEMU speaks at its monitor or hangs up, and learns which process it is. False when
    /// it does neither within `limit`, or before something else needs to be done.
    pub fn wait_for_greeting(
        &self,
        monitor: &UnixStream,
        limit: Duration,
        interrupted: impl Fn() -> bool,
    ) -> bool {
        let until = Instant::now() + limit;
        let look = PollTimeout::try_from(POLL_INTERVAL).unwrap_or(PollTimeout::ZERO);
        while Instant::now() < until && !interrupted() {
            let mut fds = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
            if matches!(poll(&mut fds, look), Ok(n) if n > 0) {
                let process = sender(monitor).map(Process::of);
                if let Some(process) = process.filter(|process| !process.ends_within(Duration::ZERO)) {
                    let _ = self.0.qemu.set(process);
                }
                return true;
            }
        }
        false
    }

    /// The process that is to be ended, and to be waited for: the command if no other is known.
    fn qemu(&self) -> &Process {
        self.0.qemu.get().unwrap_or(&self.0.command)
    }

    /// Whether QEMU ends within this time, whatever becomes of its command.
    pub fn ends_within(&self, limit: Duration) -> bool {
        self.qemu().ends_within(limit)
    }

    /// Waits for QEMU and its command to end, at most for `limit`; gives the exit status of the command,
    /// or 128 and the number of the signal that killed it.
    pub fn wait_for(&self, limit: Duration) -> Option<u8> {
        let until = Instant::now() + limit;
        if !self.ends_within(limit) {
            return None;
        }
        let mut status = self.0.status.lock();
        while status.is_none() {
            if self.0.ended.wait_until(&mut status, until).timed_out() {
                break;
            }
        }
        *status
    }

    /// The same, if that is soon.
    pub fn wait_a_moment(&self) -> Option<u8> {
        self.wait_for(TERM_TIMEOUT)
    }

    /// Ends QEMU: by `quit`, by SIGTERM, by SIGKILL; gives the exit status of its command.
    pub fn end(&self, monitor: &Monitor) -> u8 {
        let until = Instant::now() + TERM_TIMEOUT;
        let mut asked = None;
        while Instant::now() < until {
            // It cannot be sent while an earlier reply is overdue. Its own does not matter.
            asked = asked.or_else(|| monitor.try_send(&qmp::command("quit")));
            if let Some(status) = self.wait_for(POLL_INTERVAL) {
                return status;
            }
        }
        warn!("QEMU is still there; sending SIGTERM");
        self.kill()
    }

    /// Ends QEMU by signals, and its command if that does not end with it; gives its exit status.
    pub fn kill(&self) -> u8 {
        for (process, patience) in [(self.qemu(), Duration::ZERO), (&self.0.command, TERM_TIMEOUT)] {
            for (signal, patience) in [(Signal::SIGTERM, patience), (Signal::SIGKILL, TERM_TIMEOUT)] {
                if process.ends_within(patience) {
                    break;
                }
                if signal == Signal::SIGKILL {
                    warn!("QEMU is still there; sending SIGKILL");
                }
                if let Err(e) = process.signal(signal) {
                    warn!("cannot end QEMU: {e}");
                }
            }
        }
        self.wait_a_moment().unwrap_or(1)
    }
}

/// The process that sent what is to be read next, as far as the kernel tells.
fn sender(socket: &UnixStream) -> Option<i32> {
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(UnixCredentials);
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags).ok()?;
    let pid = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.pid()),
        _ => None,
    });
    pid.filter(|pid| *pid > 0)
}

fn status_of(status: ExitStatus) -> u8 {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    u8::try_from(code).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        let inherited = Inherited::take().unwrap();
        let run = |script: &str| {
            let command = ["sh", "-c", script].map(OsString::from);
            let (machine, _monitor) = start(&command, inherited).unwrap();
            machine.wait_for(Duration::from_secs(10)).unwrap()
        };
        assert_eq!(run("exit 7"), 7);
        assert_eq!(run("kill -TERM $$"), 128 + 15);
        let missing = start(&["/nonexistent/qemu".into()], inherited).err().unwrap();
        assert_eq!(missing.status(), 127);
        assert!(
            missing.to_string().contains("cannot run /nonexistent/qemu"),
            "{missing}"
        );
        assert_eq!(
            start(&["/dev/null".into()], inherited).err().unwrap().status(),
            126
        );
    }
}
