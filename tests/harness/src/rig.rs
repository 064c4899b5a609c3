//! A mount of a real QEMU whose every request is recorded, and these requests unpacked.

use std::thread::sleep;
use std::time::Duration;

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};
use serde_json::Value;

use crate::mount::Mount;
use crate::qemu::{Qemu, Which};
use crate::relay::Relay;
use crate::sh::{quote, sh};
use crate::truth::Object;

/// A machine with further arguments for QEMU, mounted with further options.
#[track_caller]
pub fn mounted(which: Which, machine: &str, extra: &[&str], options: &[&str]) -> (Qemu, Mount) {
    let qemu = Qemu::start(which, machine, extra);
    let mount = Mount::start(&qemu.socket(), options);
    (qemu, mount)
}

/// The same through a relay, which is to see all that is asked.
#[track_caller]
pub fn relayed(which: Which, machine: &str, extra: &[&str], options: &[&str]) -> (Qemu, Relay, Mount) {
    let qemu = Qemu::start(which, machine, extra);
    let relay = Relay::start(qemu.dir(), &qemu.socket());
    let options = [&["-o", "monitor=given"], options].concat();
    let mount = Mount::start(relay.socket(), &options);
    (qemu, relay, mount)
}

/// How long nothing must happen for the daemon to take what follows for something new.
pub const PAUSE: Duration = Duration::from_millis(250);

/// A mount whose requests pass a relay. Listings hold for longer than any test takes, unless a test says otherwise.
pub struct Rig {
    pub mount: Mount, // first, so that it is unmounted before what it is of goes
    pub relay: Relay,
    pub qemu: Qemu,
    _alone: ReentrantMutexGuard<'static, ()>,
}

/// One test with a rig at a time: what is asked ahead depends on the pace of who reads.
static ALONE: ReentrantMutex<()> = ReentrantMutex::new(());

/// One request, unpacked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    pub command: String,
    pub paths: Vec<String>,
    pub property: String,
}

impl Rig {
    /// A machine with further arguments for QEMU, mounted with further options.
    #[track_caller]
    pub fn new(which: Which, machine: &[&str], options: &[&str]) -> Rig {
        let _alone = ALONE.lock();
        let options = [&["-o", "entry_timeout=60"], options].concat();
        let (qemu, relay, mount) = relayed(which, "q35", machine, &options);
        Rig {
            mount,
            relay,
            qemu,
            _alone,
        }
    }

    /// A path below the mount point, quoted for a shell.
    pub fn at(&self, below: &str) -> String {
        quote(self.mount.join(below))
    }

    /// Everything asked since the last [`Relay::reset`], the handshake left out.
    #[track_caller]
    pub fn asked(&self) -> Vec<Asked> {
        sleep(PAUSE / 2); // what was asked ahead in vain is on its way too
        let asked = self.relay.requests();
        let asked = asked.iter().map(|request| unpack(request));
        asked
            .filter(|asked| asked.command != "qmp_capabilities")
            .collect()
    }

    /// All pairs since then of which the second was sent before the reply to the first came.
    #[track_caller]
    pub fn overlapping(&self) -> Vec<(Asked, Asked)> {
        let pairs = self.relay.overlapping();
        pairs
            .iter()
            .map(|(first, second)| (unpack(first), unpack(second)))
            .collect()
    }

    /// What a command asks, after a pause.
    #[track_caller]
    pub fn asked_by(&self, command: &str) -> Vec<Asked> {
        sleep(PAUSE);
        self.relay.reset();
        sh(command);
        self.asked()
    }
}

#[track_caller]
fn unpack(request: &str) -> Asked {
    let request: Value = serde_json::from_str(request).expect("a request in JSON");
    let arguments = &request["arguments"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let paths = arguments["paths"].as_array();
    Asked {
        command: text(&request["execute"]),
        paths: paths.map_or_else(
            || vec![text(&arguments["path"])],
            |paths| paths.iter().map(text).collect(),
        ),
        property: text(&arguments["property"]),
    }
}

/// Asking for a listing.
pub fn list(path: &str) -> Asked {
    Asked {
        command: "qom-list".into(),
        paths: vec![path.into()],
        property: String::new(),
    }
}

/// Asking for a value.
pub fn get(path: &str, property: &str) -> Asked {
    Asked {
        command: "qom-get".into(),
        paths: vec![path.into()],
        property: property.into(),
    }
}

/// The requests that evaluate a value.
pub fn evaluations(asked: &[Asked]) -> Vec<&Asked> {
    asked.iter().filter(|asked| asked.command != "qom-list").collect()
}

/// What of an object is a file.
pub fn values(object: &Object) -> impl Iterator<Item = &str> {
    let plain = object.props.iter().filter(|prop| prop.is_value());
    plain.map(|prop| &*prop.name)
}
