//! libvirt's way to the monitor of a domain: its own program `virt-qemu-qmp-proxy`.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid, mkdtemp};
use socket2::Socket;

use crate::qmp::{connect_held, hold};
use crate::text::printable;

const PROGRAM: &str = "virt-qemu-qmp-proxy";
/// The longest path of a folder in which a socket can be made.
const LONGEST_FOLDER: usize = 80;
/// How often it is looked for what nothing announces.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A running `virt-qemu-qmp-proxy`. It is killed when this is dropped, and when the thread that started it ends, be it
/// by SIGKILL.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    /// What it prints.
    output: File,
    /// Where it listens once it does: opened under a name that is gone since, so that nobody else sees it, and nothing
    /// of it stays.
    socket: Option<OwnedFd>,
    /// Which libvirt it asks.
    libvirt: String,
    /// Nobody waits for it any more.
    given_up: Arc<AtomicBool>,
}

impl Proxy {
    /// Starts one for the domain of this name, UUID or id, and connects to it, unless that is `given_up`.
    ///
    /// # Errors
    /// What libvirt says, or what is missing.
    pub fn start(
        domain: &str,
        uri: &str,
        deadline: Instant,
        given_up: Arc<AtomicBool>,
    ) -> io::Result<(Proxy, Socket)> {
        let folder = Folder::new()?;
        let path = folder.0.join("s");
        let mut folder = Some(folder);
        let output = File::from(memfd_create(c"proxy", MFdFlags::MFD_CLOEXEC)?);
        let mut proxy = Proxy {
            child: command(domain, uri, &path, &output)?.spawn()?,
            output,
            socket: None,
            libvirt: format!("libvirt ({})", printable(uri)),
            given_up,
        };
        loop {
            proxy.check(deadline)?;
            if proxy.socket.is_none()
                && let Ok(socket) = hold(&path)
            {
                proxy.socket = Some(socket);
                // Nobody else needs its name.
                drop(folder.take());
            }
            match proxy.connect(deadline) {
                // It has not made it yet, or does not listen there yet.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) => {}
                outcome => return outcome.map(|socket| (proxy, socket)),
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Connects, and waits until it begins to speak: it first asks libvirt for the version of its QEMU.
    ///
    /// # Errors
    /// Why it does not.
    pub fn connect(&mut self, deadline: Instant) -> io::Result<Socket> {
        let held = self.socket.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let socket = connect_held(held, deadline)?;
        let interval = PollTimeout::try_from(POLL_INTERVAL).unwrap_or(PollTimeout::ZERO);
        loop {
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            if matches!(poll(&mut fds, interval), Ok(n) if n > 0) {
                break;
            }
            self.check(deadline)?;
        }
        match socket.peek(&mut [MaybeUninit::uninit()])? {
            0 => Err(self.failure()),
            _ => Ok(socket),
        }
    }

    /// Fails when it has ended, or its time is over.
    fn check(&mut self, deadline: Instant) -> io::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Err(self.failure());
        }
        if Instant::now() < deadline && !self.given_up.load(Ordering::Relaxed) {
            return Ok(());
        }
        let libvirt = &self.libvirt;
        Err(io::Error::other(format!("{libvirt} does not answer in time")))
    }

    /// The last line that it has printed: libvirt's words, if it could not go on.
    fn failure(&mut self) -> io::Error {
        let mut text = Vec::new();
        let read = self
            .output
            .rewind()
            .and_then(|()| self.output.read_to_end(&mut text));
        let text = read.map_or_else(|e| e.to_string(), |_| String::from_utf8_lossy(&text).into_owned());
        let line = text.lines().rfind(|line| !line.trim().is_empty());
        let line = line.unwrap_or("it gives no reason");
        let words = line
            .split_once(&format!("{PROGRAM}: "))
            .map_or(line, |(_, words)| words);
        io::Error::other(format!("{}: {}", self.libvirt, printable(words)))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// The proxy's command line: it prints what there is to say, and takes nothing else of ours.
fn command(domain: &str, uri: &str, socket: &Path, output: &File) -> io::Result<Command> {
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let program = env::split_paths(&path)
        .map(|folder| folder.join(PROGRAM))
        .find(|file| file.is_file());
    let program = program.ok_or_else(|| {
        io::Error::other(format!(
            "libvirt holds its monitor, and {PROGRAM} is not installed, which lends it out: it is in the package \
             libvirt-clients-qemu (Fedora: libvirt-client-qemu)"
        ))
    })?;
    // libvirt's modules are the system's Python's.
    let mut python_first = std::ffi::OsString::from("/usr/bin:");
    python_first.push(&path);
    let mut command = Command::new(program);
    // What it says is looked at, not only shown.
    command.env("PATH", python_first).env("LC_ALL", "C");
    command.args(["-c", uri, "--", domain]).arg(socket);
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?);
    // What interrupts us is not to end it before us.
    command.process_group(0);
    let parent = getpid();
    // SAFETY: between fork and exec only functions are called that are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            match getppid() == parent {
                true => Ok(()),
                false => Err(io::ErrorKind::NotConnected.into()),
            }
        });
    }
    Ok(command)
}

/// A folder of mode 0700 for a socket, as long as this is not dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Folder> {
        let at = Some(env::temp_dir()).filter(|at| at.as_os_str().len() <= LONGEST_FOLDER);
        let name = at.unwrap_or_else(|| "/tmp".into()).join("qom-fuse-XXXXXX");
        let made = mkdtemp(&name).map_err(|e| {
            io::Error::other(format!(
                "cannot make a folder for a socket, {}: {e}",
                name.display()
            ))
        })?;
        Ok(Folder(made))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
