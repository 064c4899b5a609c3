//! What `stat` shows.

use std::time::SystemTime;

use crate::fs::{Found, Ino, Result, Tree};
use crate::qom::Kind;

/// The attributes of an inode.
#[derive(Debug, Clone)]
pub struct Attributes {
    pub ino: Ino,
    pub kind: Kind,
    pub size: u64,
    /// Permission bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// All three times of a file: when it was mounted.
    pub time: SystemTime,
}

impl Tree {
    /// The attributes of an inode, never asking QEMU, and how long the kernel may keep them.
    ///
    /// # Errors
    /// ENOENT when its object is known to be gone.
    pub fn attributes(&self, ino: Ino) -> Result<Found> {
        let mut inodes = self.inodes.lock();
        let (_, entry) = inodes.get(ino).ok_or(libc::ENOENT)?;
        Ok(Found {
            attributes: self.attributes_of(ino, entry.kind, inodes.tell_size(ino)),
            lifetime: self.settings.entry_timeout,
        })
    }

    /// Whether an inode may be written or executed, as far as its mode does not say it.
    ///
    /// # Errors
    /// EROFS, EACCES; ENOENT when its object is known to be gone.
    pub fn check_access(&self, ino: Ino, write: bool, execute: bool) -> Result<()> {
        let attributes = self.attributes(ino)?.attributes;
        if write && self.settings.read_only {
            Err(libc::EROFS.into())
        } else if execute && attributes.kind == Kind::Value {
            Err(libc::EACCES.into())
        } else {
            Ok(())
        }
    }

    pub(crate) fn attributes_of(&self, ino: Ino, kind: Kind, size: u64) -> Attributes {
        let settings = &self.settings;
        let full = match kind {
            Kind::Child => 0o755,
            Kind::Link => 0o777,
            Kind::Value => 0o644,
        };
        let mut mode = full;
        if kind != Kind::Link {
            mode &= !settings.umask;
            if settings.read_only {
                mode &= !0o222;
            }
        }
        Attributes {
            ino,
            kind,
            size: if kind == Kind::Child { 0 } else { size },
            mode: mode as u16,
            uid: settings.uid,
            gid: settings.gid,
            time: self.started,
        }
    }

    /// Accepts what changes nothing: any size (a shell truncates before it writes), and the mode and owner
    /// that there are (what copies a file sets them).
    ///
    /// # Errors
    /// EPERM, EROFS.
    pub fn set_attributes(
        &self,
        ino: Ino,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        times: bool,
    ) -> Result<Found> {
        let found = self.attributes(ino)?;
        let now = &found.attributes;
        if self.settings.read_only {
            return Err(libc::EROFS.into());
        }
        let same_mode = mode.is_none_or(|mode| mode & 0o7777 == u32::from(now.mode));
        let same_owner = uid.is_none_or(|uid| uid == now.uid) && gid.is_none_or(|gid| gid == now.gid);
        if same_mode && same_owner && !times {
            Ok(found)
        } else {
            Err(libc::EPERM.into())
        }
    }
}
