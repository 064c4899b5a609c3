//! Peers that take one request at a time, as libvirt's proxy does: nothing comes to them before the last answer.

use std::time::{Duration, Instant};

use harness::*;
use serde_json::json;

/// How long such a peer takes over a request: a second one that comes too early is there by then.
const THINKS: Duration = Duration::from_millis(2);

/// A tree with objects whose values are read in parallel.
fn tree() -> ScriptedTree {
    let tree = ScriptedTree::new().object("/a");
    for object in 0..24 {
        let path = format!("/a/o{object:02}");
        tree.object(&path);
        for name in ["one", "two", "three", "four"] {
            tree.prop(&path, name, "string", json!(format!("{name} of {path}")));
        }
    }
    for name in ["slow", "fast", "other"] {
        tree.prop("/a", name, "string", json!(name));
    }
    tree
}

/// Serves a tree as libvirt's proxy does, for a domain whose QEMU has `qom-list-get` or has it not.
#[track_caller]
fn serve(session: &Session, tree: &ScriptedTree, list_get: bool, before_greeting: &str) -> Scripted {
    tree.with_list_get(list_get);
    let minor = u8::from(list_get);
    let version = json!({ "qemu": { "major": 10, "minor": minor, "micro": 0 }, "package": "the domain's" });
    let greeting = format!("{before_greeting}{}\r\n", script::GREETING_PROXY);
    let mut handler = tree.handler();
    Scripted::start_one_at_a_time(
        &session.dir().join("proxy.sock"),
        greeting.into_bytes(),
        move |command, args| {
            let answer = match command {
                "qmp_capabilities" => Action::Return(json!({})),
                "query-version" => Action::Return(version.clone()),
                _ => handler(command, args),
            };
            match answer {
                answer @ (Action::Delay(..) | Action::Silence) => answer,
                answer => Action::Delay(THINKS, Box::new(answer)),
            }
        },
    )
}

#[track_caller]
fn assert_none_early(server: &Scripted) {
    assert_eq!(server.faults(), [""; 0], "sent before the last answer");
}

/// Eight that read everything at once, and one that finds everything; what each of them shows.
#[track_caller]
fn walks(mount: &Mount) -> Vec<String> {
    let at = quote(mount.path());
    let greps: Vec<_> = (0..8)
        .map(|_| sh_start(&format!("cd {at} && grep -r . .")))
        .collect();
    let found = sh(&format!("cd {at} && find .")).ok().text().to_owned();
    let mut shown: Vec<_> = greps
        .into_iter()
        .map(|grep| {
            let out = grep.finish(60 * SECOND);
            assert!(!out.stderr.contains("timed out"), "{}", out.stderr);
            out.text().to_owned()
        })
        .collect();
    shown.push(found);
    shown
}

#[test]
fn eight_greps_a_find_and_a_write() {
    for list_get in [false, true] {
        // The same without such a peer is what is to be seen.
        let plain = tree().with_list_get(list_get).serve();
        let mount = Mount::start(plain.socket(), &[]);
        let expected = walks(&mount);
        mount.unmount();

        for options in [&[][..], &["-o", "no_readahead"]] {
            let (session, tree) = (Session::new(), tree());
            let server = serve(&session, &tree, list_get, "");
            let launch = Launch::new().args(options).args(&["-v"]);
            let mount = launch.socket(server.socket()).foreground();
            let is_said = wait_until(10 * SECOND, || mount.log().contains("the domain's"));
            assert!(is_said, "{}", mount.log());
            assert_eq!(walks(&mount), expected, "{list_get} {options:?}");
            for length in [1, 900, 1024, 5000, 900_000] {
                let value = "x".repeat(length);
                assert_eq!(write_file(mount.join("a/other"), value.as_bytes()), Ok(()));
                assert_eq!(tree.value("/a", "other"), Some(json!(value).to_string()));
                assert_eq!(
                    read_file(mount.join("a/other")),
                    Ok(format!("{value}\n").into_bytes())
                );
            }
            assert_none_early(&server);
            assert_eq!(
                (server.count("qom-list-get") > 0, server.count("query-version")),
                (list_get && options.is_empty(), 1)
            );
        }
    }
}

/// Nothing is asked that nobody waits for, and no more than a plain client would ask.
#[test]
fn no_more_requests_than_a_plain_client() {
    for list_get in [false, true] {
        let (session, tree) = (Session::new(), tree());
        let server = serve(&session, &tree, list_get, "");
        let mount = Mount::start(server.socket(), &["-o", "entry_timeout=60"]);
        let at = quote(mount.path());
        sh(&format!("find {at}")).ok();
        assert_eq!((server.count("qom-list"), server.requests().len()), (26, 27)); // and query-version
        mount.unmount();

        let asked_by_grep = || {
            let mount = Mount::start(server.socket(), &["-o", "entry_timeout=60"]);
            server.reset();
            sh(&format!("grep -r . {}", quote(mount.path()))).ok();
            server.requests().len()
        };
        if list_get {
            // Three times, should the machine hold the walk up for longer than one may pause.
            let few = (0..3).any(|_| asked_by_grep() < 10);
            assert!(few, "{:?}", server.requests());
        } else {
            let values = 26 + 24 * 4 + 3; // each has a type
            let asked = asked_by_grep();
            assert_eq!((server.count("qom-get"), asked), (values, values + 26));
        }
        assert_none_early(&server);
    }
}

#[test]
fn events_before_the_greeting() {
    let event = json!({ "event": "RTC_CHANGE", "timestamp": { "seconds": 1, "microseconds": 2 } });
    let bad = r#"{"timestamp": {"seconds": 1}, "event": "X", "data": "\q"}"#;
    let (session, tree) = (Session::new(), tree());
    let events = format!("{event}\r\n{bad}\r\n").repeat(50);
    let server = serve(&session, &tree, false, &events);
    let mount = Mount::start(server.socket(), &[]);
    assert_eq!(read_file(mount.join("a/fast")), Ok(b"fast\n".to_vec()));
    assert_none_early(&server);
}

/// Who waits for its turn does so until its own time is over; while a reply is overdue, nothing is sent.
#[test]
fn the_time_of_a_request_runs_while_it_waits_for_its_turn() {
    let late = |time, value: &str| Action::Delay(time, Box::new(Action::Return(json!(value))));
    for (command, list_get) in [("qom-get", false), ("qom-set", true)] {
        let (session, tree) = (Session::new(), tree());
        let server = serve(&session, &tree, list_get, "");
        let mount = Mount::start(server.socket(), &["-o", "timeout=1,entry_timeout=60"]);
        assert_eq!(read_file(mount.join("a/fast")), Ok(b"fast\n".to_vec()));
        server.reset();
        tree.hook_once(command, "/a", "slow", late(3 * SECOND, "late"));
        let at = quote(mount.join("a"));
        let access = if command == "qom-get" {
            "cat slow"
        } else {
            "echo set > slow"
        };
        let slow = sh_start(&format!("cd {at} && {access}"));
        assert!(wait_until(SECOND * 5, || server.count(command) == 1));
        let start = Instant::now();
        let queued: Vec<_> = (0..6)
            .map(|n| {
                sh_start(&format!(
                    "cd {at} && if (({n} % 2)); then cat fast; else echo never > other; fi"
                ))
            })
            .collect();
        for out in queued.into_iter().chain([slow]) {
            let out = out.finish(10 * SECOND);
            out.fails().says("timed out");
        }
        assert!(start.elapsed() < 3 * SECOND, "{:?}", start.elapsed());
        assert_eq!(read_file(mount.join("a/fast")), Err(libc::ETIMEDOUT));
        assert_eq!(server.requests().len(), 1, "{:?}", server.requests());
        let mut last = Err(0);
        let caught_up = wait_until(10 * SECOND, || {
            last = read_file(mount.join("a/fast"));
            last != Err(libc::ETIMEDOUT)
        });
        assert!(caught_up && last == Ok(b"fast\n".to_vec()), "{last:?}");
        assert_eq!(tree.value("/a", "other"), Some("\"other\"".into()));
        assert_none_early(&server);
    }
}

/// Slow getters one after the other: some are in time, the others are told so, and none hangs.
#[test]
fn a_long_queue() {
    let (session, tree) = (Session::new(), tree());
    let server = serve(&session, &tree, false, "");
    let mount = Mount::start(
        server.socket(),
        &["-o", "timeout=1,entry_timeout=60,no_readahead"],
    );
    let slow = Action::Delay(SECOND * 3 / 10, Box::new(Action::Return(json!("slow"))));
    tree.hook("qom-get", "/a", "slow", slow);
    let at = quote(mount.join("a"));
    let readers: Vec<_> = (0..8).map(|_| sh_start(&format!("cat {at}/slow"))).collect();
    let outs: Vec<_> = readers
        .into_iter()
        .map(|reader| reader.finish(10 * SECOND))
        .collect();
    let (good, bad): (Vec<_>, Vec<_>) = outs.iter().partition(|out| out.status == 0);
    assert!(!good.is_empty() && !bad.is_empty(), "{outs:?}");
    assert!(good.iter().all(|out| out.text() == "slow"), "{good:?}");
    assert!(bad.iter().all(|out| out.stderr.contains("timed out")), "{bad:?}");
    assert!(server.count("qom-get") <= good.len() + 1);
    let caught_up = || read_file(mount.join("a/fast")) == Ok(b"fast\n".to_vec());
    assert!(wait_until(10 * SECOND, caught_up));
    assert_none_early(&server);
}

#[test]
fn what_libvirt_would_not_take_is_refused_before_it_is_sent() {
    let (session, tree) = (Session::new(), tree());
    let server = serve(&session, &tree, false, "");
    let mount = Mount::start(server.socket(), &[]);
    let long = vec![1; 1_000_000]; // each as \u0001
    assert_eq!(write_file(mount.join("a/other"), &long), Err(libc::EFBIG));
    let words = sh(&format!(
        "getfattr --only-values -n user.qom.error {}",
        quote(mount.join("a/other"))
    ));
    words.ok().shows("too long for libvirt");
    assert_eq!(server.count("qom-set"), 0);
    assert_eq!(read_file(mount.join("a/other")), Ok(b"other\n".to_vec()));
}

/// The proxy of a domain that has ended greets all the same.
#[test]
fn a_proxy_that_breaks_off() {
    let session = Session::new();
    let greeting = format!("{}\r\n", script::GREETING_PROXY).into_bytes();
    let server =
        Scripted::start_one_at_a_time(
            &session.dir().join("proxy.sock"),
            greeting,
            |command, _| match command {
                "qmp_capabilities" => Action::Return(json!({})),
                _ => Action::Close,
            },
        );
    let out = session.run("qom-fuse proxy.sock mnt");
    out.exits(1).says("the domain has ended");
    drop(server);
}

each_qemu!(the_option_does_the_same_for_a_real_qemu, |which| {
    let rig = Rig::new(which, &[], &["-o", "no_pipelining"]);
    walks(&rig.mount);
    sh(&format!(
        "echo mine > {0}; grep -qx mine {0}",
        rig.at("machine/kernel")
    ))
    .ok();
    assert_eq!(rig.qemu.truth().get("/machine", "kernel"), Ok(json!("mine")));
    assert_eq!(
        (rig.relay.most_in_flight(), rig.relay.overlapping()),
        (1, Vec::new())
    );
    drop(rig);
    let rig = Rig::new(which, &[], &[]);
    walks(&rig.mount);
    assert!(rig.relay.most_in_flight() > 1, "it is no test otherwise");
});
