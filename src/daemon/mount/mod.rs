//! The mount itself: /dev/fuse, mount(2) or fusermount3.
//!
//! Done here and not by fuser, whose mount(2) does not show the type `fuse.qom-fuse`.

pub mod mounted;
mod mountinfo;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use log::debug;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{getgid, getuid};

use crate::daemon::background::hide_monitor;
use crate::daemon::mount::mounted::{Mounted, take_away};
use crate::daemon::mount::mountinfo::mount_lines;

/// The most that one request reads, in bytes. For each, the kernel pins as much of the reader's buffer, be it
/// filled or not, and `grep` and `cat` come with 96 or 128 KiB for values of a few bytes.
const MAX_READ: u32 = 16384;

/// How long a mount point may be locked by others.
const LOCK_WAITS: Duration = Duration::from_secs(5);

/// How to mount.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Shown as the source.
    pub source: String,
    /// Shown in the type, after `fuse.`.
    pub subtype: String,
    pub read_only: bool,
    /// Others than the mounting user may use it, as far as the modes let them.
    pub allow_other: bool,
    /// The kernel judges by owner and mode.
    pub default_permissions: bool,
    pub no_exec: bool,
    pub no_atime: bool,
}

/// Mounts at an existing directory and gives the connection to the kernel.
///
/// # Errors
/// Why the kernel or fusermount3 would not.
pub fn mount(point: &Path, options: &Options) -> io::Result<(OwnedFd, Mounted)> {
    // Two that start at once must not both find the place free: the lower one could never be
    // taken away before the upper one. The lock is on the directory, and gone with this call.
    let place = File::open(point);
    if let Ok(place) = &place {
        lock(place)?;
    }
    if is_mount_of(point, &format!("fuse.{}", options.subtype)) {
        let why = "a QEMU is mounted there already (fusermount3 -u takes it away)";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    let device = match direct(point, options) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let needs = |e| io::Error::other(format!("fusermount3 cannot unmount without /proc: {e}"));
            mount_lines().map_err(needs)?;
            by_fusermount(point, options)?
        }
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
                return Err(io::Error::new(io::ErrorKind::WouldBlock, why));
            }
        }
    }
}

/// True when a filesystem of this type is mounted right there.
pub fn is_mount_of(point: &Path, fs_type: &str) -> bool {
    mount_lines().is_ok_and(|lines| {
        lines
            .iter()
            .rfind(|line| line.point == point)
            .is_some_and(|line| line.fs_type == fs_type)
    })
}

fn direct(point: &Path, options: &Options) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let device = device.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            e.kind(),
            "there is no /dev/fuse (try: modprobe fuse; in a container, --device /dev/fuse)",
        ),
        _ => e,
    })?;
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},max_read={MAX_READ}",
        device.as_raw_fd(),
        fs::metadata(point)?.mode() & libc::S_IFMT,
        getuid(),
        getgid()
    );
    for (given, word) in [
        (options.allow_other, ",allow_other"),
        (options.default_permissions, ",default_permissions"),
    ] {
        if given {
            data.push_str(word);
        }
    }
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_RDONLY, options.read_only);
    flags.set(MsFlags::MS_NOEXEC, options.no_exec);
    flags.set(MsFlags::MS_NOATIME, options.no_atime);
    let fs_type = format!("fuse.{}", options.subtype);
    nix::mount::mount(
        Some(options.source.as_str()),
        point,
        Some(fs_type.as_str()),
        flags,
        Some(data.as_str()),
    )
    .map_err(|e| match e {
        Errno::EPERM | Errno::EACCES => io::ErrorKind::PermissionDenied.into(),
        other => io::Error::from(other),
    })?;
    Ok(device.into())
}

/// Mounts through the setuid helper, which sends the device back over a socket.
fn by_fusermount(point: &Path, options: &Options) -> io::Result<OwnedFd> {
    // A comma or backslash in a value would end it.
    let escaped = |text: &str| text.replace('\\', r"\\").replace(',', r"\,");
    let mut words = vec![
        format!("fsname={}", escaped(&options.source)),
        format!("subtype={}", escaped(&options.subtype)),
        "nosuid".into(),
        "nodev".into(),
        format!("max_read={MAX_READ}"),
    ];
    for (given, word) in [
        (options.read_only, "ro"),
        (options.allow_other, "allow_other"),
        (options.default_permissions, "default_permissions"),
        (options.no_exec, "noexec"),
        (options.no_atime, "noatime"),
    ] {
        if given {
            words.push(word.into());
        }
    }
    let (ours, theirs) = UnixStream::pair()?;
    let inherited = theirs.as_raw_fd();
    let mut command = Command::new("fusermount3");
    command
        .args(["-o", &words.join(","), "--"])
        .arg(point)
        .env("_FUSE_COMMFD", inherited.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    hide_monitor(&mut command);
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, move || {
            match libc::fcntl(inherited, libc::F_SETFD, 0) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
    let mut child = command.spawn().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            e.kind(),
            "only root can mount without fusermount3, which is not installed (package fuse3)",
        ),
        _ => e,
    })?;
    drop(theirs);
    let device = receive_descriptor(&ours);
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = stderr.take(64 << 10).read_to_string(&mut said);
    }
    let status = child.wait();
    match device {
        // It is sent once it is mounted.
        Some(device) => Ok(device),
        None => {
            // It may have been killed after it had mounted. Nobody else has: the folder was free, and is locked.
            if is_mount_of(point, &format!("fuse.{}", options.subtype)) {
                let _ = take_away(point, MntFlags::empty());
            }
            Err(io::Error::other(
                match status.is_ok_and(|status| status.success()) {
                    true => "no descriptor is left for the connection to the kernel".to_owned(),
                    false => format!("fusermount3 failed: {}", said.trim()),
                },
            ))
        }
    }
}

fn receive_descriptor(socket: &UnixStream) -> Option<OwnedFd> {
    let mut byte = [0u8];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = loop {
        match recvmsg::<()>(
            socket.as_raw_fd(),
            &mut buffers,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(Errno::EINTR) => {}
            other => break other.ok()?,
        }
    };
    let mut descriptors = message.cmsgs().ok()?.flat_map(|control| match control {
        ControlMessageOwned::ScmRights(descriptors) => descriptors,
        _ => Vec::new(),
    });
    let device = descriptors.next()?;
    // SAFETY: the kernel has just installed this descriptor for us, and nobody else knows it.
    Some(unsafe { OwnedFd::from_raw_fd(device) })
}

/// A mount point from the command line, absolute and without links.
///
/// # Errors
/// What is wrong with it.
pub fn check_point(point: &Path) -> io::Result<PathBuf> {
    let shown = String::from_utf8_lossy(point.as_os_str().as_bytes()).into_owned();
    let absolute = point.canonicalize().map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT) => io::Error::new(e.kind(), format!("it does not exist (try: mkdir {shown})")),
        Some(libc::ENOTCONN) => io::Error::new(
            e.kind(),
            format!("a dead mount is in the way (try: fusermount3 -u {shown})"),
        ),
        _ => e,
    })?;
    if !fs::metadata(&absolute)?.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            "it is not a directory",
        ));
    }
    Ok(absolute)
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
