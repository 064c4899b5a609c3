//! A process that is not taken for another one that gets its number later.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal, test_kill_process,
};

/// How often a process without a descriptor is looked at by who waits for its end.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A process, running or ended.
#[derive(Debug)]
pub enum Process {
    Descriptor(OwnedFd),
    /// Before Linux 5.3, and where a container's rules refuse a descriptor: by number, and by when it started, which
    /// tells it from a later one of its number. Without /proc, that one is taken for it.
    Number(Pid, Option<u64>),
}

impl Process {
    /// The process that has this number now.
    pub fn of(pid: Pid) -> Process {
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => Process::Descriptor(descriptor),
            Err(_) => Process::Number(pid, start_time(pid)),
        }
    }

    /// Whether it has ended, be it waited for or not.
    pub fn has_ended(&self) -> bool {
        match self {
            Process::Descriptor(descriptor) => {
                let mut fds = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
            }
            Process::Number(pid, Some(started)) => start_time(*pid) != Some(*started),
            Process::Number(pid, None) => test_kill_process(*pid) == Err(Errno::SRCH),
        }
    }

    /// Waits for its end.
    pub fn wait(&self) {
        while !self.has_ended() {
            match self {
                Process::Descriptor(descriptor) => {
                    let mut fds = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
                    let _ = poll(&mut fds, PollTimeout::NONE);
                }
                Process::Number(..) => thread::sleep(POLL_INTERVAL),
            }
        }
    }

    /// Sends a signal; nothing to one that has ended.
    ///
    /// # Errors
    /// When we may not.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let sent = match self {
            _ if self.has_ended() => Ok(()),
            Process::Descriptor(descriptor) => pidfd_send_signal(descriptor, signal),
            Process::Number(pid, _) => kill_process(*pid, signal),
        };
        match sent {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// When a process started, in the kernel's ticks; `None` for one that has ended.
fn start_time(pid: Pid) -> Option<u64> {
    let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name, in parentheses, may be anything.
    let rest = String::from_utf8_lossy(&stat);
    let mut fields = rest.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(started)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_from_its_life_to_its_end() {
        for with_descriptor in [true, false] {
            let mut child = Command::new("sleep").arg("60").spawn().unwrap();
            let pid = Pid::from_child(&child);
            let process = match with_descriptor {
                true => Process::of(pid),
                false => Process::Number(pid, start_time(pid)),
            };
            assert!(matches!(
                (&process, with_descriptor),
                (Process::Descriptor(_), true) | (Process::Number(_, Some(_)), false)
            ));
            thread::sleep(Duration::from_millis(20));
            assert!(!process.has_ended());
            process.signal(Signal::KILL).unwrap();
            process.wait();
            child.wait().unwrap();
            assert!(process.has_ended());
            process.signal(Signal::KILL).unwrap();
        }
    }
}
