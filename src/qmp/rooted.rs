//! Paths in the mount namespace of another process, `/proc/PID/root/…`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

/// Takes `/proc/PID/root/PATH` apart: the other process's root, and the path there.
pub(super) fn split(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut parts = path.components();
    let mut next = || parts.next();
    let is_proc = next()? == Component::RootDir && next()?.as_os_str() == "proc";
    let pid = next()?.as_os_str().to_str()?.to_owned();
    let is_root = next()?.as_os_str() == "root";
    let inside = parts.as_path();
    let is_number = pid.bytes().all(|byte| byte.is_ascii_digit());
    let found = is_proc && is_number && is_root && !inside.as_os_str().is_empty();
    found.then(|| (Path::new("/proc").join(pid).join("root"), inside.to_owned()))
}

/// Opens a path below a root as a process in it would, to be connected to: no link on the way leads out of it.
///
/// # Errors
/// As open(2); `Unsupported` before Linux 5.6.
pub(super) fn open_inside(root: &Path, path: &Path) -> io::Result<OwnedFd> {
    let root = open(root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(&root, path, how).map_err(|e| match e {
        Errno::ENOSYS => io::Error::new(
            io::ErrorKind::Unsupported,
            "a socket in another mount namespace can only be reached on Linux 5.6 and later",
        ),
        e => e.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_in_another_namespace() {
        let split = |path: &str| split(Path::new(path));
        let (root, inside) = split("/proc/12/root/run/a.sock").unwrap();
        assert_eq!(
            (root.to_str(), inside.to_str()),
            (Some("/proc/12/root"), Some("run/a.sock"))
        );
        for other in [
            "/proc/self/root/a",
            "/proc/1/root",
            "/proc/1/cwd/a",
            "/a/proc/1/root/b",
            "proc/1/root/b",
            "/",
            "",
        ] {
            assert_eq!(split(other), None, "{other}");
        }
    }

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        fs::create_dir(&inside).unwrap();
        for file in [&outside, &inside.join("own")] {
            fs::write(file, "").unwrap();
        }
        symlink(&outside, inside.join("absolute")).unwrap();
        symlink("../out", inside.join("relative")).unwrap();
        symlink("/own", inside.join("good")).unwrap();
        let open = |name: &str| {
            open_inside(&inside, Path::new(name))
                .map(drop)
                .map_err(|e| e.kind())
        };
        assert_eq!((open("own"), open("good")), (Ok(()), Ok(())));
        for name in ["absolute", "relative", "../out"] {
            assert_eq!(open(name), Err(io::ErrorKind::NotFound), "{name}");
        }
    }
}
