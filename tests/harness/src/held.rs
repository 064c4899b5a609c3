//! A file held open by a forked child, which reads and writes it when told: for what must happen between two calls.

use std::ffi::{CString, c_int};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::child::{DEADLINE, Errno, check};
use crate::proc::{signal, wait_until};

const MOST: usize = 8 << 20;

/// What the child is to do.
#[repr(u64)]
#[derive(Clone, Copy)]
enum Do {
    Read,
    ReadAt,
    List,
    Write,
    Seek,
    Size,
}

/// An open file. Dropped, it is closed.
pub struct Held {
    socket: UnixStream,
    pid: libc::pid_t,
    what: String,
}

impl Held {
    /// Opens a file with flags such as `libc::O_RDONLY`.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>, flags: c_int) -> Result<Held, Errno> {
        let what = format!("holding {}", path.as_ref().display());
        let path = CString::new(path.as_ref().as_os_str().as_bytes()).expect("a path without NUL");
        let (ours, theirs) = UnixStream::pair().expect("sockets for a child");
        ours.set_read_timeout(Some(DEADLINE)).expect("set a deadline");
        let mut buffer = vec![0_u8; MOST];
        // SAFETY: in the child, only system calls on memory prepared before, until _exit.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork a child");
        if pid == 0 {
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::dup2(theirs.as_raw_fd(), 3);
                libc::syscall(libc::SYS_close_range, 4, u32::MAX, 0);
                serve(path.as_ptr(), flags, &mut buffer);
                libc::_exit(0)
            }
        }
        let held = Held {
            socket: ours,
            pid,
            what,
        };
        held.result().map(|_| held)
    }

    /// read(2)
    #[track_caller]
    pub fn read(&self, length: usize) -> Result<Vec<u8>, Errno> {
        self.ask(Do::Read, 0, length, &[])
            .map(|length| self.bytes(length))
    }

    /// pread(2)
    #[track_caller]
    pub fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
        self.ask(Do::ReadAt, offset, length, &[])
            .map(|length| self.bytes(length))
    }

    /// getdents64(2): whether there is an entry of this name in what a directory shows next.
    #[track_caller]
    pub fn lists(&self, name: &str) -> Result<bool, Errno> {
        let length = self.ask(Do::List, 0, 64 << 10, &[])?;
        let (entries, name) = (self.bytes(length), [name.as_bytes(), b"\0"].concat());
        Ok(entries.windows(name.len()).any(|window| window == name))
    }

    /// write(2)
    #[track_caller]
    pub fn write(&self, data: &[u8]) -> Result<usize, Errno> {
        self.ask(Do::Write, 0, data.len(), data)
    }

    /// lseek(2) from the start
    #[track_caller]
    pub fn seek(&self, offset: u64) -> Result<usize, Errno> {
        self.ask(Do::Seek, offset, 0, &[])
    }

    /// The size that fstat(2) gives.
    #[track_caller]
    pub fn size(&self) -> Result<usize, Errno> {
        self.ask(Do::Size, 0, 0, &[])
    }

    #[track_caller]
    fn ask(&self, action: Do, offset: u64, length: usize, data: &[u8]) -> Result<usize, Errno> {
        assert!(length <= MOST, "at most {MOST} bytes at a time");
        let mut socket = &self.socket;
        let words = [action as u64, offset, length as u64];
        for word in words {
            socket.write_all(&word.to_ne_bytes()).expect("tell a child");
        }
        socket.write_all(data).expect("tell a child");
        self.result()
    }

    #[track_caller]
    fn result(&self) -> Result<usize, Errno> {
        let bytes = self.bytes(size_of::<i64>());
        let result = i64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        usize::try_from(result).map_err(|_| -result as Errno)
    }

    #[track_caller]
    fn bytes(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        if let Err(error) = (&self.socket).read_exact(&mut bytes) {
            signal(self.pid, libc::SIGKILL);
            panic!("HUNG: {}: no answer within {DEADLINE:?}: {error}", self.what);
        }
        bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.socket.shutdown(Shutdown::Both).ok(); // fails only if the child has gone
        // SAFETY: a child of ours that nobody else waits for.
        let ended = || unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), libc::WNOHANG) } != 0;
        if !wait_until(Duration::from_secs(5), ended) {
            signal(self.pid, libc::SIGKILL);
            wait_until(Duration::from_secs(2), ended);
        }
    }
}

/// The child. Async-signal-safe.
unsafe fn serve(path: *const libc::c_char, flags: c_int, buffer: &mut [u8]) {
    let opened = check(unsafe { libc::open(path, flags) } as isize);
    let fd = opened.map_or(-1, |fd| fd as c_int);
    let mut result = opened.map(|_| 0);
    let mut length = 0; // of the data that go with the result
    loop {
        let word = result.map_or_else(|errno| -i64::from(errno), |value| value as i64);
        let told = send(&word.to_ne_bytes()) && send(&buffer[..length]);
        let mut words = [0_u64; 3];
        for word in &mut words {
            let mut bytes = [0; 8];
            if !told || !receive(&mut bytes) {
                return;
            }
            *word = u64::from_ne_bytes(bytes);
        }
        let (offset, most) = (words[1] as libc::off_t, words[2] as usize);
        let start = buffer.as_mut_ptr();
        length = 0;
        // SAFETY: the buffer holds at least `most` bytes, as the asker checked.
        result = unsafe {
            match words[0] {
                word if word == Do::Read as u64 => check(libc::read(fd, start.cast(), most)),
                word if word == Do::ReadAt as u64 => check(libc::pread(fd, start.cast(), most, offset)),
                word if word == Do::List as u64 => {
                    check(libc::syscall(libc::SYS_getdents64, fd, start, most) as isize)
                }
                word if word == Do::Seek as u64 => check(libc::lseek(fd, offset, libc::SEEK_SET) as isize),
                word if word == Do::Write as u64 => {
                    if !receive(&mut buffer[..most]) {
                        return;
                    }
                    check(libc::write(fd, buffer.as_ptr().cast(), most))
                }
                _ => {
                    let mut stat = MaybeUninit::<libc::stat>::zeroed();
                    check(libc::fstat(fd, stat.as_mut_ptr()) as isize)
                        .map(|_| stat.assume_init().st_size as usize)
                }
            }
        };
        if words[0] <= Do::List as u64 {
            length = result.unwrap_or(0);
        }
    }
}

fn send(bytes: &[u8]) -> bool {
    let mut done = 0;
    while done < bytes.len() {
        // SAFETY: the slice is valid for what is left of it.
        match unsafe { libc::write(3, bytes[done..].as_ptr().cast(), bytes.len() - done) } {
            length @ 1.. => done += length as usize,
            _ => return false,
        }
    }
    true
}

fn receive(bytes: &mut [u8]) -> bool {
    let mut done = 0;
    while done < bytes.len() {
        // SAFETY: the slice is valid for what is left of it.
        match unsafe { libc::read(3, bytes[done..].as_mut_ptr().cast(), bytes.len() - done) } {
            length @ 1.. => done += length as usize,
            _ => return false,
        }
    }
    true
}
