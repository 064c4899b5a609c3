//! What `-o reconnect` finds while it tries: nothing, something that is no monitor, or a machine that it cannot tell.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use harness::server::Server;
use harness::*;
use parking_lot::Mutex;
use serde_json::json;

use crate::reconnect::{OPTIONS, ends_well, folder, is_cut_off, read};

/// Pauses double from 100 ms to 5 s, and an access does not wait for the next attempt.
#[test]
fn attempts_become_rare() {
    let dir = folder();
    let path = dir.path().join("vm.sock");
    let tree = ScriptedTree::new();
    let server = Scripted::start_at(&path, tree.handler());
    let mount = Mount::start_foreground(&path, &OPTIONS);
    let attempts: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let met = attempts.clone();
    // What the mount asks of its own accord when it begins must be answered, for it sets off attempts too.
    assert!(
        wait_until(10 * SECOND, || server.count("query-uuid") > 0),
        "who it is"
    );
    assert_eq!(read(&mount, "type").as_deref(), Ok("container\n"));
    drop(server);
    let refusing = Server::start(&path, move |_, _| met.lock().push(Instant::now()));
    thread::sleep(Duration::from_millis(12_500));
    let gaps: Vec<f64> = {
        let attempts = attempts.lock();
        attempts
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect()
    };
    assert!((5..=7).contains(&gaps.len()), "{gaps:?}");
    assert!(gaps.iter().all(|gap| (0.08..6.0).contains(gap)), "{gaps:?}");
    assert!(gaps.last() > Some(&4.5), "{gaps:?}");
    let grows = gaps.windows(2).all(|pair| pair[1] > 1.2 * pair[0]);
    assert!(grows, "{gaps:?}");
    let before = attempts.lock().len();
    assert_eq!(read(&mount, "type"), Err(libc::ENOTCONN));
    assert!(attempts.lock().len() > before, "no attempt at an access");
    drop(refusing);
    let _server = Scripted::start_at(&path, tree.handler());
    assert_eq!(read(&mount, "type").as_deref(), Ok("container\n"));
    assert!(
        mount.log().lines().count() < 8,
        "not a line for each attempt: {}",
        mount.log()
    );
}

/// A socket that takes connections and says nothing keeps neither readers nor the end of the mount waiting.
#[test]
fn a_socket_that_says_nothing_keeps_nobody() {
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, 0] {
        let dir = folder();
        let path = dir.path().join("vm.sock");
        let server = Scripted::start_at(&path, ScriptedTree::new().handler());
        let mount = Mount::start_foreground(&path, &OPTIONS);
        drop(server);
        let silent = Scripted::start_raw(&path, Vec::new(), |_, _| Action::Silence);
        is_cut_off(&mount, "type");
        let start = Instant::now();
        let script = format!(
            "for i in {{1..40}}; do cat {}/type & done; wait",
            quote(mount.path())
        );
        let readers = sh_start(&script).finish(SOON);
        assert_eq!(readers.stderr.matches("not connected").count(), 40, "{readers}");
        assert!(start.elapsed() < 5 * SECOND, "{:?}", start.elapsed());
        assert!(silent.clients() >= 1);
        let start = Instant::now();
        if number == 0 {
            mount.unmount();
        } else {
            mount.signal(number);
        }
        ends_well(&mount);
        assert!(
            start.elapsed() < 5 * SECOND,
            "signal {number}: {:?}",
            start.elapsed()
        );
    }
}

#[test]
fn what_answers_meanwhile_but_is_no_monitor_is_not_taken_for_one() {
    let dir = folder();
    let path = dir.path().join("vm.sock");
    let tree = ScriptedTree::new();
    let server = Scripted::start_at(&path, tree.handler());
    let mount = Mount::start_foreground(&path, &OPTIONS);
    drop(server);
    for greeting in [
        "hello\r\n",
        "{\"return\": {}}\r\n",
        "\u{1b}[2J\n",
        "{\"QMP\": 5}\r\n",
    ] {
        let odd = Scripted::start_raw(&path, greeting.into(), |_, _| Action::Return(json!("odd")));
        is_cut_off(&mount, "type");
        assert!(mount.is_mounted(), "{greeting}");
        drop(odd);
    }
    let _server = Scripted::start_at(&path, tree.handler());
    assert_eq!(read(&mount, "type").as_deref(), Ok("container\n"));
    assert!(!mount.log().contains('\u{1b}'));
    mount.signal(libc::SIGTERM);
    ends_well(&mount);
}

/// What cannot be trusted any more is given up, and another connection sought.
#[test]
fn a_line_that_is_no_qmp_costs_one_connection() {
    let tree = ScriptedTree::new()
        .object("/a")
        .prop("/a", "p", "string", json!("good"))
        .prop("/a", "bad", "string", json!("bad"));
    let server = tree.serve();
    let mount = Mount::start_foreground(server.socket(), &OPTIONS);
    let good = || wait_until(SOON, || read(&mount, "a/p").as_deref() == Ok("good\n"));
    let endless = [b"{\"return\": \"".as_slice(), &vec![b'x'; 65 << 20], b"\"}\n"].concat();
    let lines = [b"garbage\n".to_vec(), b"{\"return\"\n".to_vec(), endless];
    for line in lines {
        tree.hook_once("qom-get", "/a", "bad", Action::Raw(line));
        let before = server.clients();
        assert_eq!(read(&mount, "a/bad"), Err(libc::EIO), "{}", mount.log());
        assert!(good() && server.clients() > before, "{}", mount.log());
    }
    let before = server.clients();
    server.send_raw(b"garbage\n"); // unasked
    assert!(wait_until(SOON, || server.clients() > before), "{}", mount.log());
    assert!(good(), "{}", mount.log());
    // Longer than any pause between attempts so far: once a connection has lasted, they begin anew.
    thread::sleep(2 * SECOND);
    // One that never says anything else is asked ever more seldom, and nobody waits for it.
    tree.hook("qom-get", "/machine", "type", Action::Raw(b"garbage\n".to_vec()));
    let before = server.clients();
    server.send_raw(b"garbage\n");
    thread::sleep(5 * SECOND);
    let attempts = server.clients() - before;
    assert!((3..=12).contains(&attempts), "{attempts}");
    tree.clear_hooks();
    assert!(good(), "{}", mount.log());
    assert!(mount.is_mounted());
    mount.signal(libc::SIGTERM);
    ends_well(&mount);
}

/// Between such a line and the next connection there is none.
#[test]
fn while_there_is_no_connection_it_is_not_connected() {
    let dir = folder();
    let path = dir.path().join("vm.sock");
    let tree = ScriptedTree::new();
    let server = Scripted::start_at(&path, tree.handler());
    let mount = Mount::start_foreground(&path, &OPTIONS);
    assert_eq!(read(&mount, "type").as_deref(), Ok("container\n"));
    server.send_raw(b"garbage\n");
    drop(server);
    is_cut_off(&mount, "type");
}

#[test]
fn a_machine_that_does_not_say_who_it_is_is_not_another() {
    let tree = ScriptedTree::new();
    let mut answer = tree.handler();
    let server = Scripted::start(move |command, args| match command {
        "query-name" => Action::Return(json!({ "name": "alice" })),
        _ => answer(command, args),
    });
    let path = server.socket().to_owned();
    let mount = Mount::start_foreground(&path, &["-v", "-o", "reconnect,timeout=1"]);
    assert!(wait_until(SOON, || server.count("query-uuid") > 0));
    for (name, silent) in [("alice", true), ("bob", true)] {
        let dir = folder();
        let next = dir.path().join("next.sock");
        let (mut answer, mut asked) = (tree.handler(), 0);
        let other = Scripted::start_at(&next, move |command, args| match command {
            "query-name" => {
                asked += 1;
                let reply = Action::Return(json!({ "name": name }));
                // Busy at first, and late.
                if silent && asked == 1 {
                    Action::Delay(2 * SECOND, Box::new(reply))
                } else {
                    reply
                }
            }
            _ => answer(command, args),
        });
        std::fs::rename(&next, &path).expect("take the place of the first");
        server.drop_client();
        assert!(
            wait_until(SOON, || other.count("query-uuid") > 0),
            "{}",
            mount.log()
        );
        thread::sleep(SECOND / 2);
        assert_eq!(
            mount.log().contains("to another machine"),
            name == "bob",
            "{}",
            mount.log()
        );
        if name == "alice" {
            other.drop_client(); // and back to the first, which is no other either
        }
        drop(other);
    }
    assert_eq!(
        mount.log().matches("to another machine").count(),
        1,
        "{}",
        mount.log()
    );
}
