//! Shell commands, with a deadline each.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use crate::proc::{Captured, Running};

/// The deadline of [`sh`].
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What a command did.
#[derive(Clone, Debug)]
pub struct Out {
    /// The command, for messages.
    pub command: String,
    /// Its exit status; 128 + N when signal N ended it.
    pub status: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Out {
    /// Fails the test, with all details, unless the command succeeded.
    #[track_caller]
    pub fn ok(&self) -> &Self {
        assert!(self.status == 0, "{self}");
        self
    }

    /// Fails the test, with all details, unless the command failed.
    #[track_caller]
    pub fn fails(&self) -> &Self {
        assert!(self.status != 0, "succeeded, but should not: {self}");
        self
    }

    /// Fails the test, with all details, unless the command ended with this status.
    #[track_caller]
    pub fn exits(&self, status: i32) -> &Self {
        assert!(self.status == status, "not {status}: {self}");
        self
    }

    /// Fails the test, with all details, unless the standard error has these words.
    #[track_caller]
    pub fn says(&self, words: &str) -> &Self {
        assert!(self.stderr.contains(words), "{words:?} is not said: {self}");
        self
    }

    /// Fails the test, with all details, unless the standard output has these words.
    #[track_caller]
    pub fn shows(&self, words: &str) -> &Self {
        assert!(self.text().contains(words), "{words:?} is not shown: {self}");
        self
    }

    /// The standard output without the newline at its end.
    #[track_caller]
    pub fn text(&self) -> &str {
        let text =
            std::str::from_utf8(&self.stdout).unwrap_or_else(|error| panic!("not UTF-8: {error}: {self}"));
        text.strip_suffix('\n').unwrap_or(text)
    }

    /// The lines of the standard output.
    #[track_caller]
    pub fn lines(&self) -> Vec<&str> {
        self.text().lines().collect()
    }

    /// From a captured command; panics if that did not end in time.
    #[track_caller]
    pub(crate) fn from_captured(command: &str, limit: Duration, captured: Captured) -> Out {
        let Captured {
            status,
            exited,
            stdout,
            stderr,
        } = captured;
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        let Some(status) = status else {
            let what = if exited {
                "ended, but what it left behind holds its output"
            } else {
                "did not end"
            };
            let stdout = String::from_utf8_lossy(&stdout);
            panic!("HUNG: {command}\n{what} within {limit:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        };
        Out {
            command: command.to_owned(),
            status: code(status),
            stdout,
            stderr,
        }
    }
}

impl std::fmt::Display for Out {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Out {
            command,
            status,
            stdout,
            stderr,
        } = self;
        let stdout = String::from_utf8_lossy(stdout);
        write!(
            f,
            "{command}\nexit status {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
    }
}

/// The exit status as a shell shows it.
pub fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Runs a command in bash, in the C locale, with no input.
#[track_caller]
pub fn sh(command: &str) -> Out {
    sh_deadline(command, DEADLINE)
}

/// Runs a command in bash in a folder, which may be a mount.
#[track_caller]
pub fn sh_in(dir: impl AsRef<Path>, command: &str) -> Out {
    sh(&format!("cd -- {} || exit\n{command}", quote(dir)))
}

/// Runs a command in bash; when it does not end within `limit`, kills its process group and fails the test.
#[track_caller]
pub fn sh_deadline(command: &str, limit: Duration) -> Out {
    let captured = spawn(command).finish(limit);
    Out::from_captured(command, limit, captured)
}

/// A command running in the background; dropped, it is killed with all that it started.
pub struct Background {
    command: String,
    running: Running,
}

/// Starts a command in bash and does not wait for it.
#[track_caller]
pub fn sh_start(command: &str) -> Background {
    Background {
        command: command.to_owned(),
        running: spawn(command),
    }
}

impl Background {
    /// The process of its bash.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Waits for its end, as [`sh_deadline`] does.
    #[track_caller]
    pub fn finish(self, limit: Duration) -> Out {
        let captured = self.running.finish(limit);
        Out::from_captured(&self.command, limit, captured)
    }
}

#[track_caller]
fn spawn(command: &str) -> Running {
    let mut bash = Command::new("bash");
    bash.arg("-c").arg(command).env("LC_ALL", "C");
    Running::spawn(bash).unwrap_or_else(|error| panic!("cannot start bash: {error}"))
}

/// A path as one word of a shell command.
#[track_caller]
pub fn quote(path: impl AsRef<Path>) -> String {
    let path: &OsStr = path.as_ref().as_os_str();
    let text = std::str::from_utf8(path.as_bytes()).unwrap_or_else(|_| panic!("{path:?} is not UTF-8"));
    format!("'{}'", text.replace('\'', r"'\''"))
}
