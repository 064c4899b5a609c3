//! Replies that come late or not at all: each request ends in time, and no reply is ever given to another request.

use std::thread;
use std::time::{Duration, Instant};

use harness::*;
use serde_json::{Value, json};

fn tree() -> ScriptedTree {
    ScriptedTree::new()
        .object("/a")
        .prop("/a", "slow", "string", json!("slow"))
        .prop("/a", "fast", "string", json!("fast"))
        .prop("/a", "other", "string", json!("other"))
}

fn read(mount: &Mount, name: &str) -> Result<String, Errno> {
    read_file(mount.join("a").join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn late(time: Duration, action: Action) -> Action {
    Action::Delay(time, Box::new(action))
}

/// Reads until QEMU has caught up; every failure before is ETIMEDOUT.
#[track_caller]
fn catches_up(mount: &Mount, name: &str, text: &str) {
    let mut last = Err(0);
    let caught = wait_until(10 * SECOND, || {
        last = read(mount, name);
        last != Err(libc::ETIMEDOUT)
    });
    assert!(caught && last.as_deref() == Ok(text), "{last:?}");
}

#[track_caller]
fn nobody_elses(command: &str) {
    let actions = [
        Action::Return(json!("late")),
        Action::error("GenericError", "late"),
        Action::Raw(b"{\"return\": \"\\q\"}\r\n".to_vec()),
        Action::after_event(&json!({ "event": "STOP" }), Action::Return(json!("late"))),
    ];
    let tree = tree();
    let (server, mount) = tree.mounted(&["-o", "timeout=0.3,entry_timeout=60"]);
    assert_eq!(read(&mount, "fast").as_deref(), Ok("fast\n"));
    for action in actions {
        let shown = format!("{action:?}");
        tree.hook_once(command, "/a", "slow", late(SECOND * 6 / 5, action));
        server.reset();
        let start = Instant::now();
        let result = match command {
            "qom-get" => read(&mount, "slow").map(drop),
            _ => write_file(mount.join("a/slow"), b"set"),
        };
        assert_eq!(result, Err(libc::ETIMEDOUT), "{command} {shown}");
        let took = start.elapsed();
        assert!(took >= SECOND * 3 / 10 && took < SECOND * 11 / 10, "{took:?}");
        // Refused at once, and not sent.
        let start = Instant::now();
        assert_eq!(read(&mount, "fast"), Err(libc::ETIMEDOUT), "{command} {shown}");
        assert_eq!(
            write_file(mount.join("a/other"), b"never"),
            Err(libc::ETIMEDOUT),
            "{command} {shown}"
        );
        assert!(start.elapsed() < SECOND / 2, "{:?}", start.elapsed());
        // What is known is shown all the while.
        assert_eq!(sh(&format!("ls {}", quote(mount.path()))).ok().text(), "a\ntype");
        catches_up(&mount, "fast", "fast\n");
        assert_eq!(
            read(&mount, "other").as_deref(),
            Ok("other\n"),
            "a write that was refused was sent"
        );
        assert_eq!(read(&mount, "fast").as_deref(), Ok("fast\n"));
        let sets = server
            .requests()
            .into_iter()
            .filter(|(sent, _)| sent == "qom-set");
        let sets: Vec<Value> = sets.map(|(_, args)| args["property"].clone()).collect();
        assert!(sets.iter().all(|property| property == "slow"), "{sets:?}");
    }
    assert_eq!(server.clients(), 1);
}

#[test]
fn a_late_value_is_nobody_elses() {
    nobody_elses("qom-get");
}

#[test]
fn a_late_verdict_is_nobody_elses() {
    nobody_elses("qom-set");
}

#[test]
fn a_reply_that_never_comes_leaves_the_mount_answering() {
    let tree = tree();
    tree.hook("qom-get", "/a", "slow", Action::Silence);
    let server = tree.serve();
    let mount = Mount::start_foreground(server.socket(), &["-o", "timeout=0.5"]);
    assert_eq!(read(&mount, "slow"), Err(libc::ETIMEDOUT));
    for _ in 0..3 {
        let start = Instant::now();
        assert_eq!(read(&mount, "fast"), Err(libc::ETIMEDOUT));
        assert!(start.elapsed() < SECOND / 2);
    }
    mount.unmount();
    assert_eq!(mount.wait_exit(10 * SECOND).code(), Some(0));
}

/// Many readers at once, of a server that is now and then later than they wait.
#[test]
fn readers_at_once_each_get_their_own() {
    let tree = tree();
    for number in 0..40 {
        let name = format!("p{number}");
        tree.prop("/a", &name, "string", json!(name));
    }
    let mut answer = tree.handler();
    let mut asked = 0;
    let server = Scripted::start(move |command, args| {
        asked += usize::from(command == "qom-get");
        match answer(command, args) {
            action if command == "qom-get" && asked % 17 == 0 => late(SECOND * 2 / 5, action),
            action => action,
        }
    });
    let mount = Mount::start(server.socket(), &["-o", "timeout=0.2,entry_timeout=60"]);
    let file = quote(mount.join("a"));
    let script = format!(
        "for i in {{1..3}}; do for p in p{{0..39}}; do echo $p $(cat {file}/$p 2>&1 || sleep 0.1); done; done"
    );
    let readers: Vec<_> = (0..4).map(|_| sh_start(&script)).collect();
    let (mut good, mut late) = (0, 0);
    for reader in readers {
        let out = reader.finish(child::DEADLINE);
        assert_eq!(out.ok().lines().len(), 120);
        for line in out.lines() {
            let (name, value) = line.split_once(' ').expect("a name and a value");
            match value {
                _ if value.ends_with("Connection timed out") => late += 1,
                _ => assert_eq!(value, name, "another one's value"),
            }
            good += usize::from(value == name);
        }
    }
    assert!(good > 50 && late > 5, "{good} good, {late} late");
    catches_up(&mount, "fast", "fast\n");
}

/// A value larger than the socket takes, to a server that does not read.
#[test]
fn a_write_that_is_stuck_halfway_does_not_put_anything_out_of_step() {
    let tree = tree();
    let (server, mount) = tree.mounted(&["-o", "timeout=1,entry_timeout=60"]);
    assert_eq!(read(&mount, "fast").as_deref(), Ok("fast\n"));
    tree.hook_once(
        "qom-get",
        "/a",
        "slow",
        late(4 * SECOND, Action::Return(json!("late"))),
    );
    let large = "x".repeat(1_000_000);
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(&mount, "slow"));
        thread::sleep(SECOND / 5);
        let start = Instant::now();
        assert_eq!(
            write_file(mount.join("a/other"), large.as_bytes()),
            Err(libc::ETIMEDOUT)
        );
        assert!(start.elapsed() < 3 * SECOND, "{:?}", start.elapsed());
        assert_eq!(reader.join().expect("a reader"), Err(libc::ETIMEDOUT));
    });
    assert_eq!(read(&mount, "fast"), Err(libc::ETIMEDOUT));
    catches_up(&mount, "fast", "fast\n");
    let other = read(&mount, "other").expect("in step again");
    assert!(
        other == "other\n" || other == format!("{large}\n"),
        "half a value of {} bytes was set",
        other.len()
    );
    assert!(
        server
            .requests()
            .iter()
            .all(|(command, _)| command.starts_with("qom-")),
        "half a request was sent"
    );
    assert_eq!(
        (server.clients(), read(&mount, "fast").as_deref()),
        (1, Ok("fast\n"))
    );
}

each_qemu!(a_stopped_qemu_times_out_and_comes_back, |which| {
    let (qemu, mount) = mounted(which, "none", &[], &["-o", "timeout=0.5"]);
    let kind = |mount: &Mount| read_file(mount.join("machine/type"));
    let good = Ok(b"none-machine\n".to_vec());
    assert_eq!(kind(&mount), good);
    qemu.stop();
    assert_eq!(kind(&mount), Err(libc::ETIMEDOUT));
    let start = Instant::now();
    assert_eq!(
        write_file(mount.join("machine/kernel"), b"x"),
        Err(libc::ETIMEDOUT)
    );
    assert!(start.elapsed() < SECOND / 2);
    qemu.cont();
    assert!(
        wait_until(10 * SECOND, || kind(&mount) == good),
        "it did not come back"
    );
    assert_reads(mount.join("machine/kernel"), "\n");
    // Stopped for good, it does not keep the mount from being taken away.
    qemu.stop();
    mount.unmount();
});
