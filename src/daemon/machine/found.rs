//! A machine that was found, and the way to its monitor.

use std::io;
use std::time::Instant;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::getuid;
use rustix::process::Pid;
use socket2::Socket;

use super::discover::Machine;
use super::names::{self, By, NameError};
use crate::pidfd::Process;
use crate::qmp::{Address, connect};
use crate::text::printable;

/// A machine, and the way to it.
#[derive(Debug)]
pub struct Found {
    /// None for a machine of another host.
    pub pid: Option<i32>,
    pub process: Option<Process>,
    pub by: By,
    pub way: Way,
}

#[derive(Debug)]
pub enum Way {
    /// Its own monitor.
    Monitor(Address),
    /// libvirt lends it out.
    Libvirt { domain: String, uri: String },
}

impl Found {
    pub fn new(pid: Option<i32>, by: By, way: Way) -> Found {
        let process = pid.and_then(Pid::from_raw).map(Process::of);
        Found {
            pid,
            process,
            by,
            way,
        }
    }

    pub fn address(&self) -> Option<Address> {
        match &self.way {
            Way::Monitor(address) => Some(address.clone()),
            Way::Libvirt { .. } => None,
        }
    }

    pub fn is_lent(&self) -> bool {
        matches!(self.way, Way::Libvirt { .. })
    }
}

/// The address of a monitor that a command line names.
pub fn address_of(text: &str) -> Result<Address, NameError> {
    match text.starts_with('/') {
        true => Ok(Address::Unix(text.into())),
        false => Ok(text.parse()?),
    }
}

/// Connects to a monitor, and makes sure that who serves it is the process that was found.
pub fn connect_to(target: &Address, found: &Found, deadline: Instant) -> io::Result<Socket> {
    let with_address =
        |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", printable(&target.to_string())));
    let socket = connect(target, deadline).map_err(with_address)?;
    if matches!(target, Address::Tcp { .. }) {
        return Ok(socket);
    }
    let peer = getsockopt(&socket, PeerCredentials)?;
    let wanted = found.pid.unwrap_or_default();
    if peer.pid() == wanted && (found.by == By::ProcessId || names::is_trusted(peer.uid())) {
        return Ok(socket);
    }
    Err(io::Error::other(NameError::Impostor {
        address: target.to_string(),
        wanted,
        found: peer.pid(),
    }))
}

/// Whether libvirt runs it for the calling user alone.
pub fn is_of_session(machine: &Machine) -> bool {
    machine.own && !machine.is_systems && !getuid().is_root()
}

/// Whether a libvirt URI names another host.
pub fn is_elsewhere(uri: &str) -> bool {
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
