//! The start of a mount: the command returns when the mount answers, or says what is wrong and leaves nothing.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::*;

each_qemu!(when_it_returns_ls_works_at_once, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    let session = Session::new();
    let script = format!(
        "set -e; for i in {{1..10}}; do qom-fuse {} mnt; ls mnt | grep -x machine; fusermount3 -u mnt; done",
        quote(qemu.socket())
    );
    let out = session.run(&script);
    assert_eq!((out.ok().lines().len(), out.stderr.as_str()), (10, ""));
    session.wait_ended(SOON);
});

#[test]
fn when_it_returns_it_holds_nothing_of_the_caller() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let socket = quote(qemu.socket());
    // Whoever reads its output gets to the end of it.
    for script in [
        "x=$(qom-fuse SOCKET mnt 2>&1); echo \"[$x]\"",
        "qom-fuse SOCKET mnt 2>&1 | cat; echo '[]'",
    ] {
        let session = Session::new();
        let out = session.run(&script.replace("SOCKET", &socket));
        assert_eq!((out.ok().text(), out.stderr.as_str()), ("[]", ""));
        session.run("ls mnt/machine; fusermount3 -u mnt").ok();
        session.wait_ended(SOON);
    }
    let mount = Mount::start(&qemu.socket(), &[]);
    assert_eq!((mount.output().text(), mount.output().stderr.as_str()), ("", ""));
    for pid in [mount.pid(), mount.watchdog()] {
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).expect("a running process");
        for number in 0..3 {
            assert_eq!(
                link(&format!("fd/{number}")),
                Path::new("/dev/null"),
                "descriptor {number} of {pid}"
            );
        }
        assert_eq!(link("cwd"), Path::new("/"), "no folder is kept busy");
        // SAFETY: plain system calls.
        let (group, session) = unsafe { (libc::getpgid(pid as i32), libc::getsid(pid as i32)) };
        let own = [mount.pid() as i32, mount.watchdog() as i32];
        assert!(
            own.contains(&group) && own.contains(&session),
            "terminal signals reach it: {group} {session} {own:?}"
        );
        let fds: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("its descriptors")
            .collect();
        assert!(fds.len() < 20, "{fds:?}");
    }
    let watched = fs::read_dir(format!("/proc/{}/fd", mount.watchdog())).expect("the watchdog's descriptors");
    let targets = watched.map(|fd| fs::read_link(fd.expect("a descriptor").path()).expect("its target"));
    let held: Vec<_> = targets
        .map(|target| target.to_string_lossy().into_owned())
        .filter(|target| target != "/dev/null" && target != "anon_inode:[signalfd]")
        .collect();
    assert!(held.len() == 1 && held[0].starts_with("pipe:"), "{held:?}");
}

#[test]
fn version_and_help() {
    let session = Session::new();
    for command in ["qom-fuse -V", "qom-fuse --version"] {
        let out = session.run(command);
        assert_eq!(
            (out.ok().text(), out.stderr.as_str()),
            (concat!("qom-fuse ", env!("CARGO_PKG_VERSION")), "")
        );
    }
    for command in ["qom-fuse -h", "qom-fuse --help"] {
        let out = session.run(command);
        assert_eq!(out.ok().stderr, "");
        let words = "SOCKET MOUNTPOINT --socket --foreground --verbose --version QMP_SOCKET QMP_SERVER fusermount3 -u ro \
                     allow_other allow_root default_permissions fsname= subtype= uid= gid= umask= \
                     entry_timeout= timeout= reconnect no_readahead tcp:host:port fd:N";
        for word in words.split(' ') {
            assert!(out.text().contains(word), "{word} is not in {out}");
        }
        let widest = out.lines().iter().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "{widest:?}");
    }
}

/// A command that fails: on stderr alone, with exit status 1, in both forms, and leaving nothing.
#[track_caller]
fn fails(session: &Session, arguments: &str, named: &[&str]) {
    for command in ["qom-fuse", "qom-fuse -f"] {
        let out = session.run(&format!("{command} {arguments}"));
        assert_eq!((out.status, out.stdout.len()), (1, 0), "{out}");
        for word in named {
            assert!(out.stderr.contains(word), "{word:?} is not in: {out}");
        }
        assert!(!out.stderr.contains("panicked"), "{out}");
        session.wait_ended(SOON);
    }
}

#[test]
fn a_socket_that_is_none() {
    let session = Session::new();
    fails(
        &session,
        "/nowhere/vm.sock mnt",
        &["qom-fuse: ", "/nowhere/vm.sock", "No such file"],
    );
    fails(&session, "gone.sock mnt", &["gone.sock", "No such file"]);
    fs::write(session.dir().join("file"), "text").expect("write a file");
    fails(&session, "./file mnt", &["/file", "refused"]);
    fails(&session, ". mnt", &["cannot connect to"]);
    drop(UnixListener::bind(session.dir().join("stale.sock")).expect("listen"));
    fails(&session, "stale.sock mnt", &["stale.sock", "refused"]);
    fails(&session, "127.0.0.1:1 mnt", &["127.0.0.1:1", "refused"]);
    fails(
        &session,
        "tcp:no-such-host.invalid:4444 mnt",
        &["no-such-host.invalid:4444"],
    );
    let long = "x".repeat(200);
    fails(&session, &format!("/{long} mnt"), &[&long]);
}

#[test]
fn a_socket_that_does_not_speak_qmp() {
    let session = Session::new();
    let path = session.dir().join("odd.sock");
    let greetings: [&[u8]; 6] = [
        b"hello\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"{\"return\": {}}\r\n",
        b"{\"QMP\": {}}\r\n",
        b"\n",
        b"\xff\xfe\n",
    ];
    for greeting in greetings {
        let server = Scripted::start_raw(&path, greeting.to_vec(), |_, _| Action::Silence);
        fails(&session, "odd.sock mnt", &["odd.sock", "no QMP monitor"]);
        drop(server);
    }
    let server = Scripted::start_raw(&path, b"\x1b[31mred\x1b[0m\n".to_vec(), |_, _| Action::Silence);
    let out = session.run("qom-fuse odd.sock mnt");
    assert!(out.status == 1 && !out.stderr.contains('\x1b'), "{out}");
    drop(server);
    let closing = harness::server::Server::start(&path, |_, _| {});
    fails(&session, "odd.sock mnt", &["odd.sock"]);
    drop(closing);
    let refusing = Scripted::start_raw(&path, format!("{}\n", script::GREETING).into_bytes(), |_, _| {
        Action::error("CommandNotFound", "no such command")
    });
    fails(
        &session,
        "odd.sock mnt",
        &["odd.sock", "qmp_capabilities", "no such command"],
    );
    drop(refusing);
    let silent = Scripted::start_raw(&path, format!("{}\n", script::GREETING).into_bytes(), |_, _| {
        Action::Silence
    });
    fails(
        &session,
        "-o timeout=1 odd.sock mnt",
        &["odd.sock", "greets", "within 1s"],
    );
    drop(silent);

    let human = format!(
        "unix:{},server=on,wait=off",
        session.dir().join("human.sock").display()
    );
    let qemu = Qemu::start(Which::Old, "none", &["-monitor", &human]);
    fails(
        &session,
        "human.sock mnt",
        &["human.sock", "no QMP monitor", "-qmp"],
    );
    drop(qemu);
}

#[track_caller]
fn held(which: Which) {
    let qemu = Qemu::start(which, "none", &[]);
    let (session, others) = (Session::new(), Session::new());
    for session in [&session, &others] {
        session
            .run(&format!("ln -s {} vm.sock", quote(qemu.socket())))
            .ok();
    }
    let holder = Truth::connect(&qemu.socket()).expect("be the first client");
    let start = Instant::now();
    fails(
        &session,
        "-o timeout=1 vm.sock mnt",
        &["vm.sock", "another client holds this monitor", "-qmp unix:"],
    );
    let took = start.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(6),
        "twice: {took:?}"
    );
    // With its backlog full, connect itself would wait.
    let clients: Vec<_> = (0..3)
        .map(|_| others.start("qom-fuse -f -o timeout=4 vm.sock mnt"))
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    fails(
        &session,
        "-o timeout=1 vm.sock mnt",
        &["vm.sock", "another client holds this monitor"],
    );
    for client in clients {
        assert_eq!(client.finish(2 * SOON).status, 1);
    }
    assert!(!holder.list("/").is_empty(), "the holder was disturbed");
    drop(holder);
    session
        .run("qom-fuse -o timeout=5 vm.sock mnt && cat mnt/machine/type")
        .ok();
}

each_qemu!(a_monitor_that_another_client_holds, held);

/// A stopped QEMU is not taken for one that another client holds, and one that has ended for neither.
#[track_caller]
fn stopped(which: Which) {
    let (port, qemu) = (0..20)
        .find_map(|_| {
            let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            let port = free.local_addr().expect("its number").port();
            drop(free); // another process may take it: then once more
            let address = format!("tcp:127.0.0.1:{port},server=on,wait=off");
            Some((port, Qemu::try_start(which, "none", &["-qmp", &address]).ok()?))
        })
        .expect("a QEMU that listens on a port");
    let session = Session::new();
    session
        .run(&format!("ln -s {} vm.sock", quote(qemu.socket())))
        .ok();
    let continued = format!("kill -CONT {}", qemu.pid());
    let is_stopped = || {
        let out = session.run("qom-fuse -o timeout=1 vm.sock mnt");
        assert!(
            out.status == 1 && out.stderr.contains(&continued) && !out.stderr.contains("another client"),
            "{out}"
        );
    };
    qemu.stop();
    is_stopped();
    // What gave up stays in the queue of a QEMU that takes nobody out of it, until that is full.
    let crowded = wait_until(SOON, || {
        let out = session.run("qom-fuse -o timeout=0.3 vm.sock mnt");
        out.stderr.contains("or QEMU is stopped")
    });
    assert!(crowded);
    // The kernel does not say who is at the other end of TCP.
    fails(
        &session,
        &format!("-o timeout=0.5 127.0.0.1:{port} mnt"),
        &["no QMP greeting", "another client holds this monitor"],
    );
    qemu.cont();
    session.run("qom-fuse vm.sock mnt && fusermount3 -u mnt").ok();
    session.wait_ended(SOON);

    let holder = Truth::connect(&qemu.socket()).expect("be the first client");
    let out = session.run("qom-fuse -o timeout=0.5 vm.sock mnt");
    out.says("another client holds this monitor");
    qemu.stop();
    is_stopped();
    drop(holder);
    qemu.kill();
    fails(&session, "vm.sock mnt", &["refused", "has ended"]);
}

each_qemu!(a_qemu_that_is_stopped, stopped);

/// A monitor that becomes free in time is waited for.
#[test]
fn a_monitor_that_becomes_free() {
    let qemu = Qemu::start(Which::New, "none", &[]);
    let session = Session::new();
    let holder = Truth::connect(&qemu.socket()).expect("be the first client");
    let waiting = session.start(&format!(
        "qom-fuse {} mnt && cat mnt/machine/type",
        quote(qemu.socket())
    ));
    std::thread::sleep(Duration::from_millis(500));
    assert!(session.info().is_none(), "mounted before the monitor answered");
    drop(holder);
    assert_eq!(waiting.finish(SOON).ok().text(), "none-machine");
}

#[test]
fn a_mount_point_that_is_none() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let session = Session::new();
    session
        .run(&format!(
            "ln -s {} vm.sock; touch file; ln -s nowhere link; mkfifo fifo",
            quote(qemu.socket())
        ))
        .ok();
    let point = "mount point";
    fails(
        &session,
        "vm.sock nowhere",
        &[point, "nowhere", "does not exist", "mkdir"],
    );
    fails(&session, "vm.sock link", &[point, "link"]);
    fails(&session, "vm.sock file", &[point, "file", "not a directory"]);
    fails(&session, "vm.sock fifo", &[point, "fifo", "not a directory"]);
    fails(&session, "vm.sock mnt/deeper", &[point, "mnt/deeper"]);
    fails(&session, "vm.sock file/deeper", &[point, "file/deeper"]);
    fails(&session, "vm.sock ''", &[point]);

    // Two that mount at one place lock it; whoever else does must not keep them for ever.
    let out = session.run("exec flock mnt qom-fuse vm.sock mnt");
    out.exits(1).says("locked");

    session.run("qom-fuse vm.sock mnt").ok();
    for command in [
        "qom-fuse vm.sock mnt",
        "qom-fuse -f /nowhere ./mnt/",
        "qom-fuse -o ro vm.sock \"$PWD/mnt\"",
    ] {
        let out = session.run(command);
        assert_eq!(out.status, 1, "{out}");
        out.says("mnt").says("already");
    }
    assert_eq!(
        session.run("cat mnt/machine/type").ok().text(),
        "none-machine",
        "the first mount is untouched"
    );
    let out = session.run("qom-fuse -o timeout=1 vm.sock mnt/machine");
    assert_eq!(out.status, 1, "the monitor is held: {out}");
    session.run("fusermount3 -u mnt").ok();
    session.wait_ended(SOON);
}

#[test]
fn a_command_line_that_is_wrong() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let session = Session::new();
    session
        .run(&format!("ln -s {} vm.sock", quote(qemu.socket())))
        .ok();
    fails(&session, "", &["Usage", "MOUNTPOINT"]);
    fails(&session, "mnt", &["no QMP socket", "QMP_SOCKET", "-s"]);
    fails(&session, "vm.sock mnt more", &["more"]);
    fails(&session, "--bogus vm.sock mnt", &["--bogus"]);
    fails(
        &session,
        "-s vm.sock other.sock mnt",
        &["vm.sock", "other.sock", "twice"],
    );
    for word in [
        "bogus",
        "bogus=1",
        "uid=me",
        "umask=999",
        "timeout=0",
        "timeout=soon",
        "entry_timeout=-1",
        "ro=1",
    ] {
        fails(&session, &format!("-o rw,{word} vm.sock mnt"), &["-o", word]);
    }
    for address in [
        "host:99999",
        "host:port",
        "::1:4444",
        "fd:x",
        "unix:",
        "tcp:host",
        "[::1:4",
    ] {
        fails(&session, &format!("{address} mnt"), &[address, "no QMP address"]);
    }
    fails(
        &session,
        "--log-file /nowhere/log vm.sock mnt",
        &["log file", "/nowhere/log"],
    );
    // Nothing of all this has taken the monitor.
    session.run("qom-fuse -o timeout=2 vm.sock mnt").ok();
}
