//! The harness of the integration tests: real QEMUs, real mounts, real shell tools, and servers that misbehave.
//!
//! Two rules hold everywhere. Nothing hangs: every wait has a deadline and fails the test with what was waited for.
//! And the test process itself never touches a mount: a request that the mount does not answer would hold it for ever,
//! so all file access goes through child processes ([`sh`] and [`helper`]), which can be given up.

#![allow(clippy::new_without_default)]

use std::path::{Path, PathBuf};

pub mod child;
pub mod helper;
pub mod hostile;
pub mod libvirt;
pub mod mirror;
pub mod mount;
pub mod mountinfo;
pub mod proc;
pub mod qemu;
pub mod relay;
pub mod rig;
pub mod script;
pub mod server;
pub mod session;
pub mod sh;
pub mod shown;
pub mod tree;
pub mod truth;
pub mod user;

pub use child::{Held, read_file, write_file};
pub use libvirt::Libvirt;
pub use mount::Mount;
pub use proc::wait_until;
pub use qemu::{Qemu, Which};
pub use relay::Relay;
pub use rig::Rig;
pub use script::{Action, Scripted};
pub use session::Session;
pub use sh::{Out, sh, sh_deadline, sh_in};
pub use tree::ScriptedTree;
pub use truth::{QmpError, Truth};
pub use user::User;

/// The program under test: cargo builds it before the tests, which are one folder further down.
pub fn qom_fuse() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let folder = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    folder.join("qom-fuse")
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
