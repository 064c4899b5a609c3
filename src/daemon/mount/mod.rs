//! The mount itself: mount(2), or fusermount3 for who is not root.
//!
//! Done here and not by fuser, whose mount(2) does not show the type `fuse.qom-fuse`.

mod direct;
mod fusermount;
pub mod mounted;
mod mountinfo;

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use log::debug;
use nix::mount::{MntFlags, MsFlags};

use crate::cli::MountOptions;
use crate::daemon::mount::mounted::{Mounted, take_away};
use crate::daemon::mount::mountinfo::mount_lines;

/// The most that one request reads, in bytes. For each, the kernel pins as much of the reader's buffer, be it
/// filled or not, and `grep` and `cat` come with 96 or 128 KiB for values of a few bytes.
const MAX_READ: u32 = 16384;

/// How long a mount point may be locked by others.
const LOCK_WAITS: Duration = Duration::from_secs(5);

/// Mounts at the mount point of `options` and gives the connection to the kernel. `source` is what mount(8) shows.
///
/// # Errors
/// Why the kernel or fusermount3 would not.
pub fn mount(source: &str, options: &MountOptions) -> io::Result<(OwnedFd, Mounted)> {
    let point = &options.fs.mount_point;
    // Two that start at once must not both find the place free: the lower one could never be
    // taken away before the upper one. The lock is on the directory, and gone with this call.
    let place = File::open(point);
    if let Ok(place) = &place {
        lock(place)?;
    }
    if is_mount_of(point, &options.fs_type()) {
        let why = "a QEMU is mounted there already (fusermount3 -u takes it away)";
        return Err(io::Error::new(ErrorKind::AlreadyExists, why));
    }
    let device = match direct::mount(source, options) {
        Err(e) if e.kind() == ErrorKind::PermissionDenied => fusermount::mount(source, options)?,
        other => other?,
    };
    match Mounted::at(point) {
        Ok(mounted) => Ok((device, mounted)),
        Err(e) => {
            // Nobody else could tell what to take away.
            let _ = take_away(point, MntFlags::empty());
            Err(e)
        }
    }
}

/// The options of a mount by their words, with the flag of mount(2) where there is one, and whether they are given.
fn words(options: &MountOptions) -> [(&'static str, MsFlags, bool); 5] {
    [
        ("ro", MsFlags::MS_RDONLY, options.fs.read_only),
        ("noexec", MsFlags::MS_NOEXEC, options.no_exec),
        ("noatime", MsFlags::MS_NOATIME, options.no_atime),
        ("allow_other", MsFlags::empty(), options.lets_others_in()),
        ("default_permissions", MsFlags::empty(), options.kernel_judges()),
    ]
}

/// Locks a mount point, which others hold only as long as it takes to mount, unless somebody else has
/// locked it for his own ends (`flock mnt qom-fuse …`).
fn lock(place: &File) -> io::Result<()> {
    let until = Instant::now() + LOCK_WAITS;
    loop {
        match place.try_lock() {
            Ok(()) => return Ok(()),
            // Some network filesystems know no locks, and a mount can do without.
            Err(TryLockError::Error(e)) => {
                debug!("cannot lock the mount point: {e}");
                return Ok(());
            }
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => {
                let why = "another program has locked the directory (see: lslocks)";
                return Err(io::Error::new(ErrorKind::WouldBlock, why));
            }
        }
    }
}

/// True when a filesystem of this type is mounted right there.
pub fn is_mount_of(point: &Path, fs_type: &str) -> bool {
    mount_lines().is_ok_and(|lines| {
        let top = lines.iter().rfind(|line| line.point == point);
        top.is_some_and(|line| line.fs_type == fs_type)
    })
}

/// A mount point from the command line, absolute and without links.
///
/// # Errors
/// What is wrong with it.
pub fn check_point(point: &Path) -> io::Result<PathBuf> {
    let shown = point.display();
    let absolute = point.canonicalize().map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT) => io::Error::new(e.kind(), format!("it does not exist (try: mkdir {shown})")),
        Some(libc::ENOTCONN) => {
            let why = format!("a dead mount is in the way (try: fusermount3 -u {shown})");
            io::Error::new(e.kind(), why)
        }
        _ => e,
    })?;
    match fs::metadata(&absolute)?.is_dir() {
        true => Ok(absolute),
        false => Err(io::Error::new(ErrorKind::NotADirectory, "it is not a directory")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points() {
        assert!(
            check_point(Path::new("/nonexistent"))
                .unwrap_err()
                .to_string()
                .contains("mkdir")
        );
        assert!(check_point(Path::new("/dev/null")).is_err());
        assert_eq!(
            check_point(Path::new("/proc/self/../..")).unwrap(),
            Path::new("/")
        );
    }
}
