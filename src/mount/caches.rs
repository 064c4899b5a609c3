//! The kernel's caches, and making it forget.

use std::io::{self, Write};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender, sync_channel};

use fuser::{INodeNo, Notifier};

use super::device::detach_thread;
use super::{End, spawn};
use crate::tree::{Ino, Kernel};

/// Messages that may wait to be carried out.
const WAITING: usize = 1024;

/// Names of a directory: gone, and what they stand for with them, or only to be looked up again.
struct Forget {
    parent: Ino,
    files: Vec<Arc<str>>,
    gone: bool,
}

/// Tells the kernel what it should no longer believe.
pub struct KernelCaches {
    notifier: Notifier,
    names: SyncSender<Forget>,
}

impl KernelCaches {
    /// `device` is the connection to the kernel.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(notifier: Notifier, device: OwnedFd, ends: &Sender<End>) -> io::Result<KernelCaches> {
        let (names, waiting) = sync_channel::<Forget>(WAITING);
        // For as long as the process lives.
        let device = device.into_raw_fd();
        // On a thread of its own: the kernel waits until nothing else happens in the directory.
        spawn("forgetter", ends, move || {
            // Without a connection, names hold until their time is up.
            let Ok(mut device) = detach_thread(device) else {
                return;
            };
            for Forget { parent, files, gone } in waiting {
                for file in files {
                    // In one write, as the kernel wants it; it refuses a name that it does not have.
                    let _ = device.write(&invalidation(parent, &file, gone));
                }
            }
        })?;
        Ok(KernelCaches { notifier, names })
    }
}

impl Kernel for KernelCaches {
    fn attributes_changed(&self, ino: Ino) {
        // A negative offset: the attributes only.
        let _ = self.notifier.inval_inode(INodeNo(ino), -1, 0);
    }

    fn value_grew(&self, ino: Ino, size: u64) {
        // Its last byte in the page cache raises the size; the reply to OPEN drops the page again. It
        // fails only if the kernel has forgotten the inode.
        let _ = self.notifier.store(INodeNo(ino), size - 1, b"\n");
    }

    fn entry_gone(&self, parent: Ino, file: &str) {
        // If there are too many, the kernel forgets the rest when their time is up.
        let _ = self.names.try_send(Forget {
            parent,
            files: vec![file.into()],
            gone: true,
        });
    }

    fn entries_expired(&self, parent: Ino, files: Vec<Arc<str>>) {
        let _ = self.names.try_send(Forget {
            parent,
            files,
            gone: false,
        });
    }
}

/// FUSE_NOTIFY_INVAL_ENTRY, for what is not gone with FUSE_EXPIRE_ONLY, which fuser does not have. Without
/// that flag, the kernel throws out whole trees, and the working directories of processes with them.
fn invalidation(parent: Ino, file: &str, gone: bool) -> Vec<u8> {
    const NOTIFY_INVAL_ENTRY: u32 = 3;
    const EXPIRE_ONLY: u32 = 1;
    let flags = if gone { 0 } else { EXPIRE_ONLY };
    let header = size_of::<[u32; 2]>() + size_of::<[u64; 2]>() + size_of::<[u32; 2]>();
    let length = header + file.len() + 1;
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(NOTIFY_INVAL_ENTRY.to_ne_bytes());
    // A notification answers no request.
    message.extend(0u64.to_ne_bytes());
    message.extend(parent.to_ne_bytes());
    message.extend((file.len() as u32).to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(file.as_bytes());
    message.push(0);
    message
}
