//! The requests of the kernel, one method each.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use super::directory::{list, list_plus};
use super::dispatch::{Dispatch, Queue, catch_panic};
use super::pool::Pool;
use super::reply::{Answer, BLOCK_SIZE, NAME_MAX, errno, max_write, page_size, utf8_name};
use crate::fs::{OpenMode, Opened, Tree};

/// The filesystem as fuser drives it.
pub struct Fuse {
    dispatch: Dispatch,
}

impl Fuse {
    /// `device` is the connection to the kernel that it will be driven from.
    pub fn new(tree: Arc<Tree>, device: OwnedFd) -> Fuse {
        Fuse {
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
        let name = name.to_owned();
        self.dispatch.run(reply, move |tree, wait| {
            tree.lookup(parent.0, utf8_name(&name)?, wait)
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        catch_panic(|| self.tree().forget(ino.0, count));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.dispatch.run(reply, move |tree, _| tree.attributes(ino.0));
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
        self.dispatch.run(reply, move |tree, _| {
            tree.set_attributes(ino.0, mode, uid, gid, times)
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let process = request.pid();
        self.dispatch.run(reply, move |tree, wait| {
            tree.read_link(ino.0, process, wait).map(String::into_bytes)
        });
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.dispatch.run(reply, move |tree, _| {
            tree.remove_link(parent.0, utf8_name(&name)?)
        });
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (Some(name), Some(target)) = (name.to_str(), target.to_str()) else {
            return reply.error(Errno::EINVAL);
        };
        let (name, target) = (name.to_owned(), target.to_owned());
        self.dispatch.run(reply, move |tree, wait| {
            tree.make_link(parent.0, utf8_name(name.as_ref())?, &target, wait)
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
        let (Some(from), Some(to), true) = (name.to_str(), newname.to_str(), flags.is_empty()) else {
            return reply.error(Errno::EPERM);
        };
        let (from, to) = (from.to_owned(), to.to_owned());
        self.dispatch.run(reply, move |tree, wait| {
            tree.rename_link((parent.0, &from), (newparent.0, &to), wait)
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
            truncate: flags.0 & libc::O_TRUNC != 0,
        };
        let process = request.pid();
        // Direct: the page cache would serve one open's value to another, and would never
        // read again. There is nothing to flush: each write is QEMU's at once.
        let how = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
        let (pool, tree) = (self.pool(), self.dispatch.tree.clone());
        self.dispatch.run_then(
            Queue::Others,
            move |tree, wait| tree.open_file(ino.0, mode, process, wait),
            move |_, opened| match opened {
                Ok(Opened {
                    handle,
                    grown_to: Some(size),
                }) => pool.run(move || {
                    catch_panic(|| {
                        tree.tell_growth(ino.0, size);
                        reply.opened(FileHandle(handle), how);
                    });
                }),
                Ok(Opened { handle, .. }) => reply.opened(FileHandle(handle), how),
                Err(e) => reply.error(errno(&e)),
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
        self.dispatch.run_then(
            Queue::Reads,
            move |tree, wait| tree.read_file(handle.0, offset, size, caches, wait),
            move |_, data| reply.answer(data),
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
        let appends = flags.0 & libc::O_APPEND != 0;
        self.dispatch.run(reply, move |tree, wait| {
            tree.write_file(handle.0, offset, &data, appends, wait)?;
            Ok(data.len() as u32)
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
        self.dispatch.run(reply, move |tree, _| {
            tree.close_file(handle.0);
            Ok(())
        });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let process = request.pid();
        self.dispatch
            .run(reply, move |tree, _| tree.open_directory(ino.0, process));
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.dispatch.run_then(
            Queue::Others,
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
        self.dispatch.run_then(
            Queue::Others,
            move |tree, wait| tree.shown(handle.0, offset, wait),
            move |tree, shown| list_plus(tree, shown, offset, reply),
        );
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.dispatch.run(reply, move |tree, _| {
            tree.close_directory(handle.0);
            Ok(())
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // No blocks and no inodes to run out of, as in sysfs and procfs.
        reply.statfs(0, 0, 0, 0, 0, BLOCK_SIZE, NAME_MAX, BLOCK_SIZE);
    }

    fn access(&self, _: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let (write, execute) = (mask.contains(AccessFlags::W_OK), mask.contains(AccessFlags::X_OK));
        self.dispatch
            .run(reply, move |tree, _| tree.check_access(ino.0, write, execute));
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        // The kernel asks for `security.capability` before each write.
        let name = name
            .to_str()
            .filter(|name| name.contains("qom."))
            .map(str::to_owned);
        self.dispatch.run((reply, size), move |tree, wait| match &name {
            Some(name) => tree.extended_attribute(ino.0, name, wait),
            None => Err(libc::ENODATA.into()),
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.dispatch.run((reply, size), move |tree, wait| {
            tree.extended_attributes(ino.0, wait)
        });
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
}
