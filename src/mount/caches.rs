//! The kernel's caches, and making it forget.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender, sync_channel};

use fuser::{INodeNo, Notifier};

use super::{End, spawn};
use crate::tree::{Ino, Kernel};

/// Messages that may wait to be carried out.
const WAITING: usize = 1024;

/// What is to be forgotten in a directory.
enum Forget {
    /// The name, and what it stands for.
    Gone(Ino, String),
    /// For how long these names hold.
    Expired(Ino, Vec<Arc<str>>),
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
        let (carried_out, mut device) = (notifier.clone(), File::from(device));
        // On a thread of its own: the kernel waits until nothing else happens in the directory.
        spawn("forgetter", ends, move || {
            for forget in waiting {
                match forget {
                    Forget::Gone(parent, file) => {
                        let _ = carried_out.inval_entry(INodeNo(parent), file.as_ref());
                    }
                    Forget::Expired(parent, files) => {
                        for file in files {
                            // In one write, as the kernel wants it; it refuses a name that it does not have.
                            let _ = device.write(&expiry(parent, &file));
                        }
                    }
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
        let _ = self.names.try_send(Forget::Gone(parent, file.to_owned()));
    }

    fn entries_expired(&self, parent: Ino, files: Vec<Arc<str>>) {
        let _ = self.names.try_send(Forget::Expired(parent, files));
    }
}

/// FUSE_NOTIFY_INVAL_ENTRY with FUSE_EXPIRE_ONLY, which fuser does not have. Without that flag, the kernel
/// would throw out whole trees, and the working directories of processes with them.
fn expiry(parent: Ino, file: &str) -> Vec<u8> {
    const NOTIFY_INVAL_ENTRY: u32 = 3;
    const EXPIRE_ONLY: u32 = 1;
    let header = size_of::<[u32; 2]>() + size_of::<[u64; 2]>() + size_of::<[u32; 2]>();
    let length = header + file.len() + 1;
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(NOTIFY_INVAL_ENTRY.to_ne_bytes());
    // A notification answers no request.
    message.extend(0u64.to_ne_bytes());
    message.extend(parent.to_ne_bytes());
    message.extend((file.len() as u32).to_ne_bytes());
    message.extend(EXPIRE_ONLY.to_ne_bytes());
    message.extend(file.as_bytes());
    message.push(0);
    message
}
