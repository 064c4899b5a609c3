//! Reading a mounted property: an open pins one value, whatever the offsets and lengths, and however it changes meanwhile.

use harness::*;
use serde_json::json;

/// A small machine whose `kernel` is a string that can be set at any time.
#[track_caller]
fn machine(which: Which) -> (Qemu, Mount) {
    let (qemu, mount) = mounted(which, "none", &[], &[]);
    (qemu, mount)
}

#[track_caller]
fn set(qemu: &Qemu, text: &str) {
    qemu.set("/machine", "kernel", json!(text));
}

#[track_caller]
fn open(mount: &Mount) -> Held {
    Held::open(mount.join("machine/kernel"), libc::O_RDONLY).expect("open for reading")
}

each_qemu!(any_offset_and_length, |which| {
    let (qemu, mount) = machine(which);
    let text: String = (0..3000).map(|number| format!("{number:04}.")).collect();
    set(&qemu, &text);
    let expected = format!("{text}\n").into_bytes();
    let held = open(&mount);
    assert_eq!(held.size(), Ok(expected.len()));
    let offsets = [
        0,
        1,
        2,
        511,
        4095,
        4096,
        4097,
        8192,
        14_999,
        15_000,
        15_001,
        15_002,
        1 << 20,
        1 << 40,
    ];
    for offset in offsets {
        for length in [0, 1, 2, 100, 4095, 4096, 4097, 16_384, 1 << 20] {
            let start = expected.len().min(offset as usize);
            let end = expected.len().min(start + length);
            let found = held.read_at(offset, length);
            assert_eq!(
                found.as_deref(),
                Ok(&expected[start..end]),
                "{length} bytes at {offset}"
            );
        }
    }
    assert_eq!(held.read_at(i64::MAX as u64 - 4096, 1), Ok(b"".into()));
});

each_qemu!(a_value_read_in_pieces_is_one_value, |which| {
    let (qemu, mount) = machine(which);
    set(&qemu, "before, and rather long");
    let held = open(&mount);
    let mut found = Vec::new();
    for number in 0.. {
        let piece = held.read(1).expect("read a byte");
        if piece.is_empty() {
            break;
        }
        found.extend(piece);
        set(&qemu, &format!("changed {number} times"));
    }
    assert_eq!(String::from_utf8_lossy(&found), "before, and rather long\n");
    assert_eq!(held.size(), Ok(found.len()), "nobody has opened it since");
});

// The value of the time of opening, not of the first read: fstat(2) has told its size by then.
each_qemu!(the_value_is_pinned_when_the_file_is_opened, |which| {
    let (qemu, mount) = machine(which);
    set(&qemu, "at open");
    let held = open(&mount);
    set(&qemu, "later, and longer");
    assert_eq!(held.size(), Ok(8));
    assert_eq!(held.read(100), Ok(b"at open\n".into()));
    assert_eq!(held.read(100), Ok(b"".into()));
});

each_qemu!(reading_from_the_start_again_fetches_anew, |which| {
    let (qemu, mount) = machine(which);
    set(&qemu, "first");
    let held = open(&mount);
    assert_eq!(held.read(100), Ok(b"first\n".into()));
    set(&qemu, "second, longer");
    assert_eq!(held.read_at(2, 100), Ok(b"rst\n".into()), "still the pinned one");
    assert_eq!(held.seek(0), Ok(0));
    assert_eq!(held.read(6), Ok(b"second".into()));
    set(&qemu, "third");
    assert_eq!(
        held.read(100),
        Ok(b", longer\n".into()),
        "the rest of what was begun"
    );
    assert_eq!(held.read_at(0, 100), Ok(b"third\n".into()));
    set(&qemu, "");
    assert_eq!(held.read_at(0, 100), Ok(b"\n".into()));
});

each_qemu!(each_open_pins_its_own_value, |which| {
    let (qemu, mount) = machine(which);
    set(&qemu, "one");
    let one = open(&mount);
    assert_eq!(one.read(1), Ok(b"o".into()));
    set(&qemu, "two, longer");
    let two = open(&mount);
    set(&qemu, "three");
    let three = open(&mount);
    assert_eq!(two.read(100), Ok(b"two, longer\n".into()));
    assert_eq!(one.read(100), Ok(b"ne\n".into()));
    assert_eq!(three.read(100), Ok(b"three\n".into()));
    assert_eq!(
        lstat(mount.join("machine/kernel")).map(|stat| stat.st_size),
        Ok(6),
        "the last one opened"
    );
});

/// A reader, and a writer through the same mount, while QEMU holds ever other values.
#[test]
fn readers_never_see_a_mixture() {
    let (qemu, mount) = machine(Which::New);
    let file = quote(mount.join("machine/kernel"));
    let value = |number: usize| format!("{number:02}").repeat(3000);
    set(&qemu, &value(0));
    let script = format!("for i in {{1..60}}; do dd if={file} bs=1000 status=none | md5sum; done");
    let readers = [sh_start(&script), sh_start(&script)];
    for number in 1..60 {
        set(&qemu, &value(number % 7));
    }
    let known = |number| sh(&format!("echo {} | md5sum", value(number))).text().to_owned();
    let known: Vec<String> = (0..7).map(known).collect();
    for reader in readers {
        let out = reader.finish(child::DEADLINE);
        assert_eq!(out.ok().lines().len(), 60);
        for sum in out.lines() {
            assert!(
                known.iter().any(|known| known == sum),
                "a value that QEMU never had"
            );
        }
    }
}

#[test]
fn a_slow_getter_is_asked_once() {
    let tree = ScriptedTree::new()
        .object("/a")
        .prop("/a", "slow", "string", json!("slow"));
    let answer = Action::Delay(
        std::time::Duration::from_millis(300),
        Box::new(Action::Return(json!("slow"))),
    );
    tree.hook("qom-get", "/a", "slow", answer);
    for exists in [false, true] {
        let server = tree.with_list_get(exists).serve();
        let mount = Mount::start(server.socket(), &[]);
        assert_reads(mount.join("a/slow"), "slow\n");
        assert_eq!((server.count("qom-get"), server.count("qom-list-get")), (1, 0));
    }
}

#[test]
fn three_megabytes_are_exact() {
    let text: String = ('a'..='z').cycle().take(3_000_000).collect();
    let tree = ScriptedTree::new()
        .object("/a")
        .prop("/a", "text", "string", json!(text));
    let (_server, mount) = tree.mounted(&[]);
    let file = mount.join("a/text");
    let expected = format!("{text}\n").into_bytes();
    assert!(read_file(&file).as_deref() == Ok(&expected));
    for tool in [
        "cat",
        "cat <",
        "tail -c +1",
        "dd status=none bs=777777 if=",
        "tac",
    ] {
        let space = if tool.ends_with('=') { "" } else { " " };
        assert!(
            sh(&format!("{tool}{space}{}", quote(&file))).ok().stdout == expected,
            "{tool}"
        );
    }
    assert_eq!(sh(&format!("wc -c < {}", quote(&file))).ok().text(), "3000001");
}

each_qemu!(a_real_qemu_gives_a_megabyte, |which| {
    let (qemu, mount) = machine(which);
    let text: String = ('a'..='z').cycle().take(1_000_000).collect();
    set(&qemu, &text);
    assert!(read_file(mount.join("machine/kernel")).as_deref() == Ok(format!("{text}\n").as_bytes()));
});

each_qemu!(df_and_statfs_tell_a_filesystem_without_blocks, |which| {
    let (_qemu, mount) = machine(which);
    let mnt = quote(mount.path());
    let out = sh(&format!("df {mnt}; df -i {mnt}; df -h {mnt}/machine/type"));
    assert_eq!(out.ok().stderr, "");
    let shown = out
        .lines()
        .iter()
        .filter(|line| line.ends_with(&mount.path().display().to_string()))
        .count();
    assert_eq!(shown, 3, "{out}");
    let out = sh(&format!("stat -f -c '%b %f %a %d %l' {mnt}"));
    assert_eq!(
        out.ok().text(),
        "0 0 0 0 255",
        "blocks, free, available, free inodes, length of names"
    );
    assert_eq!(
        sh(&format!("find {mnt} -xdev -fstype fuse.qom-fuse | head -1"))
            .ok()
            .text(),
        mnt.replace('\'', "")
    );
});

each_qemu!(access_tells_what_can_be_tried, |which| {
    let (_qemu, mount) = machine(which);
    let cases = [
        ("-r machine/kernel", 0),
        ("-w machine/kernel", 0),
        ("-x machine/kernel", 1),
        ("-r machine/type", 0),
        ("-r machine", 0),
        ("-w machine", 0),
        ("-x machine", 0),
        ("-x .", 0),
        ("-e machine/nothing", 1),
        ("-f machine/type", 0),
        ("-d machine/peripheral", 0),
        ("-s machine/type", 0),
        ("-O machine/type", 0),
    ];
    for (test, status) in cases {
        assert_eq!(
            sh_in(mount.path(), &format!("test {test}")).status,
            status,
            "test {test}"
        );
    }
    assert_eq!(sh_in(mount.path(), "exec machine/type").status, 126, "no program");
});

#[test]
fn what_is_no_file_is_not_read_as_one() {
    let (_qemu, mount) = machine(Which::Old);
    assert_eq!(read_file(mount.path()), Err(libc::EISDIR));
    assert_eq!(read_file(mount.join("machine")), Err(libc::EISDIR));
    assert_eq!(read_file(mount.join("machine/type/x")), Err(libc::ENOTDIR));
    assert_eq!(read_file(mount.join("machine/nothing")), Err(libc::ENOENT));
    assert_eq!(read_file(mount.join("nothing/at/all")), Err(libc::ENOENT));
    assert_eq!(read_link(mount.join("machine/type")), Err(libc::EINVAL));
    let strange = sh_in(mount.path(), "cat $'machine/\\377\\376'");
    strange.says("No such file or directory");
}
