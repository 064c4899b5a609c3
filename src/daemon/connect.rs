//! The first stage: connecting to a machine, which may have to be started.

use std::ffi::OsString;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::events::Event;
use super::machine::finder::Finder;
use super::machine::{self, Machine};
use super::signals::{Inherited, watch_signals};
use super::watchdog::Watchdog;
use super::{Daemon, Error, failed};
use crate::cli::{Config, Wanted};
use crate::fs::Tree;
use crate::qmp::{Address, EventSink, Monitor, MonitorEvent};
use crate::qom::Qom;

impl Daemon {
    /// Connects to the machine that is wanted, starting it if need be.
    pub(super) fn connect(config: Config, inherited: Inherited, watchdog: Watchdog) -> Result<Daemon, Error> {
        let (sender, events) = channel();
        let watch = || watch_signals(&sender).map_err(failed("cannot handle signals"));
        let mut finder = None;
        let (address, mut machine) = match &config.machine {
            Wanted::Named(name) => {
                let found = Finder::new(name.clone(), config.mount.uri.clone(), config.mount.reconnect)?;
                (Address::Located(finder.insert(Arc::new(found)).clone()), None)
            }
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
        let mut options = config.mount.monitor_options(&address);
        if finder.as_ref().is_some_and(|finder| finder.is_libvirts()) {
            // libvirt closes connections while the machine lives, and nobody else can use this one.
            (options.reconnect, options.idle) = (true, None);
        }
        let told = Arc::new(OnceLock::new());
        let sink = event_sink(told.clone(), sender.clone());
        let monitor = Monitor::connect(address, options, sink);
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
        finder.iter().for_each(|finder| finder.connected());
        let tree = Tree::new(Qom::new(monitor), config.mount.fs.clone());
        let _ = told.set(Arc::downgrade(&tree));
        Ok(Daemon {
            tree,
            config,
            watchdog,
            sender,
            events,
            machine,
            finder,
            last_machine: Arc::default(),
            mounted: None,
            connection: None,
            pool: None,
            ends_machine: false,
        })
    }
}

/// Tells the tree at once what happens at its monitor, and the main thread what more is to be done about it.
fn event_sink(tree: Arc<OnceLock<Weak<Tree>>>, events: Sender<Event>) -> EventSink {
    Box::new(move |event| {
        let tree = tree.get().and_then(Weak::upgrade);
        match event {
            MonitorEvent::Announced(event) => {
                if let (Some(path), Some(tree)) = (event.deleted_device(), tree) {
                    tree.device_deleted(path);
                }
                if event.name == "SHUTDOWN" {
                    let _ = events.send(Event::GuestShutDown);
                }
            }
            MonitorEvent::Lost(why) => _ = events.send(Event::MonitorLost(why)),
            MonitorEvent::Away => {
                if let Some(tree) = tree {
                    tree.invalidate_all();
                }
            }
            MonitorEvent::Back(greeting) => {
                // It may be another QEMU.
                if let Some(tree) = tree {
                    tree.invalidate_all();
                }
                let _ = events.send(Event::MonitorBack(greeting));
            }
        }
    })
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
