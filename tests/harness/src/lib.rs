//! The harness of the integration tests: real QEMUs, real mounts, real shell tools, and servers that misbehave.
//!
//! Two rules hold everywhere. Nothing hangs: every wait has a deadline and fails the test with what was waited for.
//! And the test process itself never touches a mount: a request that the mount does not answer would hold it for ever,
//! so all file access goes through child processes ([`sh`] and [`helper`]), which can be given up.

use std::path::{Path, PathBuf};
use std::time::Duration;

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

pub use child::{
    Child, Errno, Held, act, assert_reads, get_xattr, list_dirs, lstat, read_file, read_files, read_link,
    resolve, write_file, write_flags,
};
pub use helper::{Call, Seen, Step, now};
pub use libvirt::Libvirt;
pub use mount::{Launch, Mount};
pub use mountinfo::mounts;
pub use proc::{alive, is_root, signal, wait_until};
pub use qemu::{Qemu, Which};
pub use relay::Relay;
pub use rig::{PAUSE, Rig, mounted, relayed};
pub use script::{Action, GREETING, GREETING_NEW, GREETING_PROXY, Scripted};
pub use session::Session;
pub use sh::{Background, Out, quote, sh, sh_deadline, sh_in, sh_start};
pub use shown::{Shown, link_text, truth_of};
pub use tree::ScriptedTree;
pub use truth::{Object, QmpError, Truth, join};
pub use user::{NOBODY, User};

/// A second.
pub const SECOND: Duration = Duration::from_secs(1);

/// How long a test waits for what should come at once, on a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(10);

/// Arguments that give a machine a bus to plug USB devices into.
pub const XHCI: [&str; 2] = ["-device", "qemu-xhci,id=x"];

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
