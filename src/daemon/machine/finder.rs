//! A machine that is meant by its name: found for each connection anew, and known by its process.

use std::env;
use std::fmt;
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::getuid;
use parking_lot::{Condvar, Mutex};
use socket2::Socket;

use super::discover::{Machine, MonitorAt, machines};
use super::libvirt::Proxy;
use super::names::{self, By, NameError};
use super::pidfd::Process;
use crate::qmp::{Address, Locate};
use crate::text::printable;

/// The variable that names libvirt's own default.
const DEFAULT_URI: &str = "LIBVIRT_DEFAULT_URI";
/// How long libvirt's proxy has to greet: libvirt first asks the host's QEMU for its version, which takes seconds.
const GREETING: Duration = Duration::from_secs(30);

/// What a user can give in place of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A machine, by its `-name`, `-id` or process id.
    Machine(String),
    /// A domain of libvirt's, `libvirt:DOMAIN`.
    Domain(String),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Machine(name) => f.write_str(&printable(name)),
            Name::Domain(domain) => write!(f, "libvirt:{}", printable(domain)),
        }
    }
}

/// Finds the machine of a name.
#[derive(Debug)]
pub struct Finder {
    name: Name,
    /// Which libvirt has it, where the user says so.
    uri: Option<String>,
    state: Mutex<State>,
    /// Signalled when there is another process, and when a machine elsewhere has ended.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Found, and not connected to yet.
    next: Option<Found>,
    /// What was connected to last. None for a machine of another host.
    process: Option<Arc<Process>>,
    is_same: bool,
    /// libvirt lends the monitor out.
    is_lent: bool,
    proxy: Option<Proxy>,
    /// The last connection over the proxy came about wholly.
    proxy_works: bool,
    /// The machine of another host is no longer there.
    is_gone: bool,
}

/// A machine, and the way to it.
#[derive(Debug)]
struct Found {
    process: Option<Arc<Process>>,
    by: By,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// Its own monitor.
    Monitor(String),
    /// libvirt lends it out.
    Libvirt { domain: String, uri: String },
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
        let finder = Finder {
            name,
            uri,
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        let found = finder.find()?;
        if reconnect && found.by == By::ProcessId {
            return Err(NameError::Passing);
        }
        let state = State {
            is_lent: found.is_lent(),
            next: Some(found),
            ..State::default()
        };
        *finder.state.lock() = state;
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
                            true => Way::Monitor(address),
                            false => return Err(NameError::OtherNetwork { name, address, pid }),
                        }
                    }
                    Some(MonitorAt::Libvirt(domain)) => self.libvirt(domain, Some(&machine)),
                    Some(MonitorAt::Held) | None => return Err(NameError::Held { name, pid }),
                };
                let process = Some(Arc::new(Process::of(pid)));
                Ok(Found { process, by, way })
            }
        }
    }

    fn find_domain(&self, domain: &str) -> Result<Found, NameError> {
        let mut found = names::domains(domain, machines());
        if let Some(uri) = &self.uri {
            let is_session = uri.split('?').next().is_some_and(|uri| uri.ends_with("/session"));
            found.retain(|machine| !is_elsewhere(uri) && (!is_session || machine.own));
        }
        if found.len() > 1 {
            let name = domain.to_owned();
            return Err(NameError::SeveralDomains { name, found });
        }
        let machine = found.pop();
        Ok(Found {
            process: machine.as_ref().map(|machine| Arc::new(Process::of(machine.pid))),
            by: By::Name,
            way: self.libvirt(domain, machine.as_ref()),
        })
    }

    /// By libvirt: which one that is, unless the user says so, is told by who runs the domain.
    fn libvirt(&self, domain: &str, machine: Option<&Machine>) -> Way {
        let is_session = |machine: &Machine| machine.own && !machine.is_systems && !getuid().is_root();
        let uri = match machine.is_some_and(is_session) {
            true => "qemu:///session",
            false => "qemu:///system",
        };
        Way::Libvirt {
            domain: domain.to_owned(),
            uri: self.uri.clone().unwrap_or_else(|| uri.to_owned()),
        }
    }

    /// Whether a connection that closes is no end of the machine: libvirt closes it when a domain is busy.
    pub fn outlives_connection(&self) -> bool {
        let state = self.state.lock();
        let has_ended = |process: &Arc<Process>| process.ends_within(Duration::ZERO);
        let is_gone = state.process.as_ref().map_or(state.is_gone, has_ended);
        state.is_lent && !is_gone
    }

    /// Whether only libvirt knows of its end: its process is of another host, or was not seen.
    pub fn is_unwatched(&self) -> bool {
        let state = self.state.lock();
        state.is_lent && state.process.is_none()
    }

    /// Whether libvirt lends the monitor out.
    pub fn is_libvirts(&self) -> bool {
        self.state.lock().is_lent
    }

    /// Says that the last connection came about wholly.
    pub fn connected(&self) {
        self.state.lock().proxy_works = true;
    }

    /// Waits for the end of the machine that was connected to last.
    pub fn wait_for_end(&self) {
        let mut state = self.state.lock();
        match state.process.clone() {
            Some(process) => {
                drop(state);
                while !process.ends_within(Duration::from_secs(3600)) {}
            }
            None => {
                while !state.is_gone {
                    self.changed.wait(&mut state);
                }
            }
        }
    }

    /// Waits until another machine was connected to than the one that has ended.
    pub fn wait_for_next(&self) {
        let mut state = self.state.lock();
        let has_ended = |process: &Arc<Process>| process.ends_within(Duration::ZERO);
        while state.process.as_ref().map_or(state.is_gone, has_ended) {
            self.changed.wait(&mut state);
        }
    }
}

impl Found {
    fn is_lent(&self) -> bool {
        matches!(self.way, Way::Libvirt { .. })
    }
}

impl State {
    /// Connects by the proxy that there is, as long as that is of use.
    fn reuse_proxy(&mut self, deadline: Instant) -> Option<Socket> {
        let runs = self.process_runs();
        let is_worth_it = mem::take(&mut self.proxy_works) && runs != Some(false);
        let proxy = self.proxy.as_mut().filter(|_| is_worth_it)?;
        let socket = proxy.connect(deadline).ok()?;
        self.is_same = runs == Some(true);
        Some(socket)
    }

    /// Whether what was connected to last still runs, if that is known.
    fn process_runs(&self) -> Option<bool> {
        let process = self.process.as_ref()?;
        Some(!process.ends_within(Duration::ZERO))
    }
}

impl Locate for Finder {
    fn connect(&self, deadline: Instant) -> io::Result<Socket> {
        let mut state = self.state.lock();
        if let Some(socket) = state.reuse_proxy(deadline) {
            return Ok(socket);
        }
        state.proxy = None;
        let next = state.next.take();
        let found = next.map_or_else(|| self.find(), Ok).map_err(io::Error::other)?;
        let socket = match &found.way {
            Way::Monitor(address) => connect_to(address, &found, deadline)?,
            Way::Libvirt { domain, uri } => {
                let started = Proxy::start(domain, uri, deadline).map_err(|e| {
                    state.is_gone = state.process.is_none();
                    self.changed.notify_all();
                    match found.process.is_none() && !is_elsewhere(uri) {
                        true => io::Error::new(e.kind(), format!("no QEMU in sight runs it; {e}")),
                        false => e,
                    }
                });
                let (proxy, socket) = started?;
                state.proxy = Some(proxy);
                socket
            }
        };
        let pid = |process: &Option<Arc<Process>>| process.as_ref().map(|process| process.pid());
        state.is_same = state.process_runs() == Some(true) && pid(&state.process) == pid(&found.process);
        (state.is_lent, state.is_gone) = (found.is_lent(), false);
        if !state.is_same {
            state.process = found.process;
        }
        self.changed.notify_all();
        Ok(socket)
    }

    fn limit(&self, timeout: Duration) -> Duration {
        match self.is_libvirts() {
            true => timeout.max(GREETING),
            false => timeout,
        }
    }

    fn is_same_machine(&self) -> bool {
        self.state.lock().is_same
    }
}

impl fmt::Display for Finder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// Connects to a monitor, and makes sure that who serves it is the process that was found.
fn connect_to(address: &str, found: &Found, deadline: Instant) -> io::Result<Socket> {
    let target = match address.starts_with('/') {
        true => Address::Unix(address.into()),
        false => address.parse().map_err(io::Error::other)?,
    };
    let with_address = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", printable(address)));
    let socket = target.connect(deadline).map_err(with_address)?;
    if matches!(target, Address::Tcp { .. }) {
        return Ok(socket);
    }
    let peer = getsockopt(&socket, PeerCredentials)?;
    let wanted = found.process.as_ref().map_or(0, |process| process.pid());
    if peer.pid() == wanted && (found.by == By::ProcessId || names::is_trusted(peer.uid())) {
        return Ok(socket);
    }
    Err(io::Error::other(NameError::Impostor {
        address: address.to_owned(),
        wanted,
        found: peer.pid(),
    }))
}

/// Whether a libvirt URI names another host.
fn is_elsewhere(uri: &str) -> bool {
    let host = uri
        .split_once("://")
        .map(|(_, rest)| rest.split(['/', '?']).next());
    host.flatten().is_some_and(|host| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris() {
        for (uri, elsewhere) in [
            ("qemu:///system", false),
            ("qemu+unix:///session?socket=/run/a", false),
            ("qemu+ssh://root@host/system", true),
            ("qemu+tls://host", true),
            ("name-of-an-alias", false),
        ] {
            assert_eq!(is_elsewhere(uri), elsewhere, "{uri}");
        }
    }
}
