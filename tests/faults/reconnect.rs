//! `-o reconnect`: the mount outlives QEMU, answers ENOTCONN meanwhile, and serves the next one as if it were new.

use std::path::Path;
use std::thread;
use std::time::Instant;

use harness::*;
use serde_json::json;
use tempfile::TempDir;

/// Listings that are kept this long must be dropped for another reason.
pub const OPTIONS: [&str; 3] = ["-v", "-o", "reconnect,entry_timeout=60"];

pub fn folder() -> TempDir {
    tempfile::tempdir().expect("make a folder for a socket")
}

/// A machine whose monitor is at a path that the next one can have too.
#[track_caller]
pub fn machine(which: Which, kind: &str, socket: &Path, extra: &[&str]) -> Qemu {
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    Qemu::start(which, kind, &[&["-qmp", &monitor], extra].concat())
}

pub fn read(mount: &Mount, name: &str) -> Result<String, Errno> {
    read_file(mount.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

#[track_caller]
pub fn is_cut_off(mount: &Mount, name: &str) {
    let mut last = Ok(String::new());
    let cut = wait_until(2 * SECOND, || {
        last = read(mount, name);
        last.is_err()
    });
    assert!(cut && last == Err(libc::ENOTCONN), "{last:?}: {}", mount.log());
}

#[track_caller]
pub fn ends_well(mount: &Mount) {
    mount.wait_unmounted(SOON);
    assert_eq!(mount.wait_exit(SOON).code(), Some(0), "{}", mount.log());
    assert!(!mount.log().contains("panicked"), "{}", mount.log());
}

each_qemu!(the_same_machine_comes_back, |which| {
    let dir = folder();
    let socket = dir.path().join("vm.sock");
    let mount = {
        let qemu = machine(which, "q35", &socket, &["-name", "alice"]);
        let mount = Mount::start_foreground(&socket, &OPTIONS);
        assert_eq!(read(&mount, "machine/graphics").as_deref(), Ok("true\n"));
        sh(&format!("find {} >/dev/null", quote(mount.path()))).ok();
        qemu.kill();
        mount
    };
    for round in 0..3 {
        is_cut_off(&mount, "machine/type");
        let point = quote(mount.path());
        for command in [
            "ls",
            "ls machine",
            "echo off > machine/graphics",
            "cat machine/graphics",
        ] {
            let start = Instant::now();
            let out = sh(&format!("cd {point} && {command}"));
            out.fails().says("Transport endpoint is not connected");
            assert!(
                start.elapsed() < 3 * SECOND,
                "{command} took {:?}",
                start.elapsed()
            );
        }
        assert!(mount.is_mounted());
        thread::sleep(SECOND * round); // until it seldom tries unasked
        let qemu = machine(which, "q35", &socket, &["-name", "alice"]);
        // At the first access, and nothing of what failed meanwhile is done now.
        assert_eq!(
            read(&mount, "machine/graphics").as_deref(),
            Ok("true\n"),
            "{}",
            mount.log()
        );
        assert_eq!(qemu.truth().get("/machine", "graphics"), Ok(json!(true)));
        write_file(mount.join("machine/graphics"), b"off").expect("a write after all");
        assert_eq!(qemu.truth().get("/machine", "graphics"), Ok(json!(false)));
        let again = || mount.log().matches("connected again").count() > round as usize;
        assert!(wait_until(SOON, again), "{}", mount.log());
        qemu.kill();
    }
    let log = mount.log();
    assert!(
        !log.contains("another machine") && log.contains("waiting for it to come back"),
        "{log}"
    );
    mount.signal(libc::SIGTERM);
    ends_well(&mount);
});

#[test]
fn another_machine_shows_at_once_and_is_said_to_be_another() {
    let uuid = "11111111-2222-3333-4444-555555555555";
    let machines: [(Which, &str, &[&str]); 5] = [
        (Which::Old, "q35", &["-device", "qemu-xhci,id=old"]),
        (Which::Old, "pc", &["-device", "piix3-usb-uhci,id=new"]),
        (Which::New, "pc", &["-device", "piix3-usb-uhci,id=new"]),
        (
            Which::New,
            "pc",
            &["-device", "qemu-xhci,id=third", "-name", "bob"],
        ),
        (
            Which::New,
            "pc",
            &["-device", "qemu-xhci,id=third", "-name", "bob", "-uuid", uuid],
        ),
    ];
    let dir = folder();
    let socket = dir.path().join("vm.sock");
    let mut running = machine(machines[0].0, machines[0].1, &socket, machines[0].2);
    let mount = Mount::start_foreground(&socket, &OPTIONS);
    let names = |below: &str| sh_in(mount.path(), &format!("ls -f {below} | sort"));
    for (number, (which, kind, extra)) in machines.into_iter().enumerate().skip(1) {
        sh(&format!("find {} >/dev/null", quote(mount.path()))).ok(); // into all caches
        let held = Held::open(mount.join("machine/type"), libc::O_RDONLY).expect("an open file");
        let pinned = held.read(100).expect("a value");
        running.kill();
        is_cut_off(&mount, "type");
        assert_eq!(held.seek(0).and_then(|_| held.read(100)), Err(libc::ENOTCONN));
        running = machine(which, kind, &socket, extra);
        for object in ["/machine/peripheral", "/", "/machine", "/machine/unattached"] {
            let mut expected: Vec<String> =
                running.truth().list(object).into_iter().map(|p| p.name).collect();
            expected.extend([".".to_owned(), "..".to_owned()]);
            expected.sort();
            assert_eq!(
                names(&format!(".{object}")).ok().lines(),
                expected,
                "machine {number}, {object}"
            );
        }
        let kind = running.truth().get("/machine", "type").expect("a type");
        assert_eq!(
            read(&mount, "machine/type"),
            Ok(format!("{}\n", kind.as_str().expect("text")))
        );
        let old = held.seek(0).and_then(|_| held.read(100));
        assert!(
            old == Ok(pinned.clone()) || old.is_err(),
            "a descriptor of the machine before shows the next one's: {old:?}, before {pinned:?}"
        );
        let said = || mount.log().matches("to another machine").count() == number;
        assert!(wait_until(SOON, said), "machine {number}: {}", mount.log());
    }
    let log = mount.log();
    for word in ["pc-q35-", "pc-i440fx-", "name bob", uuid] {
        assert!(log.contains(word), "no {word} in {log}");
    }
}

/// Before it is even known which machine it is now.
#[test]
fn what_was_learned_of_one_machine_is_not_told_of_the_next() {
    let (one, other) = (
        ScriptedTree::new().object("/one"),
        ScriptedTree::new().object("/other"),
    );
    let (mut of_one, mut of_other) = (one.handler(), other.handler());
    let mut gone = false;
    let server = Scripted::start(move |command, args| match command {
        // Long enough for a listing to be asked for behind it.
        "qom-get" if !gone => Action::Delay(3 * SECOND, Box::new(of_one(command, args))),
        "query-name" if !gone => {
            gone = true;
            Action::Close
        }
        "query-uuid" => Action::Delay(2 * SECOND, Box::new(Action::Return(json!({})))),
        _ if gone => of_other(command, args),
        _ => of_one(command, args),
    });
    let mount = Mount::start_foreground(server.socket(), &["-o", "reconnect,entry_timeout=60"]);
    let list = || sh_in(mount.path(), "ls");
    assert_eq!(list().ok().lines(), ["one", "type"]);
    let asked = || server.clients() == 2 && server.count("query-uuid") > 0;
    assert!(wait_until(10 * SECOND, asked), "not connected again");
    assert_eq!(list().ok().lines(), ["other", "type"]);
    mount.signal(libc::SIGTERM);
    ends_well(&mount);
}

#[test]
fn a_write_that_was_cut_off_is_not_sent_again() {
    let tree = ScriptedTree::new()
        .object("/a")
        .prop("/a", "p", "string", json!("before"));
    let server = tree.serve();
    let mount = Mount::start_foreground(server.socket(), &OPTIONS);
    assert_eq!(read(&mount, "a/p").as_deref(), Ok("before\n"));
    tree.hook_once("qom-set", "/a", "p", Action::Close);
    assert_eq!(write_file(mount.join("a/p"), b"cut off"), Err(libc::ENOTCONN));
    assert!(wait_until(SOON, || read(&mount, "a/p").as_deref() == Ok("before\n")));
    // And for a file that was opened before.
    let held = Held::open(mount.join("a/p"), libc::O_RDWR).expect("an open file");
    tree.hook_once("qom-set", "/a", "p", Action::Close);
    assert_eq!(held.write(b"cut off"), Err(libc::ENOTCONN));
    assert!(wait_until(SOON, || read(&mount, "a/p").as_deref() == Ok("before\n")));
    thread::sleep(SECOND);
    assert_eq!(server.count("qom-set"), 2);
    write_file(mount.join("a/p"), b"after").expect("a write");
    assert_eq!((server.count("qom-set"), server.clients()), (3, 3));
    let path = server.socket().to_owned();
    drop(server);
    is_cut_off(&mount, "a/p");
    assert_eq!(write_file(mount.join("a/p"), b"meanwhile"), Err(libc::ENOTCONN));
    std::fs::create_dir_all(path.parent().expect("its folder")).expect("make the folder again");
    let server = Scripted::start_at(&path, tree.handler());
    assert_eq!(read(&mount, "a/p").as_deref(), Ok("after\n"));
    thread::sleep(SECOND);
    assert_eq!(server.count("qom-set"), 0);
    drop(server);
    std::fs::remove_dir_all(path.parent().expect("its folder")).expect("remove the folder");
}

each_qemu!(a_monitor_that_another_client_took_meanwhile, |which| {
    let dir = folder();
    let socket = dir.path().join("vm.sock");
    let qemu = machine(which, "none", &socket, &[]);
    let mount = Mount::start_foreground(&socket, &["-o", "reconnect,timeout=1"]);
    qemu.kill();
    is_cut_off(&mount, "machine/type");
    let mut holder = None;
    let qemu = machine(which, "none", &dir.path().join("other.sock"), &[]);
    // The holder is first, for the mount looks for the name only.
    let relay = dir.path().join("vm.sock");
    std::fs::remove_file(&relay).expect("remove the old socket");
    let other = dir.path().join("other.sock");
    holder.replace(Truth::connect(&other).expect("be the first client"));
    std::os::unix::fs::symlink(&other, &relay).expect("name the new socket");
    for _ in 0..3 {
        assert_eq!(read(&mount, "machine/type"), Err(libc::ENOTCONN));
    }
    drop(holder);
    let back = wait_until(SOON, || {
        read(&mount, "machine/type").as_deref() == Ok("none-machine\n")
    });
    assert!(back, "{}", mount.log());
    drop(qemu);
});

/// It must be there at first: a wrong name is to be told, not to be waited for.
#[test]
fn a_socket_that_was_never_there_is_an_error() {
    let session = Session::new();
    let out = session.run("qom-fuse -o reconnect /nowhere/vm.sock mnt");
    out.exits(1).says("/nowhere/vm.sock");
    session.wait_ended(SOON);
}

// What was opened on one machine never reads or writes the next.
each_qemu!(a_descriptor_does_not_outlive_its_machine, |which| {
    let dir = folder();
    let socket = dir.path().join("vm.sock");
    let qemu = machine(which, "none", &socket, &[]);
    let mount = Mount::start_foreground(&socket, &OPTIONS);
    let open = |flags| Held::open(mount.join("machine/append"), flags).expect("open");
    qemu.set("/machine", "append", json!("first"));
    let (writer, both, reader) = (open(libc::O_WRONLY), open(libc::O_RDWR), open(libc::O_RDONLY));
    assert_eq!(reader.read(3), Ok(b"fir".into()));
    // One is used while there is no machine: its request would wait for the next one.
    qemu.kill();
    is_cut_off(&mount, "machine/type");
    assert_eq!(writer.write(b"lost"), Err(libc::ENOTCONN));
    let next = machine(which, "none", &socket, &[]);
    next.truth()
        .set("/machine", "append", json!("second"))
        .expect("set");
    for round in 0..2 {
        assert_eq!(writer.write(b"astray"), Err(libc::ESTALE), "{round}");
        assert_eq!(both.write(b"astray"), Err(libc::ESTALE), "{round}");
        assert_eq!(both.read_at(0, 10), Err(libc::ESTALE), "{round}");
        assert_eq!(reader.read_at(0, 10), Err(libc::ESTALE), "{round}");
        assert_eq!(reader.read_at(3, 10), Ok(b"st\n".into()), "still pinned");
    }
    assert_eq!(next.truth().get("/machine", "append"), Ok(json!("second")));
    assert_eq!(read(&mount, "machine/append").as_deref(), Ok("second\n"));
    write_file(mount.join("machine/append"), b"third").expect("a new descriptor");
    assert_eq!(next.truth().get("/machine", "append"), Ok(json!("third")));
});

// The first access after QEMU is back succeeds, be it a write.
each_qemu!(the_first_write_to_a_machine_that_is_back, |which| {
    let dir = folder();
    let socket = dir.path().join("vm.sock");
    let qemu = machine(which, "none", &socket, &[]);
    let mount = Mount::start_foreground(&socket, &OPTIONS);
    assert_eq!(read(&mount, "machine/append").as_deref(), Ok("\n"));
    qemu.kill();
    is_cut_off(&mount, "machine/type");
    thread::sleep(4 * SECOND); // until it seldom tries unasked
    let next = machine(which, "none", &socket, &[]);
    assert_eq!(
        write_file(mount.join("machine/append"), b"first"),
        Ok(()),
        "{}",
        mount.log()
    );
    assert_eq!(next.truth().get("/machine", "append"), Ok(json!("first")));
});
