//! An ordinary user with a session: whoever runs the tests or, if that is root, nobody.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use crate::child::lstat;
use crate::qemu::Qemu;
use crate::qom_fuse;
use crate::session::Session;
use crate::sh::{Background, Out, quote};

/// The number of the user nobody.
pub const NOBODY: u32 = 65534;

/// A session of an ordinary user, with a QEMU's socket in it as `vm.sock`.
pub struct User {
    /// Where it all happens.
    pub session: Session,
    /// The user's number.
    pub id: u32,
    /// What runs a command as the user; empty when the tests are run by one.
    pub as_user: &'static str,
}

impl User {
    /// Prepares a session for one machine.
    #[track_caller]
    pub fn new(qemu: &Qemu) -> User {
        let session = Session::new();
        // SAFETY: a plain system call.
        let own = unsafe { libc::getuid() };
        let id = if own == 0 { NOBODY } else { own };
        let as_user = if own == 0 {
            "setpriv --reuid=65534 --regid=65534 --clear-groups"
        } else {
            ""
        };
        // What is the tests' own is opened to the user: their folder, a copy of the program, QEMU's socket.
        fs::copy(qom_fuse(), session.dir().join("qom-fuse")).expect("copy the program");
        let open =
            |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("open up");
        open(session.dir(), 0o711);
        open(qemu.dir(), 0o711);
        open(&qemu.socket(), 0o777);
        if own == 0 && lstat("/dev/fuse").expect("/dev/fuse").st_mode & 0o006 != 0o006 {
            open(Path::new("/dev/fuse"), 0o666); // as udev makes it wherever there is udev
        }
        chown(session.mnt(), Some(id), Some(id)).expect("give the mount point away");
        session
            .run(&format!("ln -s {} vm.sock", quote(qemu.socket())))
            .ok();
        User { session, id, as_user }
    }

    /// Runs a script as the user.
    #[track_caller]
    pub fn run(&self, script: &str) -> Out {
        self.session.run(&self.script(script))
    }

    /// Starts a script as the user and does not wait for it.
    #[track_caller]
    pub fn start(&self, script: &str) -> Background {
        self.session.start(&self.script(script))
    }

    fn script(&self, script: &str) -> String {
        let script = format!("export PATH=$PWD:$PATH\n{script}");
        format!("exec {} bash -c {}", self.as_user, quote(script))
    }
}
