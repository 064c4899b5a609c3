//! Mounting and unmounting through fusermount3, which is setuid root.

use std::io::{self, ErrorKind, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::MntFlags;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::mounted::take_away;
use super::mountinfo::mount_lines;
use super::{MAX_READ, is_mount_of, words};
use crate::cli::MountOptions;
use crate::process::pass_descriptor;

/// Mounts, and gives the connection to the kernel, which fusermount3 sends over a socket.
///
/// # Errors
/// Why it would not.
pub(super) fn mount(source: &str, options: &MountOptions) -> io::Result<OwnedFd> {
    let needs_proc = |e| io::Error::other(format!("fusermount3 cannot unmount without /proc: {e}"));
    mount_lines().map_err(needs_proc)?;
    // A comma or backslash in a value would end it.
    let escaped = |text: &str| text.replace('\\', r"\\").replace(',', r"\,");
    let mut given = format!(
        "fsname={},subtype={},nosuid,nodev,max_read={MAX_READ}",
        escaped(source),
        escaped(&options.subtype)
    );
    for (word, ..) in words(options).into_iter().filter(|(.., given)| *given) {
        given = format!("{given},{word}");
    }
    let point = &options.fs.mount_point;
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("fusermount3");
    command
        .args(["-o", &given, "--"])
        .arg(point)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = pass_descriptor(&mut command, theirs.as_raw_fd())
        .spawn()
        .map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                let why = "only root can mount without fusermount3, which is not installed (package fuse3)";
                io::Error::new(e.kind(), why)
            }
            _ => e,
        })?;
    drop(theirs);
    let device = receive_descriptor(&ours);
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = stderr.take(64 << 10).read_to_string(&mut said);
    }
    let status = child.wait();
    device.ok_or_else(|| {
        // It is sent once it is mounted, and fusermount3 may have been killed in between. Nobody else has mounted:
        // the folder was free, and is locked.
        if is_mount_of(point, &options.fs_type()) {
            let _ = take_away(point, MntFlags::empty());
        }
        io::Error::other(match status.is_ok_and(|status| status.success()) {
            true => "no descriptor is left for the connection to the kernel".to_owned(),
            false => format!("fusermount3 failed: {}", said.trim()),
        })
    })
}

fn receive_descriptor(socket: &UnixStream) -> Option<OwnedFd> {
    let mut byte = [0u8];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let (socket, flags) = (socket.as_raw_fd(), MsgFlags::MSG_CMSG_CLOEXEC);
    let message = loop {
        match recvmsg::<()>(socket, &mut buffers, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            other => break other.ok()?,
        }
    };
    let device = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    })?;
    // SAFETY: the kernel has just installed this descriptor for us, and nobody else knows it.
    Some(unsafe { OwnedFd::from_raw_fd(device) })
}

/// Unmounts, from under whoever still sits in it. `last` is what this process does: if there may be no further
/// process, it becomes fusermount3.
///
/// # Errors
/// Why it is still mounted.
pub(super) fn unmount(place: &Path, last: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.args(["-u", "-z", "--"]).arg(place).stdin(Stdio::null());
    let done = match command.output() {
        Err(_) if last => return Err(command.exec()),
        done => done?,
    };
    match done.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&done.stderr).trim().to_owned(),
        )),
    }
}
