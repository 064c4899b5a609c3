//! Connecting to an address.

use std::fs::OpenOptions;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::address::Address;
use super::rooted;

/// The longest path that a socket's address has room for, in bytes.
const LONGEST_PATH: usize = 107;

/// Connects, in blocking mode.
///
/// # Errors
/// `TimedOut` after `deadline`, which a monitor with a full backlog reaches too.
pub fn connect(address: &Address, deadline: Instant) -> io::Result<Socket> {
    match address {
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

/// Connects to a socket whose path may be longer than a socket's address, or lead into another mount namespace:
/// then it is opened, and reached by the descriptor.
fn connect_path(path: &Path, deadline: Instant) -> io::Result<Socket> {
    let length = path.as_os_str().len();
    let held = match rooted::split(path) {
        Some((root, inside)) => rooted::open_inside(&root, &inside)?,
        None if length <= LONGEST_PATH => return connect_unix(&SockAddr::unix(path)?, deadline),
        None => hold(path)?,
    };
    connect_held(&held, deadline).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => io::Error::other(format!(
            "a path of {length} bytes, longer than {LONGEST_PATH}, can only be reached where /proc is mounted"
        )),
        _ => e,
    })
}

/// Opens a socket's file, to be connected to later, wherever that file is then.
///
/// # Errors
/// As open(2).
pub fn hold(path: &Path) -> io::Result<OwnedFd> {
    let held = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path);
    held.map(OwnedFd::from)
}

/// Connects to what [`hold`] has opened.
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

    #[test]
    fn inherited_descriptor_must_be_a_socket() {
        assert!(inherit(9999).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(inherit(std::os::fd::AsRawFd::as_raw_fd(&file)).is_err());
    }
}
