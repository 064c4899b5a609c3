//! A process that cannot be taken for another one that gets its number later.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

/// A process, running or ended (Linux 5.3).
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// # Errors
    /// When there is no such process, or the kernel is too old.
    pub fn open(pid: i32) -> io::Result<PidFd> {
        // SAFETY: a plain system call.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Waits for the end of the process, at most for `limit`; true when it has ended.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up, or the last millisecond would be spent in a busy loop.
            let wait = left + Duration::from_micros(999);
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(wait.as_millis()).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, timeout) {
                Ok(0) | Err(_) if left.is_zero() => return false,
                Ok(n) if n > 0 => return true,
                _ => {}
            }
        }
    }

    /// Sends a signal; nothing to one that has ended.
    ///
    /// # Errors
    /// When we may not.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let (fd, number) = (self.0.as_raw_fd(), signal as i32);
        // SAFETY: a plain system call; without further information, as kill(2) sends it.
        let sent =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, number, std::ptr::null::<()>(), 0) };
        match io::Error::last_os_error() {
            _ if sent == 0 => Ok(()),
            e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            e => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_from_its_life_to_its_end() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = PidFd::open(child.id() as i32).unwrap();
        assert!(!process.ends_within(Duration::ZERO) && !process.ends_within(Duration::from_millis(20)));
        process.signal(Signal::SIGKILL).unwrap();
        assert!(process.ends_within(Duration::from_secs(10)));
        child.wait().unwrap();
        assert!(process.ends_within(Duration::ZERO));
        process.signal(Signal::SIGKILL).unwrap();
    }
}
