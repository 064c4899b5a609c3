//! Lines, events and values without bounds.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use harness::hostile::{Watch, listing, log_is_clean, server, still_serves, valued};
use harness::*;
use serde_json::{Value, json};

use crate::{ALONE, LONG};

#[test]
fn lines_without_an_end() {
    let _alone = ALONE.lock();
    let starts: [&[u8]; 3] = [br#"{"return": ""#, br#"{"event": "X", "data": ["#, b""];
    for start in starts {
        let endless = vec![if start.ends_with(b"[") { b'[' } else { b'x' }; 80 << 20];
        let bytes = [start, endless.as_slice()].concat();
        let server = server(false, move |command, _, name| {
            (command == "qom-get" && name == "good").then(|| Action::Raw(bytes.clone()))
        });
        let mount = Mount::start_foreground(server.socket(), &[]);
        let watch = Watch::of(&mount);
        assert_eq!(read_file(mount.join("o/good")), Err(libc::EIO));
        mount.wait_unmounted(SOON);
        assert_eq!(mount.wait_exit(SOON).code(), Some(1), "{}", mount.log());
        log_is_clean(&mount);
        watch.stayed_small("an endless line");
    }
}

#[test]
fn floods_of_events() {
    let _alone = ALONE.lock();
    let events: [fn(usize) -> Value; 4] = [
        |number| json!({ "event": "STOP", "data": { "number": number }, "timestamp": {} }),
        |number| json!({ "event": "DEVICE_DELETED", "data": { "path": format!("/o/x{number}") } }),
        |_| json!({ "event": "DEVICE_DELETED", "data": { "path": "/o" } }),
        |_| json!({ "event": "DEVICE_DELETED\n\u{1b}[2J", "data": "x".repeat(1000) }),
    ];
    for (number, event, list_get) in events
        .into_iter()
        .enumerate()
        .flat_map(|(number, event)| [(number, event, false), (number, event, true)])
    {
        let flood: String = (0..100_000)
            .map(|number| format!("{}\r\n", event(number)))
            .collect();
        let server = server(list_get, |_, _, _| None);
        let mount = Mount::start_foreground(server.socket(), &[]);
        let watch = Watch::of(&mount);
        sh(&format!("ls -R {}", quote(mount.path()))).ok();
        thread::scope(|scope| {
            scope.spawn(|| server.send_raw(flood.as_bytes()));
            for _ in 0..20 {
                let start = Instant::now();
                let read = read_file(mount.join("o/good"));
                // An object that goes while it is looked at may be gone.
                let gone = number == 2 && read == Err(libc::ENOENT);
                assert!(gone || read.as_deref() == Ok(b"good\n".as_slice()), "{read:?}");
                assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
                // One process, for which the new QEMU is asked for the whole object.
                let out = sh_in(mount.path(), "cat o/good o/type o/good");
                let gone = number == 2 && out.stderr.contains("No such file");
                assert!(gone || out.ok().lines() == ["good", "container", "good"], "{out}");
            }
        });
        assert!(wait_until(SOON, || read_file(mount.join("o/good")).is_ok()));
        thread::sleep(Duration::from_millis(500));
        assert_eq!(server.count("qom-list-get") > 0, list_get, "{number}");
        watch.stayed_small(&format!("events of kind {number}, list_get={list_get}"));
        still_serves(&mount);
    }
}

#[test]
fn events_that_cannot_be_decoded_and_errors_with_control_characters() {
    let _alone = ALONE.lock();
    let evil = "\u{1b}[2J\r\nqom-fuse: error: forged\u{202e}\u{9b}".repeat(2000);
    let text = json!({ "class": "GenericError", "desc": evil }).to_string();
    let reply = format!("{{\"error\": {text}}}\r\n");
    let server = server(false, move |command, _, name| {
        (command == "qom-get" && name != "good").then(|| Action::Raw(reply.clone().into_bytes()))
    });
    let mount = Mount::start_foreground(server.socket(), &[]);
    let watch = Watch::of(&mount);
    let odd = "{\"timestamp\": {}, \"event\": \"X\\u001b[2J\", \"data\": \"\\q\x1b[31m\"}\r\n";
    server.send_raw(odd.repeat(20_000).as_bytes());
    let script = format!(
        "cd {}/o; for i in {{1..2000}}; do echo \"$(<type)\"; done 2>&1 | sort -u",
        quote(mount.path())
    );
    let start = Instant::now();
    let out = sh_deadline(&script, LONG);
    assert!(out.stderr.len() + out.stdout.len() < 10_000, "{out}");
    let lines = mount.log().lines().count() as f64;
    let allowed = 220.0 + 2.0 * 20.0 * (start.elapsed().as_secs_f64() + 2.0);
    assert!(lines < allowed, "{lines} lines, {allowed} allowed");
    assert!(
        mount.log().contains("came too fast") || lines > 200.0,
        "{lines} lines"
    );
    let said = get_xattr(mount.join("o/type"), "user.qom.error").expect("an error");
    assert!(
        said.len() <= 64 << 10 && !said.iter().any(u8::is_ascii_control),
        "{} bytes",
        said.len()
    );
    watch.stayed_small("evil texts");
    still_serves(&mount);
}

#[test]
fn values_of_sixty_mebibytes_at_once() {
    let _alone = ALONE.lock();
    const LENGTH: usize = 60 << 20;
    for list_get in [false, true] {
        let text = format!("\"{}\"", "x".repeat(LENGTH));
        let large: Arc<str> = format!("{{\"return\": {text}}}\r\n").into();
        let object: Arc<str> = valued(&format!(
            r#"[{{"name": "type", "type": "string", "value": {text}}},{{"name": "good", "type": "string", "value": "good"}}]"#
        ))
        .into();
        drop(text);
        let server = server(list_get, move |command, path, name| match (command, path, name) {
            ("qom-get", _, "type") => Some(Action::Raw(large.as_bytes().to_vec())),
            ("qom-list-get", "/o", _) => Some(Action::ReturnRaw(object.to_string())),
            _ => None,
        });
        let mount = Mount::start_foreground(server.socket(), &["-o", "timeout=30"]);
        let watch = Watch::of(&mount);
        // The second one that a process reads: the new QEMU is asked for the whole object.
        let small = "good\n".len();
        let script = format!(
            "cd {}/o; for i in {{1..10}}; do cat good type 2>&1 | wc -c & done; wait",
            quote(mount.path())
        );
        let out = sh_deadline(&script, LONG);
        let whole = out
            .lines()
            .iter()
            .filter(|line| **line == (small + LENGTH + 1).to_string())
            .count();
        assert!(whole >= 1 && out.lines().len() == 10, "{out}");
        // The others were told at open, so there is nothing but the message.
        let partial = out
            .lines()
            .iter()
            .filter(|line| (1000..=LENGTH).contains(&line.parse().expect("a number")))
            .count();
        assert_eq!(partial, 0, "{out}");
        assert_eq!(server.count("qom-list-get") > 0, list_get);
        let held: Vec<_> = (0..5)
            .map(|_| Held::open(mount.join("o/type"), libc::O_RDONLY))
            .collect();
        for held in &held {
            match held {
                Ok(held) => assert_eq!(held.size(), Ok(LENGTH + 1)),
                Err(errno) => assert_eq!(*errno, libc::ENOMEM),
            }
        }
        assert!(held.iter().any(Result::is_ok) && held.iter().any(Result::is_err));
        drop(held);
        watch.stayed_small(&format!("values of 60 MiB, list_get={list_get}"));
        still_serves(&mount);
    }
}

/// Short JSON that would take many times its length as a tree of values.
#[test]
fn values_of_many_small_parts() {
    let _alone = ALONE.lock();
    let many = |part: &str, count: usize| vec![part; count].join(",");
    let keys = |count: usize| {
        (0..count)
            .map(|n| format!("\"{:x}\":[]", count - n))
            .collect::<Vec<_>>()
            .join(",")
    };
    for (what, value, good) in [
        ("objects", format!("[{}]", many(r#"{"":0}"#, 1_000_000)), true),
        ("members", format!("{{{}}}", keys(1_000_000)), true),
        ("one member", format!("{{{}}}", many("\"\":0", 2_000_000)), true),
        (
            "a long one",
            format!("{{\"b\":\"{}\",\"a\":0}}", "\u{202e}".repeat(20_000_000)),
            true,
        ),
        ("too many", format!("[{}]", many("0", 2_200_000)), false),
    ] {
        let reply: Arc<str> = value.into();
        let server = server(false, move |command, _, name| {
            (command == "qom-get" && name == "type").then(|| Action::ReturnRaw(reply.to_string()))
        });
        let mount = Mount::start_foreground(server.socket(), &["-o", "timeout=60"]);
        let watch = Watch::of(&mount);
        let out = sh_deadline(&format!("cat {}/o/type | wc -c", quote(mount.path())), LONG);
        assert_eq!(out.text() != "0", good, "{what}: {out}");
        watch.stayed_small(what);
        still_serves(&mount);
    }
}

/// All replies together are bounded, and all are served in the end.
#[test]
fn many_such_values_at_once() {
    let _alone = ALONE.lock();
    let value: Arc<str> = format!("[{}]", vec![r#"{"":0}"#; 130_000].join(",")).into();
    let object: Arc<str> = valued(&format!(
        r#"[{{"name": "type", "type": "list", "value": {value}}},{{"name": "good", "type": "string", "value": "good"}}]"#
    ))
    .into();
    for list_get in [false, true] {
        let (value, object) = (value.clone(), object.clone());
        let length = value.len() + 1;
        let server = server(list_get, move |command, path, name| match (command, path, name) {
            ("qom-get", _, "type") => Some(Action::ReturnRaw(value.to_string())),
            ("qom-list-get", "/o", _) => Some(Action::ReturnRaw(object.to_string())),
            _ => None,
        });
        let mount = Mount::start_foreground(server.socket(), &["-o", "timeout=60"]);
        let watch = Watch::of(&mount);
        let script = format!(
            "cd {}/o; for i in {{1..40}}; do cat good type | tail -n 1 | wc -c & done; wait",
            quote(mount.path())
        );
        let out = sh_deadline(&script, 2 * LONG);
        assert_eq!(
            out.ok().lines(),
            vec![length.to_string(); 40],
            "list_get={list_get}: {out}"
        );
        watch.stayed_small(&format!("40 values at once, list_get={list_get}"));
        still_serves(&mount);
    }
}

/// The same in replies, events and errors of other shapes.
#[test]
fn other_replies_of_many_small_or_of_long_parts() {
    let _alone = ALONE.lock();
    let many = |part: &str, count: usize| format!("[{}]", vec![part; count].join(","));
    let objects = many(r#"{"":0}"#, 1_000_000);
    let text = format!("\"{}\"", "\u{202e}".repeat(20_000_000));
    let names = listing(120_000, "string", |_| String::new()).replace("property-", &"/".repeat(60));
    let valued_names = listing(200_000, "string", |_| ",\"value\":1e999".to_owned());
    let odd = [
        (false, objects.clone()),
        (false, many("{}", 1_000_000)),
        (false, format!("[{text}]")),
        (false, names),
        (true, valued(&objects)),
        (true, valued(&text)),
        (true, valued(&valued_names)),
        (true, objects.trim_matches(['[', ']']).to_owned()),
        (true, text.clone()),
    ];
    for (number, (list_get, reply)) in odd.into_iter().enumerate() {
        let reply: Arc<str> = reply.into();
        let server = server(list_get, move |command, path, _| match (command, path) {
            ("qom-list" | "qom-list-get", "/o/x") => Some(Action::ReturnRaw(reply.to_string())),
            ("qom-list", "/o") => Some(Action::Return(json!([
                { "name": "good", "type": "string" },
                { "name": "x", "type": "child<x>" },
            ]))),
            _ => None,
        });
        let mount = Mount::start_foreground(server.socket(), &["-o", "timeout=60"]);
        let watch = Watch::of(&mount);
        // The shell reads what it lists, so that the next listing comes with values where it can.
        let script = format!(
            "cd {}/o; : *; read -r x < good; read -r y < type; : x/nothing*; ls -f x | wc -l",
            quote(mount.path())
        );
        sh_deadline(&script, 2 * LONG);
        watch.stayed_small(&format!("reply {number}"));
        still_serves(&mount);
    }
    let event = format!("{{\"event\": \"DEVICE_DELETED\", \"data\": {objects}}}\n");
    let texts = format!("{{\"event\": \"DEVICE_DELETED\", \"data\": {text}}}\n");
    let error = format!("{{\"error\": {{\"class\": \"GenericError\", \"desc\": {text}}}}}\n");
    let strange = format!("{{\"error\": {text}}}\n");
    for (number, line) in [event, texts, error, strange].into_iter().enumerate() {
        let as_reply = line.starts_with("{\"error").then(|| line.clone());
        let server = server(false, move |command, _, name| {
            (command == "qom-get" && name == "type").then(|| match &as_reply {
                Some(line) => Action::Raw(line.clone().into_bytes()),
                None => Action::Return(json!("x")),
            })
        });
        let mount = Mount::start_foreground(server.socket(), &["-o", "timeout=60"]);
        let watch = Watch::of(&mount);
        if line.starts_with("{\"event") {
            server.send_raw(line.as_bytes());
            assert!(read_file(mount.join("o/type")).is_ok());
        } else {
            assert_eq!(read_file(mount.join("o/type")), Err(libc::EIO));
        }
        watch.stayed_small(&format!("line {number}"));
        still_serves(&mount);
    }
}

/// Events name objects that the kernel does not know, by names that are shown under others.
#[test]
fn floods_of_events_about_odd_names() {
    let _alone = ALONE.lock();
    let many = listing(20_000, "child<x>", |_| String::new()).replace("property-", "~");
    let server = server(false, move |command, path, _| match (command, path) {
        ("qom-list", "/o/many") => Some(Action::ReturnRaw(many.clone())),
        ("qom-list", "/o") => Some(Action::Return(json!([
            { "name": "good", "type": "string" },
            { "name": "many", "type": "child<x>" },
        ]))),
        ("qom-list", path) if path.starts_with("/o/many/") => Some(Action::Return(json!([]))),
        _ => None,
    });
    let mount = Mount::start_foreground(server.socket(), &["-o", "entry_timeout=600,timeout=30"]);
    let out = sh_deadline(&format!("ls -l {}/o/many | wc -l", quote(mount.path())), LONG);
    assert_eq!(out.ok().text(), "20001");
    let events = |name: &str| {
        let event = json!({ "event": "DEVICE_DELETED", "data": { "path": format!("/o/many/{name}") } });
        server.send_raw(format!("{event}\r\n").repeat(20_000).as_bytes());
    };
    events("~nope");
    events("nope");
    // A reply that comes after them is read after them, within the timeout.
    still_serves(&mount);
}
