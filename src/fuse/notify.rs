//! Telling the kernel what is no longer true of what it has cached.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use nix::sched::{CloneFlags, unshare};
use parking_lot::Mutex;

use crate::fs::{Ino, Kernel};
use crate::limits::{MESSAGES_WAITING, SIZE_THREADS};
use crate::process::close_all_but;

/// Makes a second connection to what a first one, whose number it reads, is connected to (Linux 4.2).
const FUSE_DEV_IOC_CLONE: libc::Ioctl = libc::_IOR::<u32>(229, 0);

/// How long an open waits until the kernel knows its value's length.
const GROWTH_WAIT: Duration = Duration::from_secs(10);

/// A message for the kernel that may wait there for an answer of ours, and who waits for it.
struct Message {
    bytes: Vec<u8>,
    done: Option<Sender<()>>,
}

/// Tells the kernel what it should no longer believe.
pub struct KernelCaches {
    notifier: Notifier,
    names: SyncSender<Message>,
    sizes: SyncSender<Message>,
}

impl KernelCaches {
    /// `device` is the connection to the kernel.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(notifier: Notifier, device: OwnedFd) -> io::Result<KernelCaches> {
        // For as long as the process lives.
        let device = device.into_raw_fd();
        let (names, of_names) = sync_channel(MESSAGES_WAITING);
        let (sizes, of_sizes) = sync_channel(MESSAGES_WAITING);
        // On threads of their own: the kernel waits until nothing else happens in a directory, or to a page.
        start(device, "forgetter", Arc::new(Mutex::new(of_names)))?;
        let of_sizes = Arc::new(Mutex::new(of_sizes));
        for _ in 0..SIZE_THREADS {
            start(device, "sizes", of_sizes.clone())?;
        }
        Ok(KernelCaches {
            notifier,
            names,
            sizes,
        })
    }
}

/// Starts a thread that sends messages.
fn start(device: RawFd, name: &str, messages: Arc<Mutex<Receiver<Message>>>) -> io::Result<()> {
    let send = move || {
        // Without a connection, what the kernel believes holds until its time is up.
        let Ok(mut device) = detach_thread(device) else {
            return;
        };
        loop {
            let Ok(Message { bytes, done }) = messages.lock().recv() else {
                return;
            };
            // In one write, as the kernel wants it; it refuses a name or an inode that it does not have.
            let _ = device.write(&bytes);
            drop(done);
        }
    };
    thread::Builder::new().name(name.into()).spawn(send).map(drop)
}

/// The connection to the kernel for a thread that may have to wait in it until requests are answered: one of
/// its own, in a table of descriptors of its own. The kernel ends the requests that were read from a connection
/// when nobody has that open any more. So the end of the process, whatever brings it about, ends what such a
/// thread waits for; with a table that it shares, it would keep the other connection open meanwhile.
/// `shared` is the other connection, which nobody may close: this thread's table has it no more.
///
/// # Errors
/// When no descriptor is left.
fn detach_thread(shared: RawFd) -> io::Result<File> {
    // SAFETY: nobody closes it.
    let shared = unsafe { BorrowedFd::borrow_raw(shared) };
    if unshare(CloneFlags::CLONE_FILES).is_err() {
        return shared.try_clone_to_owned().map(File::from);
    }
    let own = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let own = own.ok().filter(|own| {
        let number = shared.as_raw_fd() as u32;
        // SAFETY: it reads a number that lives as long as the call.
        unsafe { libc::ioctl(own.as_raw_fd(), FUSE_DEV_IOC_CLONE, &number) == 0 }
    });
    let own = own.map_or_else(|| shared.try_clone_to_owned().map(File::from), Ok)?;
    close_all_but(0, own.as_raw_fd());
    Ok(own)
}

impl Kernel for KernelCaches {
    fn attributes_changed(&self, ino: Ino) {
        // A negative offset: the attributes only.
        let _ = self.notifier.inval_inode(INodeNo(ino), -1, 0);
    }

    fn value_grew(&self, ino: Ino, size: u64) {
        let (done, carried_out) = channel();
        let message = Message {
            bytes: store(ino, size - 1, b"\n"),
            done: Some(done),
        };
        // Who splices a value that the kernel could not be told of in time gets what it knows.
        if self.sizes.try_send(message).is_ok() {
            let _ = carried_out.recv_timeout(GROWTH_WAIT);
        }
    }

    fn entry_gone(&self, parent: Ino, file: &str) {
        // If there are too many, the kernel forgets the rest when their time is up.
        let _ = self.names.try_send(Message {
            bytes: invalidation(parent, file),
            done: None,
        });
    }
}

/// FUSE_NOTIFY_STORE: data for the page cache. It raises the size; the reply to OPEN drops the page again.
fn store(ino: Ino, offset: u64, data: &[u8]) -> Vec<u8> {
    const NOTIFY_STORE: u32 = 4;
    let size = (data.len() as u32).to_ne_bytes();
    notification(
        NOTIFY_STORE,
        &[&ino.to_ne_bytes(), &offset.to_ne_bytes(), &size, &[0; 4], data],
    )
}

/// FUSE_NOTIFY_INVAL_ENTRY: a name and what it stands for are gone.
fn invalidation(parent: Ino, file: &str) -> Vec<u8> {
    const NOTIFY_INVAL_ENTRY: u32 = 3;
    let length = (file.len() as u32).to_ne_bytes();
    notification(
        NOTIFY_INVAL_ENTRY,
        &[&parent.to_ne_bytes(), &length, &[0; 4], file.as_bytes(), &[0]],
    )
}

/// A message that answers no request. fuser sends some, but only on the connection that all threads share.
fn notification(code: u32, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let length = 16 + body.len() as u32;
    [&length.to_ne_bytes()[..], &code.to_ne_bytes(), &[0; 8], &body].concat()
}
