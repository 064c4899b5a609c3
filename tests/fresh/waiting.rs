//! What the mount knows already is told at once, however long QEMU takes over what others ask.

use std::sync::Arc;
use std::time::Duration;

use harness::*;
use parking_lot::{Condvar, Mutex};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(20);
const HANGING: usize = 8;

/// Holds the server's answers back, from the first request of a kind after it was shut until it is opened or dropped.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    /// The beginning of the command that it waits for.
    shut_for: Option<&'static str>,
    held: bool,
}

impl Gate {
    fn shut(&self, command: &'static str) {
        self.0.0.lock().shut_for = Some(command);
    }

    fn open(&self) {
        *self.0.0.lock() = State::default();
        self.0.1.notify_all();
    }

    fn pass(&self, command: &str) {
        let mut state = self.0.0.lock();
        while state.shut_for.is_some_and(|from| command.starts_with(from)) {
            state.held = true;
            if self.0.1.wait_for(&mut state, 6 * DEADLINE).timed_out() {
                break;
            }
        }
    }

    fn holds(&self) -> bool {
        self.0.0.lock().held
    }
}

/// Opens the gate when a test ends, also when it fails.
struct Opening(Gate);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// While `hanging` wait for QEMU, what is cached is told; when QEMU answers after all, they finish.
#[track_caller]
fn told_meanwhile(hanging: &str, waiting: usize) {
    for list_get in [false, true] {
        told_beside("true", hanging, "", list_get, waiting);
    }
}

/// The same while `busy` goes on beside it, from before, which needs no answer from QEMU; QEMU hangs at the first
/// command that begins with `at`.
#[track_caller]
fn told_beside(busy: &str, hanging: &str, at: &'static str, list_get: bool, waiting: usize) {
    let tree = ScriptedTree::new().with_list_get(list_get);
    for n in 0..100 {
        tree.object(&format!("/o{n}"));
        for p in 0..4 {
            tree.prop(&format!("/o{n}"), &format!("p{p}"), "int", json!(p));
        }
    }
    let gate = Gate::default();
    let (passing, mut answer) = (gate.clone(), tree.handler());
    let server = Scripted::start_as(tree.greeting(), move |command, args| {
        passing.pass(command);
        answer(command, args)
    });
    let mount = Mount::start(server.socket(), &["-o", "entry_timeout=60,timeout=60"]);
    let _open = Opening(gate.clone()); // dropped first
    sh_in(mount.path(), "ls . o0 o1 o2 >/dev/null; stat o0/p1 >/dev/null").ok();

    let here = format!("cd {} || exit; ", quote(mount.path()));
    let busy = sh_start(&format!("{here}{busy}"));
    std::thread::sleep(Duration::from_millis(300));
    gate.shut(at);
    let readers = sh_start(&format!("{here}{hanging}"));
    // The server takes one request at a time: that one is there, and the others are behind it.
    assert!(wait_until(DEADLINE, || gate.holds()), "no reader asks {at}");
    std::thread::sleep(Duration::from_millis(500));
    let asked = server.requests().len();

    for told in [
        "ls",
        "ls o0 o1 o2",
        "ls -l o1",
        "stat o0 o0/p0 o1/p2 o2/type",
        "find . -maxdepth 1",
        "test -e o0/p3 -a ! -e o0/nothing -a ! -e o1/none -a ! -e void",
        "df .",
        "cd o2 && echo *",
    ] {
        sh_deadline(&format!("{here}{told}"), DEADLINE).ok(); // "HUNG" if it waits
    }
    busy.finish(3 * DEADLINE).ok();
    assert_eq!(server.requests().len(), asked, "the gate was open");
    gate.open();
    let out = readers.finish(DEADLINE);
    assert_eq!(out.ok().lines().len(), waiting, "{out}");
}

#[test]
fn while_readers_hang() {
    told_meanwhile(
        &format!("for i in {{1..{HANGING}}}; do cat o$((i % 3))/p$((i % 4)) & done; wait"),
        HANGING,
    );
}

#[test]
fn while_more_readers_hang_than_there_are_threads() {
    told_meanwhile(
        "for i in {1..90}; do cat o$((i % 3))/p$((i % 4)) & done; wait",
        90,
    );
}

#[test]
fn while_listings_hang() {
    told_meanwhile("for i in {10..29}; do ls -d o$i/type & done; wait", 20);
}

#[test]
fn while_writers_hang() {
    told_meanwhile(
        "for i in {1..10}; do (echo 5 > o0/p$((i % 4)) && echo done) & done; wait",
        10,
    );
}

/// One thread then looks out for each next request, and the others stand aside for it.
#[test]
fn while_others_ask_without_pause_for_what_is_known() {
    let busy = "SECONDS=0; while ((SECONDS < 5)); do find o0 o1 o2 -size 1c >/dev/null; done";
    let hanging =
        format!("for i in {{1..{HANGING}}}; do cat o$((i % 3))/p$((i % 4)) & sleep 0.01; done; wait");
    for list_get in [false, true] {
        told_beside(busy, &hanging, "", list_get, HANGING);
    }
}

#[test]
fn while_a_walk_hangs() {
    told_meanwhile("grep -rs . o5 o6 o7; find o8 o9 -type f", 15 + 10);
}

/// With requests ahead of it too, and those for several objects at once.
#[test]
fn while_a_walk_hangs_at_its_values() {
    for (list_get, at) in [(false, "qom-get"), (true, "qom-list-get")] {
        told_beside("true", "grep -rs . o5 o6 o7", at, list_get, 15);
    }
}
