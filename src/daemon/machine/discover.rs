//! The QEMUs of this host and their monitors, from `/proc/*/cmdline`.

use std::fs;
use std::path::Path;

use nix::unistd::getuid;

use super::namespace::{Namespace, Place};
use crate::qmp::Options;

/// Programs that carry a QEMU's command line without being one.
const STARTERS: [&str; 16] = [
    "qom-fuse",
    "sudo",
    "su",
    "doas",
    "env",
    "runuser",
    "setpriv",
    "systemd-run",
    "timeout",
    "docker",
    "podman",
    "bwrap",
    "nsenter",
    "unshare",
    "strace",
    "gdb",
];

/// A QEMU process that this user may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub pid: i32,
    /// Who started it.
    pub user: u32,
    /// A process of this very user.
    pub own: bool,
    /// From `-name`.
    pub name: Option<String>,
    /// From `-id`, which Proxmox gives.
    pub id: Option<String>,
    /// From `-uuid`.
    pub uuid: Option<String>,
    /// libvirt runs it for the whole system.
    pub is_systems: bool,
    pub place: Place,
    pub monitors: Vec<MonitorAt>,
}

/// A QMP monitor as a command line tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MonitorAt {
    /// What qom-fuse takes as SOCKET.
    Address(String),
    /// libvirt holds it, and lends it out: the name of the domain.
    Libvirt(String),
    /// A descriptor that whoever started QEMU holds.
    Held,
}

/// Every QEMU with a QMP monitor that this user may see, by process id; the user's own first. What they
/// say of themselves is anybody's: it must not act on a terminal or a shell.
pub fn machines() -> Vec<Machine> {
    let mut found: Vec<Machine> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let directory = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            let mut machine = machine(pid, &line, &directory)?;
            machine.user = user(pid)?;
            machine.own = machine.user == getuid().as_raw();
            machine.settle(Place::of(pid));
            Some(machine)
        })
        .collect();
    found.sort_by_key(|machine| (!machine.own, machine.pid));
    found
}

/// The user who started a process: neither a program with other rights nor one that hides itself changes that.
fn user(pid: i32) -> Option<u32> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

impl Machine {
    /// Says where its process lives, and so what its paths mean.
    fn settle(&mut self, place: Place) {
        self.place = place;
        for monitor in &mut self.monitors {
            if let MonitorAt::Address(path) = monitor
                && path.starts_with('/')
                && place.mount == Namespace::Another
            {
                *path = format!("/proc/{}/root{path}", self.pid);
            }
        }
    }

    /// The monitor to take when only the machine is named: one of its own, before one that libvirt lends out.
    pub fn best_monitor(&self) -> Option<&MonitorAt> {
        self.monitors.iter().min_by_key(|at| match at {
            MonitorAt::Address(_) if self.is_near(at) => 0,
            MonitorAt::Libvirt(_) => 1,
            MonitorAt::Address(_) => 2,
            MonitorAt::Held => 3,
        })
    }

    /// Whether an address leads to the monitor from here, as far as we may know.
    pub fn is_near(&self, monitor: &MonitorAt) -> bool {
        self.namespace(monitor) != Namespace::Another
    }

    /// In which namespace what is said of a monitor leads there. A path into another one is as good as ours.
    pub fn namespace(&self, monitor: &MonitorAt) -> Namespace {
        match (monitor, self.place) {
            (MonitorAt::Address(path), Place { mount, .. }) if path.starts_with('/') => match mount {
                Namespace::Another => Namespace::Ours,
                seen => seen,
            },
            (MonitorAt::Address(_), Place { network, .. }) => network,
            _ => Namespace::Ours,
        }
    }
}

/// Reads a command line: words, each ended by a NUL.
pub fn machine(pid: i32, line: &[u8], directory: &Path) -> Option<Machine> {
    let words: Vec<String> = line
        .split(|b| *b == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let program = Path::new(words.first()?).file_name()?;
    if STARTERS.iter().any(|starter| program == *starter) {
        return None;
    }
    let values = |option: &'static str| {
        words.windows(2).filter_map(move |pair| {
            let given = pair[0].strip_prefix("--").or_else(|| pair[0].strip_prefix('-'))?;
            (given == option).then(|| pair[1].clone())
        })
    };
    let sockets: Vec<Options> = values("chardev").filter_map(|text| socket(&text)).collect();
    let by_id = |id: &str| {
        let socket = sockets.iter().find(|s| s.get("id") == Some(id))?;
        Some(address_of(socket, directory))
    };
    let name = values("name").next().map(|text| {
        let options = Options::new(&text);
        options.get("guest").unwrap_or(&options.first).to_owned()
    });
    let mut monitors: Vec<MonitorAt> = values("qmp")
        .chain(values("qmp-pretty"))
        .filter_map(|text| match text.strip_prefix("chardev:") {
            Some(id) => by_id(id),
            None => given_to_qmp(&text, directory),
        })
        .collect();
    monitors.extend(values("mon").filter_map(|text| {
        let mon = Options::new(&text);
        let id = mon.get("chardev").unwrap_or(&mon.first);
        let is_qmp = mon.get("mode") == Some("control");
        // As every libvirt calls it, which has it open or connects to it.
        if is_qmp && id == "charmonitor" && mon.get("id") == Some("monitor") {
            return Some(name.clone().map_or(MonitorAt::Held, MonitorAt::Libvirt));
        }
        is_qmp.then(|| by_id(id))?
    }));
    monitors.extend(values("object").filter_map(|text| {
        let object = object(&text)?;
        let is_qmp = object.get("qom-type").unwrap_or(&object.first) == "monitor-qmp";
        is_qmp.then(|| by_id(object.get("chardev")?))?
    }));
    (!monitors.is_empty()).then(|| Machine {
        pid,
        user: u32::MAX,
        own: false,
        name,
        id: values("id").next(),
        uuid: values("uuid").next(),
        is_systems: words.iter().any(|word| word.contains("/var/lib/libvirt/qemu/")),
        place: Place::OURS,
        monitors,
    })
}

fn given_to_qmp(text: &str, directory: &Path) -> Option<MonitorAt> {
    let options = Options::new(text);
    if !options.is_on("server") {
        return None;
    }
    if let Some(path) = options.first.strip_prefix("unix:") {
        return Some(MonitorAt::Address(absolute(path, directory)));
    }
    let host_port = options.first.strip_prefix("tcp:")?;
    Some(MonitorAt::Address(format!("tcp:{host_port}")))
}

fn absolute(path: &str, directory: &Path) -> String {
    directory.join(path).to_string_lossy().into_owned()
}

/// An `-object`, which may be given as JSON too.
fn object(text: &str) -> Option<Options> {
    if !text.starts_with('{') {
        return Some(Options::new(text));
    }
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    let pair = |(name, value): (String, serde_json::Value)| Some((name, value.as_str()?.to_owned()));
    Some(Options {
        first: String::new(),
        pairs: object.into_iter().filter_map(pair).collect(),
    })
}

/// A `-chardev` if it is a socket on which QEMU listens, or one that it got open.
fn socket(text: &str) -> Option<Options> {
    let options = Options::new(text);
    let backend = options.get("backend").unwrap_or(&options.first);
    let usable = options.is_on("server") || options.get("fd").is_some();
    (backend == "socket" && usable).then_some(options)
}

/// Where such a socket is.
fn address_of(socket: &Options, directory: &Path) -> MonitorAt {
    let host = socket.get("host").unwrap_or_default();
    match (socket.get("path"), socket.get("port")) {
        (Some(path), _) => MonitorAt::Address(absolute(path, directory)),
        (None, Some(port)) if host.contains(':') => MonitorAt::Address(format!("tcp:[{host}]:{port}")),
        (None, Some(port)) => MonitorAt::Address(format!("tcp:{host}:{port}")),
        (None, None) => MonitorAt::Held,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Option<(Option<String>, Vec<MonitorAt>)> {
        let line = line.replace(' ', "\0");
        machine(1, line.as_bytes(), Path::new("/run")).map(|m| (m.name, m.monitors))
    }

    fn at(addresses: &[&str]) -> Vec<MonitorAt> {
        addresses
            .iter()
            .map(|a| MonitorAt::Address((*a).to_owned()))
            .collect()
    }

    #[test]
    fn command_lines() {
        for (line, name, monitors) in [
            (
                "qemu -M q35 -qmp unix:/tmp/s,server=on,wait=off",
                None,
                at(&["/tmp/s"]),
            ),
            (
                "qemu -qmp unix:s,server,nowait -name vm",
                Some("vm"),
                at(&["/run/s"]),
            ),
            (
                "qemu --qmp tcp:localhost:44,server=on",
                None,
                at(&["tcp:localhost:44"]),
            ),
            (
                "kvm -id 100 -name guest=web,debug-threads=on \
                 -chardev socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off \
                 -mon chardev=qmp,mode=control \
                 -chardev socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5 \
                 -mon chardev=qmp-event,mode=control",
                Some("web"),
                at(&["/var/run/qemu-server/100.qmp"]),
            ),
            (
                "qemu -name guest=lv -chardev socket,id=charmonitor,fd=24,server=on,wait=off \
                 -mon chardev=charmonitor,id=monitor,mode=control",
                Some("lv"),
                vec![MonitorAt::Libvirt("lv".into())],
            ),
            (
                "qemu -chardev socket,id=m,host=::1,port=7,server=on -qmp chardev:m",
                None,
                at(&["tcp:[::1]:7"]),
            ),
            (
                "qemu -chardev socket,id=c,path=/a,server=on -object monitor-qmp,id=m,chardev=c",
                None,
                at(&["/a"]),
            ),
            (
                r#"qemu -chardev socket,id=c,path=/a,server=on -object {"qom-type":"monitor-qmp","chardev":"c"}"#,
                None,
                at(&["/a"]),
            ),
        ] {
            assert_eq!(found(line), Some((name.map(str::to_owned), monitors)), "{line}");
        }
        for line in [
            "qemu -M q35",
            "qemu -monitor unix:/tmp/s,server=on",
            "qemu -chardev socket,id=m,path=/s,server=on -mon chardev=m",
            "qom-fuse mnt -- qemu -qmp unix:/tmp/s,server=on",
            "sudo qemu -qmp unix:/tmp/s,server=on",
            "qemu -qmp unix:/tmp/s",
            "qemu -qmp",
            "",
        ] {
            assert_eq!(found(line), None, "{line}");
        }
    }
}
