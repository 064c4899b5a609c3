//! A shell session as a user types it, in a folder of its own, with `qom-fuse` on the PATH and relative names.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::mountinfo::{MountInfo, mount_at, mounts};
use crate::proc::{self, wait_until};
use crate::qom_fuse;
use crate::sh::{Background, Out, quote, sh, sh_start};

/// The folder of a session, with an empty folder `mnt` in it. Dropped, what was mounted in it is unmounted, and the
/// processes that were started in it are ended.
pub struct Session {
    dir: PathBuf,
}

impl Session {
    /// A new folder.
    #[allow(clippy::new_without_default)] // nothing that makes a folder is a default
    #[track_caller]
    pub fn new() -> Session {
        // Not a TempDir, which deletes everything in it: that may still be a mount.
        let dir = tempfile::tempdir().expect("make a folder for a session").keep();
        let dir = dir.canonicalize().expect("the real path of a new folder");
        fs::create_dir(dir.join("mnt")).expect("make a mount point");
        Session { dir }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where `mnt` is.
    pub fn mnt(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// Runs a script in bash.
    #[track_caller]
    pub fn run(&self, script: &str) -> Out {
        sh(&self.script(script))
    }

    /// Starts a script in bash and does not wait for it.
    #[track_caller]
    pub fn start(&self, script: &str) -> Background {
        sh_start(&self.script(script))
    }

    fn script(&self, script: &str) -> String {
        let program = qom_fuse();
        let programs = program.parent().unwrap_or(Path::new("/"));
        let (dir, programs) = (quote(&self.dir), quote(programs));
        format!(
            "unset QMP_SOCKET QMP_SERVER RUST_LOG; export TEST_SESSION={dir} PATH={programs}:$PATH; cd {dir}\n{script}"
        )
    }

    /// What the kernel says of the mount at `mnt`, if there is one.
    pub fn info(&self) -> Option<MountInfo> {
        mount_at(&self.mnt())
    }

    /// The processes of `qom-fuse` that were started in this session.
    pub fn pids(&self) -> Vec<u32> {
        let mark = format!("TEST_SESSION={}", self.dir.display());
        proc::processes(|read| {
            let environment = read("environ");
            let mut variables = environment.split(|byte| *byte == 0);
            read("comm") == b"qom-fuse\n" && variables.any(|variable| variable == mark.as_bytes())
        })
    }

    /// Waits until nothing is mounted in it and none of its processes is left.
    #[track_caller]
    pub fn wait_ended(&self, limit: Duration) {
        let ended = || self.mounted().is_empty() && self.pids().is_empty();
        assert!(
            wait_until(limit, ended),
            "after {limit:?} still mounted: {:?}, or running: {:?}",
            self.mounted(),
            self.pids()
        );
    }

    fn mounted(&self) -> Vec<PathBuf> {
        let points = mounts().into_iter().map(|mount| mount.point);
        points.filter(|point| point.starts_with(&self.dir)).collect()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for _ in 0..2 {
            for point in self.mounted() {
                sh(&format!("fusermount3 -uz {0} || umount -l {0}", quote(&point)));
            }
            proc::end(|| self.pids());
        }
        if self.mounted().is_empty() {
            // Not into a mount that appears after all.
            sh(&format!("rm -rf --one-file-system {}", quote(&self.dir)));
        } else {
            eprintln!("{:?} are still mounted, and left so", self.mounted());
        }
    }
}
