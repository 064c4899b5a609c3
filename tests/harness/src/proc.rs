//! Child processes that cannot outlive the test process, nor hold it beyond a deadline.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Polls `ready` until it says true; false when it did not within `limit`.
pub fn wait_until(limit: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_micros(200);
    loop {
        if ready() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Spawns a command whose process the kernel kills when the test process ends, however that ends.
///
/// The kernel's parent-death signal fires when the *thread* that spawned the child ends, and a test's thread ends with
/// the test; so one thread that lives as long as the process spawns all children. A child may thus be shared between
/// tests. The signal does not reach grandchildren, nor a daemon, which is one.
pub fn spawn_tied(mut command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();

    let parent = std::process::id();
    // SAFETY: signal, prctl, getppid and _exit are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            // As in a terminal, even if the tests were started by nohup or in the background.
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                libc::signal(signal, libc::SIG_DFL);
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() as u32 != parent {
                libc::_exit(127); // the test process ended before the prctl
            }
            Ok(())
        });
    }
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, answer) in queue {
                    answer.send(command.spawn()).ok(); // fails only if the asker is gone
                }
            })
            .expect("start the spawner thread");
        jobs
    });
    let (answer, result) = mpsc::channel();
    spawner
        .send((command, answer))
        .expect("the spawner thread is gone");
    result.recv().expect("the spawner thread is gone")
}

/// The exit status of a child that has ended. It is not reaped, so its number stays its own and can still be signalled.
pub fn ended(pid: u32) -> Option<ExitStatus> {
    // SAFETY: siginfo_t is plain data; waitid fills it.
    let info = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        let result = libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, options);
        assert!(
            result == 0,
            "process {pid} is not a child of the tests, or reaped"
        );
        info
    };
    // SAFETY: waitid set the fields of a child that has ended; all are zero when none has.
    let (ended, status) = unsafe { (info.si_pid() != 0, info.si_status()) };
    let raw = if info.si_code == libc::CLD_EXITED {
        status << 8
    } else {
        status
    };
    ended.then(|| ExitStatus::from_raw(raw))
}

/// The parent of a process, if it still runs.
pub fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
}

/// The processes of which `ours` says so, by their number and what is in a file of `/proc/PID/` for them.
pub fn processes(ours: impl Fn(&dyn Fn(&str) -> Vec<u8>) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("list /proc").filter_map(Result::ok);
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let read = |pid, name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default(); // it may end
    numbers
        .filter(|pid: &u32| ours(&|name| read(*pid, name)))
        .collect()
}

/// Ends processes: SIGTERM, and 3 s later SIGKILL. They are asked for anew each time, for they may start others.
pub fn end(pids: impl Fn() -> Vec<u32>) {
    for (number, limit) in [(libc::SIGTERM, 3), (libc::SIGKILL, 2)] {
        for pid in pids() {
            signal(pid as i32, number);
        }
        if wait_until(Duration::from_secs(limit), || pids().is_empty()) {
            break;
        }
    }
}

/// Whether a process runs; one that nobody has waited for has ended too.
pub fn alive(pid: i32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")); // empty once it has ended
    line.is_ok_and(|line| !line.is_empty())
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    // SAFETY: a plain system call.
    unsafe { libc::geteuid() == 0 }
}

/// Sends a signal to a process, or to a process group when `pid` is negative; one that is gone does not matter.
pub fn signal(pid: i32, signal: i32) {
    assert!(pid != 0 && pid != -1, "would signal more than was started");
    // SAFETY: a plain system call.
    unsafe { libc::kill(pid, signal) };
}

/// What a finished command left.
pub struct Captured {
    /// None when the deadline passed first.
    pub status: Option<ExitStatus>,
    /// The command itself ended; without a status: something that it left behind still holds its output.
    pub exited: bool,
    /// Everything it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// Everything it wrote to its standard error.
    pub stderr: Vec<u8>,
}

/// A command running in a process group of its own, its output captured. Dropped, it is killed with its group.
pub struct Running {
    child: Child,
    pipes: [Pipe; 2],
    reaped: bool,
}

struct Pipe {
    file: Option<File>, // None after end of file
    bytes: Vec<u8>,
}

impl Running {
    /// Starts the command with no input.
    pub fn spawn(mut command: Command) -> io::Result<Running> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = spawn_tied(command)?;
        let pipe = |fd: OwnedFd| Pipe {
            file: Some(File::from(fd)),
            bytes: Vec::new(),
        };
        let stdout = pipe(child.stdout.take().expect("stdout is piped").into());
        let stderr = pipe(child.stderr.take().expect("stderr is piped").into());
        Ok(Running {
            child,
            pipes: [stdout, stderr],
            reaped: false,
        })
    }

    /// The process started; also the number of its process group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the command and of its output. When `limit` passes first, its group is killed.
    pub fn finish(mut self, limit: Duration) -> Captured {
        let end = Instant::now() + limit;
        let drained = drain(&mut self.pipes, end);
        let left = end.saturating_duration_since(Instant::now());
        // Not reaped before the group is done with: the group's number must not pass to another.
        let exited = wait_until(if drained { left } else { Duration::ZERO }, || {
            ended(self.pid()).is_some()
        });
        let status = (drained && exited).then(|| self.child.wait().expect("reap a child that has ended"));
        self.reaped = status.is_some();
        let [stdout, stderr] = &mut self.pipes;
        Captured {
            status,
            exited,
            stdout: std::mem::take(&mut stdout.bytes),
            stderr: std::mem::take(&mut stderr.bytes),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        signal(-(self.pid() as i32), libc::SIGKILL);
        // One inside a request that a mount does not answer outlives even SIGKILL: it is left, not waited for.
        wait_until(Duration::from_secs(2), || {
            !matches!(self.child.try_wait(), Ok(None))
        });
    }
}

/// Reads both pipes to their end; false when the deadline came first.
fn drain(pipes: &mut [Pipe; 2], end: Instant) -> bool {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut polled: Vec<libc::pollfd> = Vec::with_capacity(2);
        for file in pipes.iter().filter_map(|pipe| pipe.file.as_ref()) {
            polled.push(libc::pollfd {
                fd: file.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            });
        }
        if polled.is_empty() {
            return true;
        }
        if !poll(&mut polled, end) {
            return false;
        }
        for pipe in pipes.iter_mut() {
            let Some(file) = &mut pipe.file else { continue };
            let fd = file.as_raw_fd();
            if !polled.iter().any(|entry| entry.fd == fd && entry.revents != 0) {
                continue;
            }
            match file.read(&mut buffer) {
                Ok(0) => pipe.file = None,
                Ok(length) => pipe.bytes.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => panic!("reading the output of a child: {error}"),
            }
        }
    }
}

/// Waits for one of the descriptors; false when the deadline came first.
pub fn poll(polled: &mut [libc::pollfd], end: Instant) -> bool {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let millis = left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
        // SAFETY: the slice is valid for its length.
        match unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, millis) } {
            0 if millis == 0 => return false,
            0 => {}
            -1 => {
                let error = io::Error::last_os_error();
                assert!(error.kind() == io::ErrorKind::Interrupted, "poll: {error}");
            }
            _ => return true,
        }
    }
}
