//! Names that Linux cannot hold: each is shown, leads to its own property, and can be written.

use std::collections::{BTreeMap, BTreeSet};

use harness::*;
use serde_json::{Value, json};

/// Names of properties in QEMU, and the file names that they are to have; None where a hash is in it.
fn odd_names() -> Vec<(String, Option<String>)> {
    let plain = [
        ("device[1]", "device[1]"),
        (" spaces ", " spaces "),
        ("-dash", "-dash"),
        ("*", "*"),
        ("\u{fc}ber", "\u{fc}ber"),
        ("new\nline", "new\nline"),
        ("\u{1b}[2J", "\u{1b}[2J"),
        ("...", "..."),
        (r"back\slash", r"back\slash"),
        (r"\x41", r"\x41"), // never decoded
        (".", r"\x2e"),
        ("..", r"\x2e\x2e"),
        ("", r"\x"),
        ("a/b", r"a\x2fb"),
        ("/", r"\x2f"),
        ("nul\0here", r"nul\x00here"),
        ("/\0/", r"\x2f\x00\x2f"),
        // What comes out like an earlier one.
        (r"a\x2fb", r"a\x2fb~2"),
        (r"\x2e", r"\x2e~2"),
        (r"\x", r"\x~2"),
    ];
    let mut names: Vec<_> = plain
        .map(|(name, file)| (name.to_owned(), Some(file.to_owned())))
        .into();
    names.push(("e".repeat(255), Some("e".repeat(255))));
    for long in [
        "l".repeat(256),
        "l".repeat(300),
        format!("{}1", "l".repeat(299)),
        "\u{fc}".repeat(128),
        format!("x{}", "\u{fc}".repeat(200)),
        "/".repeat(64), // 255 bytes are exceeded by the escapes alone
        "z".repeat(70_000),
    ] {
        names.push((long, None));
    }
    names
}

#[test]
fn odd_properties_are_distinct_and_lead_to_their_own() {
    let names = odd_names();
    let tree = ScriptedTree::new().object("/a");
    for (number, (name, _)) in names.iter().enumerate() {
        tree.prop("/a", name, "str", json!(format!("value {number}")));
    }
    let (server, mount) = tree.mounted(&[]);
    let out = sh_in(mount.join("a"), "find . -mindepth 1 -printf '%f\\0'");
    let shown: Vec<&str> = out.ok().text().split_terminator('\0').collect();
    assert_eq!(shown.len(), names.len() + 1, "with `type`: {shown:?}");
    let mut by_value = BTreeMap::new();
    for file in &shown {
        assert!(file.len() <= 255);
        let value = read_file(mount.join("a").join(file)).expect("read");
        let double = by_value.insert(String::from_utf8(value).expect("UTF-8"), *file);
        assert!(double.is_none(), "{file} reads as another");
    }
    for (number, (name, file)) in names.iter().enumerate() {
        let found = by_value[&format!("value {number}\n")];
        match file {
            Some(file) => assert_eq!(found, file, "{name:?}"),
            None => {
                let (start, hash) = found.rsplit_once('~').expect("a hash at the end");
                let escaped = name.replace('/', r"\x2f");
                assert!(escaped.starts_with(start) && found.len() > 251, "{found}");
                assert!(hash.len() == 8 && hash.chars().all(|c| c.is_ascii_hexdigit()));
            }
        }
        server.reset();
        let written = format!("written {number}");
        assert_eq!(
            write_file(mount.join("a").join(found), written.as_bytes()),
            Ok(()),
            "{name:?}"
        );
        let sets: Vec<Value> = (server.requests().into_iter())
            .filter(|(command, _)| command == "qom-set")
            .map(|(_, args)| args)
            .collect();
        assert_eq!(
            sets,
            [json!({ "path": "/a", "property": name, "value": written })]
        );
        assert_eq!(tree.value("/a", name), Some(json!(written).to_string()));
    }
}

#[test]
fn names_are_looked_up_and_never_decoded() {
    let tree = ScriptedTree::new().object("/a");
    tree.prop("/a", "a/b", "str", json!("x"))
        .prop("/a", "plain", "str", json!("x"));
    let (_server, mount) = tree.mounted(&[]);
    for file in [
        r"\x61\x2fb",
        r"a\x2Fb",
        r"pl\x61in",
        r"\x2e",
        r"a\x2fb~2",
        "PLAIN",
    ] {
        assert_eq!(
            lstat(mount.join("a").join(file)).err(),
            Some(libc::ENOENT),
            "{file}"
        );
    }
    assert_eq!(read_file(mount.join(r"a/a\x2fb")), Ok(b"x\n".to_vec()));
    let not_utf8 = sh_in(mount.join("a"), r"cat $'pl\xffain'");
    not_utf8.fails().says("No such file or directory");
}

#[test]
fn odd_objects_can_be_entered_if_a_path_leads_to_them() {
    let long = "o".repeat(300);
    let tree = ScriptedTree::new().object("/a");
    let enterable = [
        ".",
        "..",
        "nul\0here",
        r"\x2e",
        "new\nline",
        r"a\x2fb",
        long.as_str(),
    ];
    for name in enterable {
        let path = join("/a", name);
        tree.object(&path).prop(&path, "p", "str", json!(name));
    }
    tree.prop("/a", "a/b", "child<container>", json!("/a/a/b")).prop(
        "/a",
        "",
        "child<container>",
        json!("/a/"),
    );
    let server = tree.serve();
    let mount = Mount::start_foreground(server.socket(), &[]);
    let out = sh_in(
        mount.join("a"),
        "find . -name p -printf '%h\\0' 2>/dev/null; true",
    );
    let dirs: BTreeSet<&str> = out.ok().text().split_terminator('\0').collect();
    assert_eq!(dirs.len(), enterable.len(), "{dirs:?}");
    let mut found = BTreeSet::new();
    for dir in dirs {
        let dir = dir.trim_start_matches("./");
        let value = read_file(mount.join("a").join(dir).join("p")).expect("read");
        let name = String::from_utf8(value).expect("UTF-8");
        let name = name.strip_suffix('\n').expect("a newline").to_owned();
        server.reset();
        assert_eq!(
            write_file(mount.join("a").join(dir).join("p"), name.as_bytes()),
            Ok(())
        );
        let args = &server
            .requests()
            .into_iter()
            .rfind(|(command, _)| command == "qom-set")
            .expect("a write")
            .1;
        assert_eq!(args["path"], join("/a", &name));
        found.insert(name);
    }
    assert_eq!(found, enterable.map(str::to_owned).into());
    // QEMU cuts paths at `/` and skips what is empty: no path leads to these, and none to another may be sent.
    server.reset();
    let shown = sh_in(mount.join("a"), "ls -AU");
    for dir in [r"a\x2fb~2", r"\x"] {
        assert!(shown.ok().lines().contains(&dir), "{shown}");
        let out = sh_in(mount.join("a"), &format!("ls '{dir}'"));
        out.fails().says("No such file or directory");
    }
    let asked = server.requests();
    assert!(
        asked
            .iter()
            .all(|(_, args)| args["path"] == "/" || args["path"] == "/a"),
        "{asked:?}"
    );
}

#[test]
fn links_lead_to_odd_objects() {
    let long = format!("/a/{}", "o".repeat(300));
    let tree = ScriptedTree::new().object("/a");
    tree.prop("/a", ".", "str", json!("")); // shown as \x2e, which the object of that name cannot be then
    for (name, target) in [
        ("long", long.as_str()),
        ("newline", "/a/new\nline"),
        ("collides", r"/a/\x2e"),
    ] {
        tree.object(target).prop(target, "p", "str", json!(name)).prop(
            "/",
            name,
            "link<container>",
            json!(target),
        );
    }
    let (_server, mount) = tree.mounted(&[]);
    for name in ["long", "newline", "collides"] {
        assert_eq!(
            read_file(mount.join(name).join("p")),
            Ok(format!("{name}\n").into_bytes()),
            "{name}"
        );
    }
}

#[test]
fn links_to_odd_objects_cost_one_listing() {
    let tree = ScriptedTree::new().object("/odd").object("/odd/~");
    for n in 0..50 {
        tree.prop("/", &format!("l{n}"), "link<x>", json!("/odd/~"));
    }
    let (server, mount) = tree.mounted(&["-o", "entry_timeout=60"]);
    sh_in(mount.path(), "ls -l . odd").ok();
    server.reset();
    let out = sh_in(mount.path(), "readlink l*");
    assert_eq!(out.ok().lines(), vec!["odd/~"; 50]);
    assert_eq!(server.count("qom-list"), 0);
}

each_qemu!(a_real_qemu_with_ids_of_300_bytes, |which| {
    let qemu = Qemu::start(which, "q35", &["-device", "qemu-xhci,id=x"]);
    let truth = qemu.truth();
    let ids = ["r", "s"].map(|end| format!("{}{end}", "a".repeat(299)));
    for (size, id) in [65_536, 131_072].iter().zip(&ids) {
        let args = json!({ "qom-type": "memory-backend-ram", "id": id, "size": size });
        truth.execute("object-add", args).expect("object-add");
    }
    let relay = Relay::start(qemu.dir(), &qemu.socket());
    let mount = Mount::start(relay.socket(), &[]);
    let out = sh_in(mount.join("objects"), "ls -d aaa*");
    let files: BTreeSet<&str> = out.ok().lines().into_iter().collect();
    assert_eq!(files.len(), 2, "{files:?}");
    let mut sizes = BTreeSet::new();
    for file in files {
        assert_eq!(file.len(), 255);
        let dir = mount.join("objects").join(file);
        let size = read_file(dir.join("size")).expect("read");
        let id = &ids[usize::from(size == b"131072\n")];
        sizes.insert(size);
        relay.reset();
        assert_eq!(write_file(dir.join("merge"), b"off"), Ok(()), "{file}");
        assert_eq!(truth.get(&join("/objects", id), "merge"), Ok(json!(false)));
        let set = relay
            .requests()
            .into_iter()
            .find(|request| request.contains("qom-set"));
        assert!(set.expect("a write").contains(id.as_str()));
        // The region inside has a name of 303 bytes.
        let inside = sh_in(&dir, "cat aaa*/type");
        assert_eq!(inside.ok().text(), "memory-region");
    }
    assert_eq!(sizes.len(), 2);
    let id = "t".repeat(300);
    truth.device_add(json!({ "driver": "usb-tablet", "bus": "x.0", "id": id }));
    let shown = sh_in(mount.join("machine/peripheral"), "cat ttt*/type");
    assert_eq!(shown.ok().text(), "usb-tablet");
});

each_qemu!(a_real_qemu_with_names_that_no_file_can_have, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    let truth = qemu.truth();
    // QEMU checks the ids of objects and devices, but not those of character devices.
    let ids = ["c/d", r"c\x2fd", ".", "..", "n\nl", "\u{e9}", "~2"];
    for id in ids {
        let args = json!({ "id": id, "backend": { "type": "null", "data": {} } });
        truth.execute("chardev-add", args).expect("chardev-add");
    }
    let order: Vec<String> = truth
        .list("/chardevs")
        .into_iter()
        .map(|prop| prop.name)
        .collect();
    assert!(
        ids.iter().all(|id| order.iter().any(|name| name == id)),
        "{order:?}"
    );
    let at = |name: &str| order.iter().position(|other| other == name);
    let (first, second) = if at("c/d") < at(r"c\x2fd") {
        ("c/d", r"c\x2fd")
    } else {
        (r"c\x2fd", "c/d")
    };
    let mount = Mount::start(&qemu.socket(), &[]);
    for (file, name) in [
        (r"c\x2fd", first),
        (r"c\x2fd~2", second),
        (r"\x2e", "."),
        (r"\x2e\x2e", ".."),
        ("n\nl", "n\nl"),
        ("\u{e9}", "\u{e9}"),
        ("~2", "~2"),
    ] {
        let dir = mount.join("chardevs").join(file);
        assert!(lstat(&dir).is_ok(), "{file}");
        let kind = read_file(dir.join("type"));
        if name == "c/d" {
            assert_eq!(kind, Err(libc::ENOENT), "no path leads to it");
            continue;
        }
        assert_eq!(kind, Ok(b"chardev-null\n".to_vec()), "{file}");
    }
});

/// 251 bytes are the same in all of them, and that is what is left of each when it needs a counter.
#[test]
fn many_names_that_are_cut_to_the_same() {
    let name = |number: u32| {
        format!(
            "{}{}",
            "a".repeat(251),
            char::from_u32(0x10000 + number).expect("a character")
        )
    };
    let names: Vec<String> = (0..16_000).chain(0..16_000).map(name).collect();
    let listing: Value = names
        .iter()
        .map(|name| json!({ "name": name, "type": "string" }))
        .collect();
    let server = Scripted::start(move |_, args| match args["path"].as_str() {
        Some("/o") => Action::Return(listing.clone()),
        _ => Action::Return(json!([{ "name": "o", "type": "child<x>" }])),
    });
    let mount = Mount::start_foreground(server.socket(), &["-o", "entry_timeout=60"]);
    let out = sh_in(mount.join("o"), "ls -f | sort -u | wc -l");
    assert_eq!(out.ok().text(), "32002");
}
