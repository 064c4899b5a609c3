//! A mount of ours, and undoing it.
//!
//! Done here and not by fuser, whose unmount takes away whatever is mounted at the path, be it ours or not.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::MntFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::geteuid;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::fusermount;
use super::mountinfo::{Line, mount_lines};

/// A mount of ours. The kernel gives the plain id and the device number of a mount that is gone
/// to the next one at once, so both together are no proof; the unique id (Linux 6.8) is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    pub id: u64,
    pub unique: Option<u64>,
    /// Major and minor of the filesystem.
    pub device: String,
    pub point: PathBuf,
}

impl Mounted {
    /// The mount that was just made at a path.
    ///
    /// # Errors
    /// When neither statx (Linux 5.8) nor /proc tells.
    pub fn at(point: &Path) -> io::Result<Mounted> {
        let (id, device) = match mount_id(point, StatxFlags::MNT_ID) {
            Some(found) => found,
            None => mount_lines()?
                .into_iter()
                .rfind(|line| line.point == point && line.fs_type.starts_with("fuse"))
                .map(|line| (line.id, line.device))
                .ok_or_else(|| io::Error::other("mounted, but it is not in /proc/self/mountinfo"))?,
        };
        Ok(Mounted {
            id,
            unique: unique_id(point),
            device,
            point: point.to_owned(),
        })
    }

    /// Takes the mount away, from under whoever still sits in it if need be. A mount that is
    /// not ours is left alone, at whatever place it is.
    ///
    /// # Errors
    /// Why it is still there.
    pub fn unmount(&self) -> io::Result<()> {
        match self.place()? {
            Some(place) => self.take_away(&place, MntFlags::empty()),
            None => Ok(()),
        }
    }

    /// The same by the watchdog: cuts the connection first, for a thread of the daemon may wait in the kernel
    /// for a caller who waits for it. Who waits for an answer gets ECONNABORTED.
    ///
    /// # Errors
    /// Why it is still there.
    pub fn unmount_dead(&self) -> io::Result<()> {
        // Opened before it is known to be ours: what is open never comes to mean another connection.
        let abort = self.open_abort();
        let Some(place) = self.place()? else {
            return Ok(());
        };
        // For who is not root.
        if let Ok(mut abort) = abort {
            let _ = abort.write_all(b"1");
        }
        self.take_away(&place, MntFlags::MNT_FORCE)
    }

    /// Has the kernel end every request that is not answered, also of a mount that was taken away while
    /// somebody sat in it. `connection` is the mount's.
    pub fn abort(&self, connection: &OwnedFd) {
        let Ok(mut abort) = self.open_abort() else {
            return;
        };
        // What was opened is another's if ours has ended.
        let mut fds = [PollFd::new(connection.as_fd(), PollFlags::empty())];
        if poll(&mut fds, PollTimeout::ZERO) == Ok(0) {
            let _ = abort.write_all(b"1");
        }
    }

    /// What cuts the connection that has our number now, if fusectl is mounted.
    fn open_abort(&self) -> io::Result<File> {
        let minor = self.device.split_once(':').map_or("", |(_, minor)| minor);
        let path = format!("/sys/fs/fuse/connections/{minor}/abort");
        OpenOptions::new().write(true).open(path)
    }

    fn take_away(&self, place: &Path, how: MntFlags) -> io::Result<()> {
        take_away(place, how).or_else(|e| if self.is_there() { Err(e) } else { Ok(()) })
    }

    /// Whether it is still there, as far as that can be told.
    pub fn is_there(&self) -> bool {
        !matches!(self.place(), Ok(None))
    }

    /// Where it is, if it is still there.
    fn place(&self) -> io::Result<Option<PathBuf>> {
        let place = match mount_lines() {
            Ok(lines) => {
                let Some(ours) = lines.iter().find(|line| self.is(line)) else {
                    return Ok(None);
                };
                let top = lines.iter().rfind(|line| line.point == ours.point);
                if top.is_some_and(|line| line.id != self.id) {
                    return Err(io::Error::other("another filesystem is mounted over it"));
                }
                ours.point.clone()
            }
            // Without /proc: where it was, or nowhere.
            Err(e) => match mount_id(&self.point, StatxFlags::MNT_ID) {
                Some((id, device)) if id == self.id && device == self.device => self.point.clone(),
                Some(_) => return Ok(None),
                None => return Err(e),
            },
        };
        let is_ours = match (self.unique, unique_id(&place)) {
            (Some(unique), Some(now)) => now == unique,
            // It cannot be asked for (another user's mount cannot either): then it must be where it was.
            _ => place == self.point,
        };
        Ok(is_ours.then_some(place))
    }

    fn is(&self, line: &Line) -> bool {
        line.id == self.id && line.device == self.device && line.fs_type.starts_with("fuse")
    }
}

/// Takes away what is mounted at a path; with MNT_FORCE, as the last thing that this process does.
///
/// # Errors
/// Why it is still there.
pub(crate) fn take_away(place: &Path, how: MntFlags) -> io::Result<()> {
    let flags = how | MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    match nix::mount::umount2(place, flags) {
        Ok(()) => Ok(()),
        Err(_) if !geteuid().is_root() => fusermount::unmount(place, how.contains(MntFlags::MNT_FORCE)),
        Err(e) => Err(e.into()),
    }
}

/// The id of the mount at a path that no other mount ever has; `None` before Linux 6.8.
fn unique_id(point: &Path) -> Option<u64> {
    let kind = StatxFlags::from_bits_retain(libc::STATX_MNT_ID_UNIQUE);
    mount_id(point, kind).map(|(id, _)| id)
}

/// An id of the mount at a path, of a kind that statx knows, and the device number of its filesystem. What the kernel
/// has cached will do: the filesystem itself is not asked.
fn mount_id(point: &Path, kind: StatxFlags) -> Option<(u64, String)> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    let found = statx(CWD, point, flags, kind).ok()?;
    let device = format!("{}:{}", found.stx_dev_major, found.stx_dev_minor);
    (found.stx_mask & kind.bits() != 0).then_some((found.stx_mnt_id, device))
}
