//! Ends while a thread waits in the kernel for an answer of the mount itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use harness::*;

use crate::ends::daemon;

const SOON: Duration = Duration::from_secs(15);

/// The kernel has `/d/gone`, and a lookup in `/d` waits for its answer, while `/d/gone` is announced to be gone: the
/// daemon waits in the kernel to take the name out of `/d`.
struct Knot {
    caller: Background,
    tree: ScriptedTree,
    server: Scripted,
}

impl Knot {
    fn serve() -> (ScriptedTree, Scripted) {
        let tree = ScriptedTree::new().object("/d").object("/d/gone");
        let server = tree.serve();
        (tree, server)
    }

    /// `run` is what runs a command that may use the mount.
    #[track_caller]
    fn tie((tree, server): (ScriptedTree, Scripted), mnt: &Path, run: impl Fn(&str) -> Background) -> Knot {
        let at = |name: &str| quote(mnt.join(name));
        run(&format!("exec stat {}", at("d/gone"))).finish(SOON).ok();
        std::thread::sleep(Duration::from_millis(300)); // the listing expires
        tree.hook("qom-list", "/d", "", Action::Silence);
        server.reset();
        let caller = run(&format!("exec stat {}", at("d/other")));
        let asked = || server.requests().iter().any(|(_, args)| args["path"] == "/d");
        assert!(wait_until(SOON, asked), "nobody waits");
        server.send_raw(b"{\"event\": \"DEVICE_DELETED\", \"data\": {\"path\": \"/d/gone\"}}\r\n");
        std::thread::sleep(Duration::from_millis(300));
        Knot { caller, tree, server }
    }

    /// Who waits is told so, and no thread of the daemon is left.
    #[track_caller]
    fn cut(self, daemon: u32) {
        self.caller.finish(SOON).fails();
        // Whoever is to wait for it may not have done so yet.
        let threads = || fs::read_dir(format!("/proc/{daemon}/task")).map_or(0, Iterator::count);
        assert!(
            wait_until(SOON, || threads() <= 1),
            "{} threads are left",
            threads()
        );
        drop((self.tree, self.server));
    }
}

/// Makes system calls of running processes fail, or take long, as strace's `inject` has it, until it is dropped.
#[track_caller]
pub fn inject(pids: &[u32], what: &str) -> Background {
    let processes: String = pids.iter().map(|pid| format!(" -p {pid}")).collect();
    let strace = sh_start(&format!(
        "exec strace -f -qq -o /dev/null -e inject={what}{processes}"
    ));
    let threads = |pid: &u32| fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let numbers = || {
        pids.iter()
            .flat_map(threads)
            .filter_map(|thread| thread.ok()?.file_name().to_str()?.parse().ok())
    };
    let traced = || numbers().all(|thread| tracer(thread).is_none_or(|tracer| tracer != 0));
    assert!(wait_until(SOON, traced), "strace traces nothing");
    std::thread::sleep(Duration::from_millis(200)); // it has them all, and goes on to let them run
    strace
}

/// The answer to who waits comes too late for the end of the daemon.
#[test]
fn an_end_that_cannot_answer_everybody() {
    for by_signal in [true, false] {
        let parts = Knot::serve();
        let mount = Mount::start(parts.1.socket(), &["-o", "entry_timeout=0.2"]);
        let knot = Knot::tie(parts, mount.path(), sh_start);
        let daemon = mount.pid();
        let slow = inject(&[daemon], "writev:delay_enter=20s");
        match by_signal {
            true => mount.signal(libc::SIGTERM),
            false => knot.server.drop_client(),
        }
        mount.wait_unmounted(SOON);
        drop(slow);
        knot.cut(daemon);
    }
}

/// An ordinary user cannot cut the connection where fusectl is not mounted: the kernel does it, as the process ends.
#[test]
fn an_ordinary_users_daemon_that_is_killed_while_it_waits_in_the_kernel() {
    for number in [libc::SIGKILL, libc::SIGTERM] {
        let parts = Knot::serve();
        let qemu = Qemu::start(Which::Old, "none", &[]);
        let user = User::new(&qemu);
        let socket = parts.1.socket().to_owned();
        for (path, mode) in [(socket.parent().expect("a folder"), 0o711), (&socket, 0o777)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("open up");
        }
        user.run(&format!("qom-fuse -o entry_timeout=0.2 {} mnt", quote(&socket)))
            .ok();
        let knot = Knot::tie(parts, &user.session.mnt(), |command| user.start(command));
        let daemon = daemon(&user.session);
        let slow = (number == libc::SIGTERM).then(|| inject(&[daemon], "writev:delay_enter=20s"));
        signal(daemon as i32, number);
        assert!(
            wait_until(SOON, || user.session.info().is_none()),
            "still mounted"
        );
        let command_line = || fs::read(format!("/proc/{daemon}/cmdline")).unwrap_or_default();
        assert!(wait_until(SOON, || command_line().is_empty()), "it does not exit");
        drop(slow);
        knot.cut(daemon);
        user.session.wait_ended(SOON);
    }
}

/// Where a thread cannot have descriptors of its own, as under some rules of containers, the connection is cut through
/// fusectl.
#[test]
fn an_end_without_descriptors_of_its_own() {
    let parts = Knot::serve();
    let session = Session::new();
    let start = session.start(&format!(
        "exec unshare --mount bash -c 'umount --all --lazy --types fuse.qom-fuse
         mount -t fusectl none /sys/fs/fuse/connections
         exec strace -D -f -qq -o trace --seccomp-bpf -e trace=unshare -e inject=unshare:error=EPERM \
             qom-fuse -f -o entry_timeout=0.2 {} mnt'",
        quote(parts.1.socket())
    ));
    assert!(
        wait_until(SOON, || session.pids().len() == 2),
        "it does not start"
    );
    let daemon = daemon(&session);
    let tracer = || tracer(daemon).unwrap_or_default();
    let traced =
        || fs::read_to_string(session.dir().join("trace")).is_ok_and(|text| text.contains("INJECTED"));
    assert!(wait_until(SOON, traced), "it does not mount");
    let inside =
        |command: &str| session.start(&format!("exec nsenter -t {daemon} -m bash -c {}", quote(command)));
    let mounted = || {
        inside(&format!("test -d {}", quote(session.mnt().join("d"))))
            .finish(SOON)
            .status
            == 0
    };
    assert!(wait_until(SOON, mounted), "it does not answer");
    let knot = Knot::tie(parts, &session.mnt(), inside);
    signal(tracer() as i32, libc::SIGKILL);
    assert!(wait_until(SOON, || tracer() == 0), "still traced");
    let slow = inject(&[daemon], "writev:delay_enter=20s");
    signal(daemon as i32, libc::SIGTERM);
    let command_line = || fs::read(format!("/proc/{daemon}/cmdline")).unwrap_or_default();
    assert!(wait_until(SOON, || command_line().is_empty()), "it does not exit");
    drop(slow);
    knot.cut(daemon);
    start.finish(SOON);
    session.wait_ended(SOON);
}

/// Who traces a process; 0 for nobody.
pub fn tracer(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    line?.trim().parse().ok()
}

/// A value that has grown is on its way into the kernel, while the kernel waits for a part of it: for the answer to who
/// reads it through the page cache, which never comes.
#[test]
fn a_daemon_that_is_killed_while_a_value_waits_in_the_kernel() {
    let tree = ScriptedTree::new().with_list_get(true).object("/d");
    for name in ["a", "b", "x"] {
        tree.prop("/d", name, "string", serde_json::json!("short"));
    }
    let server = tree.serve();
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let user = User::new(&qemu);
    let socket = server.socket().to_owned();
    for (path, mode) in [(socket.parent().expect("a folder"), 0o711), (&socket, 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("open up");
    }
    user.run(&format!(
        "qom-fuse -o timeout=60 {} mnt; cat mnt/d/x",
        quote(&socket)
    ))
    .ok();
    let daemon = daemon(&user.session);
    tree.prop("/d", "x", "string", serde_json::json!("longer than before"));
    // Fetches its value at its first read only.
    let splicing = user.start(
        "exec python3 -c 'import os
fd = os.open(\"mnt/d/x\", os.O_RDWR)
while not os.path.exists(\"go\"): pass
os.sendfile(os.open(\"/dev/null\", os.O_WRONLY), fd, 0, 100)'",
    );
    std::thread::sleep(Duration::from_millis(500));
    server.reset();
    // Its value is at hand for 100 ms once those of two others were read.
    let walking = user.start(
        "exec python3 -c 'import os, time
os.listdir(\"mnt/d\")
for name in \"ab\": open(\"mnt/d/\" + name).read()
time.sleep(0.05)
open(\"mnt/d/x\").read()'",
    );
    let asked = || server.count("qom-list-get") > 0;
    assert!(wait_until(SOON, asked), "the whole object was not asked for");
    tree.hook("qom-get", "/d", "x", Action::Silence);
    fs::write(user.session.dir().join("go"), "").expect("let it go");
    std::thread::sleep(Duration::from_secs(1));
    // In the kernel, for an answer to others.
    let tasks = fs::read_dir(format!("/proc/{daemon}/task")).expect("threads");
    let waits = tasks.filter_map(Result::ok).any(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.contains("\nState:\tD")
    });
    signal(daemon as i32, libc::SIGKILL);
    std::thread::sleep(Duration::from_millis(500));
    // The kernel may have asked once more, which nobody answers; but that can be killed.
    signal(splicing.pid() as i32, libc::SIGKILL);
    splicing.finish(SOON).fails();
    walking.finish(SOON).fails();
    let threads = || fs::read_dir(format!("/proc/{daemon}/task")).map_or(0, Iterator::count);
    assert!(
        wait_until(SOON, || threads() <= 1),
        "{} threads are left",
        threads()
    );
    user.session.wait_ended(SOON);
    assert!(waits, "no thread waited in the kernel: {:?}", server.requests());
}
