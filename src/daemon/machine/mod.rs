//! A QEMU of our own: started with a monitor that nobody else has.

pub mod discover;
pub mod finder;
mod found;
mod libvirt;
pub mod list;
pub mod names;
pub mod namespace;

use std::ffi::OsString;
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use log::warn;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt};
use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::signals::Inherited;
use crate::daemon::{Error, wait_until};
use crate::pidfd::Process;
use crate::process::pass_descriptor;
use crate::qmp::{self, Monitor};

/// How long QEMU has to end after each thing that is said to it.
const TERM_TIMEOUT: Duration = Duration::from_secs(3);
/// How often it is looked for what nothing announces.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A QEMU that we started, by a command that may be QEMU itself, a wrapper around it, or one that QEMU
/// leaves behind (`-daemonize`).
pub struct Machine {
    command: Child,
    /// The process that speaks at the monitor, if that is another one.
    other: Option<Process>,
}

/// Starts QEMU with one end of a socket pair as its monitor, and returns the other end. QEMU keeps the
/// terminal and everything else that we have, and gets the signals as we got them.
///
/// # Errors
/// When the command cannot be started; with the status 127 when there is no such program, else 126, as shells have it.
pub fn start(command: &[OsString], inherited: Inherited) -> Result<(Machine, UnixStream), Error> {
    let program = command.first().cloned().unwrap_or_default();
    let failed = |source: io::Error| Error {
        message: Some(format!("cannot run {}: {source}", program.display())),
        status: if source.kind() == ErrorKind::NotFound {
            127
        } else {
            126
        },
    };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    // So that what QEMU sends tells which process it is.
    setsockopt(&ours, sockopt::PassCred, &true).map_err(|e| failed(e.into()))?;
    let monitor = theirs.as_raw_fd();
    let mut process = Command::new(&program);
    process
        .args(command.iter().skip(1))
        .args(["-chardev", &format!("socket,id=qom-fuse,fd={monitor}")])
        // The same as `-mon chardev=qom-fuse,mode=control`, of which QEMU 11.1 complains.
        .args(["-qmp", "chardev:qom-fuse"]);
    pass_descriptor(&mut process, monitor);
    // SAFETY: between fork and exec only functions are called that are async-signal-safe.
    unsafe { process.pre_exec(move || inherited.restore()) };
    let command = process.spawn().map_err(failed)?;
    Ok((Machine { command, other: None }, ours))
}

impl Machine {
    /// Waits until QEMU speaks at its monitor or hangs up, and learns which process it is. False when
    /// it does neither within a moment.
    pub fn has_spoken(&mut self, monitor: &UnixStream) -> bool {
        let wait = PollTimeout::try_from(POLL_INTERVAL).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
        let spoken = poll(&mut fds, wait).is_ok_and(|n| n > 0);
        if spoken && let Some(pid) = sender(monitor) {
            let other = (pid != Pid::from_child(&self.command)).then(|| Process::of(pid));
            self.other = other.filter(|process| !process.has_ended());
        }
        spoken
    }

    /// Whether QEMU has ended, whatever becomes of its command.
    pub fn has_ended(&mut self) -> bool {
        let status = self.status_of_command();
        self.other.as_ref().map_or(status.is_some(), Process::has_ended)
    }

    /// Once QEMU and its command have ended: the exit status of the command, or 128 and the number of the signal
    /// that killed it.
    pub fn exit_status(&mut self) -> Option<u8> {
        let status = self.status_of_command();
        status.filter(|_| self.has_ended())
    }

    /// The same, if that is soon.
    pub fn exits_soon(&mut self) -> Option<u8> {
        wait_until(TERM_TIMEOUT, POLL_INTERVAL, || self.exit_status().is_some());
        self.exit_status()
    }

    fn status_of_command(&mut self) -> Option<u8> {
        self.command
            .try_wait()
            .map_or(Some(1), |status| status.map(status_of))
    }

    /// Ends QEMU: by `quit`, by SIGTERM, by SIGKILL; gives the exit status of its command.
    pub fn end(&mut self, monitor: &Monitor) -> u8 {
        let mut asked = None;
        let ended = wait_until(TERM_TIMEOUT, POLL_INTERVAL, || {
            // It cannot be sent while an earlier reply is overdue. Its own does not matter.
            asked = asked.take().or_else(|| monitor.try_send(&qmp::command("quit")));
            self.exit_status().is_some()
        });
        if !ended {
            warn!("QEMU is still there; sending SIGTERM");
            return self.kill();
        }
        self.exit_status().unwrap_or(1)
    }

    /// Ends QEMU by signals, and its command if that does not end with it; gives its exit status.
    pub fn kill(&mut self) -> u8 {
        let mut patience = Duration::ZERO;
        if let Some(qemu) = &self.other {
            terminate(patience, || qemu.has_ended(), |signal| qemu.signal(signal));
            patience = TERM_TIMEOUT;
        }
        let pid = Pid::from_child(&self.command);
        let has_ended = || self.status_of_command().is_some();
        terminate(patience, has_ended, |signal| Ok(kill_process(pid, signal)?));
        self.exits_soon().unwrap_or(1)
    }
}

/// Ends a process by signals, unless it ends by itself within `patience`.
fn terminate(
    mut patience: Duration,
    mut has_ended: impl FnMut() -> bool,
    send: impl Fn(Signal) -> io::Result<()>,
) {
    for signal in [Signal::TERM, Signal::KILL] {
        if wait_until(patience, POLL_INTERVAL, &mut has_ended) {
            return;
        }
        if signal == Signal::KILL {
            warn!("QEMU is still there; sending SIGKILL");
        }
        if let Err(e) = send(signal) {
            warn!("cannot end QEMU: {e}");
        }
        patience = TERM_TIMEOUT;
    }
}

/// The process that sent what is to be read next, as far as the kernel tells.
fn sender(socket: &UnixStream) -> Option<Pid> {
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(UnixCredentials);
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags).ok()?;
    let pid = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.pid()),
        _ => None,
    });
    pid.filter(|pid| *pid > 0).and_then(Pid::from_raw)
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
            let (mut machine, _monitor) = start(&command, inherited).unwrap();
            let ended = || machine.exit_status().is_some();
            assert!(wait_until(Duration::from_secs(10), POLL_INTERVAL, ended));
            machine.exit_status().unwrap()
        };
        assert_eq!(run("exit 7"), 7);
        assert_eq!(run("kill -TERM $$"), 128 + 15);
        let missing = start(&["/nonexistent/qemu".into()], inherited).err().unwrap();
        assert_eq!(missing.status, 127);
        let message = missing.message.unwrap();
        assert!(message.contains("cannot run /nonexistent/qemu"), "{message}");
        assert_eq!(start(&["/dev/null".into()], inherited).err().unwrap().status, 126);
    }
}
