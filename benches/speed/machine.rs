//! A QEMU to measure on: what is in it, and the requests that a client cannot do without.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use serde_json::{Value, json};
use tempfile::TempDir;

use harness::truth::{Object, join};
use harness::{Qemu, Relay, Which};

/// The property that is read again and again: the request for it is as short as they come, so
/// QEMU takes the least time over it, and what the mount adds weighs most.
pub const PROPERTY: (&str, &str) = ("/machine", "type");

/// A paused QEMU with one socket for the mount, one for the minimal client, and one to ask for the truth.
pub struct Machine {
    pub qemu: Qemu,
    /// Such as `QEMU 7.2`.
    pub name: String,
    objects: Vec<Object>,
    dir: TempDir,
}

/// Requests, one per line, each in its shortest form.
pub struct Requests(String);

/// What went over a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    pub requests: usize,
    pub bytes: usize,
}

impl Machine {
    pub fn start(which: Which, extra: &[&str]) -> Machine {
        let dir = tempfile::tempdir().expect("make a folder");
        let minimal = format!("unix:{},server=on,wait=off", socket(&dir).display());
        let qemu = Qemu::start(which, "q35", &[extra, &["-qmp", &minimal]].concat());
        let version = qemu.truth().execute("query-version", Value::Null);
        let version = version.expect("QEMU's version")["qemu"].clone();
        Machine {
            name: format!("QEMU {}.{}", version["major"], version["minor"]),
            objects: qemu.truth().walk(),
            qemu,
            dir,
        }
    }

    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// How many plain properties there are.
    pub fn values(&self) -> usize {
        self.objects.iter().map(|object| values(object).count()).sum()
    }

    /// All properties, links and children too.
    pub fn properties(&self) -> usize {
        self.objects.iter().map(|object| object.props.len()).sum()
    }

    /// One `qom-list` per object, in the order in which `find` asks.
    pub fn lists(&self) -> Requests {
        Requests(self.objects.iter().map(|object| list(&object.path)).collect())
    }

    /// Those, and one `qom-get` per plain property, as `grep -r` asks for them.
    pub fn lists_and_gets(&self) -> Requests {
        let of_object = |object: &Object| {
            let gets = values(object).map(|name| get(&object.path, name));
            list(&object.path) + &gets.collect::<String>()
        };
        Requests(self.objects.iter().map(of_object).collect())
    }

    /// One `qom-list-get` per object.
    pub fn list_gets(&self) -> Requests {
        let of_object =
            |object: &Object| request("qom-list-get", &format!(r#""paths":[{}]"#, json!(object.path)));
        Requests(self.objects.iter().map(of_object).collect())
    }

    /// The same `qom-get` many times.
    pub fn gets(&self, times: usize) -> Requests {
        Requests(get(PROPERTY.0, PROPERTY.1).repeat(times))
    }

    /// The file of the property that [`Machine::gets`] asks for.
    pub fn property_file() -> String {
        join(PROPERTY.0, PROPERTY.1)
    }

    /// How long the minimal client takes over the requests.
    pub fn time_minimal(&self, requests: &Requests) -> Duration {
        self.run_minimal(&socket(&self.dir), requests)
    }

    /// What the minimal client sends, seen from outside.
    pub fn count_minimal(&self, requests: &Requests) -> Count {
        let relay = Relay::start(self.dir.path(), &socket(&self.dir));
        self.run_minimal(relay.socket(), requests);
        Count::of(&relay)
    }

    fn run_minimal(&self, socket: &Path, requests: &Requests) -> Duration {
        let file = self.dir.path().join("requests");
        fs::write(&file, &requests.0).expect("write the requests");
        let program = Path::new(env!("CARGO_BIN_EXE_qom-fuse")).with_file_name("examples/minimal");
        let output = Command::new(&program).arg(socket).arg(&file).output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let seconds = said.parse().unwrap_or_else(|_| panic!("{output:?}"));
        Duration::from_secs_f64(seconds)
    }
}

impl Count {
    /// What a relay has seen since it was reset, without the handshake.
    pub fn of(relay: &Relay) -> Count {
        let requests = relay.requests();
        let counted = || {
            requests
                .iter()
                .filter(|request| !request.contains("qmp_capabilities"))
        };
        Count {
            requests: counted().count(),
            bytes: counted().map(String::len).sum(),
        }
    }
}

/// The processor, as the kernel names it, and how many of them.
pub fn processor() -> io::Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, name)| name)
        .collect();
    Ok(format!(
        "{} × {}",
        names.len(),
        names.first().unwrap_or(&"unknown")
    ))
}

fn socket(dir: &TempDir) -> PathBuf {
    dir.path().join("minimal.sock")
}

fn values(object: &Object) -> impl Iterator<Item = &str> {
    let plain = object
        .props
        .iter()
        .filter(|prop| !prop.is_child() && !prop.is_link());
    plain.map(|prop| &*prop.name)
}

fn list(path: &str) -> String {
    request("qom-list", &format!(r#""path":{}"#, json!(path)))
}

fn get(path: &str, name: &str) -> String {
    request(
        "qom-get",
        &format!(r#""path":{},"property":{}"#, json!(path), json!(name)),
    )
}

fn request(command: &str, arguments: &str) -> String {
    format!(r#"{{"execute":"{command}","arguments":{{{arguments}}}}}"#) + "\n"
}
