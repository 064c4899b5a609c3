//! The life of a mount, in stages: check, connect, mount, serve, go to the background, wait, leave.

mod background;
mod connect;
mod events;
mod leave;
pub mod logging;
pub mod machine;
mod mount;
mod serve;
mod signals;
mod wait;
mod watchdog;

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::cli::{Config, SOCKET_VARIABLES};
use crate::fs::Tree;
use crate::fuse::pool::Pool;
use crate::qom::Identity;
use background::Readiness;
use events::Event;
use machine::Machine;
use machine::finder::Finder;
use machine::names::NameError;
use mount::mounted::Mounted;
use signals::{EndAtOnce, Inherited};
use watchdog::Watchdog;

/// Why no mount came about.
#[derive(Debug)]
pub struct Error {
    /// What was wrong, for the user. None: the QEMU that we started ended, and has said why.
    pub message: Option<String>,
    /// The exit status for it.
    pub status: u8,
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Error {
        Error {
            message: Some(error.to_string()),
            status: 1,
        }
    }
}

/// Says what failed.
fn failed<E: Display>(what: impl Display) -> impl FnOnce(E) -> Error {
    move |why| Error {
        message: Some(format!("{what}: {why}")),
        status: 1,
    }
}

/// A mount and what belongs to it, as far as it has come about.
struct Daemon {
    config: Config,
    watchdog: Watchdog,
    sender: Sender<Event>,
    events: Receiver<Event>,
    machine: Option<Machine>,
    /// Of a machine that was named.
    finder: Option<Arc<Finder>>,
    tree: Arc<Tree>,
    /// The machine that was connected last.
    last_machine: Arc<Mutex<Option<Identity>>>,
    mounted: Option<Mounted>,
    /// To the kernel.
    connection: Option<OwnedFd>,
    pool: Option<Arc<Pool>>,
    /// A signal has come: a QEMU of ours is to end too.
    ends_machine: bool,
}

/// Mounts, serves and unmounts; returns the exit status of the process. In the background
/// form, the calling process exits as soon as the mount answers and this returns in another.
/// To be called while there is one thread only.
///
/// # Errors
/// Before the mount answers; nothing is left of it then.
pub fn run(mut config: Config) -> Result<u8, Error> {
    let inherited = Inherited::take().map_err(failed("cannot handle signals"))?;
    check(&mut config)?;
    let at_once = EndAtOnce::begin(&config).map_err(failed("cannot handle signals"))?;
    let readiness = match config.foreground {
        true => None,
        false => Some(background::daemonize().map_err(failed("cannot go to the background"))?),
    };
    let open_log = || direct_log(&config).unwrap_or_default();
    let watchdog = Watchdog::start(open_log).map_err(failed("cannot start a process"))?;
    let mut daemon = Daemon::connect(config, inherited, watchdog)?;
    drop(at_once);
    let outcome = daemon.live(readiness);
    daemon.leave(outcome)
}

/// Checks what can be checked without QEMU; makes paths absolute.
fn check(config: &mut Config) -> Result<(), Error> {
    let shown = format!("mount point {}", config.mount_point.display());
    let point = mount::check_point(&config.mount_point).map_err(failed(&shown))?;
    if mount::is_mount_of(&point, &config.mount.fs_type()) {
        let point = config.mount_point.display();
        let why = format!("a QEMU is mounted there already (fusermount3 -u {point} takes it away)");
        return Err(failed(shown)(why));
    }
    config.mount.fs.mount_point = point;
    if let Some(file) = &mut config.log_file {
        *file = std::path::absolute(&file).map_err(failed("working directory"))?;
    }
    // Nothing that we start is to know where our machine's monitor is.
    for name in SOCKET_VARIABLES {
        // SAFETY: there is no other thread yet.
        unsafe { std::env::remove_var(name) };
    }
    Ok(())
}

/// Where the log goes once the mount answers.
fn direct_log(config: &Config) -> Result<(), Error> {
    match &config.log_file {
        Some(path) => {
            logging::to_file(path).map_err(failed(format!("log file {}", path.display())))?;
        }
        None if !config.foreground => logging::to_syslog(),
        None => {}
    }
    Ok(())
}

impl Daemon {
    /// All that may go wrong, until the mount ends: why it does.
    fn live(&mut self, readiness: Option<Readiness>) -> Result<Event, Error> {
        let cannot_mount = format!("cannot mount on {}", self.config.mount_point.display());
        self.identify().map_err(failed("cannot start a thread"))?;
        let device = self.mount().map_err(failed(&cannot_mount))?;
        self.serve(device).map_err(failed(&cannot_mount))?;
        self.go_to_background(readiness)?;
        Ok(self.wait())
    }
}

/// Looks every `pause` whether something is done, at most for `limit`; true when it is.
fn wait_until(limit: Duration, pause: Duration, mut is_done: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + limit;
    loop {
        if is_done() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        thread::sleep(pause);
    }
}
