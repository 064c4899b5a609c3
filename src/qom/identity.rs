//! Which machine it is.

use std::fmt;

use super::client::Qom;
use super::path::Path;
use super::requests::Request;
use crate::qmp::{Greeting, printable};

/// What tells one machine from another, as far as it tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub qemu: Greeting,
    /// The machine type, such as `pc-q35-7.2-machine`.
    pub machine: Option<String>,
    pub name: Option<String>,
    pub uuid: Option<String>,
}

impl Identity {
    /// Asks; what is not answered is left out.
    pub fn ask(qom: &Qom) -> Identity {
        let machine = Path::root().child("machine");
        Identity {
            qemu: qom.monitor().greeting(),
            machine: machine.and_then(|path| qom.request(Request::get(&path, "type")).ok()),
            name: qom.request(Request::machine_name()).ok().flatten(),
            uuid: qom.request(Request::machine_uuid()).ok().flatten(),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.qemu)?;
        for (what, value) in [
            ("machine", &self.machine),
            ("name", &self.name),
            ("uuid", &self.uuid),
        ] {
            if let Some(value) = value {
                write!(f, ", {what} {}", printable(value))?;
            }
        }
        Ok(())
    }
}
