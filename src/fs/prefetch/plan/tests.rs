use super::*;
use crate::fs::dir::listing::{Entries, Listing};
use crate::qom::Property;
use std::time::Instant;

/// Values in lower case, children in upper case.
fn names(path: &str) -> String {
    match path {
        "/" => "a b A B C D E".to_owned(),
        "/A" => "K L".to_owned(),
        "/B" => (0..80).map(|n| format!("v{n} ")).collect(),
        _ => "x y z".to_owned(),
    }
}

fn listing(path: &str) -> Arc<Listing> {
    let declared = |name: &str| match name.starts_with(char::is_uppercase) {
        true => "child<x>",
        false => "int",
    };
    let names = names(path);
    let properties = names.split_whitespace().map(|name| Property {
        name: name.into(),
        declared: declared(name).into(),
    });
    Arc::new(Listing::new(properties.collect(), &Entries::default(), |_| 2))
}

/// A walk: objects that are listed end in a slash, the others are properties that are read.
fn walk(steps: &str) -> Walk {
    let mut walk = Walk::new(Instant::now());
    for step in steps.split_whitespace() {
        let (object, name) = step.rsplit_once('/').expect("a path");
        let object = Path::parse(if object.is_empty() { "/" } else { object }).expect("an object");
        let listing = listing(object.as_str());
        if name.is_empty() {
            let file = object.names().last().unwrap_or_default();
            walk.listed(&object, file, &listing);
        } else {
            let (_, entry) = listing.find(name).expect("a property");
            walk.opened(&object, entry);
        }
    }
    walk
}

fn show(what: &What) -> String {
    match what {
        What::Listing(path) => format!("{path}/"),
        What::Objects(paths) => paths.iter().map(|path| format!("+{path}")).collect(),
        What::Value(path, name) => format!("{}/{name}", path.as_str().trim_end_matches('/')),
    }
}

const OLD: Features = Features {
    list_get: false,
    one_at_a_time: false,
};
const NEW: Features = Features {
    list_get: true,
    one_at_a_time: false,
};

fn planned<T>(
    steps: &str,
    (window, have): (usize, &str),
    features: Features,
    plan: impl FnOnce(&Planner<'_>) -> T,
) -> T {
    let have = |path: &Path, _| have.split_whitespace().any(|known| known == path.as_str());
    plan(&Planner {
        walk: &walk(steps),
        window,
        features,
        have: &have,
    })
}

#[test]
fn what_is_asked_ahead() {
    let all = "/ /a /b";
    let near_end: String = (0..16).map(|n| format!(" /B/v{n}")).collect();
    // A walk, the window and what is known; what is asked ahead of it on an old QEMU, and on a new one.
    for (steps, (window, have), old, new) in [
        ("/", (8, ""), "", ""),
        ("/ /A/", (8, ""), "", ""),
        ("/ /A/ /A/", (8, ""), "", ""),
        ("/ /A/ /A/K/", (8, ""), "", ""),
        // Who lists the second child goes on.
        ("/ /C/ /D/", (8, ""), "/E/", "/E/"),
        ("/ /A/ /A/K/ /A/L/", (8, ""), "/B/ /C/", "/B/ /C/"),
        ("/ /A/ /A/K/ /A/L/", (8, "/B"), "/C/", "/C/"),
        ("/ /A/ /B/", (8, ""), "/C/ /D/ /E/", "/C/ /D/ /E/"),
        ("/ /A/ /B/", (8, "/C /D /E"), "", ""),
        // An object without values makes no reader.
        ("/A/ /A/K/ /A/L/", (8, ""), "", ""),
        // By another order, what comes next cannot be told until it is by this one again.
        ("/ /D/ /C/", (8, ""), "", ""),
        ("/ /D/ /C/ /D/", (8, ""), "/E/", "/E/"),
        // One property again and again is no walk, nor are the first two in another order.
        ("/ /a", (8, ""), "", ""),
        ("/ /a /a /a", (8, ""), "", ""),
        ("/C/ /C/z /C/y", (8, ""), "", ""),
        ("/C/ /C/x /C/y", (8, ""), "/C/z", ""),
        // All values of one object were read, so those of the next one will be.
        ("/ /a /b /A/", (8, ""), "", "+/A/K+/A/L"),
        ("/ /a /b /C/", (8, ""), "/C/x", ""),
        ("/ /a /b /A/ /A/K/", (8, ""), "/A/K/x", "+/A/L"),
        ("/ /a /b /A/ /A/K/ /A/K/x", (8, ""), "/A/K/y", ""),
        ("/ /a /b /A/ /A/K/ /A/K/x /A/K/y /A/K/z", (8, ""), "/A/L/", ""),
        // It did not read this one.
        ("/ /a /b /A/ /A/K/ /A/L/", (8, ""), "/B/ /C/", "/B/ /C/"),
        // The next ones are asked for when few are left of those before.
        ("/ /a /b /A/", (1, ""), "", "+/A/K"),
        ("/ /a /b /A/", (8, "/A/K"), "", "+/A/L"),
        ("/ /a /b /A/", (1, "/A/K"), "", ""),
        ("/ /a /b /A/", (2, "/A/K"), "", ""),
        // Behind many values not yet, but when as many as that are left.
        ("/ /a /b /A/ /B/", (8, ""), "/B/v0", ""),
    ] {
        let ahead = |features| {
            let what = planned(steps, (window, have), features, |planner| planner.ahead());
            what.iter().map(show).collect::<Vec<_>>().join(" ")
        };
        let case = format!("{steps}, {window}, {have:?}");
        assert_eq!((&*ahead(OLD), &*ahead(NEW)), (old, new), "{case}");
        for features in [OLD, NEW] {
            let one_at_a_time = true;
            let features = Features {
                one_at_a_time,
                ..features
            };
            assert_eq!(ahead(features), "", "{case}: nothing that nobody waits for");
        }
    }
    let steps = format!("{all} /A/ /B/{near_end}");
    let what = planned(&steps, (2, ""), NEW, |planner| planner.ahead());
    assert_eq!(what.iter().map(show).collect::<String>(), "+/C+/D");
}

#[test]
fn what_is_needed_now() {
    for (steps, path, have, new) in [
        ("/", "/A", "", "/A/"),
        ("/ /a", "/A", "", "/A/"),
        ("/ /a /b", "/A", "", "+/A+/B+/C+/D"),
        ("/ /a /b", "/A", "/B /D", "+/A+/C"),
        ("/ /a /b", "/C", "", "+/C"),
    ] {
        let path = Path::parse(path).unwrap();
        let listing = |features| {
            planned(steps, (4, have), features, |planner| {
                show(&planner.listing(&path))
            })
        };
        assert_eq!(listing(NEW), new, "{steps}");
        assert_eq!(listing(OLD), format!("{path}/"), "{steps}");
    }
    for (steps, useless, new) in [
        ("/ /a", false, "/a"),
        ("/ /a /a", false, "/a"),
        ("/ /a /b", false, "+/"),
        ("/ /a /b", true, "/b"),
        ("/ /b /a", false, "+/"),
        ("/C/x /D/x", false, "/D/x"),
    ] {
        let (object, name) = steps.rsplit_once('/').unwrap();
        let object = object.rsplit_once(' ').map_or(object, |(_, object)| object);
        let path = Path::parse(if object.is_empty() { "/" } else { object }).unwrap();
        let value = |features| {
            planned(steps, (4, ""), features, |planner| {
                show(&planner.value(&path, &name.into(), useless))
            })
        };
        assert_eq!(value(NEW), new, "{steps}");
        assert_eq!(value(OLD), format!("{object}/{name}"), "{steps}");
    }
}
