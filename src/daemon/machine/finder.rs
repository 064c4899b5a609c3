//! A machine that is meant by its name: found for each connection anew, and known by its process.

use std::env;
use std::fmt;
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::Socket;

use super::discover::{Machine, MonitorAt, machines};
use super::found::{Found, Way, address_of, connect_to, is_elsewhere, is_of_session};
use super::libvirt::Proxy;
use super::names::{self, By, NameError};
use crate::cli::Name;
use crate::pidfd::Process;
use crate::qmp::{Address, Locate};

/// The variable that names libvirt's own default.
const DEFAULT_URI: &str = "LIBVIRT_DEFAULT_URI";
/// How long libvirt's proxy has to greet: libvirt first asks the host's QEMU for its version, which takes seconds.
const GREETING: Duration = Duration::from_secs(30);

/// When a QEMU has ended whose guest has shut down, unless it stays.
const END_OF_QEMU: Duration = Duration::from_secs(1);

/// How long the end of a mount waits for an attempt to connect.
const CLOSING: Duration = Duration::from_secs(1);

/// Finds the machine of a name.
#[derive(Debug)]
pub struct Finder {
    name: Name,
    /// Which libvirt has it, where the user says so.
    uri: Option<String>,
    /// By which of its names it was found at first.
    by: By,
    /// Whether the next machine of this name is meant too.
    reconnect: bool,
    /// Locked as long as a connection is made.
    route: Mutex<Route>,
    last: Mutex<Last>,
    /// It is looked for no more.
    is_closed: Arc<AtomicBool>,
}

/// What leads to the machine.
#[derive(Debug, Default)]
struct Route {
    /// Found, and not connected to yet.
    next: Option<Found>,
    proxy: Option<Proxy>,
}

/// What was connected to last.
#[derive(Debug, Default)]
struct Last {
    /// None for a machine of another host.
    pid: Option<i32>,
    process: Option<Process>,
    /// Its own monitor.
    at: Option<Address>,
    /// It may be another process than that of the last connection that came about wholly.
    is_another: bool,
    /// libvirt lends its monitor out.
    is_lent: bool,
    /// The handshake was done too.
    is_whole: bool,
    /// When the guest of a machine of another host has shut down.
    in_doubt_since: Option<Instant>,
    /// The machine of another host is no longer there.
    is_gone: bool,
}

impl Finder {
    /// Looks for the machine. With `reconnect`, it will be looked for again.
    ///
    /// # Errors
    /// [`NameError`]
    pub fn new(name: Name, uri: Option<String>, reconnect: bool) -> Result<Finder, NameError> {
        let uri = uri
            .or_else(|| env::var(DEFAULT_URI).ok())
            .filter(|uri| !uri.is_empty());
        let mut finder = Finder {
            name,
            uri,
            by: By::Name,
            reconnect,
            route: Mutex::default(),
            last: Mutex::default(),
            is_closed: Arc::default(),
        };
        let found = finder.find()?;
        if reconnect && found.by == By::ProcessId {
            return Err(NameError::Passing);
        }
        finder.by = found.by;
        *finder.last.lock() = Last {
            is_lent: found.is_lent(),
            at: found.address(),
            ..Last::default()
        };
        finder.route.lock().next = Some(found);
        Ok(finder)
    }

    fn find(&self) -> Result<Found, NameError> {
        match &self.name {
            Name::Domain(domain) => self.find_domain(domain),
            Name::Machine(name) => {
                let (machine, by) = names::find(name, machines())?;
                let (name, pid) = (name.clone(), machine.pid);
                let way = match machine.best_monitor() {
                    Some(at @ MonitorAt::Address(address)) => {
                        let address = address.clone();
                        match machine.is_near(at) {
                            true => Way::Monitor(address_of(&address)?),
                            false => return Err(NameError::OtherNetwork { name, address, pid }),
                        }
                    }
                    Some(MonitorAt::Libvirt(domain)) => self.libvirt(domain, Some(&machine)),
                    Some(MonitorAt::Held) | None => return Err(NameError::Held { name, pid }),
                };
                Ok(Found::new(Some(pid), by, way))
            }
        }
    }

    /// Finds it once more: the same process or, with `reconnect`, the next machine of this name.
    fn find_again(&self) -> Result<Found, NameError> {
        let found = self.find()?;
        let last = self.last.lock();
        let is_another = last.pid.is_some() && (last.pid != found.pid || last.runs() == Some(false));
        // What was a name may be anybody's process id by now.
        match found.by != self.by || is_another && !self.reconnect {
            true => Err(NameError::Gone(self.name.to_string())),
            false => Ok(found),
        }
    }

    fn find_domain(&self, domain: &str) -> Result<Found, NameError> {
        let mut found = names::domains(domain, machines());
        if let Some(uri) = &self.uri {
            let path = uri.split('?').next().unwrap_or_default();
            found.retain(|machine| {
                let is_there = match path.rsplit('/').next() {
                    Some("session") => machine.own,
                    Some("system") => !is_of_session(machine),
                    _ => true,
                };
                is_there && !is_elsewhere(uri)
            });
        }
        if found.len() > 1 {
            let name = domain.to_owned();
            return Err(NameError::SeveralDomains { name, found });
        }
        let machine = found.pop();
        let pid = machine.as_ref().map(|machine| machine.pid);
        Ok(Found::new(pid, By::Name, self.libvirt(domain, machine.as_ref())))
    }

    /// By libvirt: which one that is, unless the user says so, is told by who runs the domain. A process that was
    /// found is asked for by its UUID: a name or number may be another domain's there.
    fn libvirt(&self, domain: &str, machine: Option<&Machine>) -> Way {
        let uri = match machine.is_some_and(is_of_session) {
            true => "qemu:///session",
            false => "qemu:///system",
        };
        let uuid = machine.and_then(|machine| machine.uuid.as_deref());
        // A process of this host is not to be had from another one.
        let wanted = self
            .uri
            .as_deref()
            .filter(|uri| machine.is_none() || !is_elsewhere(uri));
        Way::Libvirt {
            domain: uuid.unwrap_or(domain).to_owned(),
            uri: wanted.unwrap_or(uri).to_owned(),
        }
    }

    /// Whether libvirt lends the monitor out. Then a connection that closes is no end: libvirt closes it when a domain
    /// is busy.
    pub fn is_libvirts(&self) -> bool {
        self.last.lock().is_lent
    }

    /// Whether the machine that was connected to last has ended, as far as is known.
    pub fn has_ended(&self) -> bool {
        let last = self.last.lock();
        last.runs().map_or(last.is_gone, |runs| !runs)
    }

    /// Says that the last connection came about wholly.
    pub fn connected(&self) {
        let mut last = self.last.lock();
        (last.is_whole, last.is_another, last.in_doubt_since) = (true, false, None);
    }

    /// Says that the guest has shut down, and its QEMU may end.
    pub fn guest_shut_down(&self) {
        let mut last = self.last.lock();
        last.in_doubt_since = (last.is_lent && last.process.is_none()).then(Instant::now);
    }

    /// Whether only another connection can show if the machine has ended: libvirt's proxy does not notice.
    pub fn is_in_doubt(&self) -> bool {
        let last = self.last.lock();
        last.in_doubt_since
            .is_some_and(|since| since.elapsed() > END_OF_QEMU)
    }

    /// Gives the machine up, and ends what leads to it: no file of it stays.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        if let Some(mut route) = self.route.try_lock_for(CLOSING) {
            route.proxy = None;
        }
    }

    /// What it means that libvirt does not lend a monitor out.
    fn not_lent(&self, error: io::Error, found: &Found, uri: &str) -> io::Error {
        let mut last = self.last.lock();
        // Anything else may be libvirt's own trouble.
        let is_gone = ["Domain not found", "Domain must be running"];
        let says = |words: &&str| error.to_string().contains(words);
        last.is_gone = last.process.is_none() && is_gone.iter().any(says);
        match found.process.is_none() && !is_elsewhere(uri) {
            true => io::Error::new(error.kind(), format!("no QEMU in sight runs it; {error}")),
            false => error,
        }
    }

    /// Connects by the proxy that there is, as long as that is of use.
    fn reuse_proxy(&self, route: &mut Route, deadline: Instant) -> Option<Socket> {
        let (runs, was_whole) = {
            let mut last = self.last.lock();
            (last.runs(), mem::take(&mut last.is_whole))
        };
        let proxy = route
            .proxy
            .as_mut()
            .filter(|_| was_whole && runs != Some(false))?;
        let socket = proxy.connect(deadline).ok()?;
        self.last.lock().is_another |= runs != Some(true);
        Some(socket)
    }
}

impl Last {
    /// Whether it still runs, if that is known.
    fn runs(&self) -> Option<bool> {
        Some(!self.process.as_ref()?.has_ended())
    }
}

impl Locate for Finder {
    fn connect(&self, deadline: Instant) -> io::Result<Socket> {
        let mut route = self.route.lock();
        if let Some(socket) = self.reuse_proxy(&mut route, deadline) {
            return Ok(socket);
        }
        route.proxy = None;
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let next = route.next.take();
        let found = next
            .map_or_else(|| self.find_again(), Ok)
            .map_err(io::Error::other)?;
        let socket = match &found.way {
            Way::Monitor(address) => connect_to(address, &found, deadline)?,
            Way::Libvirt { domain, uri } => {
                let started = Proxy::start(domain, uri, deadline, self.is_closed.clone());
                let (proxy, socket) = started.map_err(|e| self.not_lent(e, &found, uri))?;
                route.proxy = Some(proxy);
                socket
            }
        };
        let mut last = self.last.lock();
        *last = Last {
            is_another: last.is_another || last.runs() != Some(true) || last.pid != found.pid,
            is_lent: found.is_lent(),
            at: found.address(),
            pid: found.pid,
            process: found.process,
            ..Last::default()
        };
        Ok(socket)
    }

    fn limit(&self, timeout: Duration) -> Duration {
        match self.is_libvirts() {
            true => timeout.max(GREETING),
            false => timeout,
        }
    }

    fn found_at(&self) -> Option<Address> {
        self.last.lock().at.clone()
    }

    fn is_same_machine(&self) -> bool {
        !self.last.lock().is_another
    }
}

impl fmt::Display for Finder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}
