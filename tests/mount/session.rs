//! The session at the top of the README, as a user types it, and every way to say where the machine is.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use harness::*;
use serde_json::json;

each_qemu!(the_session_of_the_design, |which| {
    let qemu = Qemu::start(which, "q35", &[]);
    let truth = qemu.truth();
    let session = Session::new();
    let socket = quote(qemu.socket());

    let out = session.run(&format!("QMP_SOCKET={socket} qom-fuse mnt"));
    assert_eq!((out.ok().text(), out.stderr.as_str()), ("", ""));
    let mut names: Vec<String> = truth.list("/").into_iter().map(|prop| prop.name).collect();
    names.sort();
    assert_eq!(session.run("ls mnt").ok().lines(), names);
    assert!(
        ["chardevs", "machine", "objects", "type"]
            .iter()
            .all(|name| names.contains(&(*name).to_owned()))
    );

    let kind = truth
        .get("/machine/unattached/device[1]", "type")
        .expect("a type");
    let out = session.run("cat mnt/machine/unattached/device[1]/type");
    assert_eq!(out.ok().text(), kind);

    let out = session.run("ls -l mnt/machine/memory-backend");
    let line = out.ok().text();
    assert!(line.starts_with("lrwxrwxrwx"), "{line}");
    assert!(
        line.ends_with(" mnt/machine/memory-backend -> ../objects/pc.ram"),
        "{line}"
    );
    assert_eq!(
        session.run("cat mnt/machine/memory-backend/size").ok().text(),
        "67108864"
    );

    assert_eq!(truth.get("/machine", "graphics"), Ok(json!(true)));
    let out = session.run("echo off > mnt/machine/graphics");
    assert_eq!(out.ok().stderr, "");
    assert_eq!(truth.get("/machine", "graphics"), Ok(json!(false)));
    assert_eq!(session.run("cat mnt/machine/graphics").ok().text(), "false");

    let out = session.run("fusermount3 -u mnt");
    assert_eq!(out.ok().stderr, "");
    session.wait_ended(SOON);
    assert_eq!(session.run("ls mnt").ok().text(), "");
    truth.list("/");
});

#[test]
fn a_session_in_one_script() {
    let qemu = Qemu::start(Which::New, "q35", &[]);
    let session = Session::new();
    let script = format!(
        "set -e
         export QMP_SERVER={}
         for i in 1 2 3 4 5; do
             said=$(qom-fuse mnt)
             test -z \"$said\"
             cat mnt/machine/type
             cd mnt/machine/unattached; cat */type > /dev/null; cd - > /dev/null
             fusermount3 -u mnt
         done",
        quote(qemu.socket())
    );
    let out = session.run(&script);
    let kind = qemu.truth().get("/machine", "type").expect("a type");
    assert_eq!(out.ok().lines(), vec![kind.as_str().expect("a string"); 5]);
    session.wait_ended(SOON);
}

/// Each of these words, in the place of the socket, leads to the machine and is what mount(8) shows.
#[track_caller]
fn reaches(session: &Session, socket: &str, kind: &str) {
    let out = session.run(&format!("qom-fuse {} mnt", quote(socket)));
    assert_eq!((out.ok().text(), out.stderr.as_str()), ("", ""), "{socket}");
    assert_eq!(session.run("cat mnt/machine/type").ok().text(), kind, "{socket}");
    assert_eq!(session.info().expect("a mount").source, *socket);
    session.run("fusermount3 -u mnt").ok();
    session.wait_ended(SOON);
}

each_qemu!(unix_sockets, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    let session = Session::new();
    let path = qemu.socket();
    let path = path.to_str().expect("UTF-8");
    for socket in [
        path.to_owned(),
        format!("unix:{path}"),
        format!("unix:{path},server=on,wait=off"),
        format!("unix:{path},server,nowait"),
        format!("{path},server=on,wait=off"),
        format!("unix:path={path},server=on"),
    ] {
        reaches(&session, &socket, "none-machine");
    }
    session
        .run(&format!(
            "ln -s {} vm.sock; ln -s {} 'a b,c.sock'",
            quote(path),
            quote(path)
        ))
        .ok();
    for socket in [
        "vm.sock",
        "./vm.sock",
        "unix:vm.sock",
        "mnt/../vm.sock",
        "unix:a b,,c.sock",
    ] {
        reaches(&session, socket, "none-machine");
    }
});

#[test]
fn an_abstract_socket() {
    let name = format!("qom-fuse-test-{}", std::process::id());
    let socket = format!("unix:{name},abstract=on,server=on,wait=off");
    let qemu = Qemu::start(Which::New, "none", &["-qmp", &socket]);
    reaches(&Session::new(), &socket, "none-machine");
    drop(qemu);
}

each_qemu!(tcp_addresses, |which| {
    let (qemu, port) = (0..20)
        .find_map(|_| {
            let free = TcpListener::bind("127.0.0.1:0").expect("a port");
            let port = free.local_addr().expect("its number").port();
            drop(free); // another process may take it: then once more
            let address = format!("tcp:127.0.0.1:{port},server=on,wait=off");
            Some((Qemu::try_start(which, "none", &["-qmp", &address]).ok()?, port))
        })
        .expect("a QEMU that listens on a port");
    let session = Session::new();
    for socket in [
        format!("tcp:127.0.0.1:{port}"),
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
        format!("tcp:localhost:{port}"),
        format!("tcp:127.0.0.1:{port},server=on,wait=off"),
        format!("tcp::{port},server,nowait"),
    ] {
        reaches(&session, &socket, "none-machine");
    }
    drop(qemu);
});

each_qemu!(an_inherited_descriptor, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    for foreground in [false, true] {
        let stream = UnixStream::connect(qemu.socket()).expect("connect to QEMU");
        let socket = format!("fd:{}", stream.as_raw_fd());
        let launch = Launch::new().inherit(&stream).socket(&socket);
        let mount = match foreground {
            true => launch.foreground(),
            false => launch.background().unwrap_or_else(|out| panic!("{out}")),
        };
        drop(stream);
        assert_reads(mount.join("machine/type"), "none-machine\n");
        assert_eq!(mount.info().expect("a mount").source, *socket);
        mount.unmount();
        // Nobody else has kept the connection: QEMU's monitor is free for the next client.
        let next = Mount::start(&qemu.socket(), &["-o", "timeout=5"]);
        next.unmount();
    }
});

#[test]
fn an_inherited_descriptor_that_is_no_socket() {
    let file = std::fs::File::open("/dev/null").expect("open a file");
    for (socket, launch) in [
        (format!("fd:{}", file.as_raw_fd()), Launch::new().inherit(&file)),
        ("fd:987".to_owned(), Launch::new()),
    ] {
        let out = launch.socket(&socket).background().err().expect("no socket");
        out.exits(1).says(&socket);
    }
}

#[test]
fn where_the_socket_is_named() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let session = Session::new();
    session
        .run(&format!("ln -s {} vm.sock", quote(qemu.socket())))
        .ok();
    for command in [
        "qom-fuse vm.sock mnt",
        "qom-fuse -s vm.sock mnt",
        "qom-fuse -svm.sock mnt",
        "qom-fuse --socket vm.sock mnt",
        "qom-fuse --socket=vm.sock mnt",
        "qom-fuse mnt -s vm.sock",
        "QMP_SOCKET=vm.sock qom-fuse mnt",
        "QMP_SERVER=vm.sock qom-fuse mnt",
        "QMP_SOCKET=vm.sock QMP_SERVER=/nowhere qom-fuse mnt",
        "QMP_SOCKET= QMP_SERVER=vm.sock qom-fuse mnt",
        "QMP_SOCKET=/nowhere qom-fuse vm.sock mnt",
        "QMP_SOCKET=/nowhere QMP_SERVER=/nowhere qom-fuse -s vm.sock mnt",
        "qom-fuse vm.sock mnt -o timeout=5",
        "qom-fuse -o rw,timeout=5 -o nodev vm.sock mnt",
        "qom-fuse -o auto_unmount vm.sock mnt",
    ] {
        let out = session.run(command);
        assert_eq!((out.ok().text(), out.stderr.as_str()), ("", ""), "{command}");
        assert_eq!(
            session.run("cat mnt/machine/type").ok().text(),
            "none-machine",
            "{command}"
        );
        assert_eq!(session.info().expect("a mount").source, "vm.sock", "{command}");
        session.run("fusermount3 -u mnt").ok();
        session.wait_ended(SOON);
    }
}

#[test]
fn mount_points_as_they_are_typed() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let session = Session::new();
    session
        .run(&format!(
            "ln -s {} vm.sock; ln -s mnt link; mkdir deep",
            quote(qemu.socket())
        ))
        .ok();
    session
        .run("mkdir 'a b, \\c\"d' $'new\\nline' größer ./-dash")
        .ok();
    let cases = [
        ("mnt/", "mnt"),
        ("./mnt", "mnt"),
        ("deep/../mnt", "mnt"),
        ("\"$PWD\"/mnt", "mnt"),
        ("link", "mnt"),
        ("'a b, \\c\"d'", "a b, \\c\"d"),
        ("$'new\\nline'", "new\nline"),
        ("größer", "größer"),
        ("./-dash", "-dash"),
    ];
    for (typed, point) in cases {
        session.run(&format!("qom-fuse vm.sock {typed}")).ok();
        let point = session.dir().join(point);
        assert!(mountinfo::mount_at(&point).is_some(), "{typed}");
        assert_eq!(
            session.run(&format!("cat {typed}/machine/type")).ok().text(),
            "none-machine",
            "{typed}"
        );
        session
            .run(&format!("fusermount3 -u -- \"$(realpath -- {typed})\""))
            .ok();
        session.wait_ended(SOON);
    }
    session.run("cd mnt; qom-fuse ../vm.sock .").ok();
    assert_eq!(session.run("cat mnt/machine/type").ok().text(), "none-machine");
    session.run("fusermount3 -u mnt").ok();
    session.wait_ended(SOON);
    // A directory that is not empty is hidden, and comes back.
    session
        .run("touch mnt/file; qom-fuse vm.sock mnt; test ! -e mnt/file && fusermount3 -u mnt && rm mnt/file")
        .ok();
    session.wait_ended(SOON);
}

// A socket's address has room for 107 bytes.
each_qemu!(a_socket_in_a_deep_folder, |which| {
    let session = Session::new();
    let deep = session.dir().join("d".repeat(200)).join("e".repeat(100));
    std::fs::create_dir_all(&deep).expect("make deep folders");
    let start = || {
        let qemu = session.start(&format!(
            "cd {} && exec {} -M none -display none -nodefaults -S -qmp unix:q.sock,server=on,wait=off",
            quote(&deep),
            quote(which.binary())
        ));
        assert!(wait_until(SOON, || deep.join("q.sock").exists()), "no QEMU");
        qemu
    };
    let mut qemu = start();
    let absolute = deep.join("q.sock").display().to_string();
    for socket in ["q.sock", "unix:q.sock", &absolute] {
        for options in ["", "-o reconnect"] {
            let point = quote(session.mnt());
            let mount = format!("cd {} && qom-fuse {options} {socket} {point}", quote(&deep));
            session.run(&mount).ok();
            let read = || session.run("cat mnt/machine/type");
            assert_eq!(read().ok().text(), "none-machine", "{socket}");
            if !options.is_empty() {
                // Meanwhile it works in the root folder.
                harness::proc::signal(qemu.pid() as i32, libc::SIGKILL);
                qemu.finish(SOON);
                std::fs::remove_file(deep.join("q.sock")).ok(); // QEMU may have
                assert!(wait_until(SOON, || read().status != 0));
                qemu = start();
                assert!(wait_until(SOON, || read().status == 0), "{socket}: {}", read());
            }
            session.run("fusermount3 -u mnt").ok();
            session.wait_ended(SOON);
        }
    }
    let missing = session.run(&format!(
        "cd {} && qom-fuse missing.sock {}",
        quote(&deep),
        quote(session.mnt())
    ));
    missing.exits(1).says("is QEMU running");
    harness::proc::signal(qemu.pid() as i32, libc::SIGKILL);
    qemu.finish(SOON);
});

#[test]
fn a_socket_in_a_deep_folder_without_proc() {
    let session = Session::new();
    let server = ScriptedTree::new().serve();
    let deep = session.dir().join("d".repeat(120));
    std::fs::create_dir(&deep).expect("make a deep folder");
    std::fs::rename(server.socket(), deep.join("q.sock")).expect("move the socket");
    let script = format!("mount -t tmpfs none /proc; qom-fuse {}/q.sock mnt", quote(&deep));
    let out = session.run(&format!(
        "exec unshare --mount --propagation private bash -c {}",
        quote(script)
    ));
    out.exits(1).says("can only be reached where /proc is mounted");
}
