//! Real QEMUs, paused, with one QMP socket for the mount and one for the test.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;

use crate::proc::{signal, spawn_tied, wait_until};
use crate::repository;
use crate::truth::Truth;

const DEADLINE: Duration = Duration::from_secs(20);

/// Which QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// One before 10.1, without `qom-list-get`.
    Old,
    /// One that has `qom-list-get`.
    New,
}

impl Which {
    /// Both.
    pub const ALL: [Which; 2] = [Which::Old, Which::New];

    /// The program. A missing one fails the test.
    #[track_caller]
    pub fn binary(self) -> PathBuf {
        let (variable, fallback) = match self {
            Which::Old => ("QOM_FUSE_QEMU_OLD", find_on_path("qemu-system-x86_64")),
            Which::New => {
                let fetched = repository().join("target/qemu-new/qemu-system-x86_64");
                ("QOM_FUSE_QEMU_NEW", Some(fetched))
            }
        };
        let path = env::var_os(variable).map(PathBuf::from).or(fallback);
        match path {
            Some(path) if path.is_file() => path,
            path => {
                panic!("the tests need the QEMU {self:?} at {path:?}: run scripts/test, or set {variable}")
            }
        }
    }
}

/// Makes a test for each QEMU of what a function does with a [`Which`]: `NAME::old` and `NAME::new`.
#[macro_export]
macro_rules! each_qemu {
    ($name:ident, $test:expr) => {
        mod $name {
            #[allow(unused_imports)] // what the test uses of its file
            use super::*;

            const TEST: fn($crate::Which) = $test;

            #[test]
            fn old() {
                TEST($crate::Which::Old);
            }

            #[test]
            fn new() {
                TEST($crate::Which::New);
            }
        }
    };
}

fn find_on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A running QEMU. Dropped, it is killed.
pub struct Qemu {
    child: Mutex<Child>,
    pid: u32,
    truth: Truth,
    dir: TempDir,
}

impl Qemu {
    /// Starts a machine, paused and quiet, with further arguments. One that does not start fails the test.
    #[track_caller]
    pub fn start(which: Which, machine: &str, extra: &[&str]) -> Qemu {
        Qemu::try_start(which, machine, extra)
            .unwrap_or_else(|error| panic!("QEMU {which:?} -M {machine} {extra:?}: {error}"))
    }

    /// The same for a machine that may be unable to start; the error holds what QEMU said.
    #[track_caller]
    pub fn try_start(which: Which, machine: &str, extra: &[&str]) -> Result<Qemu, String> {
        let dir = tempfile::tempdir().expect("make a folder for QEMU");
        let log = File::create(dir.path().join("log")).expect("create QEMU's log");
        let mut command = Command::new(which.binary());
        command.args(["-M", machine, "-display", "none", "-nodefaults", "-S", "-m", "64"]);
        for socket in ["qmp.sock", "truth.sock"] {
            let path = dir.path().join(socket);
            let path = path
                .to_str()
                .expect("a temporary folder with a name in UTF-8")
                .replace(',', ",,");
            command.args(["-qmp", &format!("unix:{path},server=on,wait=off")]);
        }
        command.args(extra).stdin(Stdio::null());
        command
            .stdout(log.try_clone().expect("share QEMU's log"))
            .stderr(log);
        let mut child = spawn_tied(command).map_err(|error| format!("cannot be run: {error}"))?;

        // QEMU opens its sockets in their order, before it answers on any: once the truth answers, both accept.
        let end = Instant::now() + DEADLINE;
        let truth = loop {
            let error = match Truth::connect(&dir.path().join("truth.sock")) {
                Ok(truth) => break truth,
                Err(error) => error,
            };
            let status = child.try_wait().expect("ask whether QEMU has ended");
            if status.is_some() || Instant::now() >= end {
                let state = status.map_or(format!("does not answer: {error}"), |status| {
                    format!("ended, {status}")
                });
                child
                    .kill()
                    .and_then(|()| child.wait())
                    .expect("end a QEMU that does not start");
                return Err(format!("{state}:\n{}", read_log(dir.path())));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Ok(Qemu {
            pid: child.id(),
            child: Mutex::new(child),
            truth,
            dir,
        })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The QMP socket for the mount.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("qmp.sock")
    }

    /// The test's own connection, which the mount has no part in.
    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    /// Sets a property, as another client of its monitor. A refusal fails the test.
    #[track_caller]
    pub fn set(&self, path: &str, name: &str, value: Value) {
        let result = self.truth.set(path, name, value.clone());
        result.unwrap_or_else(|error| panic!("set {path} {name} to {value}: {error:?}"));
    }

    /// Its folder, which a test may put files into.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        read_log(self.dir.path())
    }

    /// Stops the process as SIGSTOP does: it answers nothing until [`Qemu::cont`].
    #[track_caller]
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let stopped = || {
            let status = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
            let state = status
                .rsplit(") ")
                .next()
                .and_then(|fields| fields.chars().next());
            state == Some('T')
        };
        assert!(wait_until(DEADLINE, stopped), "QEMU did not stop");
    }

    /// Lets it go on.
    #[track_caller]
    pub fn cont(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Kills it.
    #[track_caller]
    pub fn kill(&self) {
        let mut child = self.child.lock();
        child.kill().expect("kill QEMU");
        let ended = wait_until(DEADLINE, || child.try_wait().expect("wait for QEMU").is_some());
        assert!(ended, "QEMU outlived SIGKILL");
    }

    /// Waits for its own end.
    #[track_caller]
    pub fn wait_exit(&self, limit: Duration) -> ExitStatus {
        let mut status = None;
        wait_until(limit, || {
            status = self.child.lock().try_wait().expect("wait for QEMU");
            status.is_some()
        });
        status.unwrap_or_else(|| panic!("QEMU still runs after {limit:?}"))
    }

    #[track_caller]
    fn signal(&self, number: i32) {
        let mut child = self.child.lock(); // held, so that the process cannot be reaped meanwhile
        let ended = child.try_wait().expect("ask whether QEMU has ended");
        assert!(
            ended.is_none(),
            "QEMU has ended, {ended:?}: {}",
            read_log(self.dir.path())
        );
        signal(self.pid as i32, number);
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        child.kill().ok(); // reaches a stopped process too; fails only if it has ended
        if !wait_until(DEADLINE, || !matches!(child.try_wait(), Ok(None))) {
            eprintln!("QEMU {} outlived SIGKILL", self.pid);
        }
    }
}

fn read_log(dir: &Path) -> String {
    let text = fs::read(dir.join("log")).unwrap_or_else(|error| error.to_string().into_bytes());
    String::from_utf8_lossy(&text).into_owned()
}
