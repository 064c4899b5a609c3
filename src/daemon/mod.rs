//! The life of a mount, in stages: check, connect, mount, serve, go to the background, wait, leave.

mod background;
mod events;
mod leave;
pub mod logging;
pub mod machine;
mod mount;
mod signals;
mod wait;
mod watchdog;

use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{Session, SessionACL};
use log::info;
use nix::unistd::{Pid, getpid};
use parking_lot::Mutex;

use crate::cli::{Config, MountOptions, SOCKET_VARIABLES, Wanted};
use crate::fs::Tree;
use crate::fuse::notify::KernelCaches;
use crate::fuse::pool::Pool;
use crate::fuse::{Fuse, THREADS};
use crate::qmp::{Address, Monitor};
use crate::qom::{Identity, Qom};
use crate::text::printable;
use background::Readiness;
use events::{Event, spawn};
use machine::Machine;
use mount::mounted::Mounted;
use signals::{EndAtOnce, Inherited, watch_signals};
use watchdog::Watchdog;

/// Why no mount came about.
#[derive(Debug)]
pub struct Error {
    /// What was wrong, for the user. None: the QEMU that we started ended, and has said why.
    pub message: Option<String>,
    /// The exit status for it.
    pub status: u8,
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
    let is_first = getpid() == Pid::from_raw(1) && matches!(config.machine, Wanted::At(_));
    let at_once = is_first.then(EndAtOnce::begin).transpose();
    let at_once = at_once.map_err(failed("cannot handle signals"))?;
    let readiness = (!config.foreground).then(background::daemonize).transpose();
    let readiness = readiness.map_err(failed("cannot go to the background"))?;
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
    /// Connects to the machine that is wanted, starting it if need be.
    fn connect(config: Config, inherited: Inherited, watchdog: Watchdog) -> Result<Daemon, Error> {
        let (sender, events) = channel();
        let watch = || watch_signals(&sender).map_err(failed("cannot handle signals"));
        let (address, mut machine) = match &config.machine {
            Wanted::At(address) => {
                let absolute = address.clone().absolute();
                (absolute.map_err(failed("working directory"))?, None)
            }
            Wanted::Command(command) => {
                // It must end with us, and so hear of a signal already now.
                watch()?;
                let (machine, monitor) = start_machine(command, inherited, config.mount.timeout, &events)?;
                (Address::Fd(monitor.into_raw_fd()), Some(machine))
            }
        };
        let MountOptions {
            timeout,
            pipelining,
            reconnect,
            ..
        } = config.mount;
        let notices = sender.clone();
        let on_notice = move |notice| _ = notices.send(Event::from(notice));
        let monitor = Monitor::connect(address, timeout, pipelining, reconnect, Box::new(on_notice));
        let monitor = monitor.map_err(|e| {
            // It may have said itself what is wrong, and ended.
            let status = machine.as_mut().and_then(Machine::exits_soon);
            if let Some(machine) = &mut machine {
                machine.kill();
            }
            Error {
                message: status.is_none().then(|| e.to_string()),
                status: status.unwrap_or(1),
            }
        })?;
        if machine.is_none() {
            watch()?;
        }
        Ok(Daemon {
            tree: Tree::new(Qom::new(monitor), config.mount.fs.clone()),
            config,
            watchdog,
            sender,
            events,
            machine,
            last_machine: Arc::default(),
            mounted: None,
            connection: None,
            pool: None,
            ends_machine: false,
        })
    }

    /// All that may go wrong, until the mount ends: why it does.
    fn live(&mut self, readiness: Option<Readiness>) -> Result<Event, Error> {
        let cannot_mount = format!("cannot mount on {}", self.config.mount_point.display());
        self.identify().map_err(failed("cannot start a thread"))?;
        let device = self.mount().map_err(failed(&cannot_mount))?;
        self.serve(device).map_err(failed(&cannot_mount))?;
        self.let_go(readiness)?;
        Ok(self.wait())
    }

    /// Mounts; gives the connection to the kernel.
    fn mount(&mut self) -> io::Result<OwnedFd> {
        let options = &self.config.mount;
        let source = options.fsname.as_ref().unwrap_or(&self.config.source);
        let (device, mounted) = mount::mount(source, options)?;
        self.watchdog.watch(&mounted);
        self.mounted = Some(mounted);
        self.connection = Some(device.try_clone()?);
        Ok(device)
    }

    /// Starts to answer the kernel.
    fn serve(&mut self, device: OwnedFd) -> io::Result<()> {
        let options = &self.config.mount;
        let mut session_config = fuser::Config::default();
        session_config.acl = match (options.allow_other, options.allow_root) {
            (true, _) => SessionACL::All,
            (false, true) => SessionACL::RootAndOwner,
            (false, false) => SessionACL::Owner,
        };
        session_config.n_threads = Some(THREADS);
        let fuse = Fuse::new(self.tree.clone(), device.try_clone()?);
        self.pool = Some(fuse.pool());
        let notifications = device.try_clone()?;
        let session = Session::from_fd(fuse, device, session_config.acl, session_config)?;
        let kernel = KernelCaches::new(session.notifier(), notifications)?;
        self.tree.set_kernel(Box::new(kernel));
        try_threads(1 + THREADS)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot start enough threads: {e}")))?;
        let sender = self.sender.clone();
        spawn("fuse", &self.sender, move || {
            let ended = session.run().or_else(|e| match e.raw_os_error() {
                // The connection ended while a request was being read from it: somebody unmounted it.
                Some(libc::ECONNABORTED) => Ok(()),
                _ => Err(e),
            });
            let _ = sender.send(Event::Unmounted(ended));
        })
    }

    /// Lets go of the terminal and the working directory, and lets whoever started us go on: the mount answers.
    fn let_go(&self, readiness: Option<Readiness>) -> Result<(), Error> {
        direct_log(&self.config)?;
        if let Some(readiness) = readiness {
            readiness
                .ready()
                .map_err(failed("cannot let go of the terminal"))?;
        }
        std::env::set_current_dir("/").map_err(failed("/"))?;
        background::notify_service_manager();
        info!(
            "{} is mounted on {}: {}",
            printable(&self.config.source),
            self.config.mount.fs.mount_point.display(),
            self.tree.qom().monitor().greeting()
        );
        Ok(())
    }
}

/// Starts a machine and waits until it speaks. A signal ends it meanwhile.
fn start_machine(
    command: &[OsString],
    inherited: Inherited,
    timeout: Duration,
    events: &Receiver<Event>,
) -> Result<(Machine, UnixStream), Error> {
    let (mut machine, monitor) = machine::start(command, inherited)?;
    let until = Instant::now() + timeout;
    while Instant::now() < until {
        if machine.has_spoken(&monitor) {
            return Ok((machine, monitor));
        }
        if let Ok(Event::Signal(signal)) = events.try_recv() {
            machine.kill();
            return Err(Error {
                message: None,
                status: u8::try_from(128 + signal).unwrap_or(1),
            });
        }
    }
    machine.kill();
    let program = command.first().cloned().unwrap_or_default();
    let what = format!(
        "{} has not begun to speak QMP within {timeout:?}, and was ended",
        program.display()
    );
    Err(failed(what)(
        "it is no QEMU, or takes longer to start (-o timeout=SECONDS gives it more time)",
    ))
}

/// Tries whether so many threads can be started. fuser says only once it serves that it could not.
///
/// # Errors
/// When they cannot.
fn try_threads(count: usize) -> io::Result<()> {
    let counted = || fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let (before, gate) = (counted(), Mutex::new(()));
    let closed = gate.lock();
    thread::scope(|scope| {
        let start = |_| thread::Builder::new().spawn_scoped(scope, || drop(gate.lock()));
        let started: io::Result<Vec<_>> = (0..count).map(start).collect();
        drop(closed);
        started.map(drop)
    })?;
    // The kernel counts them for a moment longer.
    let (moment, pause) = (Duration::from_millis(100), Duration::from_micros(100));
    wait_until(moment, pause, || counted() <= before);
    Ok(())
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
