//! A process that is not taken for another one that gets its number later.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a process without a descriptor is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A process, running or ended.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    /// None before Linux 5.3, and where a container's rules refuse it.
    fd: Option<OwnedFd>,
    /// Without a descriptor: when it started, which tells it from a later one of its number.
    started: Option<u64>,
}

impl Process {
    /// The process that has this number now.
    pub fn of(pid: i32) -> Process {
        // SAFETY: a plain system call.
        let fd = RawFd::try_from(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).unwrap_or(-1);
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        let fd = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
        Process {
            pid: Pid::from_raw(pid),
            started: if fd.is_none() { start_time(pid) } else { None },
            fd,
        }
    }

    /// Its number, which may be another one's once it has ended.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Waits for the end of the process, at most for `limit`; true when it has ended.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let ended = match &self.fd {
                Some(fd) => {
                    // Rounded up, or the last millisecond would be spent in a busy loop.
                    let wait = left + Duration::from_micros(999);
                    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                    let timeout = PollTimeout::try_from(wait.as_millis()).unwrap_or(PollTimeout::MAX);
                    matches!(poll(&mut fds, timeout), Ok(n) if n > 0)
                }
                None => self.has_ended(),
            };
            if ended || left.is_zero() {
                return ended;
            }
            if self.fd.is_none() {
                thread::sleep(left.min(POLL_INTERVAL));
            }
        }
    }

    /// Looks by its number. Without /proc, a later process of that number is taken for it.
    fn has_ended(&self) -> bool {
        match self.started {
            Some(started) => start_time(self.pid.as_raw()) != Some(started),
            None => kill(self.pid, None) == Err(Errno::ESRCH),
        }
    }

    /// Sends a signal; nothing to one that has ended.
    ///
    /// # Errors
    /// When we may not.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.ends_within(Duration::ZERO) {
            return Ok(());
        }
        if let Some(fd) = &self.fd {
            let (fd, number) = (fd.as_raw_fd(), signal as i32);
            // SAFETY: a plain system call; without further information, as kill(2) sends it.
            let sent =
                unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, number, std::ptr::null::<()>(), 0) };
            if sent == 0 {
                return Ok(());
            }
        }
        match kill(self.pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// When a process started, in the kernel's ticks; `None` for one that has ended.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
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
            let mut process = Process::of(child.id() as i32);
            if !with_descriptor {
                (process.fd, process.started) = (None, start_time(child.id() as i32));
                assert!(process.started.is_some());
            }
            assert!(!process.ends_within(Duration::ZERO) && !process.ends_within(Duration::from_millis(20)));
            process.signal(Signal::SIGKILL).unwrap();
            assert!(process.ends_within(Duration::from_secs(10)));
            child.wait().unwrap();
            assert!(process.ends_within(Duration::ZERO));
            process.signal(Signal::SIGKILL).unwrap();
        }
    }
}
