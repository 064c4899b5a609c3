//! Mounting by mount(2), which needs root's rights.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::unistd::{getgid, getuid};

use super::{MAX_READ, words};
use crate::cli::MountOptions;

/// Mounts, and gives the connection to the kernel.
///
/// # Errors
/// `PermissionDenied` for who may not; otherwise why the kernel would not.
pub(super) fn mount(source: &str, options: &MountOptions) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let device = device.map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            let why = "there is no /dev/fuse (try: modprobe fuse; in a container, --device /dev/fuse)";
            io::Error::new(e.kind(), why)
        }
        _ => e,
    })?;
    let point = &options.fs.mount_point;
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},max_read={MAX_READ}",
        device.as_raw_fd(),
        fs::metadata(point)?.mode() & libc::S_IFMT,
        getuid(),
        getgid()
    );
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    for (word, flag, _) in words(options).into_iter().filter(|(.., given)| *given) {
        flags |= flag;
        if flag.is_empty() {
            data = format!("{data},{word}");
        }
    }
    let fs_type = options.fs_type();
    nix::mount::mount(Some(source), point, Some(&*fs_type), flags, Some(&*data)).map_err(|e| match e {
        Errno::EPERM | Errno::EACCES => ErrorKind::PermissionDenied.into(),
        other => io::Error::from(other),
    })?;
    Ok(device.into())
}
