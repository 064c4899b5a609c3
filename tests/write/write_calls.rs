//! write(2) itself on a mounted property: descriptors for both ways, what is too large, and what is no text.

use std::path::Path;

use harness::*;
use serde_json::{Value, json};

/// The largest value that surely comes in one write: a page below what the kernel sends at once.
const MOST: usize = (1 << 20) - 4096;

/// Writes from a buffer that begins `shift` bytes after a page, and returns what write(2) does.
#[track_caller]
fn write_shifted(path: &Path, data: &[u8], shift: u64) -> Result<usize, Errno> {
    let step = Step::new(path, Call::Write).data(data).offset(shift);
    child::run(step).map(|seen| seen.value as usize)
}

fn sets(server: &Scripted) -> Vec<Value> {
    let requests = server
        .requests()
        .into_iter()
        .filter(|(command, _)| command == "qom-set");
    requests.map(|(_, args)| args["value"].clone()).collect()
}

#[test]
fn a_large_value_arrives_whole_or_not_at_all() {
    let tree = ScriptedTree::new()
        .object("/a")
        .prop("/a", "text", "string", json!("before"));
    let (server, mount) = tree.mounted(&[]);
    let file = mount.join("a/text");
    for length in [4096, 4097, 131_072, 131_073, 1_000_000, MOST] {
        let text: String = ('a'..='z').cycle().take(length).collect();
        for shift in [0, 1, 4095] {
            server.reset();
            assert_eq!(
                write_shifted(&file, text.as_bytes(), shift),
                Ok(length),
                "{length} bytes, shifted by {shift}"
            );
            assert!(
                sets(&server) == [json!(text)],
                "{length} bytes, shifted by {shift}"
            );
        }
    }
    write_file(&file, b"before").expect("a write");
    server.reset();
    for length in [MOST + 1, 1 << 20, (1 << 20) + 1, 3_000_000] {
        for shift in [0, 1, 2048, 4095] {
            let result = write_shifted(&file, &vec![b'x'; length], shift);
            assert_eq!(result, Err(libc::EFBIG), "{length} bytes, shifted by {shift}");
        }
    }
    let too_large = server.socket().with_file_name("large");
    std::fs::write(&too_large, vec![b'x'; 2_000_000]).expect("write a file");
    let out = sh(&format!(
        "dd if={} of={} bs=2M status=none",
        quote(&too_large),
        quote(&file)
    ));
    out.exits(1).says("File too large");
    assert_eq!(sets(&server), [] as [Value; 0]); // a listing may have expired meanwhile
    assert_reads(&file, "before\n");
}

each_qemu!(a_real_qemu_takes_a_large_value, |which| {
    let (qemu, mount) = mounted(which, "none", &[], &["-o", "timeout=30"]);
    let text: String = ('a'..='z').cycle().take(300_000).collect();
    assert_eq!(write_file(mount.join("machine/append"), text.as_bytes()), Ok(()));
    assert!(qemu.truth().get("/machine", "append") == Ok(json!(text)));
    assert_eq!(
        write_file(mount.join("machine/append"), &vec![b'x'; MOST + 1]),
        Err(libc::EFBIG)
    );
    assert!(qemu.truth().get("/machine", "append") == Ok(json!(text)));
});

each_qemu!(what_is_no_utf8_is_never_sent, |which| {
    let (qemu, relay, mount) = relayed(which, "none", &[], &[]);
    qemu.set("/machine", "kernel", json!("before"));
    let file = mount.join("machine/kernel");
    assert_reads(&file, "before\n");
    relay.reset();
    let texts: [&[u8]; 5] = [
        b"\xff",
        b"a\xc3",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xf4\x90\x80\x80 beyond\n",
    ];
    for bytes in texts {
        assert_eq!(write_file(&file, bytes), Err(libc::EINVAL), "{bytes:?}");
    }
    let out = sh(&format!("printf 'M\\374ller\\n' > {}", quote(&file)));
    out.exits(1).says("write error: Invalid argument");
    assert_eq!(relay.requests(), Vec::<String>::new());
    // QEMU and the mount are in step: each gets the answer to its own question.
    assert_reads(&file, "before\n");
    assert_reads(mount.join("machine/type"), "none-machine\n");
    assert_eq!(qemu.truth().get("/machine", "kernel"), Ok(json!("before")));
});

each_qemu!(one_descriptor_reads_and_writes, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    let truth = qemu.truth();
    qemu.set("/machine", "kernel", json!("first"));
    let mount = Mount::start(&qemu.socket(), &[]);
    let held = Held::open(mount.join("machine/kernel"), libc::O_RDWR).expect("open for both");
    assert_eq!(held.read(100), Ok(b"first\n".into()));
    assert_eq!(held.write(b"second\n"), Ok(7), "written after what was read");
    assert_eq!(truth.get("/machine", "kernel"), Ok(json!("second")));
    assert_eq!(held.read_at(0, 100), Ok(b"second\n".into()));
    assert_eq!(held.seek(0), Ok(0));
    assert_eq!(held.write(b"third"), Ok(5));
    assert_eq!(truth.get("/machine", "kernel"), Ok(json!("third")));
    assert_eq!(
        held.read_at(2, 100),
        Ok(b"ird\n".into()),
        "not what was read before"
    );
    assert_eq!(
        held.write(b"rest"),
        Err(libc::EFBIG),
        "what was set ended without a newline"
    );
    assert_eq!(held.seek(0), Ok(0));
    assert_eq!(held.write(b"\xff"), Err(libc::EINVAL));
    assert_eq!(held.write(b"fourth"), Ok(6), "an error does not stay");
    assert_eq!(truth.get("/machine", "kernel"), Ok(json!("fourth")));
    drop(held);

    let write_only = Held::open(mount.join("machine/type"), libc::O_WRONLY).expect("open for writing");
    assert_eq!(write_only.read(1), Err(libc::EBADF));
    assert_eq!(write_only.write(b"x"), Err(libc::EACCES));
    let read_only = Held::open(mount.join("machine/kernel"), libc::O_RDONLY).expect("open for reading");
    assert_eq!(read_only.write(b"x"), Err(libc::EBADF));
    assert_eq!(truth.get("/machine", "kernel"), Ok(json!("fourth")));
});

/// What QEMU cannot read can be opened to be written all the same.
#[test]
fn a_property_that_cannot_be_read_can_be_written() {
    let tree = ScriptedTree::new()
        .object("/a")
        .unreadable("/a", "secret", "string");
    let (server, mount) = tree.mounted(&[]);
    let file = mount.join("a/secret");
    assert_eq!(read_file(&file), Err(libc::EACCES));
    assert_eq!(write_file(&file, b"hidden\n"), Ok(()));
    assert_eq!(sets(&server), [json!("hidden")]);
}

#[test]
fn flags_of_open_make_no_difference() {
    let (qemu, mount) = mounted(Which::Old, "none", &[], &[]);
    let file = mount.join("machine/kernel");
    let flags = [
        0,
        libc::O_APPEND,
        libc::O_TRUNC,
        libc::O_APPEND | libc::O_TRUNC,
        libc::O_SYNC,
        libc::O_NONBLOCK,
    ];
    for (number, flags) in flags.into_iter().enumerate() {
        let text = format!("value {number}");
        assert_eq!(write_flags(&file, flags, text.as_bytes()), Ok(()), "{flags:#o}");
        assert_eq!(
            qemu.truth().get("/machine", "kernel"),
            Ok(json!(text)),
            "{flags:#o}"
        );
    }
    assert_eq!(
        write_flags(&file, libc::O_CREAT | libc::O_EXCL, b"x"),
        Err(libc::EEXIST)
    );
    assert_eq!(write_flags(mount.join("machine"), 0, b"x"), Err(libc::EISDIR));
    assert_eq!(qemu.truth().get("/machine", "kernel"), Ok(json!("value 5")));
}
