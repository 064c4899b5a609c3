//! QEMUs in namespaces of their own, as in a container.

use std::fs;
use std::os::unix::fs::symlink;

use harness::*;

/// A QEMU that `unshare` gives namespaces, and a tmpfs that nobody outside sees, with its monitor there.
struct Contained {
    session: Session,
    running: Background,
    name: String,
}

impl Contained {
    /// With what `unshare` is to give it, and the options of `-qmp`.
    #[track_caller]
    fn start(which: Which, namespaces: &str, monitor: &str) -> Contained {
        assert!(is_root(), "needs root, to make namespaces");
        let session = Session::new();
        fs::create_dir(session.dir().join("own")).expect("make a folder");
        let name = format!("inside-{}", session.dir().file_name().expect("a name").display());
        let script = format!(
            "mount -t tmpfs none own; ip link set lo up 2> /dev/null
             exec {} -M none -display none -nodefaults -S -name {name} -qmp {monitor},server=on,wait=off",
            quote(which.binary())
        );
        let running = session.start(&format!("exec unshare {namespaces} bash -c {}", quote(script)));
        let contained = Contained {
            session,
            running,
            name,
        };
        let listed = || contained.list().is_some();
        assert!(wait_until(SOON, listed), "it does not start");
        contained
    }

    /// What `--list` says of it behind its name.
    fn list(&self) -> Option<String> {
        let out = self.session.run("qom-fuse --list");
        let line = out
            .ok()
            .lines()
            .into_iter()
            .find_map(|line| line.split_once(&self.name));
        line.map(|(_, socket)| socket.trim().to_owned())
    }

    /// Where its files are, from outside.
    fn root(&self) -> String {
        format!("/proc/{}/root", self.running.pid())
    }
}

each_qemu!(a_socket_in_another_mount_namespace, |which| {
    let machine = Contained::start(which, "--mount", "unix:own/vm.sock");
    let session = &machine.session;
    let inside = session.dir().join("own/vm.sock");
    let shown = format!("{}{}", machine.root(), inside.display());
    assert_eq!(machine.list().as_deref(), Some(shown.as_str()));
    assert!(!inside.exists(), "it is seen from outside");
    let there = || fs::metadata(&shown).is_ok();
    assert!(wait_until(SOON, there), "it does not listen");
    // By the path, by the name, by the process.
    for asked in [&shown, &machine.name, &machine.running.pid().to_string()] {
        let out = session.run(&format!(
            "qom-fuse {asked} mnt && cat mnt/machine/type && fusermount3 -u mnt"
        ));
        assert_eq!(out.ok().text(), "none-machine", "{asked}");
        session.wait_ended(SOON);
    }
    // The end of it unmounts.
    session.run(&format!("qom-fuse {} mnt", machine.name)).ok();
    signal(machine.running.pid() as i32, libc::SIGKILL);
    session.wait_ended(3 * SECOND);
});

/// A link in a container must not lead to the host's files.
#[test]
fn a_link_in_a_container_stays_in_it() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let machine = Contained::start(Which::Old, "--mount", "unix:own/vm.sock");
    let session = &machine.session;
    let own = format!("{}{}/own", machine.root(), session.dir().display());
    let there = || fs::metadata(format!("{own}/vm.sock")).is_ok();
    assert!(wait_until(SOON, there), "it does not listen");
    // The container's / is the host's here; what is mounted in own/ is not.
    let target = session.dir().join("own/vm.sock");
    symlink(&target, format!("{own}/absolute")).expect("make a link");
    let back = format!("{}/proc/1/root{}", "/..".repeat(20), qemu.socket().display());
    symlink(&back, format!("{own}/magic")).expect("make a link");
    let out = session.run(&format!("qom-fuse {own}/absolute mnt && fusermount3 -u mnt"));
    out.ok();
    session.wait_ended(SOON);
    session
        .run(&format!("qom-fuse {own}/magic mnt"))
        .exits(1)
        .says("cannot connect to");
}

#[test]
fn a_port_in_another_network_namespace_is_marked() {
    let machine = Contained::start(Which::Old, "--net", "tcp:127.0.0.1:4321");
    let listed = machine.list();
    assert_eq!(
        listed.as_deref(),
        Some("tcp:127.0.0.1:4321  (in another network namespace)")
    );
    let out = machine.session.run(&format!("qom-fuse {} mnt", machine.name));
    let advice = out.exits(1).stderr.clone();
    let pid = machine.running.pid();
    let there = format!("nsenter --net=/proc/{pid}/ns/net");
    assert!(advice.contains(&there) && advice.contains("4321"), "{out}");
    let mounted = machine.session.run(&format!(
        "for i in {{1..50}}; do {there} qom-fuse tcp:127.0.0.1:4321 mnt && break; sleep 0.1; done
         cat mnt/machine/type; fusermount3 -u mnt"
    ));
    assert_eq!(mounted.ok().text(), "none-machine");
}

#[test]
fn who_may_not_look_is_told_so() {
    let machine = Contained::start(Which::Old, "--mount", "unix:own/vm.sock");
    let out = sh(&format!(
        "cp {} /tmp/{name} && chmod 755 /tmp/{name} &&
         setpriv --reuid=65534 --regid=65534 --clear-groups /tmp/{name} --list; rm /tmp/{name}",
        quote(qom_fuse()),
        name = machine.name
    ));
    let lines = out.ok().lines();
    let line = lines
        .iter()
        .find(|line| line.contains(&format!(" {} ", machine.name)));
    let line = line.unwrap_or_else(|| panic!("{out}"));
    assert!(line.ends_with("(namespace unknown)"), "{line}");
}
