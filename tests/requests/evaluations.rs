//! Whatever is asked of QEMU ahead of time, each evaluation of a value serves one read at most, and that only while the
//! value is as fresh as docs/semantics.md promises. The servers here tell with each value which evaluation it is of.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::scope;
use std::time::Duration;

use harness::*;
use serde_json::{Value, json};

/// A server of some objects `o0`, `o1`, … in its root, with the properties `p0` to `p5`, each of them a number that
/// `evaluate` tells whenever it is asked for.
fn evaluating(greeting: &str, objects: usize, evaluate: impl Fn() -> u64 + Send + 'static) -> Scripted {
    let objects: Vec<String> = (0..objects).map(|n| format!("o{n}")).collect();
    let properties = move |path: &str, with_values: bool| -> Vec<Value> {
        if path == "/" {
            let child = |name: &String| json!({ "name": name, "type": "child<x>" });
            return objects.iter().map(child).collect();
        }
        let mut properties: Vec<Value> = (0..6)
            .map(|n| json!({ "name": format!("p{n}"), "type": "int" }))
            .collect();
        if with_values {
            for property in &mut properties {
                property["value"] = json!(evaluate());
            }
        }
        properties
    };
    Scripted::start_as(greeting, move |command, args| {
        let path = args["path"].as_str().unwrap_or_default();
        Action::Return(match command {
            "qom-list" => json!(properties(path, false)),
            "qom-get" => properties("/x", true)[0]["value"].clone(),
            "qom-list-get" => {
                let paths = args["paths"].as_array().into_iter().flatten();
                let object = |path: &Value| json!({ "properties": properties(path.as_str().unwrap_or_default(), true) });
                paths.map(object).collect()
            }
            _ => json!({}),
        })
    })
}

#[test]
fn no_value_is_served_twice() {
    for greeting in [GREETING, GREETING_NEW] {
        let evaluated = AtomicU64::new(0);
        let server = evaluating(greeting, 6, move || evaluated.fetch_add(1, Ordering::SeqCst));
        let mount = Mount::start(server.socket(), &["-o", "timeout=60"]);
        let mut steps = Vec::new();
        for round in 0..4 {
            steps.push(Step::new(mount.path(), Call::List));
            for n in 0..6 {
                let folder = mount.join(&format!("o{n}"));
                steps.push(Step::new(&folder, Call::List));
                let read = |p: usize| Step::new(&folder.join(format!("p{p}")), Call::Read);
                let order: &[usize] = [
                    &[0, 1, 2, 3, 4, 5],
                    &[0, 1, 1, 2, 1, 3],
                    &[5, 4, 5, 4, 0, 0],
                    &[0, 1, 2, 3, 4, 5],
                ][round];
                steps.extend(order.iter().map(|p| read(*p)));
            }
        }
        let walks: Vec<Vec<Seen>> = scope(|scope| {
            let walks: Vec<_> = (0..3).map(|_| scope.spawn(|| act(&steps))).collect();
            walks
                .into_iter()
                .map(|walk| walk.join().expect("a walk"))
                .collect()
        });
        let mut met = HashSet::new();
        for seen in walks.iter().flatten() {
            let number = seen.number();
            assert!(met.insert(number), "{number} was served twice by {greeting}");
        }
        assert_eq!(met.len(), 3 * 4 * 36);
        assert_eq!(server.count("qom-list-get") > 0, greeting == GREETING_NEW);
    }
}

/// How old a value may be when it is read, in nanoseconds.
const WINDOW: u64 = 100_000_000;
const OBJECTS: usize = 24;

/// A walk in the order of the listing that is now fast and now slow. In each object one pause or two are long; their
/// lengths are spread over 0 to 130 ms, and around what is allowed.
fn walk_with_pauses(mount: &Mount) -> Vec<Step> {
    let pause = |millis: usize| Step::pause(Duration::from_millis(millis as u64));
    let mut steps = vec![Step::new(mount.path(), Call::List)];
    for n in 0..OBJECTS {
        let folder = mount.join(&format!("o{n}"));
        steps.push(Step::new(&folder, Call::List));
        for p in 0..6 {
            let number = n * 6 + p;
            steps.push(match (n % 4, p) {
                (1, 2) => pause(100 + number % 31),
                (2, _) => pause(number * 37 % 51),
                (3, _) => pause(number * 47 % 131),
                _ => pause(0),
            });
            steps.push(Step::new(&folder.join(format!("p{p}")), Call::Read));
        }
    }
    steps
}

/// What was asked for ahead, or nothing would be proven: `ages` of what was read, and several objects in one request.
fn is_ahead(server: &Scripted, ages: &[u64]) -> bool {
    let several = |(command, args): &(String, Value)| {
        command == "qom-list-get" && args["paths"].as_array().is_some_and(|paths| paths.len() > 1)
    };
    let ahead = ages.iter().filter(|age| **age > 0).count();
    let old = ages.iter().filter(|age| **age > WINDOW / 2).count();
    let together = server.requests().iter().any(several) || server.count("qom-list-get") == 0;
    ahead > ages.len() / 4 && old > 5 && together
}

#[test]
fn no_value_is_older_than_promised() {
    for greeting in [GREETING, GREETING_NEW] {
        // More than one walk only where the machine holds one up.
        let ahead = (0..3).any(|_| {
            // The value is when it was true, by the clock that the walk goes by too: nothing is left to guess.
            let server = evaluating(greeting, OBJECTS, now);
            let mount = Mount::start(server.socket(), &["-o", "entry_timeout=60,timeout=60"]);
            let seen = act(&walk_with_pauses(&mount));
            let ages = seen.iter().map(|seen| seen.start.saturating_sub(seen.number()));
            let ages: Vec<u64> = ages.collect();
            assert_eq!(ages.len(), OBJECTS * 6);
            let oldest = ages.iter().max().copied().unwrap_or_default();
            assert!(oldest <= WINDOW, "{oldest} ns old, from {greeting}");
            assert_eq!(server.count("qom-list-get") > 0, greeting == GREETING_NEW);
            is_ahead(&server, &ages)
        });
        assert!(ahead, "hardly anything was asked for ahead of {greeting}");
    }
}
