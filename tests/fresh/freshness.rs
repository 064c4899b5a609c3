//! Whatever is asked of QEMU ahead of time, nobody reads a value older than docs/semantics.md allows.
//!
//! The values are numbers that only grow, set by a second monitor or through the mount, so that each value read tells
//! when it was true.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::scope;
use std::time::Duration;

use harness::*;
use serde_json::{Value, json};

/// How old a value may be when it is read.
const WINDOW: u64 = 100_000_000;
const OBJECTS: usize = 12;
/// Patience with a machine that is busy with other things: what is tested here is not how fast it is.
const OPTIONS: [&str; 2] = ["-o", "timeout=60"];
/// A property of an iothread that anyone may set at any time.
const PROPERTY: &str = "poll-max-ns";

fn object(n: usize) -> String {
    format!("/objects/t{n}")
}

#[track_caller]
fn start(which: Which) -> (Qemu, Vec<String>) {
    let threads: Vec<String> = (0..OBJECTS).map(|n| format!("iothread,id=t{n}")).collect();
    let arguments: Vec<&str> = threads.iter().flat_map(|thread| ["-object", thread]).collect();
    let qemu = Qemu::start(which, "q35", &arguments);
    let names = qemu.truth().list(&object(0)).into_iter();
    let names = names.filter(|prop| prop.is_value());
    let names = names.map(|prop| prop.name).collect();
    (qemu, names)
}

/// Lists all objects and reads all they have, each in the order of its listing, as `grep -r` does.
fn walk(qemu: &Qemu, mount: &Mount) -> Vec<Step> {
    let truth = qemu.truth();
    let mut steps = Vec::new();
    let mut visit = |object: &str| {
        let (props, folder) = (truth.list(object), mount.join(object));
        steps.push(Step::new(&folder, Call::List));
        for prop in &props {
            let plain = prop.is_value();
            if plain && truth.get(object, &prop.name).is_ok() {
                steps.push(Step::new(&folder.join(&prop.name), Call::Read));
            }
        }
        props
    };
    for child in visit("/objects").iter().filter(|prop| prop.is_child()) {
        visit(&format!("/objects/{}", child.name));
    }
    steps
}

/// Lists the threads by their numbers, which is not the order of the listing, and reads all they have.
fn walk_by_number(mount: &Mount, names: &[String], pause: Duration) -> Vec<Step> {
    let mut steps = vec![Step::new(&mount.join("/objects"), Call::List)];
    for n in 0..OBJECTS {
        let folder = mount.join(&object(n));
        steps.push(Step::new(&folder, Call::List));
        for name in names {
            steps.push(Step::new(&folder.join(name), Call::Read));
            steps.push(Step::pause(pause));
        }
    }
    steps
}

/// Which object's `PROPERTY` a step is about.
fn subject(step: &Step) -> Option<usize> {
    let path = step.path.to_str()?.strip_suffix(PROPERTY)?;
    path.trim_end_matches('/').rsplit_once("/t")?.1.parse().ok()
}

/// A value, from when it may have been true, and until when it was.
struct Truly {
    value: u64,
    from: u64,
    until: u64,
}

/// Sets the property of all objects in turn, again and again, while `work` runs; what was true of each.
fn while_changing(qemu: &Qemu, work: impl FnOnce()) -> Vec<Vec<Truly>> {
    let mut history: Vec<Vec<Truly>> = (0..OBJECTS).map(|_| Vec::new()).collect();
    let mut number = 1_000_000;
    let mut round = |history: &mut Vec<Vec<Truly>>| {
        for (n, history) in history.iter_mut().enumerate() {
            number += 1;
            let from = now();
            qemu.set(&object(n), PROPERTY, json!(number));
            if let Some(before) = history.last_mut() {
                before.until = now();
            }
            history.push(Truly {
                value: number,
                from,
                until: u64::MAX,
            });
        }
    };
    round(&mut history);
    let done = AtomicBool::new(false);
    scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                round(&mut history);
                std::thread::sleep(Duration::from_millis(5)); // the walk needs QEMU too
            }
        });
        let _done = Done(&done);
        work();
    });
    history
}

/// Ends the changes, also when the test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Every value read was true at some time from `WINDOW` before the read until its end.
#[track_caller]
fn judge(steps: &[Step], seen: &[Seen], history: &[Vec<Truly>], what: &str) {
    let mut judged = 0;
    for seen in seen {
        let Some(n) = subject(&steps[seen.step]) else {
            continue;
        };
        let value = seen.number();
        let truly = history[n].iter().find(|truly| truly.value == value);
        let truly = truly.unwrap_or_else(|| panic!("{what}: {value} was never a value of {}", object(n)));
        let late = (seen.start.saturating_sub(WINDOW)).saturating_sub(truly.until);
        assert!(late == 0, "{what}: {} was {late} ns too old", object(n));
        assert!(truly.from <= seen.end, "{what}: read before it was set");
        judged += 1;
    }
    assert!(judged >= OBJECTS, "{what}: judged only {judged} values");
}

each_qemu!(a_walk_reads_what_was_true_a_moment_ago, |which| {
    let (qemu, _) = start(which);
    let relay = Relay::start(qemu.dir(), &qemu.socket());
    let mount = Mount::start(relay.socket(), &OPTIONS);
    let steps = walk(&qemu, &mount);
    for round in 0..5 {
        let mut seen = Vec::new();
        let history = while_changing(&qemu, || seen = act(&steps));
        judge(&steps, &seen, &history, &format!("round {round}"));
    }
    // It was a walk to the mount, or this would prove nothing.
    match which {
        Which::Old => assert!(relay.overlapping().iter().any(are_of_one_object)),
        Which::New => assert!(relay.count("qom-list-get") > 3),
    }
});

/// Two values of the same object, each in a request of its own.
fn are_of_one_object(requests: &(String, String)) -> bool {
    let object = |request: &String| {
        let request: Value = serde_json::from_str(request).expect("a request in JSON");
        (request["execute"] == "qom-get").then(|| request["arguments"]["path"].clone())
    };
    let (first, second) = (object(&requests.0), object(&requests.1));
    first.is_some() && first == second
}

each_qemu!(a_slow_walk_reads_what_was_true_a_moment_ago, |which| {
    let (qemu, names) = start(which);
    let mount = Mount::start(&qemu.socket(), &OPTIONS);
    for millis in [15, 60, 95, 120] {
        let mut steps = walk_by_number(&mount, &names, Duration::from_millis(millis));
        steps.truncate(steps.len() / 3);
        let mut seen = Vec::new();
        let history = while_changing(&qemu, || seen = act(&steps));
        let mut judged = Vec::new();
        for seen in &seen {
            if let Some(n) = subject(&steps[seen.step]) {
                judged.push((n, seen));
            }
        }
        assert!(judged.len() >= OBJECTS / 3 - 1, "judged only {}", judged.len());
        for (n, seen) in judged {
            let truly = history[n].iter().find(|truly| truly.value == seen.number());
            let truly = truly.expect("one of the values set");
            assert!(
                seen.start.saturating_sub(WINDOW) <= truly.until,
                "{} was too old with pauses of {millis} ms",
                object(n)
            );
        }
    }
});

#[test]
fn a_walk_that_pauses_between_objects_reads_what_was_true_a_moment_ago() {
    let (qemu, _) = start(Which::New);
    let relay = Relay::start(qemu.dir(), &qemu.socket());
    let mount = Mount::start(relay.socket(), &OPTIONS);
    // Several objects come in one reply while the walk is fast; it stops in the middle of them.
    for millis in [50, 90, 99, 110] {
        let mut steps = Vec::new();
        let mut objects = 0;
        for step in walk(&qemu, &mount) {
            let is_object = matches!(step.call, Call::List);
            objects += usize::from(is_object);
            if is_object && objects > 4 && objects % 3 == 0 {
                steps.push(Step::pause(Duration::from_millis(millis)));
            }
            steps.push(step);
        }
        let mut seen = Vec::new();
        let history = while_changing(&qemu, || seen = act(&steps));
        judge(&steps, &seen, &history, &format!("pauses of {millis} ms"));
    }
    let several = |request: &String| request.contains("qom-list-get") && request.contains("\",\"/objects/t");
    assert!(
        relay.requests().iter().any(several),
        "no two objects in one request"
    );
}

each_qemu!(nobody_reads_an_older_value_after_a_write, |which| {
    let (qemu, names) = start(which);
    let mount = Mount::start(&qemu.socket(), &OPTIONS);
    // One process reads an object in order and writes what comes next, which was asked for ahead.
    let mut steps = Vec::new();
    let mut expected = Vec::new();
    for round in 1..=5 {
        for n in 0..OBJECTS {
            let folder = mount.join(&object(n));
            steps.push(Step::new(&folder, Call::List));
            for name in &names {
                let path = folder.join(name);
                if name == PROPERTY {
                    let number = round * 1000 + n as u64;
                    steps.push(Step::new(&path, Call::Write).data(format!("{number}\n").into_bytes()));
                    expected.push((steps.len(), number));
                }
                steps.push(Step::new(&path, Call::Read));
            }
        }
    }
    let seen = act(&steps);
    for (step, number) in expected {
        let read = seen
            .iter()
            .find(|seen| seen.step == step)
            .expect("the read after a write");
        assert_eq!(read.number(), number, "what was read after it was written");
    }
});

each_qemu!(nobody_reads_an_older_value_after_another_ones_write, |which| {
    let (qemu, _) = start(which);
    let mount = Mount::start(&qemu.socket(), &OPTIONS);
    let mut writes = Vec::new();
    for number in 0..300 {
        let path = mount.join(&object(number % OBJECTS)).join(PROPERTY);
        let data = (number + 1_000_000).to_string().into_bytes();
        writes.push(Step::new(&path, Call::Write).data(data));
        writes.push(Step::pause(Duration::from_millis(2)));
    }
    let reads = walk(&qemu, &mount);
    let (mut written, mut seen) = (Vec::new(), Vec::new());
    let done = AtomicBool::new(false);
    scope(|scope| {
        let writer = scope.spawn(|| {
            let _done = Done(&done);
            act(&writes)
        });
        while !done.load(Ordering::SeqCst) {
            seen.extend(act(&reads));
        }
        written = writer.join().expect("the writer");
    });
    let mut judged = 0;
    for seen in &seen {
        let Some(n) = subject(&reads[seen.step]) else {
            continue;
        };
        let before = written
            .iter()
            .rfind(|write| subject(&writes[write.step]) == Some(n) && write.end < seen.start);
        if let Some(before) = before {
            let number = before.step as u64 / 2 + 1_000_000;
            assert!(
                seen.number() >= number,
                "{} was {} after {number} was written",
                object(n),
                seen.number()
            );
            judged += 1;
        }
    }
    assert!(judged > 2 * OBJECTS, "judged only {judged} reads");
});

each_qemu!(
    single_reads_by_different_processes_are_the_present_answer,
    |which| {
        let (qemu, _) = start(which);
        let relay = Relay::start(qemu.dir(), &qemu.socket());
        let mount = Mount::start(relay.socket(), &OPTIONS);
        let folder = mount.join(&object(3));
        sh_in(&folder, "ls >/dev/null").ok();
        relay.reset();
        let properties = [PROPERTY, "poll-grow", "poll-shrink"];
        let mut number = 0;
        for _ in 0..10 {
            for property in properties {
                number += 1;
                qemu.set(&object(3), property, json!(number));
                let out = sh(&format!("cat {}", quote(folder.join(property))));
                assert_eq!(out.ok().text(), number.to_string(), "{property}");
            }
        }
        assert_eq!(relay.count("qom-get"), 30);
        assert_eq!(relay.count("qom-list-get"), 0);

        // The same in one shell, which starts a process for each.
        qemu.set(&object(3), PROPERTY, json!(4711));
        let names = properties.join(" ");
        let out = sh_in(
            &folder,
            &format!("for i in 1 2 3; do for p in {names}; do cat $p; done; done"),
        );
        let of_one_round = out.ok().lines()[..3].to_vec();
        assert_eq!(out.lines(), of_one_round.repeat(3));
        assert_eq!(of_one_round[0], "4711");
        assert_eq!(relay.count("qom-get"), 39);
        assert_eq!(relay.count("qom-list-get"), 0);
    }
);
