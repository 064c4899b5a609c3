//! What was asked of QEMU ahead, or for many objects at once, fails at times: each reader still gets its due.

use std::time::Duration;

use harness::*;
use serde_json::{Value, json};

fn orchard() -> ScriptedTree {
    let tree = ScriptedTree::new();
    for object in ["/a", "/b", "/c", "/d", "/e"] {
        tree.object(object);
        for (name, value) in [("x", 1), ("y", 2), ("z", 3)] {
            tree.prop(object, name, "int", json!(value));
        }
    }
    tree
}

/// What `grep -r .` prints of the objects given, sorted.
fn lines(objects: &[&str]) -> Vec<String> {
    let of_object =
        |object: &&str| ["type:container", "x:1", "y:2", "z:3"].map(|line| format!("{object}/{line}"));
    let mut lines: Vec<_> = objects.iter().flat_map(of_object).collect();
    lines.push("type:container".to_owned());
    lines.sort();
    lines
}

/// The paths of each `qom-list-get`.
fn batches(server: &Scripted) -> Vec<Vec<String>> {
    let requests = server.requests();
    let batches = requests.iter().filter(|(command, _)| command == "qom-list-get");
    let paths = |args: &Value| serde_json::from_value(args["paths"].clone()).expect("paths");
    batches.map(|(_, args)| paths(args)).collect()
}

#[test]
fn a_missing_command_is_remembered() {
    let server = Scripted::start_as(GREETING_NEW, orchard().with_list_get(false).handler());
    let mount = Mount::start(server.socket(), &["-o", "entry_timeout=60"]);
    let mut tried = 0;
    for run in 1..=3 {
        let out = sh_in(mount.path(), "grep -r . | sort");
        let mut printed = out.ok().lines();
        printed.sort_unstable();
        assert_eq!(printed, lines(&["a", "b", "c", "d", "e"]), "run {run}");
        if run == 1 {
            tried = server.count("qom-list-get");
            assert!((1..=2).contains(&tried), "tried {tried} times");
        }
    }
    assert_eq!(server.count("qom-list-get"), tried, "tried again");
}

/// Whether objects were asked for together, and one of them other than `gone` alone after that.
fn asked_alone_after_all(batches: &[Vec<String>], gone: &str) -> bool {
    let together = batches.iter().filter(|paths| paths.len() > 1).flatten();
    together
        .filter(|path| *path != gone)
        .any(|path| batches.contains(&vec![path.clone()]))
}

/// How often a walk is tried that should be fast enough to ask for several objects at once.
const TRIES: usize = 5;

#[test]
fn an_object_that_vanishes_during_a_walk_harms_no_other() {
    for list_get in [false, true] {
        let tree = orchard().with_list_get(list_get);
        // Still listed, but gone.
        tree.remove("/c").prop("/", "c", "child<container>", json!("/c"));
        let mut shown = false;
        for _ in 0..TRIES {
            let (server, mount) = tree.mounted(&[]);
            let out = sh_in(mount.path(), "grep -r . | sort");
            let mut printed = out.lines();
            printed.sort_unstable();
            assert_eq!(printed, lines(&["a", "b", "d", "e"]), "{out}");
            // As a folder is taken that somebody else removed meanwhile.
            assert_eq!(out.stderr, "", "{out}");
            // Nobody's values were asked for one by one because of it.
            shown |= asked_alone_after_all(&batches(&server), "/c") && server.count("qom-get") <= 1;
            if shown {
                break;
            }
        }
        assert_eq!(shown, list_get, "asked for several, and then for each alone");
    }
}

#[test]
fn values_too_large_to_be_held_for_many_are_exact_all_the_same() {
    // Together more than is kept of a reply, and more than is taken of one that was asked for ahead.
    for bytes in [300_000, 600_000] {
        let tree = orchard().with_list_get(true);
        // Not the first: the walk is fast until it asks for the others together.
        for object in ["/b", "/c", "/d", "/e"] {
            tree.prop(object, "large", "string", json!(object.repeat(bytes / 2)));
        }
        let shown = (0..TRIES).any(|_| {
            let (server, mount) = tree.mounted(&[]);
            let out = sh_in(mount.path(), "grep -rh . | tr -d '\\n' | wc -c");
            let small = "123".len() + "container".len();
            let expected = 5 * small + 4 * bytes + "container".len();
            assert_eq!(out.ok().text(), expected.to_string(), "{bytes}");
            asked_alone_after_all(&batches(&server), "")
        });
        assert!(shown, "{bytes}: never asked for several, and then for each alone");
    }
}

/// On an old QEMU, where each value is asked for alone.
#[test]
fn a_refusal_that_came_ahead_grows_old_as_a_value_does() {
    let tree = orchard();
    tree.hook_once(
        "qom-get",
        "/a",
        "y",
        Action::error("GenericError", "No crash occurred"),
    );
    let (server, mount) = tree.mounted(&[]);
    let step = |path: &str, action| Step::new(&mount.join(path), action);
    let seen = act(&[
        step("a", Call::List),
        step("a/type", Call::Read),
        step("a/x", Call::Read),
        Step::pause(Duration::from_millis(300)),
        step("a/y", Call::Read),
    ]);
    assert_eq!(seen.last().expect("what was read").number(), 2);
    let asked = |(command, args): &(String, Value)| command == "qom-get" && args["property"] == "y";
    let asked = server.requests().iter().filter(|request| asked(request)).count();
    assert_eq!(asked, 2, "once ahead, in vain, and once when it was read");
}

/// What takes longer than a value may be old is asked for one by one, and not all of it again for each.
#[test]
fn an_object_that_takes_long_is_not_asked_for_again_and_again() {
    let tree = ScriptedTree::new().with_list_get(true).object("/a");
    for n in 0..50 {
        tree.prop("/a", &format!("v{n}"), "int", json!(n));
    }
    let mut answer = tree.handler();
    let server = Scripted::start_as(GREETING_NEW, move |command, args| match command {
        "qom-list-get" => Action::Delay(Duration::from_millis(150), Box::new(answer(command, args))),
        _ => answer(command, args),
    });
    let mount = Mount::start(server.socket(), &[]);
    let read = |n| Step::new(&mount.join(&format!("a/v{n}")), Call::Read);
    let mut steps = vec![Step::new(&mount.join("a"), Call::List)];
    steps.extend((0..50).map(read));
    let seen: Vec<u64> = act(&steps).iter().map(Seen::number).collect();
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
    assert_eq!(server.count("qom-list-get"), 1);
    assert_eq!(server.count("qom-get"), 49);
}
