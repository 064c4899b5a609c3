//! The processes of a mount: the one that the shell waits for, the daemon, and the guard.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::{Command, exit};

use log::{error, info, warn};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid, pipe, setsid};

use super::device::Mounted;
use crate::cli::SOCKET_VARIABLES;

/// Keeps from a program that we start where our machine's monitor is.
pub fn hide_monitor(command: &mut Command) -> &mut Command {
    SOCKET_VARIABLES
        .iter()
        .fold(command, |command, name| command.env_remove(name))
}

/// Tells the process that the shell waits for that the mount answers.
pub struct Readiness {
    pipe: File,
}

/// Goes to the background: returns in a child process. The calling process stays until
/// [`Readiness::ready`] and exits 0 then, or with the child's status when that ends before.
/// To be called while there is one thread only.
///
/// # Errors
/// When the system is out of processes or descriptors.
pub fn daemonize() -> io::Result<Readiness> {
    let (read, write) = pipe_cloexec()?;
    // SAFETY: there is no other thread yet, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(read);
            Ok(Readiness { pipe: write.into() })
        }
        ForkResult::Parent { child } => {
            drop(write);
            let mut byte = [0];
            if File::from(read).read_exact(&mut byte).is_ok() {
                exit(0);
            }
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, status)) => exit(status),
                // The daemon was killed before it could say what is wrong.
                _ => exit(1),
            }
        }
    }
}

impl Readiness {
    /// Lets go of the terminal, and lets the shell go on. Only now: until then, what
    /// interrupts the command is to interrupt this process too.
    ///
    /// # Errors
    /// When nobody waits any more, or /dev/null cannot be opened.
    pub fn ready(mut self) -> io::Result<()> {
        setsid()?;
        release_stdio()?;
        self.pipe.write_all(&[1])
    }
}

fn pipe_cloexec() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe()?;
    for end in [&read, &write] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    Ok((read, write))
}

fn release_stdio() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}

/// Tells a service manager that the mount answers, if one started us and wants to know: the
/// protocol of sd_notify(3).
pub fn notify_service_manager() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(b"READY=1\n", &address?));
    if let Err(e) = sent {
        warn!("cannot tell the service manager: {e}");
    }
}

/// A process that unmounts when this one is killed: a mount without its daemon would answer
/// every access with "Transport endpoint is not connected", and stay.
pub struct Guard {
    pipe: File,
}

/// Starts the guard. To be called while there is one thread only, and before anything is
/// opened that must end with this process. `on_start` runs in the guard.
///
/// # Errors
/// When the system is out of processes or descriptors.
pub fn start_guard(on_start: impl FnOnce()) -> io::Result<Guard> {
    let (read, write) = pipe_cloexec()?;
    let parent = getpid();
    // SAFETY: there is no other thread yet, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => {
            drop(read);
            Ok(Guard { pipe: write.into() })
        }
        ForkResult::Child => {
            drop(write);
            stand_guard(File::from(read), parent, on_start);
            exit(0);
        }
    }
}

impl Guard {
    /// Tells the guard what to take care of.
    ///
    /// # Errors
    /// When the guard is gone.
    pub fn watch(&mut self, mounted: &Mounted) -> io::Result<()> {
        let unique = mounted.unique.unwrap_or_default();
        let mut message = format!("{} {unique} {} ", mounted.id, mounted.device).into_bytes();
        message.extend(mounted.point.as_os_str().as_bytes());
        message.push(0);
        self.pipe.write_all(&message)
    }

    /// Tells the guard that there is nothing left to do.
    pub fn dismiss(mut self) {
        let _ = self.pipe.write_all(&[0]);
    }
}

fn stand_guard(mut pipe: File, parent: Pid, on_start: impl FnOnce()) {
    let own = pipe.as_raw_fd();
    // SAFETY: plain system calls on descriptors and signals of this process, which has one
    // thread. Whatever else was inherited must not be kept open here.
    unsafe {
        if own > 3 {
            libc::syscall(libc::SYS_close_range, 3, own - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, own + 1, libc::c_int::MAX, 0);
        // The daemon gets these too and ends in good order, or does not: then it is our turn.
        for signal in [
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGPIPE,
        ] {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
    let _ = setsid();
    let _ = std::env::set_current_dir("/");
    let _ = release_stdio();
    let message = hear(&mut pipe, parent);
    let mut parts = message.split(|b| *b == 0);
    let Some(mounted) = parts.next().and_then(parse_watch) else {
        return;
    };
    // The first NUL ends the mount's path, a second one says that the daemon ended in order.
    if message.iter().filter(|b| **b == 0).count() != 1 {
        return;
    }
    on_start();
    match mounted.unmount_dead() {
        Ok(()) => info!("{}: its daemon died; unmounted", mounted.point.display()),
        Err(e) => error!("{}: its daemon died, and: {e}", mounted.point.display()),
    }
}

/// Everything that the daemon says until it ends, or its main thread does: a killed process keeps its end
/// of the pipe for as long as one of its threads waits in the kernel.
fn hear(pipe: &mut File, parent: Pid) -> Vec<u8> {
    extern "C" fn interrupt(_: libc::c_int) {}

    let mut message = Vec::new();
    let handler = SigAction::new(SigHandler::Handler(interrupt), SaFlags::empty(), SigSet::empty());
    let mut only = SigSet::empty();
    only.add(Signal::SIGUSR1);
    // It comes only while it is waited for, and then the wait ends with it.
    let set = only.thread_block().and_then(|()| {
        // SAFETY: the handler does nothing.
        unsafe { sigaction(Signal::SIGUSR1, &handler) }?;
        set_pdeathsig(Signal::SIGUSR1)
    });
    if let Err(e) = set {
        warn!("the end of the daemon may go unnoticed: {e}");
    }
    let mut buffer = [0; 4096];
    while getppid() == parent {
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, None, Some(SigSet::empty())) {
            Ok(_) => match pipe.read(&mut buffer) {
                Ok(0) | Err(_) => return message,
                Ok(n) => message.extend(&buffer[..n]),
            },
            // Its main thread has ended.
            Err(_) => break,
        }
    }
    // What is in the pipe is still said; and it may have ended in good order just now.
    let flags = FcntlArg::F_SETFL(OFlag::O_NONBLOCK);
    if fcntl(&*pipe, flags).is_ok() {
        let _ = pipe.read_to_end(&mut message);
    }
    message
}

/// Reads what [`Guard::watch`] wrote.
fn parse_watch(message: &[u8]) -> Option<Mounted> {
    let mut fields = message.splitn(4, |b| *b == b' ');
    let mut word = || std::str::from_utf8(fields.next()?).ok();
    let (id, unique, device) = (word()?.parse().ok()?, word()?.parse().ok()?, word()?.to_owned());
    let point = fields.next()?.to_vec();
    Some(Mounted {
        id,
        unique: (unique != 0).then_some(unique),
        device,
        point: PathBuf::from(std::ffi::OsString::from_vec(point)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guard_is_told() {
        let (read, write) = pipe_cloexec().unwrap();
        let mounted = Mounted {
            id: 7,
            unique: Some(1 << 40),
            device: "0:98".into(),
            point: "/mnt/a b".into(),
        };
        let mut guard = Guard { pipe: write.into() };
        guard.watch(&mounted).unwrap();
        guard.dismiss();
        let mut message = Vec::new();
        File::from(read).read_to_end(&mut message).unwrap();
        assert_eq!(message.pop(), Some(0));
        assert_eq!(parse_watch(message.strip_suffix(b"\0").unwrap()), Some(mounted));
        assert_eq!(parse_watch(b""), None);
    }
}
