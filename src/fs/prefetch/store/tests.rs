use super::*;

const A_MOMENT: Duration = Duration::from_millis(1);
const PROCESS: Process = 7;

fn object(n: usize) -> Path {
    Path::root().child(&format!("o{n}")).unwrap()
}

/// Objects with two hundred values each, as they came of one request that was sent then.
fn keep(store: &mut Store, sent: Stamp, objects: std::ops::Range<usize>) {
    let valued = |n: usize| Valued {
        property: Property {
            name: format!("v{n}").into(),
            declared: "int".into(),
        },
        text: Some(Ok(n.to_string())),
    };
    let objects = objects.map(|n| (object(n), (0..200).map(valued).collect()));
    let (process, path, began) = (PROCESS, &Path::root(), sent);
    let access = Access { process, path, began };
    store.keep(access, sent, objects.collect());
}

/// A store in which objects came at a time from which on all is counted.
fn store(objects: std::ops::Range<usize>) -> (Store, Stamp) {
    let mut store = Store::new(Duration::from_secs(1));
    let (at, generation) = (Instant::now() + 60 * GIVE_UP, 1);
    let sent = Stamp { at, generation };
    reader(&mut store, PROCESS, sent);
    keep(&mut store, sent, objects);
    (store, sent)
}

fn later(stamp: Stamp, by: Duration) -> Stamp {
    let at = stamp.at + by;
    Stamp { at, ..stamp }
}

/// The process that does something then.
fn reader(store: &mut Store, process: Process, began: Stamp) -> &mut Reader {
    let path = &Path::root();
    store.reader(Access { process, path, began })
}

fn take(reader: &mut Reader, n: usize, name: &str, began: Stamp) -> Option<String> {
    let (process, path) = (PROCESS, &object(n));
    let access = Access { process, path, began };
    reader.take_value(access, name)?.ok()
}

#[test]
fn a_value_serves_one_open_that_begins_in_time() {
    let (mut store, sent) = store(0..2);
    let walker = reader(&mut store, PROCESS, sent);
    let changed = Stamp {
        generation: 2,
        ..sent
    };
    assert_eq!(take(walker, 0, "v1", changed), None, "not past a write");
    assert_eq!(take(walker, 1, "v1", sent), Some("1".into()));
    assert_eq!(take(walker, 1, "v1", sent), None, "once only");
    assert_eq!(take(walker, 1, "v2", later(sent, WINDOW)), Some("2".into()));
    assert_eq!(take(walker, 1, "v3", later(sent, WINDOW + A_MOMENT)), None);
    let other = reader(&mut store, 8, sent);
    assert_eq!(
        take(other, 1, "v4", sent),
        None,
        "for the process that it was asked for"
    );
}

#[test]
fn as_many_at_once_as_are_read_in_time() {
    let (mut store, sent) = store(0..8);
    let walker = reader(&mut store, PROCESS, sent);
    let top = ["o0", "o1"].map(|name| Property {
        name: name.into(),
        declared: "child<x>".into(),
    });
    let top = Arc::new(Listing::new(top.into(), &Default::default(), |_| 2));
    walker.walk.listed(&Path::root(), "", &top);
    assert_eq!(walker.walk.window(), MAX_WINDOW);
    let too_late = later(sent, WINDOW + A_MOMENT);
    assert!(take(walker, 1, "v1", later(sent, WINDOW)).is_some());
    assert!(take(walker, 2, "v1", too_late).is_none());
    assert_eq!(walker.walk.window(), 2);
    // Half of the time was enough for the last one, or not.
    let again = later(sent, WINDOW);
    let leaf = Arc::new(Listing::new(Vec::new(), &Default::default(), |_| 2));
    keep(&mut store, again, 8..10);
    let walker = reader(&mut store, PROCESS, sent);
    for (n, took, window) in [
        (9, WINDOW / 2 + A_MOMENT, 2),
        (8, A_MOMENT, 2),
        (9, WINDOW / 2, 4),
    ] {
        walker.walk.listed(&object(n), "", &leaf);
        walker.widen(later(again, took));
        assert_eq!(
            walker.walk.window_of(&object(n)).copied(),
            Some(window),
            "{n}, {took:?}"
        );
    }
}

#[test]
fn what_comes_too_late_is_not_asked_for_again() {
    for (reads, useless) in [(0, true), (11, true), (12, false)] {
        let (mut store, sent) = store(0..1);
        let walker = reader(&mut store, PROCESS, sent);
        assert!(take(walker, 0, "v0", sent).is_some(), "by the open that asked");
        for n in 0..reads {
            let name = format!("v{}", n + 1);
            assert!(take(walker, 0, &name, later(sent, A_MOMENT)).is_some());
        }
        for (began, useless) in [(sent, true), (later(sent, WINDOW + A_MOMENT), useless)] {
            let (process, path) = (PROCESS, &object(0));
            let access = Access { process, path, began };
            assert!(take(walker, 0, "v0", began).is_none());
            assert_eq!(walker.is_useless(access), useless, "{reads}");
        }
    }
}

#[test]
fn what_is_held_is_bounded() {
    let (mut store, sent) = store(0..0);
    for process in 1..1000 {
        reader(&mut store, process, sent);
    }
    assert_eq!(store.readers.len(), MAX_READERS);
    reader(&mut store, PROCESS, sent);
    for n in 0..100 {
        keep(&mut store, sent, n * 8..n * 8 + 8);
    }
    let ready = store.readers.values().flat_map(|reader| reader.ready.values());
    let held: usize = ready.map(|snapshot| snapshot.bytes).sum();
    assert!(
        (VALUES_AHEAD_BYTES / 2..=VALUES_AHEAD_BYTES).contains(&held),
        "{held}"
    );
}

#[test]
fn a_pause_ends_a_walk() {
    let (mut store, sent) = store(0..0);
    let top = Arc::new(Listing::new(Vec::new(), &Default::default(), |_| 2));
    let walk = |store: &mut Store, then| reader(store, PROCESS, then).walk.present().is_some();
    reader(&mut store, PROCESS, sent)
        .walk
        .listed(&Path::root(), "", &top);
    let then = later(sent, WINDOW);
    assert!(walk(&mut store, then));
    assert!(!walk(&mut store, later(then, WINDOW + A_MOMENT)));
}
