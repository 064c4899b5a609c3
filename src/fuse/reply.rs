//! What the kernel gets: our results in fuser's types.

use std::ffi::OsStr;
use std::ops::Deref;
use std::time::UNIX_EPOCH;

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr,
};

use nix::unistd::{SysconfVar, sysconf};

use crate::fs::{Attributes, Error, Found, Kind, Result};

/// The largest write taken, in bytes, where the kernel allows it.
const MAX_WRITE: u32 = 1 << 20;
/// The longest file name, in bytes.
pub(super) const NAME_MAX: u32 = 255;
/// What files count blocks in, where somebody asks. There are none.
pub(super) const BLOCK_SIZE: u32 = 4096;

pub(super) fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno)
}

/// A name as QEMU could have it. Any other name is in no listing.
pub(super) fn utf8_name(name: &OsStr) -> Result<&str> {
    if name.len() > NAME_MAX as usize {
        return Err(libc::ENAMETOOLONG.into());
    }
    name.to_str().ok_or(libc::ENOENT.into())
}

pub(super) fn file_attr(a: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.ino),
        size: a.size,
        blocks: a.size.div_ceil(512),
        atime: a.time,
        mtime: a.time,
        ctime: a.time,
        crtime: a.time,
        kind: file_type(a.kind),
        perm: a.mode,
        nlink: 1,
        uid: a.uid,
        gid: a.gid,
        rdev: 0,
        // The size of buffer that programs like to write: a value must come in one write.
        blksize: 128 << 10,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Child => FileType::Directory,
        Kind::Link => FileType::Symlink,
        Kind::Value => FileType::RegularFile,
    }
}

/// The number of a directory, where the kernel looks at nothing else.
pub(super) fn bare_attr(ino: u64) -> FileAttr {
    file_attr(&Attributes {
        ino,
        kind: Kind::Child,
        size: 0,
        mode: 0,
        uid: 0,
        gid: 0,
        time: UNIX_EPOCH,
    })
}

/// A reply that says what an operation gave, or with which number it failed.
pub(super) trait Answer<T> {
    fn answer(self, result: Result<T>);
}

impl Answer<()> for ReplyEmpty {
    fn answer(self, done: Result<()>) {
        match done {
            Ok(()) => self.ok(),
            Err(e) => self.error(errno(&e)),
        }
    }
}

impl Answer<Found> for ReplyEntry {
    fn answer(self, found: Result<Found>) {
        match found {
            Ok(found) => self.entry(&found.lifetime, &file_attr(&found.attributes), Generation(0)),
            Err(e) => self.error(errno(&e)),
        }
    }
}

impl Answer<Found> for ReplyAttr {
    fn answer(self, found: Result<Found>) {
        match found {
            Ok(found) => self.attr(&found.lifetime, &file_attr(&found.attributes)),
            Err(e) => self.error(errno(&e)),
        }
    }
}

impl<D: Deref<Target = [u8]>> Answer<D> for ReplyData {
    fn answer(self, data: Result<D>) {
        match data {
            Ok(data) => self.data(&data),
            Err(e) => self.error(errno(&e)),
        }
    }
}

impl Answer<u64> for ReplyOpen {
    fn answer(self, handle: Result<u64>) {
        match handle {
            Ok(handle) => self.opened(FileHandle(handle), FopenFlags::empty()),
            Err(e) => self.error(errno(&e)),
        }
    }
}

impl Answer<u32> for ReplyWrite {
    fn answer(self, length: Result<u32>) {
        match length {
            Ok(length) => self.written(length),
            Err(e) => self.error(errno(&e)),
        }
    }
}

/// An extended attribute, for a caller that has room for so many bytes; 0: who asks how many there are.
impl Answer<Vec<u8>> for (ReplyXattr, u32) {
    fn answer(self, value: Result<Vec<u8>>) {
        let (reply, room) = self;
        match value {
            Ok(value) if room == 0 => reply.size(value.len() as u32),
            Ok(value) if value.len() > room as usize => reply.error(Errno::ERANGE),
            Ok(value) => reply.data(&value),
            Err(e) => reply.error(errno(&e)),
        }
    }
}

/// The kernel's pages, in bytes: 4,096, or 16 or 64 KiB on some machines.
pub(super) fn page_size() -> u32 {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u32::try_from(size).ok()).unwrap_or(4096)
}

/// The largest write to ask the kernel for, in bytes: it cuts writes at this, and at its own limit of pages.
pub(super) fn max_write(capabilities: InitFlags) -> u32 {
    let pages = if capabilities.contains(InitFlags::FUSE_MAX_PAGES) {
        let limit = std::fs::read_to_string("/proc/sys/fs/fuse/max_pages_limit").ok();
        limit.and_then(|text| text.trim().parse().ok()).unwrap_or(256)
    } else {
        32
    };
    max_write_of(pages, page_size())
}

fn max_write_of(pages: u32, page_size: u32) -> u32 {
    MAX_WRITE.min(pages.saturating_mul(page_size)).max(2 * page_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_on_pages_of_every_size() {
        assert_eq!(max_write_of(256, 4096), 1 << 20);
        assert_eq!(max_write_of(32, 4096), 128 << 10);
        assert_eq!(max_write_of(256, 65536), 1 << 20);
        assert_eq!(max_write_of(1, 65536), 128 << 10);
        assert!(page_size().is_power_of_two());
    }
}
