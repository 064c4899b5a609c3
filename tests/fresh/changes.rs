//! A machine that changes: what another monitor sets, plugs and unplugs shows when it has to.

use std::time::Instant;

use harness::*;
use serde_json::json;

const TABLET: &str = "machine/peripheral/t";

/// Plugs in the tablet `t`.
#[track_caller]
fn plug(qemu: &Qemu, serial: &str) {
    let args = json!({ "driver": "usb-tablet", "bus": "x.0", "id": "t", "serial": serial });
    qemu.truth().device_add(args);
}

/// Unplugs it, and waits until QEMU has said so.
#[track_caller]
fn unplug(qemu: &Qemu) {
    qemu.truth().device_del("t");
    qemu.truth().wait_event("DEVICE_DELETED", 5 * SECOND);
}

#[track_caller]
fn listed(mount: &Mount) -> bool {
    let out = sh_in(mount.join("machine/peripheral"), "ls");
    out.ok().lines().contains(&"t")
}

/// Until the kernel no longer finds the tablet by its path. The event goes another way than the test's own.
#[track_caller]
fn wait_gone(mount: &Mount) {
    let gone = || lstat(mount.join(TABLET)).err() == Some(libc::ENOENT);
    assert!(
        wait_until(SECOND, gone),
        "the kernel still has what was unplugged"
    );
}

each_qemu!(the_next_cat_is_never_stale, |which| {
    let (qemu, mount) = mounted(which, "q35", &[], &["-o", "entry_timeout=60"]);
    for round in 0..100 {
        let value = round % 2 == 0;
        qemu.set("/machine", "graphics", json!(value));
        let shown = read_file(mount.join("machine/graphics"));
        assert_eq!(shown, Ok(format!("{value}\n").into_bytes()), "{round}");
    }
    for round in 0..100 {
        let text = "x".repeat(round * 37 % 101); // of changing length
        qemu.set("/machine", "append", json!(text));
        let shown = read_file(mount.join("machine/append"));
        assert_eq!(shown, Ok(format!("{text}\n").into_bytes()), "{round}");
    }
});

each_qemu!(what_was_added_shows_within_entry_timeout, |which| {
    let (qemu, mount) = mounted(which, "q35", &XHCI, &[]); // one second
    assert!(!listed(&mount));
    assert_eq!(lstat(mount.join(TABLET)).err(), Some(libc::ENOENT));
    assert_eq!(lstat(mount.join("objects/o")).err(), Some(libc::ENOENT));
    plug(&qemu, "1");
    let args = json!({ "qom-type": "rng-random", "id": "o" });
    qemu.truth().execute("object-add", args).expect("object-add");
    std::thread::sleep(SECOND + SECOND / 20);
    assert!(lstat(mount.join(TABLET)).is_ok(), "by its path");
    assert!(lstat(mount.join("objects/o")).is_ok(), "by its path");
    assert!(listed(&mount), "in the listing");
    assert_eq!(
        read_file(mount.join(TABLET).join("type")),
        Ok(b"usb-tablet\n".to_vec())
    );
});

each_qemu!(what_was_unplugged_is_gone_with_the_event, |which| {
    let qemu = Qemu::start(which, "q35", &XHCI);
    plug(&qemu, "1");
    // For a minute, only the event can tell.
    let mount = Mount::start(&qemu.socket(), &["-o", "entry_timeout=60"]);
    for file in ["", "type", "serial", "parent_bus"] {
        lstat(mount.join(TABLET).join(file)).expect("the kernel has it now");
    }
    sh_in(mount.path(), "find . >/dev/null").ok();
    unplug(&qemu);
    wait_gone(&mount);
    assert!(!listed(&mount));
    for file in ["type", "serial", "parent_bus"] {
        assert_eq!(
            lstat(mount.join(TABLET).join(file)).err(),
            Some(libc::ENOENT),
            "{file}"
        );
    }
    let search = "find . -path '*/peripheral/t' -o -path '*/peripheral/t/*'; ls machine/peripheral/t";
    assert_eq!(sh_in(mount.path(), search).fails().text(), "");
});

/// A directory shows what it did when it was opened, but that is nothing to rely on by then.
/// An open directory goes on to show what it did when it was first read; that gives no name back to the kernel.
#[test]
fn an_open_directory_brings_nothing_back() {
    for list_get in [false, true] {
        for announced in [true, false] {
            let tree = ScriptedTree::new().with_list_get(list_get).object("/d");
            for number in 1000..3000 {
                tree.object(&format!("/d/c{number}"));
            }
            let server = tree.serve();
            let timeout = if announced {
                "entry_timeout=60"
            } else {
                "entry_timeout=1"
            };
            let mount = Mount::start(server.socket(), &["-o", timeout]);
            let open = Held::open(mount.join("d"), libc::O_RDONLY).expect("open a directory");
            assert_eq!(open.lists("c2999"), Ok(false), "the first part only");
            lstat(mount.join("d/c2999")).expect("the kernel has it now");
            tree.remove("/d/c2999");
            if announced {
                server.send_raw(b"{\"event\": \"DEVICE_DELETED\", \"data\": {\"path\": \"/d/c2999\"}}\r\n");
            }
            let gone = || lstat(mount.join("d/c2999")).err() == Some(libc::ENOENT);
            assert!(wait_until(10 * SECOND, gone), "{list_get} {announced}");
            assert!(
                (0..100).any(|_| open.lists("c2999") == Ok(true)),
                "{list_get} {announced}"
            );
            assert!(gone(), "{list_get} {announced}");
        }
    }
}

each_qemu!(the_same_id_plugged_again_is_another_one, |which| {
    let (qemu, mount) = mounted(which, "q35", &XHCI, &["-o", "entry_timeout=60"]);
    let mut inodes = Vec::new();
    plug(&qemu, "0");
    for round in 0..10 {
        let dir = mount.join(TABLET);
        let serial = read_file(dir.join("serial"));
        assert_eq!(serial, Ok(format!("{round}\n").into_bytes()));
        for path in [dir.clone(), dir.join("serial"), dir.join("parent_bus")] {
            inodes.push(lstat(path).expect("stat").st_ino);
        }
        unplug(&qemu);
        std::thread::sleep(SECOND / 5); // nothing looks, so nothing learns that it is not there
        plug(&qemu, &format!("{}", round + 1));
    }
    let all = inodes.len();
    inodes.sort_unstable();
    inodes.dedup();
    assert_eq!(inodes.len(), all, "an inode was used again");
});

each_qemu!(an_open_file_never_shows_another_object, |which| {
    let (qemu, mount) = mounted(which, "q35", &XHCI, &["-o", "entry_timeout=60"]);
    plug(&qemu, "old");
    let (serial, attached) = (mount.join(TABLET).join("serial"), "attached");
    let pinned = Held::open(&serial, libc::O_RDONLY).expect("open");
    let read = Held::open(&serial, libc::O_RDONLY).expect("open");
    assert_eq!(read.read_at(0, 100), Ok(b"old\n".to_vec()));
    let written = Held::open(mount.join(TABLET).join(attached), libc::O_RDWR).expect("open");
    let dir = Held::open(mount.join(TABLET), libc::O_RDONLY).expect("open");
    for plugged in [false, true] {
        if plugged {
            plug(&qemu, "new");
            let new = || read_file(&serial) == Ok(b"new\n".to_vec());
            assert!(wait_until(SECOND, new), "plugged again");
        } else {
            unplug(&qemu);
            std::thread::sleep(SECOND / 5);
        }
        let allowed = [Ok(b"old\n".to_vec()), Err(libc::ENOENT)];
        let what = format!("plugged again: {plugged}");
        for _ in 0..2 {
            let found = pinned.read_at(0, 100);
            assert!(allowed.contains(&found), "{what}: {found:?}");
            let found = read.read_at(0, 100);
            assert_eq!(found, Err(libc::ENOENT), "{what}: from the start again");
            let allowed = [Ok(b"ld\n".to_vec()), Err(libc::ENOENT)];
            let found = read.read_at(1, 100);
            assert!(allowed.contains(&found), "{what}: {found:?}");
        }
        assert_eq!(written.read_at(0, 100), Err(libc::ENOENT), "{what}");
        assert_eq!(written.write(b"false"), Err(libc::ENOENT), "{what}");
        let _ = dir.size(); // of a directory that is gone: anything but a hang
    }
    let still = qemu.truth().get("/machine/peripheral/t", attached);
    assert_eq!(still, Ok(json!(true)), "the new one was written to");
});

each_qemu!(not_even_when_its_name_is_taken_before_it_is_gone, |which| {
    let (qemu, mount) = mounted(which, "q35", &XHCI, &["-o", "entry_timeout=60"]);
    plug(&qemu, "0");
    for round in 0..30 {
        let serial = mount.join(TABLET).join("serial");
        let held = Held::open(&serial, libc::O_RDONLY).expect("open");
        let own = format!("{round}\n").into_bytes();
        assert_eq!(held.read_at(0, 100), Ok(own), "{round}");
        qemu.truth().device_del("t");
        plug(&qemu, &format!("{}", round + 1));
        // QEMU announces the end of an object when its last user lets go of it, which may be
        // after its name was taken again. It tells all monitors in one go.
        qemu.truth().wait_event("DEVICE_DELETED", 5 * SECOND);
        let gone = || held.read_at(0, 100) == Err(libc::ENOENT);
        assert!(wait_until(SECOND, gone), "{round}");
        assert_eq!(held.read_at(0, 100), Err(libc::ENOENT), "{round}: again");
        let new = Ok(format!("{}\n", round + 1).into_bytes());
        assert!(wait_until(SECOND, || read_file(&serial) == new));
    }
});

#[test]
fn a_reply_behind_the_event_is_another_objects() {
    let place = "/machine/peripheral/t";
    for list_get in [false, true] {
        let tree = ScriptedTree::new().with_list_get(list_get);
        for path in ["/machine", "/machine/peripheral", place] {
            tree.object(path);
        }
        tree.prop(place, "serial", "str", json!("old"));
        let (_server, mount) = tree.mounted(&["-o", "entry_timeout=60"]);
        let held = Held::open(mount.join(place).join("serial"), libc::O_RDONLY).expect("open");
        assert_eq!(held.read_at(0, 100), Ok(b"old\n".to_vec()));
        // Unplugged, and plugged again, between the request and its reply.
        let event = json!({ "event": "DEVICE_DELETED", "data": { "device": "t", "path": place } });
        let reply = Action::after_event(&event, Action::Return(json!("new")));
        tree.hook_once("qom-get", place, "serial", reply);
        tree.prop(place, "serial", "str", json!("new"));
        for round in 0..2 {
            assert_eq!(held.read_at(0, 100), Err(libc::ENOENT), "{round}");
        }
        let new = || read_file(mount.join(place).join("serial")) == Ok(b"new\n".to_vec());
        assert!(wait_until(SECOND, new), "plugged again");
    }
}

each_qemu!(a_listing_is_kept_for_entry_timeout, |which| {
    let (_qemu, relay, mount) = relayed(which, "q35", &[], &["-o", "entry_timeout=60"]);
    let find = |mount: &Mount| sh_in(mount.path(), "find . -ls | wc -l").ok().text().to_owned();
    let first = find(&mount);
    relay.reset();
    // `find -ls` reads links, so that is left out of the second look.
    let again = sh_in(
        mount.path(),
        "find . | wc -l; find . -type f -size 4096c | wc -l >/dev/null",
    );
    assert_eq!(again.ok().text(), first);
    assert_eq!(relay.requests(), [""; 0]);
    drop(mount);

    let mut seen = Vec::new();
    // A busy machine asks for some listings twice, in vain ahead.
    let as_many = (0..3).any(|_| {
        let mount = Mount::start(relay.socket(), &["-o", "entry_timeout=3"]);
        let count = || {
            relay.reset();
            sh_in(mount.path(), "find . >/dev/null").ok();
            relay.count("qom-list") + relay.count("qom-list-get")
        };
        let started = Instant::now();
        let (cold, warm) = (count(), count());
        if started.elapsed() < 2 * SECOND {
            assert_eq!(warm, 0, "within the time");
        }
        std::thread::sleep(3 * SECOND);
        seen.push((cold, count()));
        assert!(cold > 100, "{seen:?}");
        seen.last().is_some_and(|(cold, later)| cold == later)
    });
    assert!(as_many, "{seen:?}");
});

each_qemu!(a_write_or_a_link_change_drops_its_listing_alone, |which| {
    let qemu = Qemu::start(which, "q35", &["-object", "memory-backend-ram,id=m2,size=64M"]);
    let relay = Relay::start(qemu.dir(), &qemu.socket());
    // What is asked ahead would be seen too: for `ls` of several folders is a walk.
    let mount = Mount::start(relay.socket(), &["-o", "entry_timeout=60,no_readahead"]);
    let lists = |what: &str| {
        relay.reset();
        sh_in(mount.path(), "ls machine machine/q35 objects . >/dev/null").ok();
        let listed: Vec<String> = relay.requests();
        assert_eq!(relay.count("qom-list"), listed.len(), "{what}: {listed:?}");
        listed
    };
    assert!(lists("first").len() >= 4);
    assert_eq!(lists("again"), [""; 0]);
    for change in [
        "printf off > machine/graphics",
        "ln -sfn ../objects/m2 machine/memory-backend",
    ] {
        sh_in(mount.path(), change).ok();
        let listed = lists(change);
        assert_eq!(listed.len(), 1, "{change}: {listed:?}");
        assert!(listed[0].contains(r#""/machine""#), "{change}: {listed:?}");
        assert_eq!(lists("again"), [""; 0], "{change}");
    }
});

/// What a write takes away beside its own property is gone for the kernel too, when its names are looked up again;
/// what is still there stays as it was.
#[test]
fn a_write_that_removes_other_properties() {
    let tree = ScriptedTree::new().object("/a").object("/a/b");
    for name in ["x", "y", "z"] {
        tree.prop("/a", name, "int", json!(1));
    }
    let (changing, mut answer) = (tree.clone(), tree.handler());
    let server = Scripted::start(move |command, args| {
        if command == "qom-set" {
            changing.remove_prop("/a", "y");
        }
        answer(command, args)
    });
    let mount = Mount::start(server.socket(), &[]); // one second
    for file in ["a/x", "a/y", "a/z", "a/b/type"] {
        lstat(mount.join(file)).expect("the kernel has it now");
    }
    let script = "echo 2 > ../x; sleep 0.3; ls; cd -P . && /bin/pwd";
    let out = sh_in(mount.join("a/b"), script);
    let here = mount.join("a/b");
    assert_eq!(out.ok().lines(), ["type", here.to_str().expect("a path")]);
    let gone = || lstat(mount.join("a/y")).err() == Some(libc::ENOENT);
    assert!(
        wait_until(10 * SECOND, gone),
        "the kernel still has what a write removed"
    );
    assert!(lstat(mount.join("a/z")).is_ok());
    // Reading what was written costs nothing beside its value.
    drop(mount);
    let mount = Mount::start(server.socket(), &["-o", "entry_timeout=60"]);
    sh_in(mount.path(), "ls -l a").ok();
    server.reset();
    sh_in(mount.path(), "for i in 1 2 3; do echo $i > a/x; cat a/x; done").ok();
    assert_eq!(server.count("qom-get"), 3);
    assert!(server.requests().len() <= 3 + 3 + 1, "{:?}", server.requests());
}

each_qemu!(without_entry_timeout_everything_shows_at_once, |which| {
    let (qemu, mount) = mounted(which, "q35", &XHCI, &["-o", "entry_timeout=0"]);
    for round in 0..5 {
        assert!(!listed(&mount));
        assert_eq!(lstat(mount.join(TABLET)).err(), Some(libc::ENOENT));
        plug(&qemu, &format!("{round}"));
        assert!(listed(&mount), "{round}");
        let serial = read_file(mount.join(TABLET).join("serial"));
        assert_eq!(serial, Ok(format!("{round}\n").into_bytes()), "{round}");
        unplug(&qemu);
        wait_gone(&mount);
    }
    let out = sh_in(
        mount.path(),
        "find . | wc -l; readlink machine/memory-backend; cat machine/q35/type",
    );
    let lines = out.ok().lines();
    assert!(lines[0].parse::<usize>().expect("a number") > 1000, "{out}");
    assert_eq!(lines[1..], ["../objects/pc.ram", "q35-pcihost"]);
    assert_eq!(write_file(mount.join("machine/graphics"), b"off"), Ok(()));
    assert_eq!(qemu.truth().get("/machine", "graphics"), Ok(json!(false)));
});
