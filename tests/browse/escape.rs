//! Names and targets that a compromised QEMU may send: nothing in the mount leads out of it, and nothing breaks it.

use std::collections::BTreeSet;
use std::time::Duration;

use harness::*;
use serde_json::{Value, json};

/// Targets that no link may follow, as QEMU would put them.
fn escapes() -> Vec<Value> {
    let texts = [
        "..",
        ".",
        "../../etc",
        "../../../../../../../../etc/passwd",
        "etc",
        "/..",
        "/.",
        "/../etc",
        "/machine/../..",
        "/machine/../../etc/passwd",
        "/machine/./x",
        "//",
        "//x",
        "//etc/passwd",
        "/machine//x",
        "/machine/",
        "///",
        "/machine/..",
        " /machine",
        "\n/etc",
        "/\u{0}",
        "machine",
        "file:///etc",
        "\\",
        "unset:[x]",
        "invalid:[x]",
    ];
    let odd = [json!(5), json!(true), json!("/x".repeat(3000))];
    texts.into_iter().map(|text| json!(text)).chain(odd).collect()
}

#[test]
fn no_link_leads_out() {
    let tree = ScriptedTree::new()
        .object("/machine")
        .object("/machine/deep")
        .object("/machine/deep/down");
    let holders = ["/", "/machine", "/machine/deep/down"];
    for holder in holders {
        for (number, target) in escapes().into_iter().enumerate() {
            tree.prop(holder, &format!("l{number}"), "link<x>", target);
        }
        tree.prop(holder, "good", "link<x>", json!("/machine/deep"));
        tree.prop(holder, "root", "link<x>", json!("/"));
        tree.prop(holder, "gone", "link<x>", json!("/nowhere/at/all"));
    }
    let (_server, mount) = tree.mounted(&[]);
    let outside = mount
        .path()
        .parent()
        .expect("a folder around the mount")
        .to_owned();
    for holder in holders {
        for (number, target) in escapes().into_iter().enumerate() {
            let link = mount.join(holder).join(format!("l{number}"));
            let text = read_link(&link).map(|text| String::from_utf8_lossy(&text).into_owned());
            let expected = format!("invalid:[l{number}]");
            assert!(
                text == Ok(expected) || (!target.is_string() && text == Err(libc::EIO)),
                "{holder} {target}: {text:?}"
            );
        }
        for (name, real) in [
            ("good", mount.join("machine/deep")),
            ("root", mount.path().to_owned()),
        ] {
            let out = sh(&format!("readlink -e {}", quote(mount.join(holder).join(name))));
            assert_eq!(out.ok().text(), real.to_str().expect("UTF-8"), "{holder} {name}");
        }
        let gone = read_link(mount.join(holder).join("gone")).expect("a target");
        assert!(
            gone.ends_with(b"nowhere/at/all") && !gone.starts_with(b"/"),
            "{gone:?}"
        );
    }
    // Each of them as one who follows links would find it, and all that such a one would find.
    let script = format!(
        "find {} -type l -print0 | xargs -0 readlink -m -z --",
        quote(mount.path())
    );
    let ends = sh(&script).ok().stdout.clone();
    let ends: Vec<_> = ends
        .split(|byte| *byte == 0)
        .filter(|end| !end.is_empty())
        .collect();
    assert_eq!(ends.len(), holders.len() * (escapes().len() + 3));
    for end in ends {
        let end = String::from_utf8_lossy(end);
        assert!(
            end.starts_with(mount.path().to_str().expect("UTF-8")),
            "{end} is outside"
        );
    }
    let out = sh(&format!(
        "find -L {} -maxdepth 3 -fstype fuse.qom-fuse -prune -o -print",
        quote(mount.path())
    ));
    assert_eq!(out.text(), "", "of another filesystem");
    assert_eq!(sh(&format!("ls -A {}", quote(&outside))).ok().text(), "mnt");
    assert!(mount.is_mounted());
}

/// Property names, each with itself as its value.
fn names() -> Vec<String> {
    let texts = [
        "..",
        ".",
        "",
        "/",
        "//",
        "/etc/passwd",
        "../../etc/passwd",
        "a/b",
        "a/../..",
        "...",
        "a\0b",
        "\0",
        "new\nline",
        " ",
        "-rf",
        "*",
        "$(reboot)",
        "`x`",
        "\u{1b}[2J",
        "\u{202e}gpj",
        "größer",
        "\\x2e\\x2e",
        "\\x2f",
        "a\\b",
        "~",
        "a~2",
        "\u{feff}",
        "%s%n",
        "con",
        "\u{fffd}",
        "'",
        "\"",
        "type ",
    ];
    let long = [255, 256, 300, 5000].map(|length| "n".repeat(length));
    let wide = [85, 86, 100].map(|length| "☃".repeat(length)); // three bytes each
    let same_start = [1, 2].map(|number| format!("{}{number}", "n".repeat(300)));
    texts
        .into_iter()
        .map(str::to_owned)
        .chain(long)
        .chain(wide)
        .chain(same_start)
        .collect()
}

#[test]
fn no_name_breaks_out_of_its_directory() {
    let tree = ScriptedTree::new()
        .object("/plain")
        .object("/links")
        .object("/children");
    let names = names();
    for name in &names {
        tree.prop("/plain", name, "string", json!(name));
        tree.prop("/links", name, "link<x>", json!("/plain"));
        // A child by whose name no path leads to an object, too.
        tree.prop("/children", name, "child<x>", json!("/plain"));
    }
    let (_server, mount) = tree.mounted(&[]);
    let dirs = ["plain", "links", "children"].map(|dir| mount.join(dir));
    let listed = list_dirs(&dirs);
    for (dir, listed) in dirs.iter().zip(listed) {
        let listed = listed.unwrap_or_else(|errno| panic!("{}: errno {errno}", dir.display()));
        let shown: BTreeSet<&str> = listed.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(shown.len(), listed.len(), "two of the same name: {shown:?}");
        assert_eq!(listed.len(), names.len() + 3, "`.`, `..` and `type`");
        let bad = |name: &&&str| name.is_empty() || name.len() > 255 || name.contains(['/', '\0']);
        assert_eq!(shown.iter().filter(bad).count(), 0, "{shown:?}");
    }
    // Each file holds the value of its own property, and each property has its file.
    let listed = list_dirs(&dirs[..1]).remove(0).expect("a listing");
    let files: Vec<_> = listed.iter().filter(|entry| entry.kind == libc::DT_REG).collect();
    let paths: Vec<_> = files.iter().map(|entry| dirs[0].join(&entry.name)).collect();
    let mut values = BTreeSet::new();
    for (file, value) in files.iter().zip(read_files(&paths)) {
        let value = String::from_utf8(value.unwrap_or_else(|errno| panic!("{}: errno {errno}", file.name)));
        values.insert(value.expect("UTF-8").trim_end_matches('\n').to_owned());
    }
    let mut expected: BTreeSet<String> = names
        .iter()
        .map(|name| name.trim_end_matches('\n').to_owned())
        .collect();
    expected.insert("container".to_owned());
    assert_eq!(values, expected);

    let mnt = quote(mount.path());
    for (name, value) in [
        ("..", "\\x2e\\x2e"),
        (".", "\\x2e"),
        ("a/b", "a\\x2fb"),
        ("a\0b", "a\\x00b"),
        ("", "\\x"),
    ] {
        let found = read_file(dirs[0].join(value)).map(|text| String::from_utf8_lossy(&text).into_owned());
        let known = [format!("{name}\n"), format!("{value}\n")];
        assert!(
            found.as_ref().is_ok_and(|text| known.contains(text)),
            "{value}: {found:?}"
        );
    }
    // The tools walk it; children that no path leads to are complained of, and nothing else is met.
    let out = sh(&format!("find {mnt} -fstype fuse.qom-fuse -o -print"));
    assert_eq!(out.text(), "", "of another filesystem");
    sh(&format!(
        "cd {mnt}/plain && ls -la && grep -r . . && tar cf /dev/null ."
    ))
    .ok();
    assert!(mount.is_mounted());
    mount.unmount();
}

/// Each odd name of a target is looked up in its parent's listing: all together take no longer than one may.
#[test]
fn a_target_of_many_odd_names_keeps_nobody() {
    let tree = ScriptedTree::new();
    let mut path = String::new();
    for _ in 0..200 {
        path.push_str("/~");
        tree.object(&path);
    }
    tree.prop("/", "far", "link<x>", json!(path));
    let mut answer = tree.handler();
    let server = Scripted::start(move |command, args| {
        let is_deep = args["path"].as_str().is_some_and(|path| path.starts_with("/~"));
        let time = Duration::from_millis(if command == "qom-list" && is_deep { 100 } else { 0 });
        Action::Delay(time, Box::new(answer(command, args)))
    });
    let mount = Mount::start(server.socket(), &["-o", "timeout=1"]);
    assert_eq!(read_link(mount.join("far")), Err(libc::ETIMEDOUT));
    let asked = server.count("qom-list");
    assert!(asked < 50, "{asked} listings");
}
