//! File access through the [`crate::helper`], with a deadline each. Each function starts a process of its own, for the
//! mount judges by process.

use std::ffi::c_int;
use std::io::{BufReader, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rmp_serde::decode::Error;

use crate::helper::{ARGUMENT, Call, Seen, Stat, Step};
use crate::proc::{spawn_tied, wait_until};

pub use crate::helper::{DirEntry, Errno};

/// How long one access may take.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How long many of them may take.
const MANY: Duration = Duration::from_secs(120);

/// A helper. Dropped, it is ended.
pub struct Child {
    socket: UnixStream,
    process: std::process::Child,
    what: String,
}

impl Child {
    /// Starts one; `what` it is for is told when it hangs.
    #[track_caller]
    pub fn start(what: &str) -> Child {
        let (socket, theirs) = UnixStream::pair().expect("sockets for a helper");
        let mut command = Command::new("/proc/self/exe");
        command.arg(ARGUMENT).stdin(OwnedFd::from(theirs));
        let process = spawn_tied(command).expect("start a helper");
        let what = what.to_owned();
        Child {
            socket,
            process,
            what,
        }
    }

    /// Has it carry out steps, and returns what came of each. When that takes longer than `limit`, the test fails.
    #[track_caller]
    pub fn ask(&self, steps: &[Step], limit: Duration) -> Vec<Seen> {
        let request = rmp_serde::to_vec(steps).expect("steps are plain data");
        self.socket.set_read_timeout(Some(limit)).expect("set a deadline");
        (&self.socket).write_all(&request).expect("tell a helper");
        rmp_serde::from_read(BufReader::new(&self.socket)).unwrap_or_else(|error| match error {
            Error::InvalidMarkerRead(error) if error.kind() == ErrorKind::WouldBlock => {
                panic!("HUNG: {}: no answer within {limit:?}", self.what)
            }
            error => panic!("{}: the helper ended: {error}", self.what),
        })
    }

    /// The same for one step.
    #[track_caller]
    pub fn ask_one(&self, step: Step) -> Result<Seen, Errno> {
        let seen = self.ask(&[step], DEADLINE).remove(0);
        seen.errno.map_or(Ok(seen), Err)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.socket.shutdown(Shutdown::Both).ok(); // fails only if the helper has gone
        let mut ended = || !matches!(self.process.try_wait(), Ok(None));
        // One that hangs in a mount outlives even SIGKILL: it is left, not waited for.
        let patience = Duration::from_secs(if std::thread::panicking() { 0 } else { 5 });
        if !wait_until(patience, &mut ended) {
            self.process.kill().ok(); // fails only if it has ended
            wait_until(Duration::from_secs(2), || {
                !matches!(self.process.try_wait(), Ok(None))
            });
        }
    }
}

/// Carries one step out.
#[track_caller]
pub fn run(step: Step) -> Result<Seen, Errno> {
    Child::start(&format!("{:?} {}", step.call, step.path.display())).ask_one(step)
}

#[track_caller]
fn call(path: impl AsRef<Path>, call: Call) -> Result<Seen, Errno> {
    run(Step::new(path.as_ref(), call))
}

/// Reads a file from beginning to end.
#[track_caller]
pub fn read_file(path: impl AsRef<Path>) -> Result<Vec<u8>, Errno> {
    call(path, Call::Read).map(|seen| seen.data)
}

/// Fails the test unless a file holds this text.
#[track_caller]
pub fn assert_reads(path: impl AsRef<Path>, text: &str) {
    let found = read_file(path.as_ref());
    let found = found.as_deref().map(String::from_utf8_lossy);
    assert_eq!(found.as_deref(), Ok(text), "{}", path.as_ref().display());
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
    let step = Step::new(path.as_ref(), Call::Write);
    let written = run(step.number(flags as u64).data(data))?.value;
    assert_eq!(written, data.len() as u64, "write(2) took only a part");
    Ok(())
}

/// The attributes of a file; of a symbolic link itself.
#[track_caller]
pub fn lstat(path: impl AsRef<Path>) -> Result<Stat, Errno> {
    call(path, Call::Stat).map(|seen| seen.stat)
}

/// The target of a symbolic link.
#[track_caller]
pub fn read_link(path: impl AsRef<Path>) -> Result<Vec<u8>, Errno> {
    call(path, Call::ReadLink).map(|seen| seen.data)
}

/// The value of an extended attribute; of a symbolic link itself.
#[track_caller]
pub fn get_xattr(path: impl AsRef<Path>, attribute: &str) -> Result<Vec<u8>, Errno> {
    let step = Step::new(path.as_ref(), Call::GetXattr);
    run(step.data(attribute)).map(|seen| seen.data)
}

/// Carries steps out in one process, one after another, and returns what came of those that neither list nor pause.
#[track_caller]
pub fn act(steps: &[Step]) -> Vec<Seen> {
    let mut seen = Child::start("a walk").ask(steps, MANY);
    for (step, seen) in steps.iter().zip(&seen) {
        assert_eq!(seen.errno, None, "{step:?}");
    }
    seen.retain(|seen| !matches!(steps[seen.step].call, Call::List | Call::Pause));
    seen
}

/// The same call for each path, in one process.
#[track_caller]
fn each<P: AsRef<Path>>(paths: &[P], call: Call) -> impl Iterator<Item = Result<Seen, Errno>> {
    let steps = paths.iter().map(|path| Step::new(path.as_ref(), call));
    let steps: Vec<Step> = steps.collect();
    let what = format!("{call:?} of {} from {:?} on", steps.len(), steps.first());
    let seen = Child::start(&what).ask(&steps, MANY).into_iter();
    seen.map(|seen| seen.errno.map_or(Ok(seen), Err))
}

/// Reads each file from beginning to end, one after another.
#[track_caller]
pub fn read_files<P: AsRef<Path>>(paths: &[P]) -> Vec<Result<Vec<u8>, Errno>> {
    each(paths, Call::Read).map(|seen| Ok(seen?.data)).collect()
}

/// Where each path leads, every link followed: what `/proc/self/fd` says of it.
#[track_caller]
pub fn resolve<P: AsRef<Path>>(paths: &[P]) -> Vec<Result<Vec<u8>, Errno>> {
    each(paths, Call::Resolve).map(|seen| Ok(seen?.data)).collect()
}

/// The entries of each directory in their order, `.` and `..` too.
#[track_caller]
pub fn list_dirs<P: AsRef<Path>>(paths: &[P]) -> Vec<Result<Vec<DirEntry>, Errno>> {
    each(paths, Call::List).map(|seen| Ok(seen?.entries)).collect()
}

/// A file held open by a helper, for what must happen between two calls. Dropped, it is closed.
pub struct Held(Child);

impl Held {
    /// Opens a file with flags such as `libc::O_RDONLY`.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>, flags: c_int) -> Result<Held, Errno> {
        let step = Step::new(path.as_ref(), Call::Open).number(flags as u64);
        let child = Child::start(&format!("holding {}", step.path.display()));
        child.ask_one(step).map(|_| Held(child))
    }

    #[track_caller]
    fn ask(&self, call: Call, offset: u64, length: usize, data: &[u8]) -> Result<Seen, Errno> {
        let step = Step::new(Path::new(""), call).offset(offset);
        self.0.ask_one(step.number(length as u64).data(data))
    }

    /// read(2)
    #[track_caller]
    pub fn read(&self, length: usize) -> Result<Vec<u8>, Errno> {
        self.ask(Call::HeldRead, 0, length, b"").map(|seen| seen.data)
    }

    /// pread(2)
    #[track_caller]
    pub fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let seen = self.ask(Call::HeldReadAt, offset, length, b"")?;
        Ok(seen.data)
    }

    /// getdents64(2): whether there is an entry of this name in what a directory shows next.
    #[track_caller]
    pub fn lists(&self, name: &str) -> Result<bool, Errno> {
        let listed = self.ask(Call::HeldList, 0, 0, b"")?.entries;
        Ok(listed.iter().any(|entry| entry.name == name))
    }

    /// write(2)
    #[track_caller]
    pub fn write(&self, data: &[u8]) -> Result<usize, Errno> {
        let seen = self.ask(Call::HeldWrite, 0, 0, data)?;
        Ok(seen.value as usize)
    }

    /// lseek(2) from the start
    #[track_caller]
    pub fn seek(&self, offset: u64) -> Result<usize, Errno> {
        let seen = self.ask(Call::HeldSeek, offset, 0, b"")?;
        Ok(seen.value as usize)
    }

    /// The size that fstat(2) gives.
    #[track_caller]
    pub fn size(&self) -> Result<usize, Errno> {
        let seen = self.ask(Call::HeldSize, 0, 0, b"")?;
        Ok(seen.value as usize)
    }
}
