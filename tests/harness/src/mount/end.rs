//! The end of a mount: asked for, waited for, or forced.

use super::*;
use crate::proc::end;

const FORCE: Duration = Duration::from_secs(5);

impl Mount {
    /// Unmounts as users do; the program must then end, and within 5 s.
    #[track_caller]
    pub fn unmount(&self) {
        let out = self
            .fusermount(&["-u"], Duration::from_secs(10))
            .expect("fusermount3 -u did not end");
        out.ok();
        self.wait_unmounted(FORCE);
    }

    /// Waits until nothing is mounted and no process is left to serve it.
    #[track_caller]
    pub fn wait_unmounted(&self, limit: Duration) {
        let gone = wait_until(limit, || !self.is_mounted() && self.pids().is_empty());
        let (info, pids) = (self.info(), self.pids());
        assert!(
            gone,
            "after {limit:?} still mounted ({info:?}) or served by {pids:?}: {}",
            self.log()
        );
    }

    /// Waits for the end of a mount in the foreground.
    #[track_caller]
    pub fn wait_exit(&self, limit: Duration) -> ExitStatus {
        let child = self.child.as_ref().expect("a mount in the foreground");
        let mut status = None;
        wait_until(limit, || {
            status = ended(child.id()); // reaped later: its process group is to stay its own
            status.is_some()
        });
        status.unwrap_or_else(|| panic!("qom-fuse still runs after {limit:?}: {}", self.log()))
    }

    /// Sends a signal to the process that serves it.
    #[track_caller]
    pub fn signal(&self, number: i32) {
        signal(self.pid() as i32, number);
    }

    fn fusermount(&self, options: &[&str], limit: Duration) -> Option<Out> {
        let mut command = Command::new("fusermount3");
        command
            .args(options)
            .arg("--")
            .arg(&self.point)
            .env("LC_ALL", "C");
        run(command, limit)
    }

    /// Detaches whatever is mounted, busy or not.
    fn detach(&self) {
        for _ in 0..3 {
            if !self.is_mounted() {
                return;
            }
            self.fusermount(&["-u", "-z"], FORCE);
            if self.is_mounted() {
                let mut command = Command::new("umount"); // only root may
                command.arg("-l").arg(&self.point);
                run(command, FORCE);
            }
        }
    }

    /// Ends the processes that are left.
    fn end_processes(&mut self) {
        end(|| self.pids());
        if let Some(child) = &mut self.child {
            signal(-(child.id() as i32), libc::SIGKILL); // with a QEMU that it started
            wait_until(FORCE, || !matches!(child.try_wait(), Ok(None)));
        }
    }
}

/// Runs a command; None when it cannot be run or does not end in time.
fn run(command: Command, limit: Duration) -> Option<Out> {
    let shown = format!("{command:?}");
    let captured = Running::spawn(command).ok()?.finish(limit);
    captured
        .status
        .is_some()
        .then(|| Out::from_captured(&shown, limit, captured))
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() && self.child.is_some() {
            eprintln!("--- log of the mount at {}\n{}", self.point.display(), self.log());
        }
        self.detach();
        self.end_processes();
        self.detach(); // what a process mounted meanwhile
        if self.is_mounted() {
            eprintln!("{} is still mounted, and left so", self.point.display());
            return;
        }
        for file in ["log", "stdout"] {
            fs::remove_file(self.dir.join(file)).ok(); // a mount in the background has none
        }
        // Never recursive: should a mount appear after all, this fails.
        if let Err(error) = fs::remove_dir(&self.point).and_then(|()| fs::remove_dir(&self.dir)) {
            eprintln!("{} is left: {error}", self.dir.display());
        }
    }
}
