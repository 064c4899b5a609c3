//! The kernel's requests: each is unpacked, given to the [`Tree`], and its reply packed.

mod busy_poll;
mod directory;
mod reply;
mod threads;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::pool::Pool;
use crate::qom::Kind;
use crate::tree::{OpenMode, Shown, Tree};
use directory::{list, list_plus};
use reply::{
    BLOCK_SIZE, NAME_MAX, errno, file_attr, max_write, page_size, reply_data, reply_empty, reply_entry,
    reply_opened, reply_xattr, text,
};
pub use threads::THREADS;
use threads::Threads;

/// The filesystem as fuser drives it.
pub struct Fuse {
    threads: Threads,
    /// How long the kernel may keep attributes that it asked for by inode.
    lifetime: Duration,
}

impl Fuse {
    /// `device` is the connection to the kernel that it will be driven from.
    pub fn new(tree: Arc<Tree>, device: OwnedFd) -> Fuse {
        Fuse {
            lifetime: tree.settings().entry_timeout,
            threads: Threads::new(tree, device),
        }
    }

    /// The threads that may be waiting for QEMU.
    pub fn pool(&self) -> Arc<Pool> {
        self.threads.pool()
    }

    fn tree(&self) -> &Tree {
        &self.threads.tree
    }

    /// Runs what reads an open directory, which is given what that shows where it is known.
    fn show(&self, handle: FileHandle, offset: u64, job: impl FnOnce(&Tree, Option<Shown>) + Send + 'static) {
        let threads = &self.threads;
        threads.answer(|tree| match tree.shown_cached(handle.0, offset) {
            None if tree.is_listing_at_hand(handle.0) => threads.hardly_wait(|tree| job(tree, None)),
            None => threads.wait(|tree| job(tree, None)),
            shown => job(tree, shown),
        });
    }
}

/// What is not here is answered ENOSYS by fuser, which the kernel takes for what such a file
/// should say: fsync and flush succeed, fallocate is not supported, and it does not ask again.
impl Filesystem for Fuse {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
        ] {
            // What an old kernel lacks costs only messages.
            let _ = config.add_capabilities(wanted);
        }
        let most = max_write(config.capabilities());
        let _ = config.set_max_write(most);
        // One READ at a time fills the page cache, for a short one tells the kernel where a value ends, unless
        // it is overtaken by one from behind that end.
        let _ = config.set_max_readahead(1);
        // A buffer that begins within a page is cut up to a page earlier.
        self.tree().set_max_value((most - page_size()) as usize);
        let abi = config.kernel_abi();
        // Linux 6.2. An older one would take the request for another.
        self.tree().set_names_expire((abi.0, abi.1) >= (7, 38));
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let threads = &self.threads;
        threads.answer(|tree| {
            let name = match text(name) {
                Ok(name) => name,
                Err(e) => return reply.error(errno(&e)),
            };
            if let Some(found) = tree.lookup_cached(parent.0, name) {
                return reply_entry(reply, found);
            }
            let name = name.to_owned();
            threads.wait(move |tree| reply_entry(reply, tree.lookup(parent.0, &name)));
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.threads.note(|tree| tree.forget(ino.0, count));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.threads.answer(|tree| match tree.attributes(ino.0) {
            Ok(a) => reply.attr(&self.lifetime, &file_attr(&a)),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.threads.answer(|tree| {
            // Truncation brings a new mtime with it.
            let times = size.is_none() && (atime.is_some() || mtime.is_some());
            let other = mode.is_some() || uid.is_some() || gid.is_some() || times;
            match tree.set_attributes(ino.0, size.is_some(), other) {
                Ok(a) => reply.attr(&self.lifetime, &file_attr(&a)),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let process = request.pid();
        self.threads
            .wait(move |tree| reply_data(reply, tree.read_link(ino.0, process).map(String::into_bytes)));
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.threads.answer(|tree| {
            let done = text(name).and_then(|name| tree.remove_link(parent.0, name));
            reply_empty(reply, done);
        });
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let threads = &self.threads;
        threads.answer(|_| {
            let (name, target) = match (text(name), target.to_str()) {
                (Ok(name), Some(target)) => (name.to_owned(), target.to_owned()),
                _ => return reply.error(Errno::EINVAL),
            };
            threads.wait(move |tree| reply_entry(reply, tree.make_link(parent.0, &name, &target)));
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.threads.answer(|_| {
            let (from, to) = match (text(name), text(newname)) {
                (Ok(from), Ok(to)) if flags.is_empty() => (from.to_owned(), to.to_owned()),
                _ => return reply.error(Errno::EPERM),
            };
            self.threads.wait(move |tree| {
                reply_empty(reply, tree.rename_link((parent.0, &from), (newparent.0, &to)));
            });
        });
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mode = OpenMode {
            write: flags.acc_mode() != OpenAccMode::O_RDONLY,
            append: flags.0 & libc::O_APPEND != 0,
            truncate: flags.0 & libc::O_TRUNC != 0,
        };
        let process = request.pid();
        // Direct: the page cache would serve one open's value to another, and would never
        // read again. There is nothing to flush: each write is QEMU's at once.
        let how = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
        let job = move |tree: &Tree| reply_opened(reply, tree.open_file(ino.0, mode, process), how);
        let threads = &self.threads;
        threads.answer(|tree| {
            if mode.write {
                job(tree); // asks QEMU nothing
            } else if tree.is_value_at_hand(ino.0, process) {
                threads.hardly_wait(job);
            } else {
                threads.wait(job);
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let threads = &self.threads;
        threads.answer(|tree| match tree.read_pinned(handle.0, offset, size) {
            Some(data) => reply_data(reply, data),
            None => {
                threads.wait_to_read(move |tree| reply_data(reply, tree.read_file(handle.0, offset, size)))
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        self.threads
            .wait(move |tree| match tree.write_file(handle.0, offset, &data) {
                Ok(()) => reply.written(data.len() as u32),
                Err(e) => reply.error(errno(&e)),
            });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.threads.answer(|tree| {
            tree.close_file(handle.0);
            reply.ok();
        });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.threads.answer(|tree| {
            let handle = tree.open_directory(ino.0, request.pid());
            reply_opened(reply, handle, FopenFlags::empty());
        });
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.show(handle, offset, move |tree, shown| {
            list(tree, handle, offset, shown, reply)
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.show(handle, offset, move |tree, shown| {
            list_plus(tree, handle, offset, shown, reply)
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.threads.answer(|tree| {
            tree.close_directory(handle.0);
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // No blocks and no inodes to run out of, as in sysfs and procfs.
        reply.statfs(0, 0, 0, 0, 0, BLOCK_SIZE, NAME_MAX, BLOCK_SIZE);
    }

    fn access(&self, _: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        self.threads.answer(|tree| {
            let done = tree.attributes(ino.0).and_then(|a| {
                if mask.contains(AccessFlags::W_OK) && tree.settings().read_only {
                    Err(libc::EROFS.into())
                } else if mask.contains(AccessFlags::X_OK) && a.kind == Kind::Value {
                    Err(libc::EACCES.into())
                } else {
                    Ok(())
                }
            });
            reply_empty(reply, done);
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.threads.answer(|_| {
            let Some(name) = name.to_str().filter(|name| name.contains("qom.")) else {
                return reply.error(Errno::ENODATA);
            };
            let name = name.to_owned();
            self.threads
                .wait(move |tree| reply_xattr(reply, size, tree.extended_attribute(ino.0, &name)));
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.threads
            .wait(move |tree| reply_xattr(reply, size, tree.extended_attributes(ino.0)));
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
