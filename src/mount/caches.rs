//! The kernel's caches, and making it forget.

use std::io;
use std::sync::mpsc::{Sender, SyncSender, sync_channel};

use fuser::{INodeNo, Notifier};

use super::{End, spawn};
use crate::tree::{Ino, Kernel};

/// Names that may wait to be forgotten.
const NAMES: usize = 1024;

/// Tells the kernel what it should no longer believe.
pub struct KernelCaches {
    notifier: Notifier,
    gone: SyncSender<(Ino, String)>,
}

impl KernelCaches {
    /// # Errors
    /// When no thread can be started.
    pub fn new(notifier: Notifier, ends: &Sender<End>) -> io::Result<KernelCaches> {
        let (gone, names) = sync_channel::<(Ino, String)>(NAMES);
        let carried_out = notifier.clone();
        // On a thread of its own: the kernel waits until nothing else happens in the directory.
        spawn("forgetter", ends, move || {
            for (parent, file) in names {
                let _ = carried_out.inval_entry(INodeNo(parent), file.as_ref());
            }
        })?;
        Ok(KernelCaches { notifier, gone })
    }
}

impl Kernel for KernelCaches {
    fn attributes_changed(&self, ino: Ino) {
        // A negative offset: the attributes only.
        let _ = self.notifier.inval_inode(INodeNo(ino), -1, 0);
    }

    fn entry_gone(&self, parent: Ino, file: &str) {
        // If there are too many, the kernel forgets the rest when their time is up.
        let _ = self.gone.try_send((parent, file.to_owned()));
    }
}
