//! File access in forked children, so that a mount that does not answer cannot hold the test process.
//!
//! A fork of a process with threads may only make async-signal-safe calls, so the children here allocate nothing and
//! do nothing but system calls on memory prepared before the fork.

use std::ffi::{CString, c_int};
use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::proc::{poll, signal, wait_until};

/// How long one access may take.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// An errno, such as `libc::ENOENT`.
pub type Errno = i32;

const SHORT_WRITE: Errno = 254; // above every errno

/// Reads a file from beginning to end.
#[track_caller]
pub fn read_file(path: impl AsRef<Path>) -> Result<Vec<u8>, Errno> {
    let (path, what) = name(path, "read");
    let mut buffer = vec![0_u8; 128 * 1024];
    in_child(&what, DEADLINE, move |sink| {
        let fd = check(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY) } as isize)? as c_int;
        loop {
            match check(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) })? {
                0 => break,
                length => sink.send(buffer.as_ptr(), length)?,
            }
        }
        check(unsafe { libc::close(fd) } as isize)?;
        Ok(())
    })
}

/// Writes to an existing file with a single write(2), as `printf %s DATA > FILE` does.
#[track_caller]
pub fn write_file(path: impl AsRef<Path>, data: &[u8]) -> Result<(), Errno> {
    write_flags(path, libc::O_TRUNC, data)
}

/// Opens an existing file for writing with further flags and writes the data with a single write(2).
///
/// A write of less than all data fails the test.
#[track_caller]
pub fn write_flags(path: impl AsRef<Path>, flags: c_int, data: &[u8]) -> Result<(), Errno> {
    let (path, what) = name(path, "write");
    let (start, length) = (data.as_ptr(), data.len());
    let result = in_child(&what, DEADLINE, move |_| {
        let fd = check(unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | flags) } as isize)? as c_int;
        let written = check(unsafe { libc::write(fd, start.cast(), length) })?;
        check(unsafe { libc::close(fd) } as isize)?; // reports what FUSE's flush says
        if written == length {
            Ok(())
        } else {
            Err(SHORT_WRITE)
        }
    });
    assert!(
        result != Err(SHORT_WRITE),
        "{what}: write(2) took only a part of the {length} bytes"
    );
    result.map(|_| ())
}

/// The attributes of a file; of a symbolic link itself.
#[track_caller]
pub fn lstat(path: impl AsRef<Path>) -> Result<libc::stat, Errno> {
    let (path, what) = name(path, "stat");
    let mut stat = MaybeUninit::<libc::stat>::zeroed();
    let bytes = in_child(&what, DEADLINE, move |sink| {
        check(unsafe { libc::lstat(path.as_ptr(), stat.as_mut_ptr()) } as isize)?;
        sink.send(stat.as_ptr().cast(), size_of::<libc::stat>())
    })?;
    assert_eq!(bytes.len(), size_of::<libc::stat>(), "{what}: the child's answer");
    // SAFETY: the child sent a whole struct stat, which is plain data.
    Ok(unsafe { bytes.as_ptr().cast::<libc::stat>().read_unaligned() })
}

/// The target of a symbolic link.
#[track_caller]
pub fn read_link(path: impl AsRef<Path>) -> Result<Vec<u8>, Errno> {
    let (path, what) = name(path, "readlink");
    let mut buffer = vec![0_u8; libc::PATH_MAX as usize];
    in_child(&what, DEADLINE, move |sink| {
        let length = unsafe { libc::readlink(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
        sink.send(buffer.as_ptr(), check(length)?)
    })
}

/// The value of an extended attribute; of a symbolic link itself.
#[track_caller]
pub fn get_xattr(path: impl AsRef<Path>, attribute: &str) -> Result<Vec<u8>, Errno> {
    let (path, what) = name(path, "getxattr");
    let attribute = CString::new(attribute).expect("an attribute's name without NUL");
    let mut buffer = vec![0_u8; 64 * 1024];
    in_child(&what, DEADLINE, move |sink| {
        let start = buffer.as_mut_ptr().cast();
        let length = unsafe { libc::lgetxattr(path.as_ptr(), attribute.as_ptr(), start, buffer.len()) };
        sink.send(buffer.as_ptr(), check(length)?)
    })
}

fn name(path: impl AsRef<Path>, verb: &str) -> (CString, String) {
    let path = path.as_ref();
    let bytes = CString::new(path.as_os_str().as_bytes()).expect("a path without NUL");
    (bytes, format!("{verb} {}", path.display()))
}

/// The result of a system call as its value or errno. Async-signal-safe.
pub fn check(result: isize) -> Result<usize, Errno> {
    // SAFETY: the thread's own errno.
    usize::try_from(result).map_err(|_| unsafe { *libc::__errno_location() })
}

/// Where a child puts what it has to say.
pub struct Sink(c_int);

impl Sink {
    /// Sends `length` bytes to the parent. Async-signal-safe.
    pub fn send(&self, start: *const u8, length: usize) -> Result<(), Errno> {
        let mut done = 0;
        while done < length {
            // SAFETY: the caller's memory, valid for `length` bytes.
            done += check(unsafe { libc::write(self.0, start.add(done).cast(), length - done) })?;
        }
        Ok(())
    }
}

/// Runs `work` in a forked child and returns what it sent, or the errno that it failed with.
///
/// `work` must be async-signal-safe: system calls on memory prepared beforehand, and neither allocation nor panic. When
/// it does not end within `limit`, the child is killed and the test fails. (FnMut, for FnOnce would free in the child what it owns.)
#[track_caller]
pub fn in_child(
    what: &str,
    limit: Duration,
    mut work: impl FnMut(&Sink) -> Result<(), Errno>,
) -> Result<Vec<u8>, Errno> {
    let end = Instant::now() + limit;
    let mut ends = [0; 2];
    // SAFETY: plain system calls; the descriptors are new, and each end gets one owner.
    let (mut output, input, pid) = unsafe {
        assert!(
            libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) == 0,
            "pipe for a child"
        );
        let (output, input) = (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]));
        (output, input, libc::fork())
    };
    assert!(pid >= 0, "fork a child");
    if pid == 0 {
        // SAFETY: in the child, only system calls until _exit; the pipe is 3, and what other threads had open is closed,
        // so that a child that cannot be killed holds nobody else's pipe.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::dup2(input.as_raw_fd(), 3);
            libc::syscall(libc::SYS_close_range, 4, u32::MAX, 0);
            let status = work(&Sink(3)).err().unwrap_or(0);
            libc::_exit(status)
        }
    }
    drop(input);

    let mut answer = Vec::new();
    let mut buffer = vec![0; 128 * 1024];
    let finished = loop {
        let mut polled = [libc::pollfd {
            fd: output.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        }];
        if !poll(&mut polled, end) {
            break false;
        }
        match output.read(&mut buffer).expect("read what a child says") {
            0 => break true,
            length => answer.extend_from_slice(&buffer[..length]),
        }
    };
    let mut status = 0;
    // SAFETY: a child of ours that nobody else waits for.
    let mut reaped = || unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } == pid;
    if !finished || !wait_until(end.saturating_duration_since(Instant::now()), &mut reaped) {
        signal(pid, libc::SIGKILL);
        wait_until(Duration::from_secs(2), reaped); // not for ever: see `proc::Running`
        panic!("HUNG: {what}: no answer within {limit:?}");
    }
    assert!(
        libc::WIFEXITED(status),
        "{what}: the child died of signal {}",
        libc::WTERMSIG(status)
    );
    match libc::WEXITSTATUS(status) {
        0 => Ok(answer),
        errno => Err(errno),
    }
}
