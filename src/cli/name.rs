//! Names of machines.

use std::fmt;

use crate::text::printable;

/// What a user can give in place of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A machine, by its `-name`, `-id` or process id.
    Machine(String),
    /// A domain of libvirt's, `libvirt:DOMAIN`.
    Domain(String),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Machine(name) => f.write_str(&printable(name)),
            Name::Domain(domain) => write!(f, "libvirt:{}", printable(domain)),
        }
    }
}
