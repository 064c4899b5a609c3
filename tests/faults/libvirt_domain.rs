//! `libvirt:DOMAIN`, and names of machines that libvirt runs: through a `virt-qemu-qmp-proxy` of qom-fuse's own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::thread;
use std::time::Duration;

use harness::proc::processes;
use harness::*;
use serde_json::json;

/// A libvirt with a domain, whose name is `$web` in scripts, and its user's own copy of the program, to be run in a folder of this user's.
struct Host {
    session: Session,
    libvirt: Libvirt,
    domain: String,
}

impl Host {
    #[track_caller]
    fn start(which: Which) -> Host {
        let (session, libvirt) = (Session::new(), Libvirt::start(which));
        fs::copy(qom_fuse(), libvirt.dir().join("bin/qom-fuse")).expect("copy the program");
        for folder in [session.dir().to_owned(), session.mnt(), session.dir().join("tmp")] {
            fs::create_dir_all(&folder).expect("make a folder");
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("open a folder");
            if is_root() {
                chown(folder, Some(NOBODY), Some(NOBODY)).expect("give a folder away");
            }
        }
        if is_root() {
            fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).expect("open /dev/fuse");
        }
        // Other tests have domains too, of the same user.
        let unique = session.dir().file_name().expect("a name").display();
        let domain = format!("web{unique}");
        libvirt.start_domain(&domain, which);
        Host {
            session,
            libvirt,
            domain,
        }
    }

    /// Runs a script as libvirt's user, in a folder with `mnt`. Nothing names the libvirt but who runs the domain.
    #[track_caller]
    fn run(&self, script: &str) -> Out {
        let dir = quote(self.session.dir());
        self.libvirt.run(&format!(
            "unset LIBVIRT_DEFAULT_URI; export TEST_SESSION={dir} TMPDIR={dir}/tmp; cd {dir}; web={}\n{script}",
            self.domain
        ))
    }

    #[track_caller]
    fn destroy(&self) {
        self.libvirt.run(&format!("virsh destroy {}", self.domain)).ok();
    }

    fn proxies(&self) -> Vec<u32> {
        let folder = self.session.dir().join("tmp").display().to_string();
        processes(|read| {
            let line = String::from_utf8_lossy(&read("cmdline")).into_owned();
            line.contains("virt-qemu-qmp-proxy") && line.contains(&folder)
        })
    }

    /// Nothing is mounted, and nothing is left of what was.
    #[track_caller]
    fn is_clean(&self, limit: Duration) {
        self.session.wait_ended(limit);
        assert!(
            wait_until(SECOND, || self.proxies().is_empty()),
            "{:?}",
            self.proxies()
        );
        assert_eq!(self.run("ls -A tmp").ok().text(), "");
    }

    /// Another way to the domain, by which libvirt says what is right.
    #[track_caller]
    fn truth(&self) -> (libvirt::Proxy, Truth) {
        let proxy = self.libvirt.proxy(&self.domain);
        let truth = Truth::connect(proxy.socket()).expect("connect");
        (proxy, truth)
    }
}

each_qemu!(a_domain_is_mounted, |which| {
    let host = Host::start(which);
    let (_proxy, truth) = host.truth();
    let objects = truth.walk();
    let out = host.run("qom-fuse libvirt:$web mnt && findmnt -no SOURCE,FSTYPE mnt");
    assert_eq!(out.ok().text(), format!("libvirt:{} fuse.qom-fuse", host.domain));
    // Nobody else finds a way to the proxy.
    assert_eq!(host.proxies().len(), 1);
    assert_eq!(host.run("ls -A tmp").ok().text(), "");

    let found = host.run("find mnt | wc -l; find mnt -type d -printf '/%P\\n'");
    let lines = found.ok().lines();
    let properties: usize = objects.iter().map(|object| object.props.len()).sum();
    assert_eq!(lines[0], (1 + properties).to_string());
    let folders: BTreeSet<&str> = lines[1..].iter().copied().collect();
    assert_eq!(folders, objects.iter().map(|object| &*object.path).collect());
    let out = host.run(
        "for i in {1..8}; do grep -r . mnt/machine/q35 mnt/machine/type > tmp/$i 2> /dev/null & done; wait
         for i in {2..8}; do cmp tmp/1 tmp/$i; done; wc -l < tmp/1; tail -n 1 tmp/1; rm tmp/*",
    );
    let lines = out.ok().lines();
    let kind = truth.get("/machine", "type").expect("a type");
    assert!(lines[0].parse::<usize>().expect("a number") > 100, "{out}");
    assert_eq!(
        lines[1],
        format!("mnt/machine/type:{}", kind.as_str().expect("a string"))
    );
    host.run("echo mine > mnt/machine/kernel").ok();
    assert_eq!(truth.get("/machine", "kernel"), Ok(json!("mine")));

    host.destroy();
    host.is_clean(3 * SECOND);
});

#[test]
fn nothing_is_left_of_a_daemon_that_is_killed() {
    let host = Host::start(Which::New);
    let list = host.run("qom-fuse --list");
    let line = list
        .ok()
        .lines()
        .into_iter()
        .find(|line| line.contains(&host.domain));
    let line = line.map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "));
    let web = &host.domain;
    assert_eq!(line, Some(format!("{web} libvirt:{web} (held by libvirt)")));
    for _ in 0..3 {
        let out = host.run("qom-fuse $web mnt && findmnt -no SOURCE mnt && cat mnt/machine/type");
        assert_eq!(out.ok().lines()[0], web);
        let proxies = host.proxies();
        assert_eq!(proxies.len(), 1);
        let daemon = proc::parent(proxies[0]).expect("its parent");
        signal(daemon as i32, libc::SIGKILL);
        host.is_clean(SOON);
    }
    // What interrupts it and its group is not the proxy's to hear: all ends in good order.
    let out = host.run("timeout --preserve-status --signal INT 4 qom-fuse -f $web mnt");
    assert_eq!((out.ok().text(), &*out.stderr), ("", ""));
    host.is_clean(SOON);
}

#[test]
fn whatever_is_wrong_is_said_in_a_line() {
    let host = Host::start(Which::New);
    let domain = "<domain type='qemu'><name>off</name><memory unit='MiB'>64</memory>\
                  <os><type arch='x86_64' machine='q35'>hvm</type></os></domain>";
    fs::write(host.libvirt.dir().join("off.xml"), domain).expect("write a domain");
    host.libvirt.run("virsh define off.xml").ok();
    let here = "uri=qemu:///session";
    for (setting, asked, words) in [
        ("", &*format!("-o {here} libvirt:off"), "Domain must be running"),
        (
            "",
            &*format!("-o {here} libvirt:nosuch"),
            "no domain with matching name 'nosuch'",
        ),
        (
            "LIBVIRT_DEFAULT_URI=qemu:///session",
            "libvirt:nosuch",
            "no domain with matching name",
        ),
        (
            "",
            "libvirt:nosuch",
            "libvirt (qemu:///system): Failed to connect socket",
        ),
        (
            "",
            "-o uri=qemu+unix:///session?socket=/none libvirt:$web",
            "Failed to connect socket to '/none'",
        ),
        ("", "-o uri=rubbish libvirt:$web", "libvirt (rubbish): "),
        ("PATH=/nowhere", "libvirt:$web", "libvirt-clients-qemu"),
        (
            "TMPDIR=/nowhere",
            "$web",
            "cannot make a folder for a socket, /nowhere/",
        ),
    ] {
        let program = host.libvirt.dir().join("bin/qom-fuse").display().to_string();
        let out = host.run(&format!("{setting} {program} {asked} mnt"));
        out.exits(1).says(words);
        assert!(
            out.stderr.starts_with("qom-fuse: cannot connect to ") && out.stderr.lines().count() == 1,
            "{out}"
        );
        host.is_clean(SOON);
    }
    // One that libvirt does not know of any more, or another one of its name.
    host.run(&format!(
        "qom-fuse -o {here} libvirt:$web mnt && fusermount3 -u mnt"
    ))
    .ok();
    host.is_clean(SOON);
}

/// libvirt closes the connection over a reply that is too long for it, as when a domain is busy.
#[test]
fn a_connection_that_closes_is_not_the_end() {
    let host = Host::start(Which::New);
    let (_proxy, truth) = host.truth();
    host.run("qom-fuse $web mnt").ok();
    thread::scope(|scope| {
        let held = scope.spawn(|| {
            host.run(
                "exec 3>> mnt/machine/initrd; touch tmp/open
                 until [ -e tmp/go ]; do sleep 0.1; done; rm tmp/open tmp/go; echo late >&3",
            )
        });
        let is_open = || host.session.dir().join("tmp/open").exists();
        assert!(wait_until(SOON, is_open), "it is not opened");
        // Not through a proxy, which needs minutes for it.
        let set = format!(
            "import json, libvirt, libvirt_qemu
domain = libvirt.open('qemu:///session').lookupByName('{}')
for name in 'kernel', 'append':
    arguments = {{'path': '/machine', 'property': name, 'value': 'é' * 500000}}
    command = {{'execute': 'qom-set', 'arguments': arguments}}
    print(libvirt_qemu.qemuMonitorCommand(domain, json.dumps(command, ensure_ascii=False), 0))",
            host.domain
        );
        fs::write(host.libvirt.dir().join("set.py"), set).expect("write a script");
        host.libvirt
            .run("PYTHONUTF8=1 python3 set.py")
            .ok()
            .shows("return");
        // Each is 3,000,000 bytes in JSON, both are too much.
        let first = host.proxies();
        let out = host.run(
            "cat mnt/machine/type; grep -rc . mnt/machine | wc -l; cat mnt/machine/type; wc -c < mnt/machine/kernel",
        );
        let lines = out.ok().lines();
        let kind = lines[0];
        assert_eq!(lines[2..], [kind, "1000001"], "{out}");
        assert_eq!(host.proxies(), first);
        // The proxy is gone: another one takes its place.
        signal(first[0] as i32, libc::SIGKILL);
        let reads = || host.run("cat mnt/machine/type").text() == kind;
        assert!(wait_until(SOON, reads), "it does not come back");
        assert_ne!(host.proxies(), first);
        // It is the same machine, to which what is open still belongs.
        host.run("touch tmp/go").ok();
        held.join().expect("its output").ok();
        assert_eq!(truth.get("/machine", "initrd"), Ok(json!("late")));
    });
    host.destroy();
    host.is_clean(3 * SECOND);
}

#[test]
fn the_next_domain_of_the_name_takes_its_place() {
    let host = Host::start(Which::New);
    host.run("qom-fuse -o reconnect $web mnt && cat mnt/machine/type")
        .ok();
    host.destroy();
    let gone = || host.run("cat mnt/machine/type").stderr.contains("not connected");
    assert!(wait_until(3 * SECOND, gone), "its end is not noticed");
    assert!(host.session.info().is_some());
    host.libvirt.start_domain(&host.domain, Which::Old);
    let kind = || host.run("cat mnt/machine/type").text().to_owned();
    assert!(
        wait_until(3 * SOON, || kind() == "pc-q35-7.2-machine"),
        "{}",
        kind()
    );
    assert_eq!(host.proxies().len(), 1);
    host.run("fusermount3 -u mnt").ok();
    host.is_clean(SOON);
}

/// There, only what libvirt says tells that a domain has ended.
#[test]
fn a_domain_of_another_host() {
    let host = Host::start(Which::New);
    let relay = "#!/usr/bin/python3
import socket, sys, threading, os
far = socket.socket(socket.AF_UNIX); far.connect(os.path.dirname(__file__) + '/run/libvirt/libvirt-sock')
def out():
    while data := far.recv(65536): os.write(1, data)
    os._exit(0)
threading.Thread(target=out, daemon=True).start()
while data := os.read(0, 65536): far.sendall(data)
";
    let script = host.libvirt.dir().join("relay");
    fs::write(&script, relay).expect("write a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("make it a program");
    let uri = format!("qemu+ext://elsewhere/session?command={}", script.display());
    host.run(&format!(
        "qom-fuse -o uri='{uri}' libvirt:$web mnt && cat mnt/machine/type"
    ))
    .ok();
    let first = host.proxies();
    signal(first[0] as i32, libc::SIGKILL);
    let reads = || host.run("cat mnt/machine/type").status == 0;
    assert!(wait_until(SOON, reads), "it does not come back");
    host.destroy();
    host.run("cat mnt/machine/type").fails();
    host.is_clean(SOON);

    // A guest that shuts down says so: a QEMU that ends then is noticed without an access.
    host.libvirt.start_domain(&host.domain, Which::New);
    host.run(&format!("qom-fuse -o uri='{uri}' libvirt:$web mnt"))
        .ok();
    let quit = "virsh -c qemu:///session qemu-monitor-command $web '{\"execute\": \"quit\"}'";
    let noticed = thread::scope(|scope| {
        scope.spawn(|| host.run(quit));
        wait_until(SOON, || host.session.info().is_none())
    });
    assert!(noticed, "its end is not noticed");
    host.is_clean(SOON);
}

#[test]
fn from_fstab() {
    assert!(is_root(), "needs root, to mount as the system does");
    let host = Host::start(Which::New);
    let script = format!(
        "set -e; mkdir sbin; cp {} sbin/qom-fuse; mount --bind sbin /usr/local/sbin
         umount --all --lazy --types fuse.qom-fuse || true
         uri=qemu+unix:///session?socket={}/run/libvirt/libvirt-sock
         echo \"libvirt:{} $PWD/mnt fuse.qom-fuse ro,nofail,_netdev,uri=$uri 0 0\" > fstab
         mount --fstab fstab $PWD/mnt
         findmnt -rn -o SOURCE,FSTYPE mnt
         cat mnt/machine/type
         umount mnt",
        quote(qom_fuse()),
        host.libvirt.dir().display(),
        host.domain
    );
    fs::write(host.session.dir().join("script"), script).expect("write a script");
    let out = host.session.run("exec unshare --mount bash script");
    let source = format!("libvirt:{} fuse.qom-fuse", host.domain);
    assert_eq!(out.ok().lines()[0], source, "{out}");
    host.session.wait_ended(SOON);
}
