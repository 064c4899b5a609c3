//! Which machine a name means.

use std::fmt;
use std::fs;

use nix::unistd::{Uid, User, getuid};

use super::discover::{Machine, MonitorAt};
use super::list::{Table, word};
use crate::qmp::AddressError;
use crate::text::printable;

/// Accounts that libvirt's QEMUs run as. Debian gives it a number among those of people.
const ACCOUNTS_OF_LIBVIRT: [&str; 2] = ["libvirt-qemu", "qemu"];

/// By which of its names a machine was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Name,
    ProcessId,
}

/// Why a name means no machine. The text says what there is, and what to type.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    #[error(
        "no QEMU with a QMP monitor is called {}, and as a socket: No such file or directory (is QEMU running, and was \
         it started with -qmp unix:PATH,server=on,wait=off?){}\n{}",
        word(.name),
        Others(.others),
        Table(.all)
    )]
    Unknown {
        name: String,
        others: Vec<i32>,
        all: Vec<Machine>,
    },
    #[error(
        "{} machines are called {}: give a process id or a socket instead\n{}",
        .found.len(),
        word(.name),
        Table(.found)
    )]
    Several { name: String, found: Vec<Machine> },
    #[error(
        "{} domains are called {}: say which libvirt has it, -o uri=qemu:///system or -o uri=qemu:///session\n{}",
        .found.len(),
        word(.name),
        Table(.found)
    )]
    SeveralDomains { name: String, found: Vec<Machine> },
    #[error(
        "{} (process {pid}): whoever started it holds its only monitor: give that QEMU another one, \
         -qmp unix:PATH,server=on,wait=off",
        word(.name)
    )]
    Held { name: String, pid: i32 },
    #[error(
        "{} (process {pid}): its monitor is {} of another network namespace: run qom-fuse there, as in \
         nsenter --net=/proc/{pid}/ns/net qom-fuse {} MOUNTPOINT",
        word(.name), word(.address), word(.address)
    )]
    OtherNetwork { name: String, address: String, pid: i32 },
    #[error(
        "{} is served by process {found}, and not by the QEMU that names it, process {wanted}: give the socket \
         itself if that is meant",
        word(.address)
    )]
    Impostor {
        address: String,
        wanted: i32,
        found: i32,
    },
    #[error(
        "-o reconnect: a process id means this one QEMU, which does not come back: give its name or its socket"
    )]
    Passing,
    #[error("{}: the machine that was mounted has ended", word(.0))]
    Gone(String),
    #[error("{}", printable(&.0.to_string()))]
    Address(#[from] AddressError),
}

/// Processes that a name does not mean, as a remark.
struct Others<'a>(&'a [i32]);

impl fmt::Display for Others<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        let pids: Vec<String> = self.0.iter().map(i32::to_string).collect();
        write!(
            f,
            " (machines of other people are named by process id: {})",
            pids.join(", ")
        )
    }
}

/// Finds the machine that is called so: by `-name`, by `-id`, by process id, in this order.
///
/// # Errors
/// None, or several.
pub fn find(name: &str, machines: Vec<Machine>) -> Result<(Machine, By), NameError> {
    let names: [fn(&Machine) -> Option<&String>; 2] = [|m| m.name.as_ref(), |m| m.id.as_ref()];
    let mut others = Vec::new();
    for called in names {
        let is_called = |machine: &&Machine| called(machine).is_some_and(|called| called == name);
        let (mut found, strangers): (Vec<&Machine>, Vec<&Machine>) = machines
            .iter()
            .filter(is_called)
            .partition(|machine| is_trusted(machine.user));
        others.extend(strangers.iter().map(|machine| machine.pid));
        match found.len() {
            0 => {}
            1 => return Ok((found.remove(0).clone(), By::Name)),
            _ => {
                return Err(NameError::Several {
                    name: name.to_owned(),
                    found: found.into_iter().cloned().collect(),
                });
            }
        }
    }
    match machines.iter().find(|machine| machine.pid.to_string() == name) {
        Some(machine) => Ok((machine.clone(), By::ProcessId)),
        None => Err(NameError::Unknown {
            name: name.to_owned(),
            others,
            all: machines,
        }),
    }
}

/// The QEMUs that run a domain of libvirt's, of its name or UUID.
pub fn domains(domain: &str, machines: Vec<Machine>) -> Vec<Machine> {
    let is_it = |machine: &Machine| {
        let is_called = |name: &Option<String>| {
            name.as_ref()
                .is_some_and(|name| name.eq_ignore_ascii_case(domain))
        };
        let mut lent = machine.monitors.iter().filter_map(|monitor| match monitor {
            MonitorAt::Libvirt(name) => Some(name),
            _ => None,
        });
        let is_lent = lent.any(|name| name == domain || is_called(&machine.uuid));
        is_lent && is_trusted(machine.user)
    };
    machines.into_iter().filter(is_it).collect()
}

/// Whether names count that a user gives to processes: our own, root's and the system's do. Other people can call a
/// process what they like.
pub fn is_trusted(user: u32) -> bool {
    let is_libvirts = || {
        let account = User::from_uid(Uid::from_raw(user)).ok().flatten();
        account.is_some_and(|account| ACCOUNTS_OF_LIBVIRT.contains(&account.name.as_str()))
    };
    user == getuid().as_raw() || user <= last_system_account() || is_libvirts()
}

/// The highest number of an account that is no person's.
fn last_system_account() -> u32 {
    const DEFAULT: u32 = 999;
    let text = fs::read_to_string("/etc/login.defs").unwrap_or_default();
    let value = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("SYS_UID_MAX")).then(|| words.next()?.parse().ok())?
    };
    text.lines().find_map(value).unwrap_or(DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::super::namespace::Place;
    use super::*;

    fn machine(pid: i32, user: u32, name: &str, id: &str) -> Machine {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Machine {
            pid,
            user,
            name: given(name),
            id: given(id),
            uuid: None,
            own: user == getuid().as_raw(),
            is_systems: false,
            place: Place::OURS,
            monitors: vec![MonitorAt::Address("/s".into())],
        }
    }

    #[test]
    fn which_machine_is_meant() {
        let person = getuid().as_raw().max(1000) + 1;
        let machines = vec![
            machine(11, 0, "web", "100"),
            machine(12, 0, "100", "101"),
            machine(13, 0, "twin", "103"),
            machine(14, getuid().as_raw(), "twin", "104"),
            machine(15, person, "web", ""),
            machine(16, person, "theirs", "105"),
        ];
        let found = |name: &str| find(name, machines.clone()).map(|(machine, by)| (machine.pid, by));
        for (name, pid, by) in [
            ("web", 11, By::Name),
            ("100", 12, By::Name),
            ("101", 12, By::Name),
            ("103", 13, By::Name),
            ("14", 14, By::ProcessId),
            ("16", 16, By::ProcessId),
        ] {
            assert!(matches!(found(name), Ok(is) if is == (pid, by)), "{name}");
        }
        let error = found("twin").unwrap_err().to_string();
        assert!(error.starts_with("2 machines are called twin: "), "{error}");
        assert_eq!(error.lines().count(), 4, "{error}");
        let error = found("theirs").unwrap_err().to_string();
        assert!(error.contains("by process id: 16)"), "{error}");
        let error = found("105").unwrap_err().to_string();
        assert!(error.contains("by process id: 16)"), "{error}");
        let error = found("none\u{1b}").unwrap_err().to_string();
        assert!(
            error.contains(r"called 'none\u{1b}', and as a socket: No such file"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1 + 1 + machines.len(), "{error}");
    }
}
