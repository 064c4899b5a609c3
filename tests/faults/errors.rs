//! The error table: each row provoked, with its errno, and QEMU's words in the log and in `user.qom.error`.

use std::path::PathBuf;
use std::time::Duration;

use harness::*;
use serde_json::json;

const CPU: &str = "/machine/unattached/device[0]";

/// One failure: what happened, and what should have.
struct Failure<'a> {
    mount: &'a Mount,
    file: PathBuf,
    logged: usize,
}

impl<'a> Failure<'a> {
    fn of(mount: &'a Mount, path: &str, name: &str) -> Failure<'a> {
        Failure {
            mount,
            file: mount.join(&join(path, name)),
            logged: mount.log().len(),
        }
    }

    /// Checks errno, log and attribute; the latter holds exactly these words, the log not what was to be set.
    #[track_caller]
    fn is(self, result: Result<(), Errno>, errno: Errno, words: &str, secret: &str) {
        let file = self.file.display();
        assert_eq!(result, Err(errno), "{file}: {words}");
        self.logs(&words.replace(secret, "…"));
        assert_eq!(
            get_xattr(&self.file, "user.qom.error").map(|text| String::from_utf8(text).expect("UTF-8")),
            Ok(words.to_owned()),
            "{file}"
        );
    }

    #[track_caller]
    fn logs(&self, words: &str) {
        let log = self.mount.log();
        let new = &log[self.logged..];
        assert!(
            new.contains(&format!(": {words}\n")) && new.starts_with("qom-fuse: warn: "),
            "{words}: {new:?}"
        );
    }

    #[track_caller]
    fn reading(self, errno: Errno, words: &str) {
        let result = read_file(&self.file).map(drop);
        self.is(result, errno, words, "\0");
    }

    #[track_caller]
    fn writing(self, text: &str, errno: Errno, words: &str) {
        let result = write_file(&self.file, text.as_bytes());
        let secret = if text.len() >= 4 { text } else { "\0" };
        self.is(result, errno, words, secret);
    }
}

each_qemu!(what_qemu_no_longer_has, |which| {
    let qemu = Qemu::start(which, "q35", &[]);
    let mount = Mount::start_foreground(&qemu.socket(), &["-o", "entry_timeout=60"]);
    let add = |kind: &str| {
        let mut args = json!({ "qom-type": kind, "id": "o" });
        match kind {
            "rng-random" => args["filename"] = json!("/dev/null"),
            _ => args["size"] = json!(65536),
        }
        qemu.truth().execute("object-add", args).expect("object-add");
    };
    let del = || qemu.truth().execute("object-del", json!({ "id": "o" })).map(drop);
    // The object: nothing announces that it is gone.
    add("rng-random");
    sh_in(mount.join("objects"), "ls -l o").ok().shows("filename");
    del().expect("object-del");
    let failure = Failure::of(&mount, "/objects/o", "filename");
    assert_eq!(read_file(&failure.file), Err(libc::ENOENT));
    failure.logs("Device '/objects/o' not found");
    assert_eq!(lstat(&failure.file).err(), Some(libc::ENOENT));
    let out = sh_in(mount.join("objects"), "ls o; ls");
    assert!(out.stderr.contains("No such file"), "still listed: {out}");
    assert!(!out.lines().contains(&"o"), "still listed: {out}");

    // A property, as another object has the path now.
    drop(mount);
    add("rng-random");
    let mount = Mount::start_foreground(&qemu.socket(), &["-o", "entry_timeout=60"]);
    sh_in(mount.join("objects"), "ls -l o").ok().shows("filename");
    del().expect("object-del");
    add("memory-backend-ram");
    let failure = Failure::of(&mount, "/objects/o", "filename");
    assert_eq!(read_file(&failure.file), Err(libc::ENOENT));
    failure.logs("Property 'memory-backend-ram.filename' not found");
    assert_eq!(lstat(&failure.file).err(), Some(libc::ENOENT));
});

each_qemu!(what_cannot_be_read_or_written, |which| {
    let qemu = Qemu::start(which, "q35", &XHCI);
    let truth = qemu.truth();
    let mount = Mount::start_foreground(&qemu.socket(), &[]);
    let words = truth.get("/machine/peripheral/x/xhci-core", "legacy-host");
    let refused = truth
        .list("/machine/peripheral/x/xhci-core")
        .iter()
        .any(|prop| prop.name == "legacy-host");
    assert!(refused || which == Which::New, "a property to be refused");
    if let (true, Err(error)) = (refused, words) {
        assert!(error.desc.ends_with(" is not readable"), "{error:?}");
        Failure::of(&mount, "/machine/peripheral/x/xhci-core", "legacy-host")
            .reading(libc::EACCES, &error.desc);
    }
    let kind = truth.get("/machine", "type").expect("a type");
    let words = format!("Property '{}.type' is not writable", kind.as_str().expect("text"));
    Failure::of(&mount, "/machine", "type").writing("x", libc::EACCES, &words);
    Failure::of(&mount, CPU, "crash-information").reading(libc::EIO, "No crash occurred");
});

#[test]
fn what_a_server_has_for_writing_only() {
    let tree = ScriptedTree::new().object_of("/a", "T");
    tree.unreadable("/a", "x", "str");
    let server = tree.serve();
    let mount = Mount::start_foreground(server.socket(), &[]);
    Failure::of(&mount, "/a", "x").reading(libc::EACCES, "Property 'T.x' is not readable");
}

each_qemu!(values_that_qemu_refuses, |which| {
    let qemu = Qemu::start(which, "q35", &XHCI);
    let mount = Mount::start_foreground(&qemu.socket(), &[]);
    for (name, text, words) in [
        (
            "graphics",
            "maybe",
            "Invalid parameter type for 'graphics', expected: boolean",
        ),
        ("smp", "5", "Invalid parameter type for 'smp', expected: object"),
        ("acpi", "bogus", "Parameter 'acpi' does not accept value 'bogus'"),
        (
            "x-oem-id",
            "too long a name",
            "User specified x-oem-id value is bigger than 6 bytes in size",
        ),
        (
            "max-ram-below-4g",
            "99999999999999999",
            "Machine option 'max-ram-below-4g=99999999999999999' expects size less than or equal to 4G",
        ),
    ] {
        let before = qemu.truth().get("/machine", name);
        Failure::of(&mount, "/machine", name).writing(text, libc::EINVAL, words);
        assert_eq!(qemu.truth().get("/machine", name), before, "{name}");
    }
    let refused = |path: &str, name: &str| {
        let error = qemu.truth().set(path, name, json!(5)).expect_err("too late");
        error.desc
    };
    for (path, name) in [("/machine/peripheral/x", "p2"), ("/objects/pc.ram", "size")] {
        let words = refused(path, name);
        Failure::of(&mount, path, name).writing("5", libc::EBUSY, &words);
    }
});

#[test]
fn refusals_by_their_words() {
    let tree = ScriptedTree::new().object("/a");
    let server = tree.serve();
    tree.prop("/a", "p", "str", json!(""));
    let mount = Mount::start_foreground(server.socket(), &[]);
    for (words, errno) in [
        ("Property 'chardev' can no longer be set", libc::EBUSY),
        (
            "Attempt to set property 'p' on device 'd' (type 't') after it was realized",
            libc::EBUSY,
        ),
        ("out of range", libc::EINVAL),
        ("Property 'T.p' is not writable", libc::EACCES),
        ("Property 'T.p' can't take this", libc::EINVAL),
        ("", libc::EINVAL),
    ] {
        tree.hook_once("qom-set", "/a", "p", Action::error("GenericError", words));
        Failure::of(&mount, "/a", "p").writing("x", errno, words);
    }
    tree.hook_once(
        "qom-set",
        "/a",
        "p",
        Action::error("CommandNotFound", "no qom-set here"),
    );
    assert_eq!(write_file(mount.join("a/p"), b"x"), Err(libc::EIO));
}

#[test]
fn no_reply_and_no_connection() {
    let tree = ScriptedTree::new().object("/a");
    tree.prop("/a", "p", "str", json!("x"));
    let server = tree.serve();
    let mount = Mount::start_foreground(server.socket(), &["-o", "timeout=1,entry_timeout=60"]);
    read_file(mount.join("a/p")).expect("the kernel knows it now");
    let late = Action::Delay(
        Duration::from_secs(2),
        Box::new(Action::Return(json!("too late"))),
    );
    tree.hook_once("qom-get", "/a", "p", late);
    let words = "QEMU has not replied within 1s; the request may still take effect";
    Failure::of(&mount, "/a", "p").reading(libc::ETIMEDOUT, words);
    let caught_up = || read_file(mount.join("a/p")) == Ok(b"x\n".to_vec());
    assert!(
        wait_until(Duration::from_secs(5), caught_up),
        "the connection lives"
    );
    assert_eq!(server.clients(), 1);

    let qemu = Qemu::start(Which::Old, "q35", &[]);
    let mount = Mount::start_foreground(&qemu.socket(), &["-o", "reconnect,entry_timeout=60"]);
    read_file(mount.join("machine/type")).expect("the kernel knows it now");
    qemu.kill();
    assert!(wait_until(Duration::from_secs(5), || !mount.log().is_empty()));
    let words = "not connected to QEMU: QEMU closed the monitor";
    let lost = || read_file(mount.join("machine/type")) == Err(libc::ENOTCONN);
    assert!(wait_until(Duration::from_secs(5), lost), "{}", mount.log());
    Failure::of(&mount, "/machine", "type").reading(libc::ENOTCONN, words);
    assert_eq!(
        write_file(mount.join("machine/graphics"), b"on"),
        Err(libc::ENOTCONN)
    );
    sh_in(mount.join("machine/q35"), "ls").fails();
}

#[test]
fn a_reply_that_cannot_be_decoded_costs_one_request() {
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let tree = ScriptedTree::new().object("/a").object("/b");
    tree.prop("/a", "good", "str", json!("x"))
        .raw_prop("/a", "range", "int", "1e999")
        .raw_prop("/a", "escape", "str", r#""\q""#)
        .raw_prop("/a", "surrogate", "str", r#""\ud800""#)
        .raw_prop("/a", "deep", "any", &deep)
        .raw_prop("/a", "broken", "any", "[1,}");
    tree.hook("qom-list", "/b", "", Action::Return(json!({ "not": "a list" })));
    let server = tree.serve();
    let mount = Mount::start_foreground(server.socket(), &["-o", "entry_timeout=60"]);
    for name in ["range", "escape", "surrogate", "deep", "broken"] {
        let log = mount.log().len();
        let file = mount.join("a").join(name);
        assert_eq!(read_file(&file), Err(libc::EIO), "{name}");
        let words = get_xattr(&file, "user.qom.error").expect("words");
        let words = String::from_utf8(words).expect("UTF-8");
        assert!(
            words.starts_with("QEMU's reply cannot be decoded: "),
            "{name}: {words}"
        );
        assert!(mount.log()[log..].contains(&words), "{name}: {words}");
        assert_eq!(
            read_file(mount.join("a/good")),
            Ok(b"x\n".to_vec()),
            "after {name}"
        );
    }
    sh_in(mount.path(), "ls b").fails().says("Input/output error");
    let words = get_xattr(mount.join("b"), "user.qom.error").expect("words");
    assert!(words.starts_with(b"QEMU's reply cannot be decoded: "));
    assert_eq!(server.clients(), 1, "the connection lives");
}

#[test]
fn a_peer_that_does_not_speak_qmp_is_given_up() {
    let long = [vec![b'x'; 66 << 20], b"\r\n".to_vec()].concat();
    for (name, line, words) in [
        ("neither", b"{\"neither\": 1}\r\n".to_vec(), "does not speak QMP"),
        ("text", b"hello\r\n".to_vec(), "does not speak QMP"),
        ("long", long, "a line over 64 MiB"),
    ] {
        let tree = ScriptedTree::new().object("/a");
        tree.prop("/a", "p", "str", json!("x"));
        let server = tree.serve();
        let mount = Mount::start_foreground(server.socket(), &[]);
        tree.hook("qom-get", "/a", "p", Action::Raw(line));
        assert_eq!(read_file(mount.join("a/p")), Err(libc::EIO), "{name}");
        let status = mount.wait_exit(Duration::from_secs(10));
        assert_eq!(status.code(), Some(1), "{name}");
        assert!(mount.log().contains(words), "{name}: {}", mount.log());
        mount.wait_unmounted(Duration::from_secs(5));
    }
}

#[test]
fn qemus_texts_cannot_forge_the_log() {
    let forged = "\nqom-fuse: error: FORGED\r\u{1b}[31m\u{7f}\u{85}\u{202e}\u{2028}\0end";
    let escaped = r"\nqom-fuse: error: FORGED\r\u{1b}[31m\u{7f}\u{85}\u{202e}\u{2028}\u{0}end";
    let odd = "p\nqom-fuse: error: FORGED\u{1b}[2J";
    let object = "o\nqom-fuse: error: FORGED";
    let place = format!("/{object}");
    let tree = ScriptedTree::new().object(&place).object("/a");
    tree.prop(&place, odd, "str", json!("x"))
        .prop("/a", "p", "str", json!("x"))
        .prop("/a", "peer", "link<x>", json!(""));
    let server = tree.serve();
    let mount = Mount::start_foreground(server.socket(), &[]);
    let error = || Action::error("GenericError", forged);
    for (path, name) in [(place.as_str(), odd), ("/a", "p")] {
        let file = mount.path().join(&path[1..]).join(name);
        tree.hook_once("qom-get", path, name, error());
        assert_eq!(read_file(&file), Err(libc::EIO));
        assert_eq!(
            get_xattr(&file, "user.qom.error"),
            Ok(escaped.as_bytes().to_vec()),
            "for it is printed to terminals"
        );
        tree.hook_once("qom-set", path, name, error());
        assert_eq!(write_file(&file, b"x"), Err(libc::EINVAL));
    }
    tree.hook_once("qom-list", &place, "", error());
    tree.hook_once("qom-set", "/a", "peer", error());
    let script = "ln -sfn ../a peer; ln -sfn $'../x\\nqom-fuse: error: FORGED' peer; \
                  ln -sfn $'/\\nqom-fuse: error: FORGED' peer";
    sh_in(mount.join("a"), script).fails();
    tree.hook_once("qom-list-properties", "container", "", error());
    sh_in(mount.path(), "getfattr -d a/p; sleep 1.1; ls -l o*").fails();

    let log = mount.log();
    assert!(
        log.matches(r"\nqom-fuse: error: FORGED").count() >= 6,
        "escaped: {log}"
    );
    for line in log.lines() {
        assert!(
            line.starts_with("qom-fuse: warn: ") || line.starts_with("qom-fuse: info: "),
            "{line:?}"
        );
        let odd = |c: char| c.is_control() || "\u{202e}\u{2028}".contains(c);
        assert!(!line.contains(odd), "{line:?}");
    }
}
