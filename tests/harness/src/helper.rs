//! The helper: a process that touches mounts in place of the test, because a request that the mount does not answer
//! holds whoever asked.
//!
//! It is the test's own binary, run anew with [`ARGUMENT`], and carries out the [`Step`]s that it reads from the socket
//! that is its standard input. [`crate::child`] is the other end of that socket.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, RawDir, fstat, lgetxattr, lstat};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// An errno, such as `libc::ENOENT`.
pub type Errno = i32;

/// What makes a test's binary the helper.
pub const ARGUMENT: &str = "--act-as-the-helper";

const BUFFER: usize = 128 * 1024;
const PAGE: usize = 4096;

/// What the helper does with a path, or with the file that it holds open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Waits for `number` microseconds.
    Pause,
    /// Reads the file from beginning to end.
    Read,
    /// Opens the file for writing with the flags `number` too, and writes `data` at once, from memory that begins
    /// `offset` bytes after the start of a page.
    Write,
    /// Lists the directory.
    List,
    /// lstat(2)
    Stat,
    /// readlink(2)
    ReadLink,
    /// The extended attribute `data`; of a symbolic link itself.
    GetXattr,
    /// Where the path leads, every link followed.
    Resolve,
    /// Makes a symbolic link with the text `data`.
    Symlink,
    /// Renames to `data`.
    Rename,
    /// Opens with the flags `number`, and holds that open.
    Open,
    /// read(2) of at most `number` bytes from what is held open, as for all that follow.
    HeldRead,
    /// pread(2) of at most `number` bytes at `offset`.
    HeldReadAt,
    /// write(2) of `data`.
    HeldWrite,
    /// One getdents64(2).
    HeldList,
    /// lseek(2) to `offset` from the start.
    HeldSeek,
    /// The size that fstat(2) gives.
    HeldSize,
}

/// One thing to do. What the fields mean, the [`Call`] tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    pub call: Call,
    pub path: PathBuf,
    pub number: u64,
    pub offset: u64,
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

impl Step {
    /// A call that needs nothing but a path.
    pub fn new(path: &Path, call: Call) -> Step {
        Step {
            call,
            path: path.to_owned(),
            number: 0,
            offset: 0,
            data: Vec::new(),
        }
    }

    /// Sets what is to be written, or named.
    pub fn data(mut self, data: impl Into<Vec<u8>>) -> Step {
        self.data = data.into();
        self
    }

    /// Sets the flags of an open, or the length of a read.
    pub fn number(mut self, number: u64) -> Step {
        self.number = number;
        self
    }

    /// Sets the offset.
    pub fn offset(mut self, offset: u64) -> Step {
        self.offset = offset;
        self
    }

    /// Doing nothing for a while.
    pub fn pause(time: Duration) -> Step {
        Step::new(Path::new(""), Call::Pause).number(time.as_micros() as u64)
    }
}

/// What came of a step; times are nanoseconds of the monotonic clock.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Which step, counted from 0.
    pub step: usize,
    /// Before the step.
    pub start: u64,
    /// When the last byte was read or written, else after the step.
    pub end: u64,
    /// Why it failed.
    pub errno: Option<Errno>,
    /// The number that the last system call returned, or the size that it told.
    pub value: u64,
    /// What was read.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
    /// What was listed.
    pub entries: Vec<DirEntry>,
    /// The attributes.
    pub stat: Stat,
}

/// One name in a directory, as getdents64 tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// The name, in UTF-8.
    pub name: String,
    /// Such as `libc::DT_REG`.
    pub kind: u8,
    /// The inode.
    pub ino: u64,
}

/// The attributes of a file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stat {
    pub st_dev: u64,
    pub st_ino: u64,
    pub st_mode: u32,
    pub st_uid: u32,
    pub st_gid: u32,
    pub st_size: i64,
}

impl Seen {
    /// The number that was read.
    #[track_caller]
    pub fn number(&self) -> u64 {
        let text = String::from_utf8_lossy(&self.data);
        let number = text.trim_end().parse();
        number.unwrap_or_else(|_| panic!("not a number: {text}"))
    }
}

/// The monotonic clock, in nanoseconds: the same in each process.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The loader calls this before `main`, which is that of Rust's test harness and knows no helpers.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

extern "C" fn before_main() {
    if env::args_os().nth(1).is_some_and(|argument| argument == ARGUMENT) {
        // SAFETY: the standard input is the socket, and nothing else here uses it.
        serve(&unsafe { UnixStream::from_raw_fd(0) });
        std::process::exit(0);
    }
}

/// Reads any number of steps, carries them out and then tells what came of them, until the test closes its end.
fn serve(mut socket: &UnixStream) {
    let mut input = BufReader::new(socket);
    let mut held = None;
    while let Ok(steps) = rmp_serde::from_read::<_, Vec<Step>>(&mut input) {
        let steps = steps.iter().enumerate();
        let seen: Vec<Seen> = steps
            .map(|(number, step)| carry_out(number, step, &mut held))
            .collect();
        let answer = rmp_serde::to_vec(&seen).expect("an answer is plain data");
        socket.write_all(&answer).ok(); // fails only if the test has gone
    }
}

fn carry_out(number: usize, step: &Step, held: &mut Option<File>) -> Seen {
    let mut seen = Seen {
        step: number,
        start: now(),
        ..Seen::default()
    };
    if let Err(error) = attempt(step, held, &mut seen) {
        seen.errno = Some(error.raw_os_error().unwrap_or(libc::EIO));
    }
    if seen.end == 0 {
        seen.end = now();
    }
    seen
}

fn attempt(step: &Step, held: &mut Option<File>, seen: &mut Seen) -> io::Result<()> {
    let (path, data, offset, number) = (&step.path, &step.data, step.offset, step.number);
    match step.call {
        Call::Pause => sleep(Duration::from_micros(number)),
        Call::Read => {
            let mut file = open(path, OFlags::RDONLY)?;
            while seen.read(BUFFER, |buffer| file.read(buffer))? {}
            close(file)?;
        }
        Call::Write => {
            let mut buffer = vec![0; data.len() + 2 * PAGE];
            let start = buffer.as_ptr().align_offset(PAGE) + offset as usize;
            let shifted = &mut buffer[start..][..data.len()];
            shifted.copy_from_slice(data);
            let mut file = open(path, OFlags::WRONLY | flags(number))?;
            seen.value = file.write(shifted)? as u64;
            seen.end = now();
            close(file)?; // reports what FUSE's flush says
        }
        Call::List => {
            let dir = open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            while seen.list(&dir)? {}
        }
        Call::Stat => {
            let stat = lstat(path)?;
            seen.stat = Stat {
                st_dev: stat.st_dev,
                st_ino: stat.st_ino,
                st_mode: stat.st_mode,
                st_uid: stat.st_uid,
                st_gid: stat.st_gid,
                st_size: stat.st_size,
            };
        }
        Call::ReadLink => seen.data = fs::read_link(path)?.into_os_string().into_vec(),
        Call::GetXattr => {
            let name = OsString::from_vec(data.clone());
            seen.read(BUFFER, |buffer| Ok(lgetxattr(path, name, buffer)?))?;
        }
        Call::Resolve => {
            let place = open(path, OFlags::PATH)?;
            let own = format!("/proc/self/fd/{}", place.as_raw_fd());
            seen.data = fs::read_link(own)?.into_os_string().into_vec();
        }
        Call::Symlink => symlink(OsString::from_vec(data.clone()), path)?,
        Call::Rename => fs::rename(path, OsString::from_vec(data.clone()))?,
        Call::Open => *held = Some(open(path, flags(number))?),
        _ => {
            let file = held.as_mut().ok_or(io::ErrorKind::NotFound)?;
            return attempt_held(step, file, seen);
        }
    }
    Ok(())
}

fn attempt_held(step: &Step, file: &mut File, seen: &mut Seen) -> io::Result<()> {
    let length = step.number as usize;
    match step.call {
        Call::HeldRead => drop(seen.read(length, |buffer| file.read(buffer))?),
        Call::HeldReadAt => drop(seen.read(length, |buffer| file.read_at(buffer, step.offset))?),
        Call::HeldWrite => seen.value = file.write(&step.data)? as u64,
        Call::HeldList => drop(seen.list(file)?),
        Call::HeldSeek => seen.value = file.seek(SeekFrom::Start(step.offset))?,
        Call::HeldSize => seen.value = fstat(file)?.st_size as u64,
        other => panic!("{other:?} needs no file that is held open"),
    }
    Ok(())
}

impl Seen {
    /// One system call that reads. False at the end.
    fn read(&mut self, most: usize, call: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<bool> {
        let mut buffer = vec![0; most];
        let length = call(&mut buffer)?;
        if length > 0 {
            self.end = now();
            self.data.extend_from_slice(&buffer[..length]);
        }
        Ok(length > 0)
    }

    /// One getdents64(2). False at the end.
    fn list(&mut self, dir: impl AsFd) -> io::Result<bool> {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER / 4];
        let mut records = RawDir::new(dir, &mut buffer);
        let before = self.entries.len();
        while let Some(record) = records.next() {
            let record = record?;
            self.entries.push(DirEntry {
                name: record.file_name().to_str().expect("a name in UTF-8").to_owned(),
                kind: (record.file_type().as_raw_mode() >> 12) as u8,
                ino: record.ino(),
            });
            if records.is_buffer_empty() {
                break;
            }
        }
        Ok(self.entries.len() > before)
    }
}

fn flags(number: u64) -> OFlags {
    OFlags::from_bits_retain(number as u32)
}

fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?.into())
}

fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor was the file's, which is no more.
    unsafe { rustix::io::try_close(file.into_raw_fd()) }.map_err(Into::into)
}
