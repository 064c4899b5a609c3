//! A QEMU of our own: started with a monitor that nobody else has.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::{Condvar, Mutex};

use super::process::hide_monitor;
use crate::qmp::{self, Monitor};

/// How long QEMU has to end after each thing that is said to it.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it is looked whether a QEMU in the background is still there.
const LOOK: Duration = Duration::from_millis(20);

/// A QEMU that we started.
#[derive(Clone)]
pub struct Machine {
    pid: Pid,
    ended: Arc<Ended>,
}

#[derive(Default)]
struct Ended {
    status: Mutex<Option<u8>>,
    changed: Condvar,
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

/// Starts QEMU with one end of a socket pair as its monitor; the other end is returned, as the
/// number of a descriptor. QEMU keeps the terminal and everything else that we have.
///
/// # Errors
/// When the command cannot be started.
pub fn start(command: &[OsString]) -> Result<(Machine, RawFd), StartError> {
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
    let inherited = theirs.as_raw_fd();
    let mut process = Command::new(program);
    process
        .args(arguments)
        .args(["-chardev", &format!("socket,id=qom-fuse,fd={inherited}")])
        // The same as `-mon chardev=qom-fuse,mode=control`, of which QEMU 11.1 complains.
        .args(["-qmp", "chardev:qom-fuse"]);
    hide_monitor(&mut process);
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe.
    unsafe {
        process.pre_exec(move || match libc::fcntl(inherited, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let child = process.spawn().map_err(failed)?;
    drop(theirs);
    let machine = Machine::watch(child).map_err(failed)?;
    Ok((machine, ours.into_raw_fd()))
}

impl Machine {
    fn watch(mut child: Child) -> io::Result<Machine> {
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        let ended = Arc::new(Ended::default());
        let tell = ended.clone();
        thread::Builder::new().name("qemu".into()).spawn(move || {
            let status = child.wait().map_or(1, status_of);
            *tell.status.lock() = Some(status);
            tell.changed.notify_all();
        })?;
        Ok(Machine { pid, ended })
    }

    /// Waits for QEMU to end, and gives its exit status, or 128 and the number of the signal
    /// that killed it.
    pub fn wait(&self) -> u8 {
        let mut status = self.ended.status.lock();
        loop {
            match *status {
                Some(status) => return status,
                None => self.ended.changed.wait(&mut status),
            }
        }
    }

    /// The same, if it ends soon.
    pub fn wait_a_moment(&self) -> Option<u8> {
        self.wait_for(PATIENCE)
    }

    /// The same, if it ends within this time.
    pub fn wait_for(&self, time: Duration) -> Option<u8> {
        let until = Instant::now() + time;
        let mut status = self.ended.status.lock();
        while status.is_none() {
            if self.ended.changed.wait_until(&mut status, until).timed_out() {
                break;
            }
        }
        *status
    }

    /// Whether the command has ended and QEMU has not, as with `-daemonize`: then only the end of
    /// the connection tells of QEMU's.
    pub fn is_in_background(&self, monitor: &Monitor) -> bool {
        self.ended.status.lock().is_some() && !monitor.is_closed()
    }

    /// Ends QEMU: by `quit`, by SIGTERM, by SIGKILL; gives the exit status of the command. One
    /// in the background gets `quit` alone, since its number is not known.
    pub fn end(&self, monitor: &Monitor) -> u8 {
        let until = Instant::now() + PATIENCE;
        // Its reply may never come, and does not matter.
        let _pending = monitor.try_send(&qmp::command("quit"));
        // QEMU forgets what it has been told once we hang up: not before it has ended.
        while self.is_in_background(monitor) {
            if Instant::now() > until {
                warn!("QEMU, which went to the background, does not end: kill it by its process id");
                break;
            }
            thread::sleep(LOOK);
        }
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if let Some(status) = self.wait_a_moment() {
                return status;
            }
            warn!("QEMU is still there; sending {signal}");
            self.signal(signal);
        }
        self.wait()
    }

    /// Kills a QEMU that there will be no mount of.
    pub fn kill(&self) {
        info!("ending QEMU");
        self.signal(Signal::SIGTERM);
        if self.wait_a_moment().is_none() {
            self.signal(Signal::SIGKILL);
        }
    }

    fn signal(&self, signal: Signal) {
        let ended = self.ended.status.lock();
        // While nobody has waited for it, the number is still its own.
        if ended.is_none() {
            let _ = kill(self.pid, signal);
        }
    }
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
        let run = |script: &str| {
            let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            Machine::watch(child).unwrap().wait()
        };
        assert_eq!(run("exit 7"), 7);
        assert_eq!(run("kill -TERM $$"), 128 + 15);
        let missing = start(&["/nonexistent/qemu".into()]).err().unwrap();
        assert_eq!(missing.status(), 127);
        assert!(
            missing.to_string().contains("cannot run /nonexistent/qemu"),
            "{missing}"
        );
        assert_eq!(start(&["/dev/null".into()]).err().unwrap().status(), 126);
    }
}
