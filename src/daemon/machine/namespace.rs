//! Whether another process sees the same files and the same network as we do.

use std::fs;
use std::io;

/// A namespace of another process, beside ours of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    Ours,
    Another,
    /// We may not look: the process is another user's.
    Unknown,
}

/// Where a process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// In which its paths lead to their files.
    pub mount: Namespace,
    /// In which its TCP ports and abstract sockets are.
    pub network: Namespace,
}

impl Place {
    /// As for a process that was started from the same shell.
    pub const OURS: Place = Place {
        mount: Namespace::Ours,
        network: Namespace::Ours,
    };

    pub fn of(pid: i32) -> Place {
        let look = |kind: &str| {
            let theirs = fs::read_link(format!("/proc/{pid}/ns/{kind}"));
            match (theirs, fs::read_link(format!("/proc/self/ns/{kind}"))) {
                (Ok(theirs), Ok(ours)) if theirs != ours => Namespace::Another,
                (Err(e), _) if e.kind() == io::ErrorKind::PermissionDenied => Namespace::Unknown,
                // Where a kernel has no such namespaces, all is ours.
                _ => Namespace::Ours,
            }
        };
        Place {
            mount: look("mnt"),
            network: look("net"),
        }
    }
}
