//! Thousands of files in one forked child, for a child each would take most of the time.

use std::ffi::{CString, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::child::{Errno, Sink, check, in_child};

const DEADLINE: Duration = Duration::from_secs(60);
const HEADER: usize = size_of::<i64>();

/// One name in a directory, as getdents64 tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, in UTF-8.
    pub name: String,
    /// Such as `libc::DT_REG`.
    pub kind: u8,
    /// The inode.
    pub ino: u64,
}

/// Reads each file from beginning to end, one after another.
#[track_caller]
pub fn read_files<P: AsRef<Path>>(paths: &[P]) -> Vec<Result<Vec<u8>, Errno>> {
    let mut buffer = vec![0_u8; 128 * 1024];
    each(paths, libc::O_RDONLY, move |fd, sink| {
        loop {
            // SAFETY: the buffer is valid for its length.
            match check(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) })? {
                0 => return Ok(()),
                length => send(sink, &buffer[..length])?,
            }
        }
    })
}

/// The entries of each directory in their order, `.` and `..` too.
#[track_caller]
pub fn list_dirs<P: AsRef<Path>>(paths: &[P]) -> Vec<Result<Vec<DirEntry>, Errno>> {
    let mut buffer = vec![0_u8; 32 * 1024];
    let listed = each(paths, libc::O_RDONLY | libc::O_DIRECTORY, move |fd, sink| {
        loop {
            // SAFETY: the buffer is valid for its length.
            let length =
                unsafe { libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len()) };
            match check(length as isize)? {
                0 => return Ok(()),
                length => send(sink, &buffer[..length])?,
            }
        }
    });
    listed
        .into_iter()
        .map(|bytes| bytes.map(|bytes| parse(&bytes)))
        .collect()
}

/// Where each path leads, every link followed: what `/proc/self/fd` says of it.
#[track_caller]
pub fn resolve<P: AsRef<Path>>(paths: &[P]) -> Vec<Result<Vec<u8>, Errno>> {
    let mut buffer = vec![0_u8; libc::PATH_MAX as usize];
    each(paths, libc::O_PATH, move |fd, sink| {
        let own = b"/proc/self/fd/";
        let mut name = [0_u8; 32];
        name[..own.len()].copy_from_slice(own);
        let (mut rest, mut digits) = (fd, 1);
        while rest >= 10 {
            (rest, digits) = (rest / 10, digits + 1);
        }
        rest = fd;
        for place in (0..digits).rev() {
            name[own.len() + place] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        // SAFETY: a string that ends with NUL, and a buffer that is valid for its length.
        let length =
            unsafe { libc::readlink(name.as_ptr().cast(), buffer.as_mut_ptr().cast(), buffer.len()) };
        send(sink, &buffer[..check(length)?])
    })
}

/// Opens each path and lets `work` send what it finds. `work` must be async-signal-safe.
#[track_caller]
fn each<P: AsRef<Path>>(
    paths: &[P],
    flags: c_int,
    mut work: impl FnMut(c_int, &Sink) -> Result<(), Errno>,
) -> Vec<Result<Vec<u8>, Errno>> {
    let name = |path: &P| CString::new(path.as_ref().as_os_str().as_bytes()).expect("a path without NUL");
    let names: Vec<CString> = paths.iter().map(name).collect();
    let what = format!("{} files from {:?} on", names.len(), names.first());
    let answer = in_child(&what, DEADLINE, |sink| {
        for name in &names {
            // SAFETY: plain system calls on memory prepared beforehand.
            let fd = check(unsafe { libc::open(name.as_ptr(), flags) } as isize).map(|fd| fd as c_int);
            let result = fd.and_then(|fd| work(fd, sink));
            if let Ok(fd) = fd {
                unsafe { libc::close(fd) };
            }
            let end = result.map_or_else(|errno| -i64::from(errno), |()| 0);
            sink.send(end.to_ne_bytes().as_ptr(), HEADER)?;
        }
        Ok(())
    });
    let answer = answer.unwrap_or_else(|errno| panic!("{what}: the child failed, errno {errno}"));
    let mut rest = answer.as_slice();
    let found: Vec<_> = names.iter().map(|_| take(&mut rest)).collect();
    assert!(rest.is_empty(), "{what}: more answers than files");
    found
}

/// Async-signal-safe.
fn send(sink: &Sink, bytes: &[u8]) -> Result<(), Errno> {
    sink.send((bytes.len() as i64).to_ne_bytes().as_ptr(), HEADER)?;
    sink.send(bytes.as_ptr(), bytes.len())
}

/// The answer for one path: pieces, then 0 or what went wrong.
fn take(rest: &mut &[u8]) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    loop {
        let (header, after) = rest.split_at(HEADER);
        let header = i64::from_ne_bytes(header.try_into().expect("a header"));
        *rest = after;
        match usize::try_from(header) {
            Ok(0) => return Ok(bytes),
            Ok(length) => {
                let (piece, after) = after.split_at(length);
                bytes.extend_from_slice(piece);
                *rest = after;
            }
            Err(_) => return Err(-header as Errno),
        }
    }
}

/// `struct linux_dirent64`: inode, offset, length of the record, type, name.
fn parse(mut rest: &[u8]) -> Vec<DirEntry> {
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let length = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
        let (record, after) = rest.split_at(length);
        let name = record[19..].split(|byte| *byte == 0).next().unwrap_or_default();
        entries.push(DirEntry {
            name: String::from_utf8(name.to_vec()).expect("a name in UTF-8"),
            kind: record[18],
            ino: u64::from_ne_bytes(record[..8].try_into().expect("eight bytes")),
        });
        rest = after;
    }
    entries
}
