//! Monitors that do what no good QEMU does, behind a real mount: one bad reply costs one request, and what cannot be
//! trusted any more is given up.

use std::time::Instant;

use harness::*;
use serde_json::json;

/// A tree with an object `/a` that has a good property, and others that a test makes bad.
fn tree() -> ScriptedTree {
    ScriptedTree::new()
        .object("/a")
        .prop("/a", "good", "string", json!("good"))
        .prop("/a", "bad", "string", json!("bad"))
}

fn read(mount: &Mount, name: &str) -> Result<String, Errno> {
    read_file(mount.join("a").join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The connection is as good as ever.
#[track_caller]
fn lives(server: &Scripted, mount: &Mount, after: &str) {
    assert_eq!(read(mount, "good").as_deref(), Ok("good\n"), "after {after}");
    assert_eq!(server.clients(), 1, "after {after}");
    assert!(mount.is_mounted(), "after {after}");
}

/// The connection is given up: unmounted, exit status 1, and the log says why.
#[track_caller]
fn is_given_up(mount: &Mount, after: &str) {
    mount.wait_unmounted(10 * SECOND);
    let status = mount.wait_exit(10 * SECOND);
    assert_eq!(status.code(), Some(1), "after {after}: {}", mount.log());
    let log = mount.log();
    assert!(
        log.contains("error: ") && log.contains("QMP") && !log.contains("panicked"),
        "after {after}: {log}"
    );
}

fn nested(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

#[test]
fn a_reply_that_cannot_be_decoded_costs_one_request() {
    let lone: [&[u8]; 12] = [
        br#"{"return": "\q"}"#,
        br#"{"return": "\ud800"}"#,
        br#"{"return": "\u12"}"#,
        br#"{"return": [1,}"#,
        br#"{"return": 1e999}"#,
        br#"{"return": [0, {"x": -1e999}]}"#,
        br#"{"return": 01}"#,
        br#"{"return": truth}"#,
        br#"{"return": 1, "return": 2}"#,
        b"{\"return\": \"\xff\xfe\"}",
        b"{\"return\": \"a\x01b\x00\"}",
        br#"{"return": "a" "b"}"#,
    ];
    let errors: [&[u8]; 4] = [
        br#"{"error": "no"}"#,
        br#"{"error": {"class": 5, "desc": "x"}}"#,
        br#"{"error": {"class": "GenericError"}}"#,
        br#"{"error": {"class": "GenericError", "desc": "\q"}}"#,
    ];
    let deep = [130, 2000, 1_000_000].map(|depth| format!("{{\"return\": {}}}", nested(depth)).into_bytes());
    let tree = tree();
    let server = tree.serve();
    let mount = Mount::start_foreground(server.socket(), &["-o", "entry_timeout=0"]);
    for reply in lone.iter().chain(&errors).map(|reply| reply.to_vec()).chain(deep) {
        let shown = String::from_utf8_lossy(&reply[..reply.len().min(60)]).into_owned();
        let line = [reply, b"\r\n".to_vec()].concat();
        tree.hook_once("qom-get", "/a", "bad", Action::Raw(line.clone()));
        assert_eq!(read(&mount, "bad"), Err(libc::EIO), "{shown}");
        lives(&server, &mount, &shown);
        tree.hook_once("qom-set", "/a", "bad", Action::Raw(line.clone()));
        // An answer to a write says nothing but that it was done.
        let written = write_file(mount.join("a/bad"), b"x");
        assert!(
            written.is_ok() || written == Err(libc::EIO),
            "{shown}: {written:?}"
        );
        lives(&server, &mount, &shown);
        tree.hook_once("qom-list", "/a", "", Action::Raw(line));
        assert_eq!(sh_in(mount.path(), "ls a").status, 2, "{shown}");
        lives(&server, &mount, &shown);
    }
    assert_eq!(read(&mount, "bad").as_deref(), Ok("bad\n"));
    tree.hook_once("qom-get", "/a", "bad", Action::ReturnRaw(nested(120)));
    assert_eq!(read(&mount, "bad"), Ok(nested(120) + "\n"));
    let log = mount.log();
    assert!(
        log.contains("qom-get /a bad") && log.contains("cannot be decoded"),
        "{log}"
    );
}

#[test]
fn a_listing_of_the_wrong_shape_costs_one_request() {
    let tree = tree();
    let (server, mount) = tree.mounted(&["-o", "entry_timeout=0"]);
    let shapes = [
        json!({}),
        json!(null),
        json!("text"),
        json!(5),
        json!(["name"]),
        json!([{}]),
        json!([{ "name": "x" }]),
        json!([{ "type": "x" }]),
        json!([{ "name": 5, "type": "x" }]),
        json!([{ "name": "x", "type": null }]),
        json!([{ "name": "good", "type": "string" }, 7]),
    ];
    for shape in shapes {
        tree.hook_once("qom-list", "/a", "", Action::Return(shape.clone()));
        let out = sh_in(mount.path(), "ls a");
        assert!(
            out.status == 2 && out.stderr.contains("Input/output error"),
            "{shape}: {out}"
        );
        lives(&server, &mount, &shape.to_string());
    }
}

#[test]
fn what_is_no_reply_is_the_end() {
    let lines: [&[u8]; 8] = [
        b"hello\r\n",
        b"\r\n",
        b"{}\r\n",
        b"[]\r\n",
        b"{\"id\": 1}\r\n",
        b"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 9, \"minor\": 0, \"micro\": 0}, \"package\": \"\"}}}\r\n",
        b"\xff\xff\xff\n",
        b"HTTP/1.1 400 Bad Request\r\n",
    ];
    for line in lines {
        let shown = String::from_utf8_lossy(line).into_owned();
        let tree = tree();
        let server = tree.serve();
        let mount = Mount::start_foreground(server.socket(), &[]);
        assert_eq!(read(&mount, "good").as_deref(), Ok("good\n"));
        server.send_raw(line);
        is_given_up(&mount, &shown);

        let mount = Mount::start_foreground(server.socket(), &[]);
        tree.hook("qom-get", "/a", "bad", Action::Raw(line.to_vec()));
        assert!(read(&mount, "bad").is_err(), "{shown}");
        is_given_up(&mount, &shown);
    }
}

#[test]
fn the_request_that_meets_garbage_fails_with_eio() {
    let endless = [br#"{"return": ""#.as_slice(), &vec![b'x'; 65 << 20]].concat();
    for bytes in [b"hello\r\n".to_vec(), b"{}\r\n".to_vec(), endless] {
        let tree = tree();
        let server = tree.serve();
        let mount = Mount::start_foreground(server.socket(), &[]);
        tree.hook("qom-get", "/a", "bad", Action::Raw(bytes));
        assert_eq!(read(&mount, "bad"), Err(libc::EIO));
    }
}

#[test]
fn a_reply_that_nobody_asked_for_is_the_end() {
    for reply in [
        "{\"return\": {}}\r\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n",
    ] {
        let tree = tree();
        let server = tree.serve();
        let mount = Mount::start_foreground(server.socket(), &[]);
        assert_eq!(read(&mount, "good").as_deref(), Ok("good\n"));
        server.send_raw(reply.as_bytes());
        is_given_up(&mount, reply);
    }
    // Two replies to one request.
    let tree = tree();
    let server = tree.serve();
    let mount = Mount::start_foreground(server.socket(), &[]);
    let twice = vec![Action::Return(json!("one")), Action::Return(json!("two"))];
    tree.hook("qom-get", "/a", "bad", Action::Many(twice));
    let first = read(&mount, "bad");
    assert!(first.as_deref() == Ok("one\n") || first.is_err(), "{first:?}");
    is_given_up(&mount, "two replies");
}

#[test]
fn a_line_without_end_is_the_end() {
    let tree = tree();
    let server = tree.serve();
    let large = "x".repeat(40 << 20);
    tree.hook(
        "qom-get",
        "/a",
        "large",
        Action::ReturnRaw(format!("\"{large}\"")),
    );
    tree.prop("/a", "large", "string", json!(""));
    let endless = [br#"{"return": ""#.as_slice(), &vec![b'x'; 65 << 20]].concat();
    tree.hook("qom-get", "/a", "bad", Action::Raw(endless));
    let mount = Mount::start_foreground(server.socket(), &[]);
    assert!(
        read(&mount, "large").as_deref() == Ok(&format!("{large}\n")),
        "40 MiB are taken"
    );
    assert!(read(&mount, "bad").is_err());
    is_given_up(&mount, "65 MiB");
    assert!(mount.log().contains("64 MiB"), "{}", mount.log());
}

#[test]
fn a_monitor_that_closes_is_a_qemu_that_has_gone() {
    let ends = [
        Action::Close,
        Action::Many(vec![Action::Raw(br#"{"return": "abc"#.to_vec()), Action::Close]),
        Action::Many(vec![Action::Raw(br#"{"timestamp": {"#.to_vec()), Action::Close]),
    ];
    for end in ends {
        let tree = tree();
        let server = tree.serve();
        let mount = Mount::start_foreground(server.socket(), &[]);
        assert_eq!(read(&mount, "good").as_deref(), Ok("good\n"));
        let shown = format!("{end:?}");
        tree.hook("qom-get", "/a", "bad", end);
        assert_eq!(read(&mount, "bad"), Err(libc::ENOTCONN), "{shown}");
        mount.wait_unmounted(10 * SECOND);
        assert_eq!(
            mount.wait_exit(10 * SECOND).code(),
            Some(0),
            "{shown}: {}",
            mount.log()
        );
    }
}

#[test]
fn events_come_between_and_in_pieces() {
    let event = json!({ "timestamp": { "seconds": 1, "microseconds": 2 }, "event": "STOP" });
    let odd: [&[u8]; 6] = [
        b"{\"timestamp\": {\"seconds\": 1}, \"event\": \"X\", \"data\": \"\\q\"}\r\n",
        b"{\"event\": \"DEVICE_DELETED\", \"data\": {\"path\": 5}}\n",
        b"{\"event\": \"DEVICE_DELETED\", \"data\": {\"path\": \"/../..\"}}\r\n",
        b"{\"event\": \"DEVICE_DELETED\", \"data\": null}\r\n",
        b"{\"event\": \"DEVICE_DELETED\"}\r\n",
        b"{\"timestamp\": {}, \"event\": \"X\", \"data\": \"\xff\"}\r\n",
    ];
    let tree = tree();
    let (server, mount) = tree.mounted(&["-o", "entry_timeout=0"]);
    for bytes in odd {
        server.send_raw(bytes);
        let before = Action::Many(vec![
            Action::Raw(bytes.to_vec()),
            Action::Return(json!("after it")),
        ]);
        tree.hook_once("qom-get", "/a", "bad", before);
        assert_eq!(read(&mount, "bad").as_deref(), Ok("after it\n"));
        lives(&server, &mount, &String::from_utf8_lossy(bytes));
    }
    let flood = format!("{event}\r\n").repeat(20_000).into_bytes();
    tree.hook_once(
        "qom-get",
        "/a",
        "bad",
        Action::Many(vec![Action::Raw(flood), Action::Return(json!("dry"))]),
    );
    assert_eq!(read(&mount, "bad").as_deref(), Ok("dry\n"));
    lives(&server, &mount, "a flood");
    // An event and a reply, byte by byte, without pauses and with one.
    let text = format!("{event}\r\n{{\"return\": \"in pieces\"}}\r\n");
    let pieces = text.bytes().map(|byte| Action::Raw(vec![byte]));
    tree.hook_once("qom-get", "/a", "bad", Action::Many(pieces.collect()));
    assert_eq!(read(&mount, "bad").as_deref(), Ok("in pieces\n"));
    let (start, end) = text.as_bytes().split_at(text.len() - 5);
    let pause = Action::Delay(SECOND / 5, Box::new(Action::Raw(end.to_vec())));
    tree.hook_once(
        "qom-get",
        "/a",
        "bad",
        Action::Many(vec![Action::Raw(start.to_vec()), pause]),
    );
    assert_eq!(read(&mount, "bad").as_deref(), Ok("in pieces\n"));
    lives(&server, &mount, "pieces");
}

#[test]
fn a_greeting_that_is_held_back() {
    let session = Session::new();
    let path = session.dir().join("vm.sock");
    let server = Scripted::start_raw(&path, Vec::new(), |_, _| Action::Silence);
    let start = Instant::now();
    let out = session.run("qom-fuse -o timeout=0.5 vm.sock mnt");
    out.exits(1).says("another client holds this monitor");
    assert!(start.elapsed() < 10 * SECOND);
    drop(server);

    let tree = tree();
    let mut handler = tree.handler();
    let server = Scripted::start_raw(&path, Vec::new(), move |command, args| match command {
        "qmp_capabilities" => Action::Return(json!({})),
        _ => handler(command, args),
    });
    let waiting = session.start("qom-fuse vm.sock mnt && cat mnt/a/good");
    std::thread::sleep(SECOND / 5);
    let (start, end) = script::GREETING.split_at(20);
    server.send_raw(start.as_bytes());
    std::thread::sleep(SECOND / 5);
    assert!(session.info().is_none());
    server.send_raw(format!("{end}\r\n").as_bytes());
    assert_eq!(waiting.finish(10 * SECOND).ok().text(), "good");
}

/// What a server says cannot pass for a line of the log, nor do anything to a terminal.
#[test]
fn the_log_is_not_the_servers_to_write() {
    let tree = tree();
    let server = tree.serve();
    let mount = Mount::start_foreground(server.socket(), &[]);
    let evil = "x\nqom-fuse: error: forged\r\n\u{1b}[2J\u{9b}31m\u{202e}\u{0}";
    tree.hook("qom-get", "/a", "bad", Action::error("GenericError", evil));
    assert_eq!(read(&mount, "bad"), Err(libc::EIO));
    let log = mount.log();
    assert!(
        log.contains("forged") && !log.lines().any(|line| line.starts_with("qom-fuse: error")),
        "{log}"
    );
    assert!(
        !log.contains(['\u{1b}', '\r', '\u{9b}', '\u{202e}', '\u{0}']),
        "{log:?}"
    );
}
