//! The tests of the tests: each part of the harness does what the others rely on.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use harness::server::Splitter;
use harness::*;
use serde_json::{Value, json};

/// The message of the panic that `work` must end in.
#[track_caller]
fn panic_of(work: impl FnOnce()) -> String {
    let error = catch_unwind(AssertUnwindSafe(work)).expect_err("a panic");
    error.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[track_caller]
fn explain(which: Which) {
    let qemu = Qemu::start(which, "q35", &[]);
    let truth = qemu.truth();
    let objects = truth.walk();
    assert!(objects.len() > 200, "only {} objects", objects.len());
    assert_eq!(objects[0].path, "/");
    assert!(
        objects
            .iter()
            .any(|object| object.path == "/machine/unattached/device[0]")
    );
    let kind = truth.get("/machine", "type").expect("the machine's type");
    assert!(
        kind.as_str().is_some_and(|kind| kind.starts_with("pc-q35-")),
        "{kind}"
    );
    assert_eq!(
        truth.get("/nowhere", "x").expect_err("no such object").class,
        "DeviceNotFound"
    );

    let batch = truth.execute("qom-list-get", json!({ "paths": ["/machine"] }));
    match which {
        Which::Old => assert_eq!(batch.expect_err("too old").class, "CommandNotFound"),
        Which::New => assert!(batch.expect("new enough")[0]["properties"].is_array()),
    }
}

each_qemu!(a_qemu_tells_its_tree, explain);

each_qemu!(qemu_takes_commands_and_sends_events, |which| {
    let qemu = Qemu::start(which, "q35", &["-device", "qemu-xhci,id=usb"]);
    let truth = qemu.truth();
    qemu.set("/machine", "graphics", json!(false));
    assert_eq!(truth.get("/machine", "graphics"), Ok(json!(false)));
    let refused = truth
        .set("/machine", "graphics", json!("maybe"))
        .expect_err("not a boolean");
    assert!(
        refused.desc.starts_with("Invalid parameter type for 'graphics'"),
        "{refused:?}"
    );

    truth.device_add(json!({ "driver": "usb-tablet", "bus": "usb.0", "id": "tablet" }));
    assert!(truth.try_list("/machine/peripheral/tablet").is_ok());
    truth.device_del("tablet");
    let deleted = truth.wait_event("DEVICE_DELETED", 5 * SECOND);
    assert_eq!(deleted["data"]["device"], "tablet", "{deleted}");
    assert!(panic_of(|| drop(truth.wait_event("NEVER", SECOND / 10))).contains("NEVER"));
});

each_qemu!(qemu_stops_goes_on_and_dies, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    let dir = qemu.dir().to_owned();
    qemu.stop();
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| qemu.truth().list("/"));
        std::thread::sleep(SECOND / 5);
        assert!(!answer.is_finished(), "a stopped QEMU answered");
        qemu.cont();
        assert!(!answer.join().expect("an answer after all").is_empty());
    });
    qemu.stop();
    qemu.kill();
    assert!(!Path::new(&format!("/proc/{}", qemu.pid())).exists());
    assert!(panic_of(|| qemu.stop()).contains("has ended"));
    drop(qemu);
    assert!(!dir.exists());

    let qemu = Qemu::start(which, "none", &[]);
    qemu.truth().execute("quit", Value::Null).expect("quit");
    assert!(qemu.wait_exit(10 * SECOND).success());
});

each_qemu!(a_qemu_that_cannot_start_says_why, |which| {
    let error = Qemu::try_start(which, "bogus", &[])
        .err()
        .expect("no such machine");
    assert!(error.contains("unsupported machine type"), "{error}");
});

#[test]
fn a_relay_counts_and_delays() {
    let qemu = Qemu::start(Which::Old, "q35", &[]);
    let relay = Relay::start(qemu.dir(), &qemu.socket());
    for client in 1..=2 {
        let through = Truth::connect(relay.socket()).expect("connect through the relay");
        assert_eq!(relay.clients(), client);
        assert_eq!(relay.count("qmp_capabilities"), 1);
        relay.reset();
        let objects = through.walk();
        assert_eq!(relay.count("qom-list"), objects.len());
        let requests = relay.requests();
        assert_eq!(requests.len(), objects.len());
        let request: Value = serde_json::from_str(&requests[0]).expect("a request in JSON");
        assert_eq!(request["arguments"]["path"], "/");
        let (sent, received) = relay.bytes();
        assert_eq!(
            sent,
            requests.iter().map(|request| request.len() as u64).sum::<u64>()
        );
        assert!(received > sent);

        relay.set_delay(SECOND / 5);
        let start = Instant::now();
        through.list("/");
        assert!(start.elapsed() >= SECOND / 5);
        relay.set_delay(Duration::ZERO);
        relay.set_reply_delay(SECOND / 5);
        through.list("/");
        assert!(start.elapsed() >= SECOND * 2 / 5);
        relay.set_reply_delay(Duration::ZERO);
        assert_eq!((relay.most_in_flight(), relay.overlapping()), (1, Vec::new()));
        relay.reset();
    }
    let through = Truth::connect(relay.socket()).expect("connect through the relay");
    relay.drop_client();
    assert!(through.try_execute("qom-list", json!({ "path": "/" })).is_err());
    let through = Truth::connect(relay.socket()).expect("connect once more");
    qemu.kill();
    assert!(through.try_execute("qom-list", json!({ "path": "/" })).is_err());
    drop(relay);
}

#[test]
fn a_splitter_cuts_where_messages_end() {
    let stream = br#"{"a": "}\"{"} {"b": [1, {}]}{"c": "\\"}"#;
    let expected: [&[u8]; 3] = [br#"{"a": "}\"{"}"#, br#"{"b": [1, {}]}"#, br#"{"c": "\\"}"#];
    assert_eq!(Splitter::default().push(stream), expected);
    let mut splitter = Splitter::default();
    let cut: Vec<Vec<u8>> = stream.chunks(1).flat_map(|byte| splitter.push(byte)).collect();
    assert_eq!(cut, expected);
}

#[test]
fn a_scripted_server_acts() {
    let server = Scripted::start(|command, args| match command {
        "echo" => Action::Return(args.clone()),
        "late" => Action::Delay(SECOND / 5, Box::new(Action::error("GenericError", "too late"))),
        "event" => Action::after_event(&json!({ "event": "BELL" }), Action::ReturnRaw("[]".into())),
        "raw" => Action::Raw(b"{\"return\": 18446744073709551615}\r\n".to_vec()),
        "silence" => Action::Silence,
        _ => Action::Close,
    });
    let truth = Truth::connect(server.socket()).expect("connect");
    assert_eq!(
        truth.execute("echo", json!({ "a": [1] })),
        Ok(json!({ "a": [1] }))
    );
    let start = Instant::now();
    assert_eq!(
        truth.execute("late", Value::Null).expect_err("an error").desc,
        "too late"
    );
    assert!(start.elapsed() >= SECOND / 5);
    assert_eq!(truth.execute("event", Value::Null), Ok(json!([])));
    assert_eq!(truth.wait_event("BELL", SECOND)["event"], "BELL");
    assert_eq!(truth.execute("raw", Value::Null), Ok(json!(u64::MAX)));
    server.send_raw(b"{\"event\": \"DONG\"}\r\n");
    truth.wait_event("DONG", SECOND);
    assert!(truth.try_execute("close", Value::Null).is_err());
    let commands: Vec<String> = server
        .requests()
        .into_iter()
        .map(|(command, _)| command)
        .collect();
    assert_eq!(commands, ["echo", "late", "event", "raw", "close"]);

    let truth = Truth::connect(server.socket()).expect("connect again");
    assert_eq!((server.clients(), server.count("echo")), (2, 1));
    server.drop_client();
    assert!(truth.try_execute("echo", Value::Null).is_err());
    let idle = Truth::connect(server.socket()).expect("connect once more");
    drop(server); // ends with a client connected
    assert!(idle.try_execute("echo", Value::Null).is_err());
}

#[test]
fn a_scripted_tree_answers_as_qemu_does() {
    let tree = ScriptedTree::new()
        .object("/a")
        .object_of("/a/b", "thing")
        .prop("/a/b", "flag", "bool", json!(true))
        .raw_prop("/a/b", "odd", "str", "1e999")
        .constant("/a/b", "fixed", "int", json!(7))
        .unreadable("/a/b", "secret", "str")
        .prop("/a/b", "peer", "link<thing>", json!(""))
        .describe(
            "thing",
            vec![json!({ "name": "flag", "type": "bool", "description": "a flag" })],
        );
    let server = tree.serve();
    let truth = Truth::connect(server.socket()).expect("connect");
    let paths: Vec<String> = truth.walk().into_iter().map(|object| object.path).collect();
    assert_eq!(paths, ["/", "/a", "/a/b"]);

    let desc = |result: Result<Value, QmpError>| result.expect_err("a refusal").desc;
    let set = |prop: &str, value: Value| truth.set("/a/b", prop, value).map(|()| Value::Null);
    assert_eq!(desc(truth.get("/x", "flag")), "Device '/x' not found");
    assert_eq!(desc(truth.get("/a/b", "x")), "Property 'thing.x' not found");
    assert_eq!(
        desc(truth.get("/a/b", "secret")),
        "Property 'thing.secret' is not readable"
    );
    assert_eq!(
        desc(set("fixed", json!(8))),
        "Property 'thing.fixed' is not writable"
    );
    assert_eq!(
        desc(set("flag", json!("on"))),
        "Invalid parameter type for 'flag', expected: boolean"
    );
    assert_eq!(desc(set("peer", json!("/x"))), "Device '/x' not found");
    set("flag", json!(false)).expect("set");
    set("peer", json!("/a")).expect("set a link");
    assert_eq!(tree.value("/a/b", "flag").as_deref(), Some("false"));
    let described = truth.execute("qom-list-properties", json!({ "typename": "thing" }));
    assert_eq!(described.expect("a known type")[0]["description"], "a flag");
    assert!(
        truth
            .try_execute("qom-get", json!({ "path": "/a/b", "property": "odd" }))
            .is_err(),
        "1e999 is no value"
    );

    let all = |paths: Value| truth.execute("qom-list-get", json!({ "paths": paths }));
    assert_eq!(
        desc(all(json!(["/"]))),
        "The command qom-list-get has not been found"
    );
    tree.with_list_get(true)
        .remove_prop("/a/b", "odd")
        .hook_once("qom-get", "/a/b", "flag", Action::Close);
    let values = all(json!(["/a", "/a/b"])).expect("values");
    assert_eq!(
        values[0]["properties"][1],
        json!({ "name": "b", "type": "child<thing>", "value": "/a/b" })
    );
    assert!(
        values[1]["properties"]
            .as_array()
            .expect("a list")
            .contains(&json!({ "name": "secret", "type": "str" }))
    );
    assert_eq!(desc(all(json!(["/", "/x"]))), "Device '/x' not found");
    assert!(
        truth
            .try_execute("qom-get", json!({ "path": "/a/b", "property": "flag" }))
            .is_err(),
        "hooked to close"
    );
    tree.remove("/a/b");
    let truth = Truth::connect(server.socket()).expect("connect again");
    assert_eq!(truth.walk().len(), 2);
}

#[test]
fn a_shell_command_has_a_deadline() {
    let out = sh("printf 'a\\nb\\n'; echo oops >&2; exit 3");
    assert_eq!(
        (out.status, out.text(), out.stderr.as_str()),
        (3, "a\nb", "oops\n")
    );
    assert!(panic_of(|| drop(out.ok().clone())).contains("oops"));
    assert_eq!(sh("kill -9 $$").status, 128 + 9);
    assert_eq!(
        sh("head -c 3000000 /dev/zero | tee /dev/stderr")
            .ok()
            .stdout
            .len(),
        3_000_000
    );
    let dir = tempfile::tempdir().expect("a folder");
    fs::create_dir(dir.path().join("it's")).expect("a folder with a quote");
    assert_eq!(
        sh_in(dir.path().join("it's"), "basename \"$PWD\"").ok().text(),
        "it's"
    );
    sh_in("/nowhere", "true").fails();

    // The second one ends, but its child holds the output.
    let nap = format!("sleep 99.{}", std::process::id());
    for end in ["wait", "exit 0"] {
        let command = format!("echo before; {nap} & {end}");
        let start = Instant::now();
        let message = panic_of(|| drop(sh_deadline(&command, SECOND / 2)));
        assert!(
            message.starts_with("HUNG: ") && message.contains("before"),
            "{message}"
        );
        assert!(start.elapsed() < 5 * SECOND);
    }
    let gone = || sh(&format!("pgrep -xf '{nap}'")).stdout.is_empty();
    assert!(wait_until(5 * SECOND, gone), "something outlived its deadline");

    let background = sh_start("sleep 0.2; echo done");
    assert_eq!(background.finish(5 * SECOND).ok().text(), "done");
    let pid = sh_start("sleep 97").pid(); // dropped at once
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn files_are_accessed_in_children() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("file");
    assert_eq!(write_file(&file, b"x"), Err(libc::ENOENT));
    assert_eq!(read_file(&file), Err(libc::ENOENT));
    let data: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
    fs::write(&file, "old").expect("create a file");
    assert_eq!(write_file(&file, &data), Ok(()));
    assert_eq!(read_file(&file).as_deref(), Ok(data.as_slice()));
    assert_eq!(write_flags(&file, libc::O_APPEND, b"end"), Ok(()));
    assert_eq!(lstat(&file).expect("stat").st_size, 1_000_003);
    assert_eq!(read_file(dir.path()), Err(libc::EISDIR));
    std::os::unix::fs::symlink("file", dir.path().join("link")).expect("a link");
    assert_eq!(read_link(dir.path().join("link")), Ok(b"file".to_vec()));
    assert!(get_xattr(&file, "user.none").is_err());

    let waits = || Child::start("wait for ever").ask(&[Step::pause(SECOND * 1000)], SECOND / 5);
    assert!(panic_of(|| drop(waits())).starts_with("HUNG: wait for ever"));
}

#[test]
fn mountinfo_is_understood() {
    let line = br"29 27 0:25 / /tmp/a\040b\134c rw,nosuid shared:1 - fuse.qom-fuse unix:/x\011y rw,user_id=0";
    let mount = mountinfo::parse(line).expect("a line of mountinfo");
    assert_eq!(mount.point, Path::new("/tmp/a b\\c"));
    assert_eq!(
        (mount.options.as_str(), mount.kind.as_str()),
        ("rw,nosuid", "fuse.qom-fuse")
    );
    assert_eq!(
        (mount.source.to_str(), mount.super_options.as_str()),
        (Some("unix:/x\ty"), "rw,user_id=0")
    );
    assert!(mountinfo::mount_at(Path::new("/")).is_some());
}

/// A program of the right name that does what `script` says.
fn fake(dir: &Path, script: &str) -> Launch {
    let program = dir.join("qom-fuse");
    fs::write(&program, format!("#!/bin/bash\n{script}\n")).expect("write a script");
    sh(&format!("chmod +x {}", quote(&program))).ok();
    Launch::new()
        .program(program)
        .socket("/nowhere")
        .args(&["-o", "ro"])
}

#[test]
fn a_mount_that_fails_is_noticed() {
    let dir = tempfile::tempdir().expect("a folder");
    let launch = |script| fake(dir.path(), script);
    let out = launch("echo \"refused: $*\" >&2; exit 1")
        .background()
        .err()
        .expect("a failure");
    assert_eq!(out.status, 1);
    assert!(out.stderr.starts_with("refused: -o ro /nowhere /"), "{out}");
    let point = out.stderr.trim_end().rsplit(' ').next().expect("a mount point");
    assert!(!Path::new(point).exists(), "{point} was left");

    let message = panic_of(|| drop(launch("echo fine").background()));
    assert!(
        message.starts_with("succeeded, but mounted nothing") && message.contains("fine"),
        "{message}"
    );
    let message = panic_of(|| drop(launch("echo \"refused: $*\" >&2; exit 1").foreground()));
    assert!(message.contains("refused: -f -o ro /nowhere /"), "{message}");
}

#[test]
fn a_child_outlives_the_thread_that_started_it() {
    let qemu = std::thread::spawn(|| Qemu::start(Which::Old, "none", &[]))
        .join()
        .expect("start");
    std::thread::sleep(SECOND / 5);
    assert!(!qemu.truth().list("/").is_empty());
}
