//! What a new QEMU's reply has beside the values that are read: where the links lead, and how long the values are.

use std::collections::BTreeSet;

use harness::rig::{get, values};
use harness::*;
use serde_json::Value;

/// More than one walk only where the machine holds one up for longer than what was asked for ahead may be used.
const TRIES: usize = 3;

#[test]
fn tar_takes_the_links_from_the_replies_with_the_values() {
    let mut asked_for = Vec::new();
    let mut links = BTreeSet::new();
    for _ in 0..TRIES {
        let rig = Rig::new(Which::New, &[], &[]);
        let objects = rig.qemu.truth().walk();
        let all = objects.iter().flat_map(|object| {
            let links = object.props.iter().filter(|prop| prop.is_link());
            links.map(|prop| get(&object.path, &prop.name))
        });
        links = all.collect();
        // Not to /dev/null: tar would read no file then. Some files cannot be read.
        let tar = format!("tar --sort=none -cf - -C {} . | tar -tv", rig.at(""));
        let archived = sh(&tar)
            .lines()
            .iter()
            .filter(|line| line.starts_with('l'))
            .count();
        assert_eq!(archived, links.len(), "links in the archive");
        assert!(archived > 100, "{archived} links");
        let asked = rig.asked();
        let batches = asked.iter().filter(|asked| asked.command == "qom-list-get");
        let with_values: BTreeSet<_> = batches.flat_map(|asked| &asked.paths).collect();
        let mostly_read = with_values.len() * 10 > objects.len() * 9;
        asked_for = asked.into_iter().filter(|asked| links.contains(asked)).collect();
        if mostly_read && asked_for.len() * 20 <= links.len() {
            return;
        }
    }
    panic!(
        "asked for {} of {} links: {asked_for:?}",
        asked_for.len(),
        links.len()
    );
}

/// How a file shows a value of an iothread, all of which are simple.
fn length(value: &Value) -> u64 {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.len() as u64 + 1
}

each_qemu!(a_listing_for_a_reader_shows_how_long_the_values_are, |which| {
    let threads: Vec<String> = (0..4).map(|n| format!("iothread,id=t{n}")).collect();
    let machine: Vec<&str> = threads.iter().flat_map(|thread| ["-object", thread]).collect();
    let mut wrong = Vec::new();
    for _ in 0..TRIES {
        let rig = Rig::new(which, &machine, &[]);
        let truth = rig.qemu.truth();
        let step = |path: &str, doing| Step::new(&rig.mount.join(path), doing);
        // It reads what it lists: /objects, and each child in the order of the listing.
        let mut steps = vec![step("/objects", Call::List), step("/objects/type", Call::Read)];
        let mut expected = Vec::new();
        let listed = truth.walk();
        for object in listed
            .iter()
            .filter(|object| object.path.starts_with("/objects/t"))
        {
            let files = || values(object).map(|name| format!("{}/{name}", object.path));
            steps.push(step(&object.path, Call::List));
            for (path, name) in files().zip(values(object)) {
                let value = truth.get(&object.path, name).expect("a value");
                let size = if which == Which::New { length(&value) } else { 4096 };
                expected.push((steps.len(), size));
                steps.push(step(&path, Call::Stat));
            }
            steps.extend(files().map(|path| step(&path, Call::Read)));
        }
        assert!(expected.len() >= 4 * 3, "{} files", expected.len());
        let seen = act(&steps);
        let size = |number| {
            let seen = seen.iter().find(|seen| seen.step == number)?;
            Some(seen.stat.st_size as u64)
        };
        wrong = expected
            .into_iter()
            .filter(|(number, expected)| size(*number) != Some(*expected))
            .map(|(number, expected)| (steps[number].path.clone(), size(number), expected))
            .collect();
        if wrong.is_empty() {
            break;
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
});
