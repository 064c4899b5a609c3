//! How a mount is started.

use std::os::fd::{AsRawFd, RawFd};

use super::*;
use crate::qom_fuse;

/// How to start a mount: `qom-fuse [args] [socket] MOUNTPOINT [after] [-- command]`.
#[derive(Clone)]
pub struct Launch {
    program: PathBuf,
    args: Vec<OsString>,
    socket: Option<OsString>,
    after: Vec<OsString>,
    command: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    inherited: Vec<RawFd>,
    name: OsString,
}

impl Default for Launch {
    fn default() -> Self {
        Launch::new()
    }
}

impl Launch {
    /// The program under test, with neither options nor socket.
    pub fn new() -> Launch {
        Launch {
            program: qom_fuse(),
            args: Vec::new(),
            socket: None,
            after: Vec::new(),
            command: Vec::new(),
            env: Vec::new(),
            inherited: Vec::new(),
            name: "mnt".into(),
        }
    }

    /// Adds options before the socket.
    pub fn args<S: AsRef<OsStr>>(mut self, args: &[S]) -> Launch {
        self.args.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Names the socket, in any form that the program takes.
    pub fn socket(mut self, socket: impl AsRef<OsStr>) -> Launch {
        self.socket = Some(socket.as_ref().to_owned());
        self
    }

    /// Adds options after the mount point.
    pub fn after<S: AsRef<OsStr>>(mut self, args: &[S]) -> Launch {
        self.after.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Adds `--` and the command of a QEMU for the program to start.
    pub fn command<S: AsRef<OsStr>>(mut self, command: &[S]) -> Launch {
        self.command
            .extend(command.iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable, such as `RUST_LOG`.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Launch {
        self.env
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Lets the program inherit a descriptor under its number. It must stay open until the program runs.
    pub fn inherit(mut self, fd: &impl AsRawFd) -> Launch {
        self.inherited.push(fd.as_raw_fd());
        self
    }

    /// Runs another program in place of the one under test; it must be named `qom-fuse` too.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Launch {
        self.program = program.into();
        self
    }

    /// Names the mount point, which lies in a folder of its own.
    pub fn name(mut self, name: impl AsRef<OsStr>) -> Launch {
        self.name = name.as_ref().to_owned();
        self
    }

    /// Runs the program until it returns, having left a daemon behind. Whether it succeeds or says why not, it must
    /// return in time and leave nobody holding its output, and only a success may leave a mount.
    #[track_caller]
    pub fn background(self) -> Result<Mount, Out> {
        let mut mount = Mount::prepare(&self.name);
        let command = self.build(&[], &mount);
        let shown = format!("{command:?}");
        let running = Running::spawn(command).unwrap_or_else(|error| panic!("{shown}: {error}"));
        let out = Out::from_captured(&shown, START, running.finish(START));
        if out.status != 0 {
            assert!(!mount.is_mounted(), "failed, but left a mount: {out}");
            return Err(out);
        }
        assert!(mount.is_mounted(), "succeeded, but mounted nothing: {out}");
        mount.output = Some(out);
        Ok(mount)
    }

    /// Runs the program with `-f` (or as it is, when it starts a QEMU) and waits until its mount answers.
    #[track_caller]
    pub fn foreground(self) -> Mount {
        let mut mount = Mount::prepare(&self.name);
        let file = |name: &str| File::create(mount.dir.join(name)).expect("create the log of a mount");
        let mut command = self.build(if self.command.is_empty() { &["-f"] } else { &[] }, &mount);
        command
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("log"))
            .process_group(0);
        let shown = format!("{command:?}");
        let child = spawn_tied(command).unwrap_or_else(|error| panic!("{shown}: {error}"));
        let pid = child.id();
        mount.child = Some(child);

        let outside = lstat(&mount.dir).expect("stat the mount point's parent").st_dev;
        let end = Instant::now() + START;
        let ready = || ended(pid).is_some() || lstat(&mount.point).is_ok_and(|stat| stat.st_dev != outside);
        let answered = wait_until(end - Instant::now(), ready);
        assert!(
            answered,
            "{shown}: mounted nothing within {START:?}: {}",
            mount.log()
        );
        assert!(ended(pid).is_none(), "{shown}: ended: {}", mount.log());
        mount
    }

    fn build(&self, extra: &[&str], mount: &Mount) -> Command {
        let mut command = Command::new(&self.program);
        for variable in ["QMP_SOCKET", "QMP_SERVER", "RUST_LOG"] {
            command.env_remove(variable);
        }
        command
            .env("LC_ALL", "C")
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
            .args(extra)
            .args(&self.args)
            .args(&self.socket)
            .arg(&mount.point)
            .args(&self.after);
        if !self.command.is_empty() {
            command.arg("--").args(&self.command);
        }
        let inherited = self.inherited.clone();
        // SAFETY: fcntl is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                for fd in &inherited {
                    if libc::fcntl(*fd, libc::F_SETFD, 0) != 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        command
    }
}
