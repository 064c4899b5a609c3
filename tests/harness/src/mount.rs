//! Mounts by the program under test, cleaned up whatever happens.

mod end;
mod launch;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::child::lstat;
use crate::mountinfo::{MountInfo, mount_at};
use crate::proc::{Running, ended, parent, processes, signal, spawn_tied, wait_until};
use crate::sh::Out;

pub use launch::Launch;

const START: Duration = Duration::from_secs(30);

/// A mount in a folder of its own. Dropped, it is unmounted, and its processes are ended.
pub struct Mount {
    dir: PathBuf,
    point: PathBuf,
    child: Option<Child>, // in the foreground
    output: Option<Out>,  // in the background
}

impl Mount {
    /// Mounts in the background, as users do. A failure fails the test.
    #[track_caller]
    pub fn start(socket: &Path, args: &[&str]) -> Mount {
        Launch::new()
            .args(args)
            .socket(socket)
            .background()
            .unwrap_or_else(|out| panic!("{out}"))
    }

    /// Mounts with `-f`, so that the log can be read and the exit status is known.
    #[track_caller]
    pub fn start_foreground(socket: &Path, args: &[&str]) -> Mount {
        Launch::new().args(args).socket(socket).foreground()
    }

    fn prepare(name: &OsStr) -> Mount {
        // Not a TempDir, which deletes everything in it: that may still be the mount.
        let dir = tempfile::tempdir().expect("make a folder for a mount").keep();
        let dir = dir.canonicalize().expect("the real path of a new folder");
        let point = dir.join(name);
        fs::create_dir(&point).expect("make a mount point");
        Mount {
            dir,
            point,
            child: None,
            output: None,
        }
    }

    /// The mount point, an absolute path without symbolic links.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// A path below the mount point.
    pub fn join(&self, below: &str) -> PathBuf {
        self.point.join(below.trim_start_matches('/'))
    }

    /// What the kernel says of the mount, if there is one.
    pub fn info(&self) -> Option<MountInfo> {
        mount_at(&self.point)
    }

    /// Whether anything is mounted, asked without touching it.
    pub fn is_mounted(&self) -> bool {
        self.info().is_some()
    }

    /// The processes that serve it: those of the program with this very mount point among their arguments.
    pub fn pids(&self) -> Vec<u32> {
        processes(|read| {
            let arguments = read("cmdline");
            let mut arguments = arguments.split(|byte| *byte == 0);
            let program = Path::new(OsStr::from_bytes(arguments.next().unwrap_or_default()));
            program.ends_with("qom-fuse")
                && arguments.any(|argument| argument == self.point.as_os_str().as_bytes())
        })
    }

    /// The one process that serves it.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        if let Some(child) = &self.child {
            return child.id();
        }
        let pids = self.pids();
        let serving: Vec<u32> = pids
            .iter()
            .copied()
            .filter(|pid| !parent(*pid).is_some_and(|parent| pids.contains(&parent)))
            .collect();
        assert!(
            serving.len() == 1,
            "{} is served by {serving:?} of {pids:?}",
            self.point.display()
        );
        serving[0]
    }

    /// The process that watches over the one that serves it.
    #[track_caller]
    pub fn watchdog(&self) -> u32 {
        let serving = self.pid();
        let watchdogs: Vec<u32> = self
            .pids()
            .into_iter()
            .filter(|pid| parent(*pid) == Some(serving))
            .collect();
        assert!(
            watchdogs.len() == 1,
            "{} is watched by {watchdogs:?}",
            self.point.display()
        );
        watchdogs[0]
    }

    /// What the command wrote before it went to the background.
    #[track_caller]
    pub fn output(&self) -> &Out {
        self.output.as_ref().expect("a mount in the background")
    }

    /// What a mount in the foreground wrote to its standard error so far.
    pub fn log(&self) -> String {
        self.read("log")
    }

    /// What a mount in the foreground, or its QEMU, wrote to its standard output so far.
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join(name)).unwrap_or_default()).into_owned()
    }
}
