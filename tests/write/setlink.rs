//! Setting links with `ln -sfn`: what it may name, what it may not, and that nothing is left of it.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use harness::*;
use serde_json::{Value, json};

const LINK: &str = "memory-backend";
const ARGS: [&str; 4] = [
    "-device",
    "qemu-xhci,id=x",
    "-object",
    "rng-random,id=rng,filename=/dev/null",
];

/// A machine with a second memory backend, `m2`, that its link can be set to.
#[track_caller]
fn machine(which: Which) -> Qemu {
    let qemu = Qemu::start(which, "q35", &ARGS);
    let args = json!({ "qom-type": "memory-backend-ram", "id": "m2", "size": 64 << 20 });
    qemu.truth().execute("object-add", args).expect("object-add");
    qemu
}

fn target(qemu: &Qemu) -> Value {
    qemu.truth().get("/machine", LINK).expect("the link")
}

/// `ln -sfn TARGET LINK` in a folder.
fn ln(dir: &Path, target: &str, link: &str) -> Out {
    sh_in(dir, &format!("ln -sfn -- {} {}", quote(target), quote(link)))
}

/// The names in a folder that are no property's of QEMU.
fn strangers(qemu: &Qemu, mount: &Mount, path: &str) -> Vec<String> {
    let names: Vec<String> = (qemu.truth().list(path).into_iter())
        .map(|prop| prop.name)
        .collect();
    let shown = sh_in(mount.join(path), "ls -AU");
    let lines = shown.ok().lines().into_iter().map(str::to_owned);
    lines.filter(|name| !names.contains(name)).collect()
}

each_qemu!(a_link_can_be_set_in_every_way_it_can_be_written, |which| {
    let qemu = machine(which);
    let relay = Relay::start(qemu.dir(), &qemu.socket());
    let mount = Mount::start(relay.socket(), &["-o", "entry_timeout=60"]);
    let dir = mount.join("machine");
    let absolute = |path: &str| mount.join(path).to_str().expect("UTF-8").to_owned();
    assert_eq!(target(&qemu), "/objects/pc.ram");
    for (text, expected) in [
        ("../objects/m2".to_owned(), "/objects/m2"),
        ("../objects/pc.ram/".to_owned(), "/objects/pc.ram"),
        (absolute("objects/m2"), "/objects/m2"),
        ("unset:[memory-backend]".to_owned(), ""),
        (absolute("objects//./pc.ram"), "/objects/pc.ram"),
        ("./q35/../../objects/m2".to_owned(), "/objects/m2"),
        ("../machine/memory-backend".to_owned(), "/objects/m2"), // through a link
        ("unset:[anything]".to_owned(), ""),
        (absolute("machine/../objects/pc.ram"), "/objects/pc.ram"),
    ] {
        read_link(dir.join(LINK)).expect("the kernel has it now");
        relay.reset();
        let out = ln(&dir, &text, LINK);
        assert!(out.ok().stderr.is_empty(), "{out}");
        assert_eq!(target(&qemu), expected, "{text}");
        assert_eq!(relay.count("qom-set"), 1, "{text}");
        let shown = link_text("/machine", LINK, expected);
        assert_eq!(
            read_link(dir.join(LINK)),
            Ok(shown.clone().into_bytes()),
            "{text}"
        );
        assert_eq!(
            lstat(dir.join(LINK)).expect("stat").st_size,
            shown.len() as i64,
            "{text}"
        );
        assert!(strangers(&qemu, &mount, "/machine").is_empty());
    }
});

each_qemu!(readlink_is_new_right_after, |which| {
    let qemu = machine(which);
    let mount = Mount::start(&qemu.socket(), &["-o", "entry_timeout=60"]);
    let script = "
            for i in $(seq 25); do
                for target in m2 pc.ram; do
                    ln -sfn ../objects/$target memory-backend || exit
                    [[ $(readlink memory-backend) = ../objects/$target ]] || echo stale link: $i
                    [[ memory-backend -ef ../objects/$target ]] || echo leads elsewhere: $i
                    [[ $(ls -l memory-backend) = *'-> ../objects/'$target ]] || echo stale ls: $i
                    [[ -d memory-backend/$target[0] ]] || echo stale lookup: $i
                done
            done";
    assert_eq!(sh_in(mount.join("machine"), script).ok().text(), "");
    for to in ["/objects/m2", "/objects/pc.ram", "", "/objects/m2"] {
        qemu.set("/machine", LINK, json!(to));
        let shown = link_text("/machine", LINK, to);
        assert_eq!(
            read_link(mount.join("machine").join(LINK)),
            Ok(shown.into_bytes())
        );
    }
});

each_qemu!(what_is_no_object_for_it_changes_nothing, |which| {
    let qemu = machine(which);
    let mount = Mount::start_foreground(&qemu.socket(), &[]);
    let dir = mount.join("machine");
    let wrong_type = "Invalid parameter type for 'memory-backend', expected: memory-backend";
    for (text, why, words) in [
        ("/etc/passwd", "Invalid argument", "/etc/passwd"),
        ("/", "Invalid argument", "outside"),
        ("../../etc/passwd", "Invalid argument", "../../etc/passwd"),
        ("../..", "Invalid argument", "outside"),
        ("/objects/m2", "Invalid argument", "/objects/m2"), // QEMU's path is not the mount's
        ("../objects/nope", "Invalid argument", "nope"),
        ("../nope/m2", "Invalid argument", "nope"),
        ("m2", "Invalid argument", "m2"),
        ("type", "Not a directory", "type"),
        ("type/x", "Not a directory", "type"),
        ("confidential-guest-support", "Invalid argument", "unset"),
        ("../objects/rng", "Invalid argument", wrong_type),
        (".", "Invalid argument", wrong_type),
        ("..", "Invalid argument", wrong_type),
    ] {
        let before = mount.log().len();
        let out = ln(&dir, text, LINK);
        assert!(
            out.fails().stderr.trim_end().ends_with(&format!(": {why}")),
            "{text}: {out}"
        );
        assert_eq!(target(&qemu), "/objects/pc.ram", "{text}");
        assert_eq!(read_link(dir.join(LINK)), Ok(b"../objects/pc.ram".to_vec()));
        assert!(strangers(&qemu, &mount, "/machine").is_empty(), "{text}");
        let log = mount.log();
        assert!(log[before..].contains(words), "{text}: {:?}", &log[before..]);
    }
});

each_qemu!(links_that_qemu_does_not_let_anybody_set, |which| {
    let qemu = machine(which);
    let mount = Mount::start_foreground(&qemu.socket(), &[]);
    let x = "/machine/peripheral/x";
    let core = &format!("{x}/xhci-core");
    let realized = "after it was realized";
    for (path, link, to, why, words) in [
        (core.as_str(), "host", "..", "Device or resource busy", realized),
        (x, "parent_bus", ".", "Permission denied", "is not writable"),
        (
            x,
            "parent_bus",
            "unset:[parent_bus]",
            "Permission denied",
            "is not writable",
        ),
    ] {
        let (dir, before) = (mount.join(path), qemu.truth().get(path, link));
        let shown = read_link(dir.join(link));
        let out = ln(&dir, to, link);
        assert!(out.fails().stderr.contains(why), "{link}: {out}");
        assert_eq!(qemu.truth().get(path, link), before, "{link}");
        assert_eq!(read_link(dir.join(link)), shown, "{link}");
        assert!(mount.log().contains(words), "{link}: {}", mount.log());
        assert!(strangers(&qemu, &mount, path).is_empty());
    }
});

#[test]
fn links_lead_on_through_others_and_to_the_root() {
    let tree = ScriptedTree::new().object("/a").object("/b").object("/b/c");
    tree.prop("/a", "peer", "link<container>", json!(""))
        .prop("/a", "next", "link<container>", json!("/b"))
        .prop("/b", "back", "link<container>", json!("/a"))
        .prop("/b", "odd", "link<container>", json!("/b/../b"))
        .prop("/a", "loop", "link<container>", json!("/a/loop"));
    let (_server, mount) = tree.mounted(&[]);
    let dir = mount.join("a");
    for (text, expected, shown) in [
        ("next/c", "/b/c", "../b/c"),
        ("next/back/next", "/b", "../b"),
        ("next/..", "/", ".."),
        ("..", "/", ".."),
        (".", "/a", "../a"),
        ("next/c/../../a", "/a", "../a"),
    ] {
        ln(&dir, text, "peer").ok();
        assert_eq!(
            tree.value("/a", "peer"),
            Some(json!(expected).to_string()),
            "{text}"
        );
        assert_eq!(
            read_link(dir.join("peer")),
            Ok(shown.as_bytes().to_vec()),
            "{text}"
        );
    }
    for text in ["next/odd/c", "next/../..", "loop/x", "next/c/peer"] {
        ln(&dir, text, "peer").fails();
        assert_eq!(tree.value("/a", "peer"), Some(json!("/a").to_string()), "{text}");
    }
}

/// Makes a symbolic link by system calls; renames it too, if there is a new place.
fn raw_link(text: &str, at: &Path, rename_to: Option<&Path>) -> Result<(), i32> {
    let child = Child::start("symlink and rename");
    child.ask_one(Step::new(at, Call::Symlink).data(text))?;
    if let Some(to) = rename_to {
        child.ask_one(Step::new(at, Call::Rename).data(to.as_os_str().as_bytes()))?;
    }
    Ok(())
}

each_qemu!(a_temporary_name_is_never_seen, |which| {
    let qemu = machine(which);
    let mount = Mount::start(&qemu.socket(), &[]);
    let dir = mount.join("machine");
    let (temporary, link) = (dir.join("CuAb12xY"), dir.join(LINK));
    // Half-way: only the first of the two calls.
    raw_link("../objects/m2", &temporary, None).expect("the first step of ln");
    assert!(strangers(&qemu, &mount, "/machine").is_empty(), "half-way");
    assert!(
        !sh_in(mount.path(), "find . -name 'Cu*'")
            .ok()
            .text()
            .contains("Cu")
    );
    let out = sh_in(&dir, "rm CuAb12xY && ! stat CuAb12xY");
    out.ok().says("No such file");

    // Left behind for good.
    raw_link("../objects/m2", &temporary, None).expect("the first step of ln");
    let gone = || lstat(&temporary).err() == Some(libc::ENOENT);
    assert!(wait_until(Duration::from_secs(30), gone), "left behind");
    assert_eq!(target(&qemu), "/objects/pc.ram");

    // The second call fails, and nobody removes the name.
    for (text, to, errno) in [
        ("../objects/rng", link.clone(), libc::EINVAL),
        ("../objects/nope", link.clone(), libc::EINVAL),
        ("/etc/passwd", link.clone(), libc::EINVAL),
        ("../objects/m2", dir.join("newname"), libc::EPERM),
        ("../objects/m2", dir.join("graphics"), libc::EPERM),
        // Seen from the folder of the link that is set.
        (
            "../objects/m2",
            mount.join("objects/pc.ram/prealloc-context"),
            libc::EINVAL,
        ),
    ] {
        assert_eq!(raw_link(text, &temporary, Some(&to)), Err(errno), "{text} {to:?}");
        assert_eq!(lstat(&temporary).err(), Some(libc::ENOENT), "{text} {to:?}");
        assert!(strangers(&qemu, &mount, "/machine").is_empty());
        assert_eq!(target(&qemu), "/objects/pc.ram");
    }
    raw_link("../objects/m2", &temporary, Some(&link)).expect("both steps");
    assert_eq!(target(&qemu), "/objects/m2");
    assert_eq!(lstat(&temporary).err(), Some(libc::ENOENT));
});

#[test]
fn a_directory_read_while_links_are_set_shows_no_temporary_name() {
    let qemu = machine(Which::Old);
    let mount = Mount::start(&qemu.socket(), &["-o", "entry_timeout=0"]);
    let script = "
        (for i in $(seq 20); do
            ln -sfn ../objects/m2 memory-backend; ln -sfn ../objects/pc.ram memory-backend
            ln -sfn ../objects/rng memory-backend 2>/dev/null
        done; echo done) &
        while kill -0 $! 2>/dev/null; do ls -A; done | sort -u
        wait";
    let out = sh_in(mount.join("machine"), script);
    let names = qemu.truth().list("/machine");
    let lines = out.ok().lines();
    assert!(
        lines.len() > names.len() - 1 && lines.contains(&"done"),
        "{lines:?}"
    );
    for line in lines.into_iter().filter(|line| *line != "done") {
        assert!(names.iter().any(|prop| prop.name == line), "{line}");
    }
    assert_eq!(target(&qemu), "/objects/pc.ram");
}

// Whatever a tool calls the link that it renames: no name is refused, listed or kept.
each_qemu!(links_are_set_by_any_tool_that_renames, |which| {
    let uutils = "/usr/lib/cargo/bin/coreutils";
    let python = "import os, sys; os.symlink(sys.argv[1], '.x.tmp'); os.replace('.x.tmp', 'memory-backend')";
    let qemu = machine(which);
    let mount = Mount::start(&qemu.socket(), &["-o", "entry_timeout=60"]);
    let dir = mount.join("machine");
    for (number, command) in [
            format!("python3 -c {} TARGET", quote(python)),
            "ln -s TARGET .new && mv -T .new memory-backend".to_owned(),
            "ln -s TARGET new && mv -fT new memory-backend".to_owned(),
            "busybox ln -s TARGET new && busybox mv -T new memory-backend".to_owned(),
            // That of uutils 0.0.17 renames nothing over a link to a folder, on no filesystem.
            format!(
                "ln -sfn 'unset:[memory-backend]' memory-backend; {uutils}/ln -s TARGET new && {uutils}/mv -T new memory-backend"
            ),
            "ln -s TARGET ../objects/new && mv -T ../objects/new memory-backend".to_owned(),
            "ln -sfn TARGET memory-backend".to_owned(),
            "perl -e 'symlink(\"TARGET\", \"a b\") && rename(\"a b\", \"memory-backend\") or die $!'"
                .to_owned(),
        ]
        .iter()
        .enumerate()
        {
            let name = ["m2", "pc.ram"][number % 2];
            let out = sh_in(&dir, &command.replace("TARGET", &format!("../objects/{name}")));
            assert_eq!(out.ok().stderr, "", "{out}");
            assert_eq!(target(&qemu), format!("/objects/{name}"), "{command}");
            let shown = format!("../objects/{name}").into_bytes();
            assert_eq!(read_link(dir.join(LINK)), Ok(shown), "{command}");
            assert!(
                strangers(&qemu, &mount, "/machine").is_empty(),
                "{command}"
            );
            assert!(
                strangers(&qemu, &mount, "/objects").is_empty(),
                "{command}"
            );
        }
    // What removes the old link first cannot set it.
    sh_in(&dir, "busybox ln -sfn ../objects/m2 memory-backend").fails();
    assert_eq!(target(&qemu), "/objects/pc.ram");
});

each_qemu!(a_refused_link_keeps_the_words, |which| {
    let qemu = machine(which);
    let mount = Mount::start(&qemu.socket(), &[]);
    let dir = mount.join("machine");
    let words = "getfattr -h --only-values -n qom.error memory-backend";
    sh_in(&dir, words).fails();
    for (text, want) in [
        ("../objects/rng", "expected: memory-backend"),
        ("type", "is a property, not an object"),
        ("../objects/typo", "there is no 'typo' in /objects"),
        ("/etc/passwd", "outside of the mount"),
    ] {
        ln(&dir, text, LINK).fails();
        let out = sh_in(&dir, words);
        assert!(out.text().contains(want), "{text}: {out}");
        let listed = sh_in(&dir, "getfattr -h -m - memory-backend");
        assert_eq!(listed.ok().text(), "", "it is not listed");
    }
    ln(&dir, "../objects/m2", LINK).ok();
    sh_in(&dir, words).fails();
});

#[test]
fn a_link_that_is_not_renamed_goes_and_the_log_says_so() {
    let qemu = machine(Which::Old);
    let mount = Mount::start_foreground(&qemu.socket(), &[]);
    let dir = mount.join("machine");
    for command in [
        "ln -s ../objects/m2 newname",
        "ln -sfn ../../objects/m2 q35/newname",
        "ln -sfn ../objects/m2 newer",
    ] {
        sh_in(&dir, command).ok();
        assert!(strangers(&qemu, &mount, "/machine").is_empty(), "{command}");
    }
    // Made again at once: a name can be taken as long as the link is there.
    let out = sh_in(&dir, "ln -sT x again && ! ln -sT x again");
    out.ok().says("File exists");
    let said = || mount.log().matches("was not renamed").count() == 4;
    assert!(wait_until(Duration::from_secs(40), said), "{}", mount.log());
    for name in ["newname", "q35/newname", "newer", "again"] {
        assert_eq!(lstat(dir.join(name)).err(), Some(libc::ENOENT), "{name}");
    }
    assert_eq!(target(&qemu), "/objects/pc.ram");
}

#[test]
fn nothing_but_links_is_renamed_or_removed() {
    let qemu = machine(Which::Old);
    let relay = Relay::start(qemu.dir(), &qemu.socket());
    let mount = Mount::start(relay.socket(), &[]);
    for command in [
        "ln -sfn ../objects/m2 graphics",
        "ln type newname",
        "mv memory-backend newname",
        "mv -T confidential-guest-support memory-backend",
        "ln -s ../objects/m2 new && mv new newer",
        "rm memory-backend",
        "unlink memory-backend",
    ] {
        let out = sh_in(mount.join("machine"), command);
        assert!(
            out.fails().stderr.contains("Operation not permitted"),
            "{command}: {out}"
        );
        assert!(strangers(&qemu, &mount, "/machine").is_empty(), "{command}");
    }
    assert_eq!(relay.count("qom-set"), 0);
    assert_eq!(target(&qemu), "/objects/pc.ram");

    drop(mount);
    let mount = Mount::start(&qemu.socket(), &["-o", "ro"]);
    let out = ln(&mount.join("machine"), "../objects/m2", LINK);
    out.fails().says("Read-only file system");
    assert_eq!(target(&qemu), "/objects/pc.ram");
}
