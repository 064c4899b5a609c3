//! The life of a mount: connect, mount, go to the background, serve, and leave nothing behind.

mod background;
mod caches;
pub mod logging;
pub mod machine;
pub mod memory;
mod mount;
mod shutdown;
mod signals;
mod watchdog;

use std::cell::Cell;
use std::ffi::OsString;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use fuser::{Session, SessionACL};
use log::{info, warn};
use nix::unistd::{Pid, getgid, getpid, getuid};

use crate::cli::{Config, Wanted};
use crate::fs::{Settings, Tree};
use crate::fuse::pool::Pool;
use crate::fuse::{Fuse, THREADS};
use crate::qmp::{Address, Closed, ConnectError, Monitor, Notice};
use crate::qom::{Identity, Qom};
use crate::text::printable;
use caches::KernelCaches;
use machine::Machine;
use machine::finder::Finder;
use mount::Options;
use shutdown::{End, spawn, try_threads, wait_for_end, watch_found, watch_machine};
use signals::{Inherited, end_at_once, watch_signals};
use watchdog::Watchdog;

/// How long the last requests have to be answered when the mount ends.
const LAST_REPLIES: Duration = Duration::from_secs(1);

/// When a QEMU that does not say which machine it is gets asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// When a QEMU has ended whose guest has shut down, unless it stays.
const END_OF_QEMU: Duration = Duration::from_secs(1);

/// Why no mount came about. The text names what was wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("mount point {point}: {source}")]
    MountPoint { point: String, source: io::Error },
    #[error("mount point {0}: a QEMU is mounted there already (fusermount3 -u {0} takes it away)")]
    Twice(String),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("cannot mount on {point}: {source}")]
    Mount { point: String, source: io::Error },
    #[error("log file {path}: {source}")]
    LogFile { path: String, source: io::Error },
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
    #[error(transparent)]
    Start(#[from] machine::StartError),
    #[error(transparent)]
    Name(#[from] machine::names::NameError),
    /// The QEMU that we started ended by itself, and has said why.
    #[error("QEMU ended before it could be mounted, with exit status {0}")]
    Ended(u8),
    #[error(
        "{program} has not begun to speak QMP within {after:?}, and was ended: it is no QEMU, or takes longer \
         to start (-o timeout=SECONDS gives it more time)"
    )]
    Silent { program: String, after: Duration },
}

impl Error {
    /// The exit status for it.
    pub fn status(&self) -> u8 {
        match self {
            Error::Start(e) => e.status(),
            Error::Ended(status) => *status,
            _ => 1,
        }
    }
}

/// Mounts, serves and unmounts; returns the exit status of the process. In the background
/// form, the calling process exits as soon as the mount answers and this returns in another.
///
/// # Errors
/// Before the mount answers; nothing is left of it then.
pub fn run(config: Config) -> Result<u8, Error> {
    let system = |what| move |source| Error::System { what, source };
    let inherited = Inherited::take().map_err(system("cannot handle signals"))?;
    let shown = config.mount_point.display().to_string();
    let point = mount::check_point(&config.mount_point).map_err(|source| Error::MountPoint {
        point: shown.clone(),
        source,
    })?;
    let fs_type = format!("fuse.{}", config.mount.subtype);
    if mount::is_mount_of(&point, &fs_type) {
        return Err(Error::Twice(shown));
    }
    let log_file = match &config.log_file {
        Some(path) => Some(std::path::absolute(path).map_err(system("working directory"))?),
        None => None,
    };
    let owns_machine = matches!(config.machine, Wanted::Command(_));
    let in_background = !config.foreground && !owns_machine;
    let connecting = Arc::new(AtomicBool::new(true));
    if getpid() == Pid::from_raw(1) && !owns_machine {
        end_at_once(&connecting).map_err(system("cannot handle signals"))?;
    }
    let readiness = if in_background {
        Some(background::daemonize().map_err(system("cannot go to the background"))?)
    } else {
        None
    };
    let log_of_watchdog = log_file.clone();
    let open_log = move || direct_log(in_background, log_of_watchdog.as_deref()).unwrap_or_default();
    let mut watchdog = Watchdog::start(open_log).map_err(system("cannot start a process"))?;

    let (ends, ended) = channel();
    let (notices, heard) = channel();
    let watch = || watch_signals(ends.clone()).map_err(system("cannot handle signals"));
    // A signal while we connect simply ends us, unless there is a QEMU that must end with us.
    if owns_machine {
        watch()?;
    }
    let settings = settings(&config, &point);
    let (tree, machine, finder) = connect(&config, inherited, notices, &ended, settings)?;
    if !owns_machine {
        watch()?;
        connecting.store(false, Ordering::Relaxed);
    }
    let monitor = tree.qom().monitor();
    let reconnect = config.mount.reconnect && monitor.reconnects();
    let cannot_mount = |source| Error::Mount {
        point: shown.clone(),
        source,
    };
    let give_up = || {
        if let Some(machine) = &machine {
            machine.end(monitor);
        }
    };
    let handling = {
        let (tree, ends, finder) = (tree.clone(), ends.clone(), finder.clone());
        move || handle_notices(&tree, &heard, &ends, reconnect, finder.as_deref())
    };
    let (device, mounted) = spawn("notices", &ends, handling)
        .and_then(|()| match (&machine, &finder) {
            (Some(machine), _) => watch_machine(machine, &tree, &ends),
            (None, Some(finder)) => watch_found(finder, reconnect, &tree, &ends),
            (None, None) => Ok(()),
        })
        .map_err(system("cannot start a thread"))
        .and_then(|()| mount::mount(&point, &mount_options(&config)).map_err(cannot_mount))
        .inspect_err(|_| give_up())?;
    watchdog.watch(&mounted);
    let connection = device.try_clone();
    let serving = start_session(&tree, device, &config, &ends)
        .map_err(cannot_mount)
        .and_then(|pool| {
            direct_log(in_background, log_file.as_deref())?;
            if let Some(readiness) = readiness {
                readiness
                    .ready()
                    .map_err(system("cannot let go of the terminal"))?;
            }
            std::env::set_current_dir("/").map_err(system("/"))?;
            Ok(pool)
        });
    let pool = match serving {
        Ok(pool) => pool,
        Err(e) => {
            let _ = watchdog.unmount(&mounted);
            give_up();
            return Err(e);
        }
    };
    background::notify_service_manager();
    info!(
        "{} is mounted on {}: {}",
        printable(&config.source),
        point.display(),
        monitor.greeting()
    );
    let unmount = || watchdog.unmount(&mounted);
    let status = wait_for_end(&ended, unmount, &config.source, machine.as_ref(), monitor);
    // Who waits for QEMU's answer is to get it, or the error that there is instead.
    monitor.hang_up();
    let answered = pool.wait_idle(LAST_REPLIES);
    if let Ok(connection) = &connection {
        mounted.abort(connection);
    }
    match answered {
        true => watchdog.dismiss(),
        false => warn!("some requests could not be answered any more"),
    }
    Ok(status)
}

/// Where the log goes once the mount answers.
fn direct_log(background: bool, file: Option<&Path>) -> Result<(), Error> {
    match file {
        Some(path) => logging::to_file(path).map_err(|source| Error::LogFile {
            path: path.display().to_string(),
            source,
        })?,
        None if background => logging::to_syslog(),
        None => {}
    }
    Ok(())
}

fn settings(config: &Config, point: &Path) -> Settings {
    let mount = &config.mount;
    Settings {
        entry_timeout: mount.entry_timeout,
        uid: mount.uid.unwrap_or_else(|| getuid().as_raw()),
        gid: mount.gid.unwrap_or_else(|| getgid().as_raw()),
        umask: mount.umask,
        read_only: mount.read_only,
        mount_point: point.to_owned(),
        readahead: mount.readahead,
    }
}

/// What there is once a machine is connected: that machine if we started it, and what found it if it has a name.
type Connected = (Arc<Tree>, Option<Machine>, Option<Arc<Finder>>);

/// Connects to the machine that is wanted, starting it if need be.
fn connect(
    config: &Config,
    inherited: Inherited,
    notices: Sender<Notice>,
    ended: &Receiver<End>,
    settings: Settings,
) -> Result<Connected, Error> {
    let mount = &config.mount;
    let mut finder = None;
    let (address, machine) = match &config.machine {
        Wanted::Named(name) => {
            let found = Finder::new(name.clone(), mount.uri.clone(), mount.reconnect)?;
            (Address::Located(finder.insert(Arc::new(found)).clone()), None)
        }
        Wanted::At(address) => {
            let absolute = address.clone().absolute();
            let what = "working directory";
            (absolute.map_err(|source| Error::System { what, source })?, None)
        }
        Wanted::Command(command) => {
            let (machine, monitor) = start_machine(command, inherited, config.mount.timeout, ended)?;
            (Address::Fd(monitor.into_raw_fd()), Some(machine))
        }
    };
    let reconnect = mount.reconnect || finder.as_ref().is_some_and(|finder| finder.is_libvirts());
    match Monitor::connect(address, mount.timeout, mount.pipelining, reconnect, notices) {
        Ok(monitor) => {
            finder.iter().for_each(|finder| finder.connected());
            Ok((Tree::new(Qom::new(monitor), settings), machine, finder))
        }
        Err(e) => {
            let ended = machine.as_ref().and_then(Machine::wait_a_moment);
            machine.iter().for_each(|machine| _ = machine.kill());
            Err(ended.map_or(Error::Connect(e), Error::Ended))
        }
    }
}

/// Starts a machine and waits until it speaks. A signal ends it meanwhile.
fn start_machine(
    command: &[OsString],
    inherited: Inherited,
    timeout: Duration,
    ended: &Receiver<End>,
) -> Result<(Machine, UnixStream), Error> {
    let (machine, monitor) = machine::start(command, inherited)?;
    let signal = Cell::new(None);
    let interrupted = || {
        if let Ok(End::Signal(number)) = ended.try_recv() {
            signal.set(Some(number));
        }
        signal.get().is_some()
    };
    if machine.wait_for_greeting(&monitor, timeout, interrupted) {
        return Ok((machine, monitor));
    }
    machine.kill();
    Err(match signal.get() {
        Some(number) => Error::Ended(u8::try_from(128 + number).unwrap_or(1)),
        None => Error::Silent {
            program: command
                .first()
                .map_or_else(String::new, |p| p.display().to_string()),
            after: timeout,
        },
    })
}

fn mount_options(config: &Config) -> Options {
    let mount = &config.mount;
    Options {
        source: mount.fsname.clone().unwrap_or_else(|| config.source.clone()),
        subtype: mount.subtype.clone(),
        read_only: mount.read_only,
        allow_other: mount.allow_other || mount.allow_root,
        default_permissions: mount.kernel_judges(),
        no_exec: mount.no_exec,
        no_atime: mount.no_atime,
    }
}

/// Starts to answer the kernel.
fn start_session(
    tree: &Arc<Tree>,
    device: OwnedFd,
    config: &Config,
    ends: &Sender<End>,
) -> io::Result<Arc<Pool>> {
    let acl = match (config.mount.allow_other, config.mount.allow_root) {
        (true, _) => SessionACL::All,
        (false, true) => SessionACL::RootAndOwner,
        (false, false) => SessionACL::Owner,
    };
    let mut fuser_config = fuser::Config::default();
    fuser_config.acl = acl;
    fuser_config.n_threads = Some(THREADS);
    let fuse = Fuse::new(tree.clone(), device.try_clone()?);
    let pool = fuse.pool();
    let notifications = device.try_clone()?;
    let session = Session::from_fd(fuse, device, acl, fuser_config)?;
    let kernel = KernelCaches::new(session.notifier(), notifications, ends)?;
    tree.set_kernel(Box::new(kernel));
    try_threads(1 + THREADS)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot start enough threads: {e}")))?;
    let over = ends.clone();
    spawn("fuse", ends, move || {
        let ended = session.run().or_else(|e| match e.raw_os_error() {
            // The connection ended while a request was being read from it: somebody unmounted it.
            Some(libc::ECONNABORTED) => Ok(()),
            _ => Err(e),
        });
        let _ = over.send(End::Unmounted(ended));
    })?;
    Ok(pool)
}

/// Handles what happens to the monitor, until it is lost for good.
fn handle_notices(
    tree: &Tree,
    notices: &Receiver<Notice>,
    ends: &Sender<End>,
    reconnect: bool,
    finder: Option<&Finder>,
) {
    let monitor = tree.qom().monitor();
    let mut machine: Option<Identity> = None;
    let mut unknown = reconnect;
    loop {
        if unknown && let Some(now) = Identity::ask(tree.qom()) {
            unknown = false;
            if let Some(before) = machine.replace(now.clone()).filter(|before| *before != now) {
                warn!("connected again, to another machine: {now}; before: {before}");
            }
        }
        // A QEMU that does not say which machine it is may only be busy.
        let patience = if unknown { ASK_AGAIN } else { Duration::MAX };
        let is_there = || finder.is_some_and(Finder::outlives_connection);
        match notices.recv_timeout(patience) {
            Ok(Notice::Lost(why)) if !matches!(*why, Closed::Internal(_)) && (reconnect || is_there()) => {
                unknown = false;
                // Nothing is told of a machine that is gone.
                tree.invalidate_all();
                match &*why {
                    Closed::Ours => {}
                    _ if is_there() => {
                        warn!("libvirt has closed the connection ({why}); connecting again");
                    }
                    _ => warn!("{why}; waiting for it to come back"),
                }
            }
            Ok(Notice::Lost(why)) => {
                let _ = ends.send(End::Lost(why));
                return;
            }
            Ok(Notice::Back) => {
                finder.iter().for_each(|finder| finder.connected());
                unknown = reconnect;
                tree.invalidate_all();
                info!("connected again: {}", monitor.greeting());
            }
            // libvirt's proxy does not notice the end of a domain: a new connection shows whether it is one.
            Ok(Notice::Shutdown) if finder.is_some_and(Finder::is_unwatched) => {
                thread::sleep(END_OF_QEMU);
                monitor.current().hang_up();
            }
            Ok(Notice::Shutdown) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
