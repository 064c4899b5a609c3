//! A libvirt of a test's own: daemons of an ordinary user, without systemd, and paused domains.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::proc::{self, is_root, spawn_tied, wait_until};
use crate::qemu::Which;
use crate::sh::{Out, quote, sh};

const DEADLINE: Duration = Duration::from_secs(60);
/// Where a QEMU looks for modules beside its own, be they of another version.
const SYSTEM_MODULES: &str = "/usr/lib/x86_64-linux-gnu/qemu";

/// A `libvirtd` and a `virtlogd` of an ordinary user: whoever runs the tests or, if that is root, nobody. Any number
/// may run side by side. Dropped, all that runs in it is ended.
pub struct Libvirt {
    daemons: Vec<Program>,
    dir: TempDir, // after what runs in it
}

impl Libvirt {
    /// Starts the daemons; `host` is the QEMU that they find in their PATH.
    #[track_caller]
    pub fn start(host: Which) -> Libvirt {
        // Paths of sockets have 107 bytes at most, so the folder's is short whatever TMPDIR is.
        let dir = tempfile::Builder::new()
            .prefix("lv")
            .tempdir_in("/tmp")
            .expect("make a folder for libvirt");
        let mut libvirt = Libvirt {
            daemons: Vec::new(),
            dir,
        };
        for name in ["home", "run", "bin"] {
            fs::create_dir(libvirt.path(name)).expect("make a folder");
        }
        fs::set_permissions(libvirt.dir(), fs::Permissions::from_mode(0o755)).expect("open the folder");
        if is_root() {
            sh(&format!("chown -R 65534:65534 {}", quote(libvirt.dir()))).ok();
        }
        let qemu = libvirt.reachable(host);
        symlink(qemu, libvirt.path("bin/qemu-system-x86_64")).expect("put QEMU into PATH");
        libvirt.daemon("virtlogd", "virtlogd-sock");
        libvirt.daemon("libvirtd", "libvirt-sock");
        libvirt
    }

    /// Its folder, in which its user can make files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Runs a script as its user, in its folder and environment.
    #[track_caller]
    pub fn run(&self, script: &str) -> Out {
        sh(&self.script(script))
    }

    fn script(&self, script: &str) -> String {
        let dir = self.dir().display();
        let script = quote(format!(
            "cd {dir}
            export HOME={dir}/home XDG_RUNTIME_DIR={dir}/run XDG_CONFIG_HOME={dir}/home/config
            export XDG_CACHE_HOME={dir}/home/cache XDG_DATA_HOME={dir}/home/data
            export PATH={dir}/bin:/usr/sbin:/usr/bin:/sbin:/bin
            # Nothing is to start a second libvirtd when the first one has ended.
            export LIBVIRT_DEFAULT_URI=qemu:///session LIBVIRT_AUTOSTART=0
            unset DBUS_SESSION_BUS_ADDRESS
            {script}"
        ));
        let user = if is_root() {
            "setpriv --reuid=65534 --regid=65534 --clear-groups --pdeathsig=KILL"
        } else {
            ""
        };
        format!("exec {user} bash -c {script}")
    }

    /// Starts a program in the background.
    #[track_caller]
    fn start_program(&self, name: &str, command: &str) -> Program {
        let log = File::create(self.path(&format!("{name}.log"))).expect("create a log");
        let mut bash = Command::new("bash");
        let script = self.script(&format!("exec {command}"));
        let script = match (Path::new(SYSTEM_MODULES).exists(), is_root()) {
            (false, _) => script,
            // libvirt has QEMU load every module, and those of another version can abort it.
            (true, root) => {
                let how = if root {
                    ""
                } else {
                    "--user --map-current-user --keep-caps"
                };
                let hide = quote(format!("mount -t tmpfs none {SYSTEM_MODULES}\n{script}"));
                format!("exec unshare {how} --mount bash -c {hide}")
            }
        };
        bash.args(["-c", &script]).stdin(Stdio::null());
        bash.stdout(log.try_clone().expect("share a log")).stderr(log);
        Program(spawn_tied(bash).unwrap_or_else(|error| panic!("{name}: {error}")))
    }

    /// Starts a daemon and waits for its socket.
    #[track_caller]
    fn daemon(&mut self, name: &str, socket: &str) {
        let mut program = self.start_program(name, name);
        let socket = self.path("run/libvirt").join(socket);
        wait_until(DEADLINE, || listens(&socket) || program.has_ended());
        assert!(listens(&socket), "{name} does not start: {}", self.log(name));
        self.daemons.push(program);
    }

    /// What a daemon or proxy has said so far.
    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_else(|error| error.to_string())
    }

    /// Starts a domain, paused, and gives the process of its QEMU.
    #[track_caller]
    pub fn start_domain(&self, name: &str, which: Which) -> u32 {
        // From 11.1 on, a q35 wants to be told that it has ACPI.
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>\
             <devices><emulator>{}</emulator></devices></domain>",
            self.reachable(which).display()
        );
        fs::write(self.path("domain.xml"), xml).expect("write the domain's definition");
        self.run("virsh create --paused domain.xml").ok();
        let pid = self.run(&format!("cat run/libvirt/qemu/run/{name}.pid"));
        pid.ok().text().parse().expect("a process id")
    }

    /// A path of a QEMU that its user can run: where folders above it are closed, a copy.
    #[track_caller]
    fn reachable(&self, which: Which) -> PathBuf {
        let binary = which.binary();
        if self.run(&format!("test -x {}", quote(&binary))).status == 0 {
            return binary;
        }
        let copy = self.path(&format!("{which:?}"));
        if !copy.exists() {
            let binary = binary.canonicalize().expect("the real path of QEMU");
            let folder = binary.parent().expect("QEMU's folder");
            sh(&format!("cp -r {} {}", quote(folder), quote(&copy))).ok();
        }
        copy.join("qemu-system-x86_64")
    }

    /// Starts `virt-qemu-qmp-proxy` for a domain; there may be several.
    #[track_caller]
    pub fn proxy(&self, domain: &str) -> Proxy {
        let number = (1..).find(|n| !self.path(&format!("proxy{n}.log")).exists());
        let name = format!("proxy{}", number.expect("a number"));
        let socket = self.path(&format!("{name}.sock"));
        let command = format!("virt-qemu-qmp-proxy {domain} {}", quote(&socket));
        let mut program = self.start_program(&name, &command);
        wait_until(DEADLINE, || listens(&socket) || program.has_ended());
        assert!(listens(&socket), "{command}: {}", self.log(&name));
        Proxy {
            socket,
            _program: program,
        }
    }

    /// What runs in it: the daemons, the QEMUs, the proxies.
    fn pids(&self) -> Vec<u32> {
        let mark = format!("{}/", self.dir().display());
        let of_it = |text: Vec<u8>| text.windows(mark.len()).any(|part| part == mark.as_bytes());
        let own = std::process::id();
        // A mount that was made of it goes with whoever made it.
        let marked = proc::processes(|read| {
            read("comm") != b"qom-fuse\n" && (of_it(read("cmdline")) || of_it(read("environ")))
        });
        marked.into_iter().filter(|pid| *pid != own).collect()
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        proc::end(|| self.pids());
    }
}

/// Whether somebody listens at a socket, by the kernel's own list: a connection could be taken for a client.
fn listens(socket: &Path) -> bool {
    const ACCEPTS: &str = "00010000"; // among the flags
    let sockets = fs::read_to_string("/proc/net/unix").expect("list the sockets");
    let path = format!(" {}", socket.display());
    let mut of_it = sockets.lines().filter(|line| line.ends_with(&path));
    of_it.any(|line| line.split_whitespace().nth(3) == Some(ACCEPTS))
}

/// A running `virt-qemu-qmp-proxy`. Dropped, it is ended.
pub struct Proxy {
    socket: PathBuf,
    _program: Program,
}

impl Proxy {
    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// A child; dropped, it is killed.
struct Program(std::process::Child);

impl Program {
    fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().ok(); // fails only if it has ended
        if !wait_until(Duration::from_secs(5), || self.has_ended()) {
            eprintln!("process {} outlived SIGKILL", self.0.id());
        }
    }
}
