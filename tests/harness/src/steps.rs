//! Walks through a mount, one process each, with the time of each read and write.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::child::{check, in_child};

/// Something that a process does with a mount.
pub struct Step {
    pub path: CString,
    pub action: Doing,
}

/// What.
pub enum Doing {
    List,
    Read,
    Stat,
    Write(Vec<u8>),
    Pause(Duration),
}

/// What came of a step that read, wrote or asked for the size; times are nanoseconds of the monotonic clock.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Seen {
    pub step: usize,
    pub start: u64,
    pub end: u64,
    pub size: u64,
    pub text: [u8; 40],
}

impl Seen {
    /// The number that was read.
    #[track_caller]
    pub fn number(&self) -> u64 {
        let text = self.text.split(|byte| *byte == b'\n' || *byte == 0).next();
        let text = std::str::from_utf8(text.unwrap_or_default()).expect("a value in UTF-8");
        text.parse().unwrap_or_else(|_| panic!("not a number: {text}"))
    }
}

impl Step {
    /// One of them.
    pub fn new(path: &Path, action: Doing) -> Step {
        let path = CString::new(path.as_os_str().as_bytes()).expect("a path without NUL");
        Step { path, action }
    }
}

/// Carries steps out in one process of their own, for the mount judges by process.
#[track_caller]
pub fn act(steps: &[Step]) -> Vec<Seen> {
    let mut buffer = vec![0_u8; 64 * 1024];
    let bytes = in_child("a walk", Duration::from_secs(120), |sink| {
        for (step, Step { path, action }) in steps.iter().enumerate() {
            let mut seen = Seen {
                step,
                start: now(),
                end: 0,
                size: 0,
                text: [0; 40],
            };
            let open = |flags| check(unsafe { libc::open(path.as_ptr(), flags) } as isize);
            let fd = match action {
                Doing::List => open(libc::O_RDONLY | libc::O_DIRECTORY)?,
                Doing::Read => open(libc::O_RDONLY)?,
                Doing::Write(_) => open(libc::O_WRONLY)?,
                Doing::Stat => {
                    let mut stat = MaybeUninit::<libc::stat>::zeroed();
                    check(unsafe { libc::lstat(path.as_ptr(), stat.as_mut_ptr()) } as isize)?;
                    // SAFETY: all of it was zero, and is valid so.
                    seen.size = unsafe { stat.assume_init_ref() }.st_size as u64;
                    seen.end = now();
                    sink.send((&raw const seen).cast(), size_of::<Seen>())?;
                    continue;
                }
                Doing::Pause(time) => {
                    unsafe { libc::usleep(time.as_micros() as u32) };
                    continue;
                }
            } as i32;
            match action {
                Doing::List => {
                    let read = || unsafe {
                        libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len())
                    };
                    let mut read = read;
                    while check(read() as isize)? > 0 {}
                }
                Doing::Read => {
                    check(unsafe { libc::read(fd, seen.text.as_mut_ptr().cast(), seen.text.len()) })?;
                }
                Doing::Write(data) => {
                    check(unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) })?;
                }
                Doing::Stat | Doing::Pause(_) => {}
            }
            seen.end = now();
            check(unsafe { libc::close(fd) } as isize)?;
            if !matches!(action, Doing::List) {
                sink.send((&raw const seen).cast(), size_of::<Seen>())?;
            }
        }
        Ok(())
    });
    let bytes = bytes.unwrap_or_else(|errno| panic!("a step failed: errno {errno}"));
    let records = bytes.chunks_exact(size_of::<Seen>());
    // SAFETY: the child sent whole records, which are plain data.
    records
        .map(|record| unsafe { record.as_ptr().cast::<Seen>().read_unaligned() })
        .collect()
}

/// The monotonic clock, in nanoseconds. Async-signal-safe.
pub fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a plain system call that fills the struct.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
