//! Machines by name: `qom-fuse web mnt`.

use std::fs;
use std::path::Path;
use std::thread;

use harness::*;
use serde_json::json;

/// A name that no other test's machine has.
fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

/// Mounts what is asked for, shows what that is, and unmounts.
fn show(session: &Session, asked: &str) -> Out {
    session.run(&format!(
        "qom-fuse {asked} mnt && cat mnt/machine/type mnt/machine/kernel && findmnt -no SOURCE mnt &&
         fusermount3 -u mnt"
    ))
}

/// A machine whose `kernel` says which one it is.
#[track_caller]
fn machine(which: Which, kernel: &str, arguments: &[&str]) -> Qemu {
    let qemu = Qemu::start(which, "none", arguments);
    qemu.set("/machine", "kernel", json!(kernel));
    qemu
}

/// A process that calls itself a QEMU with these arguments.
#[track_caller]
fn fake(session: &Session, arguments: &str) -> Background {
    let running = session.start(&format!("exec -a qemu-kvm bash -c 'sleep 60; :' {arguments}"));
    let line = || fs::read(format!("/proc/{}/cmdline", running.pid()));
    let started = || line().is_ok_and(|line| line.starts_with(b"qemu-kvm\0"));
    assert!(wait_until(SOON, started), "it did not start");
    running
}

each_qemu!(a_machine_is_found_by_name_and_process, |which| {
    let session = Session::new();
    let name = unique(&format!("web-{which:?}"));
    let qemu = machine(
        which,
        "/dev/null",
        &["-name", &format!("{name},debug-threads=on")],
    );
    let pid = qemu.pid().to_string();
    for asked in [&name, &pid] {
        let out = show(&session, asked);
        assert_eq!(out.ok().lines(), ["none-machine", "/dev/null", asked], "{asked}");
        session.wait_ended(SOON);
    }
    for script in [
        format!("qom-fuse -s {name} mnt"),
        format!("QMP_SOCKET={name} qom-fuse mnt"),
        format!("qom-fuse -o reconnect {name} mnt"),
    ] {
        session.run(&format!("{script} && fusermount3 -u mnt")).ok();
        session.wait_ended(SOON);
    }
    // Its end is the end of the mount.
    session.run(&format!("qom-fuse {name} mnt")).ok();
    if which == Which::New {
        // QEMU has made a monitor for the mount, and the one that was found serves others.
        Truth::connect(&qemu.socket()).expect("another client");
    }
    qemu.kill();
    session.wait_ended(3 * SECOND);
});

/// A name of digits is not taken for a process id when its machine has ended.
#[test]
fn a_name_is_nobodys_process_id_later() {
    let session = Session::new();
    let other = machine(Which::Old, "/dev/zero", &[]);
    let name = other.pid().to_string();
    let named = || machine(Which::Old, "/dev/null", &["-name", &name]);
    let first = named();
    let kernel = |session: &Session| session.run("cat mnt/machine/kernel");
    session.run(&format!("qom-fuse -o reconnect {name} mnt")).ok();
    assert_eq!(kernel(&session).ok().text(), "/dev/null");
    first.kill();
    assert!(wait_until(SOON, || kernel(&session).status != 0), "it has ended");
    for _ in 0..10 {
        kernel(&session).exits(1);
        thread::sleep(SECOND / 5);
    }
    let _next = named();
    assert!(
        wait_until(10 * SECOND, || kernel(&session).status == 0),
        "it is back"
    );
    assert_eq!(kernel(&session).ok().text(), "/dev/null");
    session.run("fusermount3 -u mnt").ok();
    session.wait_ended(SOON);
}

/// What other people's command lines say does not act on a terminal.
#[test]
fn an_address_is_printed_safely() {
    let session = Session::new();
    let name = unique("evil");
    let _running = fake(&session, &format!("-name {name} -qmp $'tcp:\\e[2J:x,server=on'"));
    let out = session.run(&format!("qom-fuse {name} mnt"));
    out.exits(1).says("[2J");
    assert!(!out.stderr.contains('\x1b'), "{out}");
}

/// As Proxmox VE starts its QEMU, which alone takes `-id`.
#[test]
fn a_machine_is_found_by_its_id() {
    let session = Session::new();
    let (name, id) = (unique("vm"), format!("9{}", std::process::id()));
    let qemu = machine(Which::Old, "/dev/null", &[]);
    fs::write(session.dir().join("relay.py"), RELAY).expect("write a script");
    let running = session.start(&format!(
        "exec -a /usr/bin/kvm python3 relay.py {} -id {id} -name '{name},debug-threads=on' \
         -chardev 'socket,id=qmp,path=vm.qmp,server=on,wait=off' -mon 'chardev=qmp,mode=control'",
        quote(qemu.socket())
    ));
    let listens = || session.dir().join("listens").exists();
    assert!(wait_until(SOON, listens), "it does not listen");
    for asked in [&id, &name] {
        assert_eq!(
            show(&session, asked).ok().lines(),
            ["none-machine", "/dev/null", asked]
        );
        session.wait_ended(SOON);
    }
    drop(running);
}

/// Serves `vm.qmp`, for a QEMU that is at another socket.
const RELAY: &str = r"
import socket, sys, threading
def pump(a, b):
    while data := a.recv(65536): b.sendall(data)
    b.shutdown(socket.SHUT_RDWR)
here = socket.socket(socket.AF_UNIX); here.bind('vm.qmp'); here.listen(1); open('listens', 'w')
while True:
    client, _ = here.accept()
    qemu = socket.socket(socket.AF_UNIX); qemu.connect(sys.argv[1])
    for pair in (client, qemu), (qemu, client): threading.Thread(target=pump, args=pair, daemon=True).start()
";

/// A process that QEMU leaves behind listens itself.
#[test]
fn a_machine_in_the_background() {
    let session = Session::new();
    for which in Which::ALL {
        let name = unique("daemon");
        let start = format!(
            "{} -M none -display none -nodefaults -S -name {name} -daemonize -pidfile pid \
             -qmp unix:$PWD/vm.sock,server=on,wait=off",
            quote(which.binary())
        );
        session.run(&start).ok();
        let out = show(&session, &name);
        session
            .run("kill $(cat pid); while [ -e pid ]; do sleep 0.05; done")
            .ok();
        assert_eq!(out.lines().first(), Some(&"none-machine"), "{out}");
        session.wait_ended(SOON);
    }
}

#[test]
fn of_two_machines_neither_is_taken() {
    let session = Session::new();
    let name = unique("twin");
    let qemus = [Which::Old, Which::New].map(|which| machine(which, "/dev/null", &["-name", &name]));
    let out = session.run(&format!("qom-fuse {name} mnt"));
    out.exits(1)
        .says(&format!("qom-fuse: 2 machines are called {name}: "));
    for qemu in &qemus {
        let line = format!("{:>8}  {name:<20}  {}", qemu.pid(), qemu.socket().display());
        assert!(out.stderr.lines().any(|said| said == line), "{line}: {out}");
    }
    let pid = qemus[1].pid().to_string();
    show(&session, &pid).ok();
    // Its name counts before what another one's number is.
    let third = machine(Which::Old, "/dev/zero", &["-name", &pid]);
    assert_eq!(show(&session, &pid).ok().lines()[1], "/dev/zero");
    third.kill();
    qemus[0].kill();
    assert_eq!(
        show(&session, &name).ok().lines(),
        ["none-machine", "/dev/null", &name]
    );
}

#[test]
fn a_file_of_that_name_is_meant() {
    let session = Session::new();
    let name = unique("both");
    let qemu = machine(Which::Old, "/dev/null", &["-name", &name]);
    for make in ["touch", "ln -s nowhere", "mkdir"] {
        session.run(&format!("{make} {name}")).ok();
        let out = session.run(&format!("qom-fuse {name} mnt"));
        out.exits(1)
            .says(&format!("cannot connect to {}/{name}: ", session.dir().display()));
        session
            .run(&format!("qom-fuse libvirt:{name} mnt"))
            .exits(1)
            .says("libvirt");
        session.run(&format!("rm -r {name}")).ok();
    }
    // Nor does a text that can only be an address lead to a machine.
    for address in [format!("./{name}"), format!("unix:{name}")] {
        session
            .run(&format!("qom-fuse {address} mnt"))
            .exits(1)
            .says("No such file");
    }
    drop(qemu);
}

#[test]
fn what_is_not_there_is_said_with_what_is() {
    let session = Session::new();
    let qemu = machine(Which::Old, "/dev/null", &["-name", &unique("there")]);
    let list = session.run("qom-fuse --list");
    let name = unique("nothing");
    let out = session.run(&format!("qom-fuse {name} mnt"));
    out.exits(1).says(&format!(
        "qom-fuse: no QEMU with a QMP monitor is called {name}, and "
    ));
    let line = list
        .ok()
        .lines()
        .into_iter()
        .find(|line| line.contains(&qemu.pid().to_string()));
    out.says(line.expect("its line"));
    let own = std::process::id();
    session
        .run(&format!("qom-fuse {own} mnt"))
        .exits(1)
        .says(&format!("is called {own}, "));
    session
        .run("qom-fuse libvirt: mnt")
        .exits(1)
        .says("libvirt:DOMAIN");
    session
        .run(&format!("qom-fuse -o reconnect {} mnt", qemu.pid()))
        .exits(1)
        .says("a process id means this one QEMU");
}

/// What cannot be reached by its name is said so, with what to do.
#[test]
fn monitors_that_others_hold() {
    let session = Session::new();
    let fake = |arguments: &str| fake(&session, arguments);
    let (twin, held) = (unique("domain"), unique("held"));
    let of_libvirt = format!(
        "-name guest={twin} -chardev socket,id=charmonitor,fd=24,server=on,wait=off \
         -mon chardev=charmonitor,id=monitor,mode=control"
    );
    let running = [
        fake(&of_libvirt),
        fake(&of_libvirt),
        fake(&format!(
            "-name {held} -chardev socket,id=m,fd=24 -mon chardev=m,mode=control"
        )),
    ];
    let pids = running.each_ref().map(Background::pid);
    let out = session.run(&format!("qom-fuse libvirt:{twin} mnt"));
    out.exits(1)
        .says(&format!("qom-fuse: 2 domains are called {twin}: "));
    out.says("-o uri=qemu:///system")
        .says(&pids[0].to_string())
        .says(&pids[1].to_string());
    let out = session.run(&format!("qom-fuse {twin} mnt"));
    out.exits(1)
        .says(&format!("qom-fuse: 2 machines are called {twin}: "));
    let out = session.run(&format!("qom-fuse {held} mnt"));
    let words = format!(
        "{held} (process {}): whoever started it holds its only monitor",
        pids[2]
    );
    out.exits(1).says(&words).says("-qmp unix:PATH");
}

/// The next machine of the name may have its socket elsewhere.
#[test]
fn after_its_end_a_name_is_looked_up_anew() {
    let session = Session::new();
    let name = unique("again");
    let start = |kernel| machine(Which::Old, kernel, &["-name", &name]);
    let first = start("/dev/null");
    session.run(&format!("qom-fuse -o reconnect {name} mnt")).ok();
    let shows = |kernel: &str| {
        let shown = || session.run("cat mnt/machine/kernel").text() == kernel;
        assert!(wait_until(SOON, shown), "{kernel} does not come");
    };
    shows("/dev/null");
    first.kill();
    session.run("cat mnt/machine/kernel").says("not connected");
    let second = start("/dev/zero");
    shows("/dev/zero");
    // With two, neither.
    let third = start("/dev/full");
    second.kill();
    shows("/dev/full");
    third.kill();
    session.run("fusermount3 -u mnt").ok();
    session.wait_ended(SOON);
}

/// Other people can call their processes what they like.
#[test]
fn a_name_does_not_mean_other_peoples_machines() {
    assert!(is_root(), "needs root, to be somebody else");
    let session = Session::new();
    let name = unique("theirs");
    session.run("chmod 777 .").ok();
    let theirs = session.start(&format!(
        "exec setpriv --reuid=4321 --regid=4321 --clear-groups bash -c '
         exec -a qemu python3 -c \"import socket, time
s = socket.socket(socket.AF_UNIX); s.bind(\\\"theirs.sock\\\"); s.listen(1); time.sleep(60)\" \
         -name {name} -qmp unix:theirs.sock,server=on'"
    ));
    assert!(
        wait_until(SOON, || session.dir().join("theirs.sock").exists()),
        "it does not listen"
    );
    let pid = theirs.pid();
    let out = session.run(&format!("qom-fuse {name} mnt"));
    out.exits(1).says(&format!("named by process id: {pid})"));
    // It says nothing, and so is nothing to mount; but it is what was asked.
    session
        .run(&format!("qom-fuse -o timeout=0.5 {pid} mnt"))
        .exits(1)
        .says("no QMP greeting");

    // Of ours, but the socket is theirs.
    let ours = session.start(&format!(
        "exec bash -c 'exec -a qemu sleep 60 -name ours-{name} -qmp unix:theirs.sock,server=on' 2>&1"
    ));
    drop(ours);
    let ours = session.start(&format!(
        "exec -a qemu bash -c 'sleep 60; :' -name ours-{name} -qmp unix:theirs.sock,server=on"
    ));
    let named = || {
        let line = fs::read(format!("/proc/{}/cmdline", ours.pid()));
        line.is_ok_and(|line| line.starts_with(b"qemu\0"))
    };
    assert!(wait_until(SOON, named), "it did not start");
    let out = session.run(&format!("qom-fuse ours-{name} mnt"));
    out.exits(1).says(&format!(
        "is served by process {pid}, and not by the QEMU that names it"
    ));
}

#[test]
fn completions_offer_the_names() {
    let qemu = machine(Which::Old, "/dev/null", &["-name", &unique("offered")]);
    let session = Session::new();
    let bash = Path::new(env!("CARGO_MANIFEST_DIR")).join("completions/qom-fuse.bash");
    let complete = |words: &str| {
        session.run(&format!(
            ". {}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE=\"{words}\"
             set -- qom-fuse \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD - 1]}}\"
             $(complete -p qom-fuse | sed 's/.*-F \\([^ ]*\\) .*/\\1/') \"$@\"
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            quote(&bash)
        ))
    };
    for words in ["qom-fuse off", "qom-fuse -f off", "qom-fuse -s off"] {
        let offered = complete(words);
        assert!(
            offered.ok().lines().contains(&unique("offered").as_str()),
            "{words}: {offered}"
        );
    }
    drop(qemu);
}
