//! Which machine it is.

use std::fmt;

use super::client::Qom;
use super::error::Error;
use super::path::Path;
use super::requests::Request;
use crate::qmp::{self, Greeting};
use crate::text::printable;

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
    /// Asks; what QEMU does not tell is left out. None when it does not answer.
    pub fn ask(qom: &Qom) -> Option<Identity> {
        fn told<T>(answer: Result<T, Error>) -> Option<Option<T>> {
            match answer {
                Ok(value) => Some(Some(value)),
                Err(e) if matches!(e.source, qmp::Error::Refused { .. } | qmp::Error::Undecodable(_)) => {
                    Some(None)
                }
                Err(_) => None,
            }
        }
        let machine = Path::root().child("machine")?;
        Some(Identity {
            qemu: qom.monitor().current().greeting().clone(),
            machine: told(qom.request(Request::get(&machine, "type")))?,
            name: told(qom.request(Request::machine_name()))?.flatten(),
            uuid: told(qom.request(Request::machine_uuid()))?.flatten(),
        })
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
