//! The process that the shell waits for, the daemon, and what they hand on to others.

use std::fs::OpenOptions;
use std::io::{self, PipeWriter, Read, Write};
use std::process::exit;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, setsid};

/// Tells the process that the shell waits for that the mount answers.
pub struct Readiness {
    pipe: PipeWriter,
}

/// Goes to the background: returns in a child process. The calling process stays until
/// [`Readiness::ready`] and exits 0 then, or with the child's status when that ends before.
/// To be called while there is one thread only.
///
/// # Errors
/// When the system is out of processes or descriptors.
pub fn daemonize() -> io::Result<Readiness> {
    let (mut read, write) = io::pipe()?;
    // SAFETY: there is no other thread yet, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(read);
            Ok(Readiness { pipe: write })
        }
        ForkResult::Parent { child } => {
            drop(write);
            let mut byte = [0];
            if read.read_exact(&mut byte).is_ok() {
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

/// Lets go of the terminal, or whatever else standard input, output and error are.
///
/// # Errors
/// When /dev/null cannot be opened.
pub(crate) fn release_stdio() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}
