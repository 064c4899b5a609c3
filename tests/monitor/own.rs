//! QEMU from 11.1 on makes a monitor for the mount; the given one serves others.

use std::io::{IoSliceMut, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Instant;

use harness::server::{Server, Splitter};
use harness::*;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

use super::{at, on_tcp};

/// The greeting of a QEMU that makes monitors.
const GREETING_OWN: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 1, "major": 11}, "package": "a build"}, "capabilities": ["oob"]}}"#;

/// The user-creatable objects and the character devices of a machine.
#[track_caller]
fn made(qemu: &Qemu) -> (Vec<String>, Vec<String>) {
    let objects = qemu.truth().list("/objects");
    let chardevs = qemu.truth().execute("query-chardev", Value::Null);
    let chardevs = chardevs.expect("a list of character devices");
    let label = |chardev: &Value| chardev["label"].as_str().unwrap_or_default().to_owned();
    let mut labels: Vec<_> = chardevs.as_array().expect("a list").iter().map(label).collect();
    labels.sort();
    (objects.into_iter().map(|object| object.name).collect(), labels)
}

/// Whether the mount of this machine has a monitor of its own, of this name.
#[track_caller]
fn has(qemu: &Qemu, name: &str) -> bool {
    let (objects, chardevs) = made(qemu);
    let (object, chardev) = (
        objects.iter().any(|object| object == name),
        chardevs.iter().any(|chardev| chardev == name),
    );
    assert_eq!(object, chardev, "{objects:?} {chardevs:?}");
    object
}

/// Connects to the given monitor as another client does, which must be greeted.
#[track_caller]
fn other_client(qemu: &Qemu) -> Truth {
    Truth::connect(&qemu.socket()).expect("the given monitor serves another client")
}

#[test]
fn another_client_of_the_given_socket_is_served_beside_the_mount() {
    let devices = [&XHCI[..], &["-device", "usb-tablet,id=t"]].concat();
    let (qemu, mount) = mounted(Which::New, "q35", &devices, &["-o", "entry_timeout=60"]);
    assert!(has(&qemu, "qom-fuse"));
    let other = other_client(&qemu);
    let greps: Vec<_> = (0..4)
        .map(|_| sh_start(&format!("grep -r . {} | wc -l", quote(mount.path()))))
        .collect();
    assert_eq!(other.get("/machine", "type"), Ok(json!("pc-q35-11.1-machine")));
    for grep in greps {
        let lines: usize = grep.finish(60 * SECOND).text().parse().expect("a number");
        assert!(lines > 1000, "{lines}");
    }
    write_file(mount.join("machine/graphics"), b"off").expect("a write");
    assert_eq!(other.get("/machine", "graphics"), Ok(json!(false)));
    assert_reads(mount.join("objects/qom-fuse/chardev"), "qom-fuse\n");
    assert!(lstat(mount.join("chardevs/qom-fuse")).is_ok());

    // Events come to the mount too.
    let tablet = mount.join("machine/peripheral/t");
    assert_reads(tablet.join("type"), "usb-tablet\n");
    other.device_del("t");
    let gone = || lstat(&tablet).err() == Some(libc::ENOENT);
    assert!(
        wait_until(SECOND, gone),
        "the kernel still has what was unplugged"
    );
    drop(other);
    drop(other_client(&qemu));

    mount.unmount();
    assert!(wait_until(SOON, || !has(&qemu, "qom-fuse")));
}

#[test]
fn the_end_of_the_machine_unmounts() {
    let (qemu, mount) = mounted(Which::New, "none", &[], &[]);
    assert!(has(&qemu, "qom-fuse"));
    qemu.kill();
    mount.wait_unmounted(3 * SECOND);
}

#[test]
fn a_hundred_mounts_that_are_killed_leave_nothing() {
    let qemu = Qemu::start(Which::New, "none", &[]);
    let before = made(&qemu);
    for _ in 0..100 {
        let mount = Mount::start(&qemu.socket(), &[]);
        assert!(has(&qemu, "qom-fuse"));
        mount.signal(libc::SIGKILL);
        mount.wait_unmounted(SOON);
        let removed = || made(&qemu) == before;
        assert!(wait_until(SOON, removed), "{:?}, before: {before:?}", made(&qemu));
    }
}

#[test]
fn several_mounts_have_names_of_their_own() {
    // Two given monitors, so that several ask for a name at once.
    let session = Session::new();
    let second = session.dir().join("second.sock");
    let qemu = at(&second, Which::New, "none");
    for _ in 0..5 {
        let start = |socket: std::path::PathBuf| thread::spawn(move || Mount::start(&socket, &[]));
        let starting: Vec<_> = (0..6)
            .map(|n| start(if n % 2 == 0 { qemu.socket() } else { second.clone() }))
            .collect();
        let mounts: Vec<_> = starting
            .into_iter()
            .map(|mount| mount.join().expect("a mount"))
            .collect();
        let names = [
            "qom-fuse",
            "qom-fuse-2",
            "qom-fuse-3",
            "qom-fuse-4",
            "qom-fuse-5",
            "qom-fuse-6",
        ];
        for name in names {
            assert!(has(&qemu, name), "{name}: {:?}", made(&qemu));
        }
        for mount in &mounts {
            assert_reads(mount.join("machine/type"), "none-machine\n");
        }
        drop(mounts);
        assert!(wait_until(SOON, || names.iter().all(|name| !has(&qemu, name))));
    }
    // Names that are somebody else's.
    let backend = json!({ "type": "null", "data": {} });
    let taken = qemu
        .truth()
        .execute("chardev-add", json!({ "id": "qom-fuse", "backend": backend }));
    taken.expect("a character device");
    let object = json!({ "qom-type": "rng-builtin", "id": "qom-fuse-2" });
    qemu.truth().execute("object-add", object).expect("an object");
    let before = made(&qemu);
    let mount = Mount::start(&qemu.socket(), &[]);
    assert!(has(&qemu, "qom-fuse-3"));
    mount.unmount();
    assert!(wait_until(SOON, || made(&qemu) == before));
}

#[test]
fn a_mount_that_only_reads_makes_nothing_unless_it_is_told_to() {
    let qemu = Qemu::start(Which::New, "none", &[]);
    let before = made(&qemu);
    for options in ["ro", "monitor=given", "ro,monitor=auto"] {
        let mount = Mount::start_foreground(&qemu.socket(), &["-v", "-o", options]);
        assert_reads(mount.join("machine/type"), "none-machine\n");
        assert_eq!(made(&qemu), before, "{options}");
        assert!(!mount.log().contains("monitor"), "{}", mount.log());
        mount.unmount();
    }
    let mount = Mount::start(&qemu.socket(), &["-o", "ro,monitor=own"]);
    assert!(has(&qemu, "qom-fuse"));
    drop(other_client(&qemu));
    mount.unmount();
}

#[test]
fn where_qemu_makes_none_the_given_one_is_kept_without_a_word() {
    let (port, on_tcp) = on_tcp(Which::New);
    let old = Qemu::start(Which::Old, "none", &[]);
    let tcp = format!("127.0.0.1:{port}");
    let libvirt = GREETING_OWN.replace("a build", "qemu-11.1.2");
    let tree = ScriptedTree::new().object("/machine");
    let session = Session::new();
    let mut answer = tree.handler();
    let proxy = Scripted::start_one_at_a_time(
        &session.dir().join("proxy.sock"),
        format!("{libvirt}\r\n").into_bytes(),
        move |command, args| match command {
            "qmp_capabilities" => Action::Return(json!({})),
            "query-version" => {
                Action::Return(json!({ "qemu": { "major": 11, "minor": 1, "micro": 2 }, "package": "" }))
            }
            _ => answer(command, args),
        },
    );
    for (address, why) in [
        (tcp, "this is TCP"),
        (old.socket().display().to_string(), "QEMU does from 11.1 on"),
        (
            proxy.socket().display().to_string(),
            "libvirt passes no socket on",
        ),
    ] {
        let mount = Launch::new().args(&["-v"]).socket(&address).foreground();
        sh(&format!("ls {}/machine", quote(mount.path()))).ok();
        assert!(!mount.log().contains("makes"), "{}", mount.log());
        mount.unmount();
        let own = Launch::new().args(&["-o", "monitor=own"]).socket(&address);
        let out = own.background().err().expect("no mount");
        out.exits(1).says(why);
        assert_eq!(out.stderr.lines().count(), 1, "{out}");
    }
    assert!(!has(&on_tcp, "qom-fuse"));
    for command in ["getfd", "chardev-add", "object-add"] {
        assert_eq!(proxy.count(command), 0);
    }
}

#[test]
fn what_nobody_else_can_use_is_kept() {
    let qemu = Qemu::start(Which::New, "none", &[]);
    for options in ["monitor=auto", "monitor=own"] {
        let stream = UnixStream::connect(qemu.socket()).expect("connect to QEMU");
        let socket = format!("fd:{}", stream.as_raw_fd());
        let launch = Launch::new()
            .args(&["-o", options])
            .inherit(&stream)
            .socket(&socket);
        let mount = launch.background().unwrap_or_else(|out| panic!("{out}"));
        drop(stream);
        assert_reads(mount.join("machine/type"), "none-machine\n");
        assert!(!has(&qemu, "qom-fuse"));
        mount.unmount();
    }
    let command = [
        &Which::New.binary().display().to_string(),
        "-M",
        "none",
        "-display",
        "none",
        "-S",
    ];
    let mount = Launch::new().command(&command).foreground();
    let listed = sh(&format!("ls {}", quote(mount.join("objects"))));
    // QEMU names the one that it was started with after its character device.
    assert_eq!(listed.ok().lines(), ["qom-fuse", "type"]);
}

#[test]
fn each_machine_that_comes_back_makes_one() {
    let session = Session::new();
    let socket = session.dir().join("vm.sock");
    let mut qemu = at(&socket, Which::New, "none");
    let mount = Mount::start_foreground(&socket, &["-v", "-o", "reconnect"]);
    for which in [Which::New, Which::Old, Which::New] {
        qemu.kill();
        let cut = || read_file(mount.join("machine/type")) == Err(libc::ENOTCONN);
        assert!(wait_until(SOON, cut), "{}", mount.log());
        qemu = at(&socket, which, "none");
        assert_reads(mount.join("machine/type"), "none-machine\n");
        assert_eq!(has(&qemu, "qom-fuse"), which == Which::New);
        if which == Which::New {
            drop(Truth::connect(&socket).expect("the given monitor serves another client"));
        }
    }
    mount.unmount();
}

#[test]
fn a_machine_that_makes_none_is_not_served_where_one_was_asked_for() {
    let session = Session::new();
    let socket = session.dir().join("vm.sock");
    let first = at(&socket, Which::New, "none");
    let mount = Mount::start_foreground(&socket, &["-o", "reconnect,monitor=own"]);
    first.kill();
    let second = at(&socket, Which::Old, "none");
    let said = || mount.log().contains("QEMU does from 11.1 on");
    assert!(wait_until(SOON, said), "{}", mount.log());
    assert_eq!(read_file(mount.join("machine/type")), Err(libc::ENOTCONN));
    drop(Truth::connect(&socket).expect("the given monitor serves another client"));
    second.kill();
    let _third = at(&socket, Which::New, "none");
    let back = || read_file(mount.join("machine/type")).as_deref() == Ok(b"none-machine\n");
    assert!(wait_until(SOON, back), "{}", mount.log());
}

/// Mounts a server that greets as a QEMU that makes monitors and answers some commands as it is told, and the rest as
/// QEMU does.
fn scripted(options: &[&str], told: impl Fn(&str) -> Option<Action> + Send + 'static) -> (Scripted, Mount) {
    let tree = ScriptedTree::new().object("/machine");
    tree.prop("/machine", "type", "string", json!("none-machine"));
    let mut answer = tree.handler();
    let server = Scripted::start_as(GREETING_OWN, move |command, args| match told(command) {
        Some(action) => action,
        None if command.starts_with("qom-") => answer(command, args),
        None => Action::Return(json!({})),
    });
    let mount = Mount::start_foreground(server.socket(), options);
    (server, mount)
}

/// The commands that a server got, in their order, up to the first that is about the tree.
fn commands(server: &Scripted) -> Vec<String> {
    let commands = server.requests().into_iter().map(|(command, _)| command);
    commands
        .take_while(|command| !command.starts_with("qom-"))
        .collect()
}

#[test]
fn any_step_refused_is_taken_back_and_the_given_one_is_kept() {
    let no = || Action::error("GenericError", "not today");
    let steps = ["getfd", "chardev-add", "object-add"];
    for (refused, asked, undone, words) in [
        ("getfd", 1, &[][..], "not today"),
        ("chardev-add", 2, &["closefd"], "not today"),
        ("object-add", 3, &["chardev-remove"], "not today"),
        // The server lets go of the socket that it got.
        (
            "",
            3,
            &["object-del", "chardev-remove"],
            "closed the connection at once",
        ),
    ] {
        let (server, mount) = scripted(&[], move |command| (command == refused).then(no));
        let want: Vec<_> = steps[..asked]
            .iter()
            .chain(undone)
            .map(|step| (*step).to_owned())
            .collect();
        assert_reads(mount.join("machine/type"), "none-machine\n");
        assert_eq!(commands(&server), want);
        assert_eq!(server.clients(), 1);
        let log = mount.log();
        assert!(log.contains(words) && log.lines().count() == 1, "{log}");
        mount.unmount();
        let out = Launch::new()
            .args(&["-o", "monitor=own"])
            .socket(server.socket())
            .background();
        let out = out.err().expect("no mount");
        out.exits(1).says(words).says("-o monitor=own");
        assert_eq!(out.stderr.lines().count(), 1, "{out}");
    }
}

/// Serves as a QEMU that says nothing on the monitors that it makes.
fn mute(socket: &Path) -> Server {
    Server::start(socket, |mut client, _| {
        let mut kept = Vec::new();
        let mut said = client.write_all(format!("{GREETING_OWN}\r\n").as_bytes());
        let mut splitter = Splitter::default();
        while said.is_ok() {
            let mut buffer = [0; 4096];
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let mut space = nix::cmsg_space!([RawFd; 1]);
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let Ok(message) = recvmsg::<()>(client.as_raw_fd(), &mut parts, Some(&mut space), flags) else {
                return;
            };
            let length = message.bytes;
            for control in message.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::ScmRights(descriptors) = control {
                    kept.extend(descriptors);
                }
            }
            if length == 0 {
                return;
            }
            for _ in splitter.push(&buffer[..length]) {
                said = client.write_all(b"{\"return\": {}}\r\n");
            }
        }
    })
}

#[test]
fn a_monitor_that_does_not_greet_is_waited_for_two_seconds() {
    let session = Session::new();
    let server = mute(&session.dir().join("mute.sock"));
    let words = "no greeting on it within 2s";
    let began = Instant::now();
    let mount = Mount::start_foreground(server.path(), &[]);
    assert!(began.elapsed() > 2 * SECOND && began.elapsed() < 6 * SECOND);
    assert!(mount.log().contains(words), "{}", mount.log());
    mount.unmount();
    let out = Launch::new()
        .args(&["-o", "monitor=own"])
        .socket(server.path())
        .background();
    out.err().expect("no mount").exits(1).says(words);
}

#[test]
fn names_are_not_tried_for_ever() {
    let taken = || Action::error("GenericError", "Chardev with id 'x' already exists");
    let (server, mount) = scripted(&[], move |command| (command == "chardev-add").then(taken));
    assert_reads(mount.join("machine/type"), "none-machine\n");
    assert_eq!(server.count("chardev-add"), 64);
    let requests = server.requests();
    let ids: std::collections::HashSet<_> = requests
        .iter()
        .filter_map(|(_, args)| args["id"].as_str())
        .collect();
    assert_eq!(ids.len(), 64);
    assert!(mount.log().contains("already exists"), "{}", mount.log());
}

#[test]
fn a_peer_that_closes_the_connection_over_it_is_used_without() {
    for step in ["getfd", "chardev-add", "object-add"] {
        let (server, mount) = scripted(&[], move |command| (command == step).then_some(Action::Close));
        assert_reads(mount.join("machine/type"), "none-machine\n");
        assert_eq!((server.clients(), server.count("getfd")), (2, 1));
        assert!(
            mount
                .log()
                .contains(&format!("closed the connection over {step}")),
            "{}",
            mount.log()
        );
        mount.unmount();
        let out = Launch::new()
            .args(&["-o", "monitor=own"])
            .socket(server.socket())
            .background();
        out.err()
            .expect("no mount")
            .exits(1)
            .says("closed the connection");
    }
}

#[test]
fn a_peer_that_does_not_answer_is_given_up_in_time() {
    // Not even when it is to take something back: a late reply would be taken for another request's.
    for (refused, silent) in [
        ("", "object-add"),
        ("object-add", "chardev-remove"),
        ("chardev-add", "closefd"),
    ] {
        let server = Scripted::start_as(GREETING_OWN, move |command, _| match command {
            command if command == refused => Action::error("GenericError", "not today"),
            command if command == silent => Action::Silence,
            _ => Action::Return(json!({})),
        });
        let began = Instant::now();
        let launch = Launch::new().args(&["-o", "timeout=1"]);
        let out = launch.socket(server.socket()).background();
        out.err()
            .expect("no mount")
            .exits(1)
            .says(&format!("does not answer {silent}"));
        assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    }
}
