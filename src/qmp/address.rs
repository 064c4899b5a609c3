//! Where a monitor is: what a user types, and what was given to QEMU's `-qmp`.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::locate::Locate;
use super::options::Options;

/// The options that may follow an address in QEMU's `-qmp` and `-chardev`.
const OPTIONS: [&str; 16] = [
    "server",
    "wait",
    "nowait",
    "reconnect",
    "reconnect-ms",
    "nodelay",
    "ipv4",
    "ipv6",
    "to",
    "abstract",
    "tight",
    "telnet",
    "websocket",
    "keep-alive",
    "mptcp",
    "id",
];

/// The address of a QMP monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket: `/path`, `unix:/path`.
    Unix(PathBuf),
    /// A Unix socket in the abstract namespace: `unix:name,abstract=on`.
    Abstract(String),
    /// `host:port`, `tcp:host:port`, `[v6]:port`.
    Tcp { host: String, port: u16 },
    /// A connected socket that we inherited: `fd:N`.
    Fd(RawFd),
    /// A machine that is looked for first.
    Located(Arc<dyn Locate>),
}

/// A text that is no address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{text}' is no QMP address: {why} (give /path, unix:/path, host:port, tcp:host:port, [v6]:port or fd:N)"
)]
pub struct AddressError {
    text: String,
    why: &'static str,
}

impl FromStr for Address {
    type Err = AddressError;

    /// Reads every form that the error above lists. Options after a comma, as QEMU's `-qmp` and
    /// `-chardev` have them (`,server=on,wait=off`), are accepted and ignored.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = |why| AddressError {
            text: text.to_owned(),
            why,
        };
        let options = Options::behind_address(text, &OPTIONS);
        let rest = options.first.as_str();
        if let Some(n) = rest.strip_prefix("fd:") {
            return match n.parse() {
                Ok(n) if n >= 0 => Ok(Address::Fd(n)),
                _ => Err(bad("fd: wants the number of an open descriptor")),
            };
        }
        if let Some(path) = rest.strip_prefix("unix:") {
            let path = path.strip_prefix("path=").unwrap_or(path);
            if path.is_empty() {
                return Err(bad("the path is missing"));
            }
            if options.is_on("abstract") {
                return Ok(Address::Abstract(path.to_owned()));
            }
            return Ok(Address::Unix(path.into()));
        }
        if let Some(tcp) = rest.strip_prefix("tcp:") {
            return parse_tcp(tcp).map_err(bad);
        }
        if rest.is_empty() {
            return Err(bad("it is empty"));
        }
        if rest.contains('/') || !rest.contains(':') {
            return Ok(Address::Unix(rest.into()));
        }
        parse_tcp(rest).map_err(bad)
    }
}

fn parse_tcp(text: &str) -> Result<Address, &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
    let port = match port.parse() {
        Ok(0) | Err(_) => return Err("the port is no number from 1 to 65535"),
        Ok(port) => port,
    };
    let host = match host.strip_prefix('[').map(|h| h.strip_suffix(']')) {
        Some(Some(v6)) => v6,
        Some(None) => return Err("the ] is missing"),
        None if host.contains(':') => return Err("an IPv6 address goes in [ ]"),
        None => host,
    };
    // QEMU listens on every interface when its host is empty.
    let host = if host.is_empty() { "localhost" } else { host };
    Ok(Address::Tcp {
        host: host.to_owned(),
        port,
    })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "{}", path.display()),
            Address::Abstract(name) => write!(f, "unix:{name},abstract=on"),
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Fd(n) => write!(f, "fd:{n}"),
            Address::Located(machine) => write!(f, "{machine}"),
        }
    }
}

impl Address {
    /// The same address from any working directory.
    ///
    /// # Errors
    /// When the working directory is unknown.
    pub fn absolute(self) -> io::Result<Self> {
        match self {
            Address::Unix(path) => std::path::absolute(path).map(Address::Unix),
            other => Ok(other),
        }
    }

    /// True when a connection that was lost can be made again.
    pub fn is_repeatable(&self) -> bool {
        !matches!(self, Address::Fd(_))
    }

    /// Where the monitor is: for a machine that is looked for, where it was found last.
    pub fn found(&self) -> Option<Address> {
        match self {
            Address::Located(machine) => machine.found_at(),
            address => Some(address.clone()),
        }
    }

    /// How long connecting may take where a request may take `timeout`.
    pub(super) fn limit(&self, timeout: Duration) -> Duration {
        match self {
            Address::Located(machine) => machine.limit(timeout),
            _ => timeout,
        }
    }

    /// Whether the last connection leads to the very process of the one before it.
    pub(super) fn is_same_machine(&self) -> bool {
        matches!(self, Address::Located(machine) if machine.is_same_machine())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &str) -> Result<Address, AddressError> {
        Ok(Address::Unix(path.into()))
    }

    fn tcp(host: &str, port: u16) -> Result<Address, AddressError> {
        Ok(Address::Tcp {
            host: host.into(),
            port,
        })
    }

    #[test]
    fn every_form() {
        for (text, want) in [
            ("/tmp/vm.sock", unix("/tmp/vm.sock")),
            ("vm.sock", unix("vm.sock")),
            ("./a:1", unix("./a:1")),
            ("unix:/p", unix("/p")),
            ("unix:vm.sock", unix("vm.sock")),
            ("unix:/p,server=on,wait=off", unix("/p")),
            ("/p,server,nowait", unix("/p")),
            ("/p,,q,server=on", unix("/p,q")),
            ("/p,q", unix("/p,q")),
            ("unix:path=/p,server=on", unix("/p")),
            ("unix:x,abstract=on", Ok(Address::Abstract("x".into()))),
            ("localhost:4444", tcp("localhost", 4444)),
            ("tcp:127.0.0.1:4444,server=on,wait=off", tcp("127.0.0.1", 4444)),
            ("tcp::4444,server", tcp("localhost", 4444)),
            (":4444", tcp("localhost", 4444)),
            ("[::1]:4444", tcp("::1", 4444)),
            ("tcp:[fe80::1%eth0]:1", tcp("fe80::1%eth0", 1)),
            ("fd:3", Ok(Address::Fd(3))),
        ] {
            assert_eq!(text.parse::<Address>(), want, "{text}");
        }
    }

    #[test]
    fn no_address() {
        for text in [
            "",
            "unix:",
            "fd:",
            "fd:-1",
            "fd:x",
            "host:0",
            "host:99999",
            "tcp:host",
            "::1:4444",
            "[::1:4",
            "a:b",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn shown_as_it_can_be_typed() {
        for text in [
            "/tmp/vm.sock",
            "localhost:4444",
            "[::1]:4444",
            "fd:3",
            "unix:x,abstract=on",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }
}
