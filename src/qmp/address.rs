//! Where a monitor is: what a user types, and what was given to QEMU's `-qmp`.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::locate::Locate;
use super::rooted;

/// The longest path that a socket's address has room for, in bytes.
const LONGEST_PATH: usize = 107;

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
        let (rest, options) = split_options(text);
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
            if options
                .iter()
                .any(|o| matches!(o.as_str(), "abstract" | "abstract=on"))
            {
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
        parse_tcp(&rest).map_err(bad)
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

/// Splits off `,option[=value]`s. A comma of the path itself is doubled, as QEMU has it; a
/// single one that no known option follows belongs to the path too.
fn split_options(text: &str) -> (String, Vec<String>) {
    const KNOWN: [&str; 16] = [
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
    const MARK: char = '\0';
    let marked = text.replace(",,", "\0");
    let mut parts = marked.split(',');
    let mut address = parts.next().unwrap_or_default().to_owned();
    let mut options = Vec::new();
    for part in parts {
        let name = part.split('=').next().unwrap_or_default();
        if KNOWN.contains(&name) {
            options.push(part.to_owned());
        } else {
            address.push(',');
            address.push_str(part);
        }
    }
    (address.replace(MARK, ","), options)
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

    /// Connects, in blocking mode.
    ///
    /// # Errors
    /// `TimedOut` after `deadline`, which a monitor with a full backlog reaches too.
    pub fn connect(&self, deadline: Instant) -> io::Result<Socket> {
        match self {
            Address::Unix(path) => connect_path(path, deadline),
            Address::Abstract(name) => {
                // A leading NUL is what marks an abstract name.
                connect_unix(&SockAddr::unix(format!("\0{name}"))?, deadline)
            }
            Address::Tcp { host, port } => connect_tcp(host, *port, deadline),
            Address::Fd(n) => inherit(*n),
            Address::Located(machine) => machine.connect(deadline),
        }
    }
}

/// Connects to a socket whose path may be longer than a socket's address, or lead into another mount namespace:
/// then it is opened, and reached by the descriptor.
fn connect_path(path: &Path, deadline: Instant) -> io::Result<Socket> {
    let length = path.as_os_str().len();
    let held: OwnedFd = match rooted::split(path) {
        Some((root, inside)) => rooted::open_inside(&root, &inside)?,
        None if length <= LONGEST_PATH => return connect_unix(&SockAddr::unix(path)?, deadline),
        None => OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path)?
            .into(),
    };
    connect_held(&held, deadline).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => io::Error::other(format!(
            "a path of {length} bytes, longer than {LONGEST_PATH}, can only be reached where /proc is mounted"
        )),
        _ => e,
    })
}

/// Connects to a socket that was opened with O_PATH, wherever its file is now.
///
/// # Errors
/// As connect(2); `TimedOut` after `deadline`; `NotFound` without /proc.
pub fn connect_held(held: &OwnedFd, deadline: Instant) -> io::Result<Socket> {
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    connect_unix(&SockAddr::unix(path)?, deadline)
}

fn connect_unix(address: &SockAddr, deadline: Instant) -> io::Result<Socket> {
    loop {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(address) {
            Ok(()) => {
                socket.set_nonblocking(false)?;
                return Ok(socket);
            }
            // The backlog is full: clients queue for a monitor that is held by another.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(e) => return Err(e),
        }
    }
}

fn connect_tcp(host: &str, port: u16, deadline: Instant) -> io::Result<Socket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream.into());
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Takes over an inherited socket, so that nothing that we start inherits it further.
fn inherit(n: RawFd) -> io::Result<Socket> {
    // SAFETY: fcntl with F_GETFD reads a flag of a descriptor number, open or not.
    if unsafe { libc::fcntl(n, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above) and outlives this borrow.
    let copy: OwnedFd = unsafe { BorrowedFd::borrow_raw(n) }.try_clone_to_owned()?;
    let socket = Socket::from(copy);
    socket.r#type()?; // fails for what is no socket
    socket.set_nonblocking(false)?;
    if n > 2 {
        // SAFETY: the user gave this descriptor to us alone; nothing else here knows its number.
        drop(unsafe { OwnedFd::from_raw_fd(n) });
    }
    Ok(socket)
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

    #[test]
    fn inherited_descriptor_must_be_a_socket() {
        assert!(inherit(9999).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(inherit(std::os::fd::AsRawFd::as_raw_fd(&file)).is_err());
    }
}
