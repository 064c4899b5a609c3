//! The kernel's requests: each is unpacked, given to the [`Tree`], and its reply packed.

mod busy_poll;
mod directory;
mod dispatch;
pub mod notify;
pub mod pool;
mod reply;

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

use crate::fs::{OpenMode, Tree};
use crate::fuse::pool::Pool;
use crate::qom::Kind;
use directory::{list, list_plus};
pub use dispatch::THREADS;
use dispatch::{Dispatch, Queue, catch_panic};
use reply::{
    BLOCK_SIZE, NAME_MAX, errno, max_write, page_size, reply_attr, reply_data, reply_empty, reply_entry,
    reply_opened, reply_xattr, text, word,
};

/// The filesystem as fuser drives it.
pub struct Fuse {
    dispatch: Dispatch,
    /// How long the kernel may keep attributes that it asked for by inode.
    lifetime: Duration,
}

impl Fuse {
    /// `device` is the connection to the kernel that it will be driven from.
    pub fn new(tree: Arc<Tree>, device: OwnedFd) -> Fuse {
        Fuse {
            lifetime: tree.settings().entry_timeout,
            dispatch: Dispatch::new(tree, device),
        }
    }

    /// The threads that may be waiting for QEMU.
    pub fn pool(&self) -> Arc<Pool> {
        self.dispatch.pool()
    }

    fn tree(&self) -> &Tree {
        &self.dispatch.tree
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
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = text(name);
        self.dispatch.run(
            move |tree, wait| tree.lookup(parent.0, word(&name)?, wait),
            move |_, found| reply_entry(reply, found),
        );
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.dispatch.run_unanswered(|tree| tree.forget(ino.0, count));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let lifetime = self.lifetime;
        self.dispatch.run(
            move |tree, _| tree.attributes(ino.0),
            move |_, attributes| reply_attr(reply, lifetime, attributes),
        );
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
        // Truncation brings a new mtime with it.
        let times = size.is_none() && (atime.is_some() || mtime.is_some());
        let lifetime = self.lifetime;
        self.dispatch.run(
            move |tree, _| tree.set_attributes(ino.0, mode, uid, gid, times),
            move |_, attributes| reply_attr(reply, lifetime, attributes),
        );
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let process = request.pid();
        self.dispatch.run(
            move |tree, wait| tree.read_link(ino.0, process, wait),
            move |_, target| reply_data(reply, target.map(String::into_bytes)),
        );
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = text(name);
        self.dispatch.run(
            move |tree, _| tree.remove_link(parent.0, word(&name)?),
            move |_, done| reply_empty(reply, done),
        );
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (Ok(name), Some(target)) = (text(name), target.to_str().map(str::to_owned)) else {
            return reply.error(Errno::EINVAL);
        };
        self.dispatch.run(
            move |tree, wait| tree.make_link(parent.0, &name, &target, wait),
            move |_, found| reply_entry(reply, found),
        );
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
        let (Ok(from), Ok(to), true) = (text(name), text(newname), flags.is_empty()) else {
            return reply.error(Errno::EPERM);
        };
        self.dispatch.run(
            move |tree, wait| tree.rename_link((parent.0, &from), (newparent.0, &to), wait),
            move |_, done| reply_empty(reply, done),
        );
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
            truncate: flags.0 & libc::O_TRUNC != 0,
        };
        let process = request.pid();
        // Direct: the page cache would serve one open's value to another, and would never
        // read again. There is nothing to flush: each write is QEMU's at once.
        let how = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
        let (pool, tree) = (self.pool(), self.dispatch.tree.clone());
        self.dispatch.run(
            move |tree, wait| tree.open_file(ino.0, mode, process, wait),
            move |_, opened| {
                let grown_to = opened.as_ref().ok().and_then(|opened| opened.grown_to);
                let reply = move || reply_opened(reply, opened.map(|opened| opened.handle), how);
                match grown_to {
                    Some(size) => pool.run(move || {
                        catch_panic(|| {
                            tree.tell_growth(ino.0, size);
                            reply();
                        });
                    }),
                    None => reply(),
                }
            },
        );
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // The kernel names the owner of the descriptor when it reads for a program directly, past its page cache.
        let caches = owner.is_none();
        self.dispatch.run_on(
            Queue::Reads,
            move |tree, wait| tree.read_file(handle.0, offset, size, caches, wait),
            move |_, data| reply_data(reply, data),
        );
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        let length = data.len() as u32;
        let appends = flags.0 & libc::O_APPEND != 0;
        self.dispatch.run(
            move |tree, wait| tree.write_file(handle.0, offset, &data, appends, wait),
            move |_, done| match done {
                Ok(()) => reply.written(length),
                Err(e) => reply.error(errno(&e)),
            },
        );
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
        self.dispatch.run(
            move |tree, _| {
                tree.close_file(handle.0);
                Ok(())
            },
            move |_, done| reply_empty(reply, done),
        );
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let process = request.pid();
        self.dispatch.run(
            move |tree, _| tree.open_directory(ino.0, process),
            move |_, handle| reply_opened(reply, handle, FopenFlags::empty()),
        );
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.dispatch.run(
            move |tree, wait| tree.shown(handle.0, offset, wait),
            move |tree, shown| list(tree, shown, offset, reply),
        );
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.dispatch.run(
            move |tree, wait| tree.shown(handle.0, offset, wait),
            move |tree, shown| list_plus(tree, shown, offset, reply),
        );
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.dispatch.run(
            move |tree, _| {
                tree.close_directory(handle.0);
                Ok(())
            },
            move |_, done| reply_empty(reply, done),
        );
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // No blocks and no inodes to run out of, as in sysfs and procfs.
        reply.statfs(0, 0, 0, 0, 0, BLOCK_SIZE, NAME_MAX, BLOCK_SIZE);
    }

    fn access(&self, _: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let may = move |tree: &Tree, _| {
            let attributes = tree.attributes(ino.0)?;
            if mask.contains(AccessFlags::W_OK) && tree.settings().read_only {
                Err(libc::EROFS.into())
            } else if mask.contains(AccessFlags::X_OK) && attributes.kind == Kind::Value {
                Err(libc::EACCES.into())
            } else {
                Ok(())
            }
        };
        self.dispatch.run(may, move |_, done| reply_empty(reply, done));
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        // The kernel asks for `security.capability` before each write.
        let name = name
            .to_str()
            .filter(|name| name.contains("qom."))
            .map(str::to_owned);
        self.dispatch.run(
            move |tree, wait| match &name {
                Some(name) => tree.extended_attribute(ino.0, name, wait),
                None => Err(libc::ENODATA.into()),
            },
            move |_, value| reply_xattr(reply, size, value),
        );
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.dispatch.run(
            move |tree, wait| tree.extended_attributes(ino.0, wait),
            move |_, names| reply_xattr(reply, size, names),
        );
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
