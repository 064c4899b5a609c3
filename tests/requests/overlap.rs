//! What is asked for before the kernel asks, seen on the socket: requests that are sent while others have no reply yet.
//!
//! QEMU is made slow where that must show, so that no request is too late for it by chance.

use std::collections::BTreeSet;
use std::time::Duration;

use harness::rig::{Asked, get, list, values};
use harness::*;

each_qemu!(without_readahead_each_request_waits_for_the_one_before, |which| {
    let rig = Rig::new(which, &[], &["-o", "no_readahead"]);
    rig.relay.reset();
    sh(&format!(
        "find {0} >/dev/null; grep -rs . {0}/machine/q35 >&2",
        rig.at("")
    ));
    let asked = rig.asked();
    let mut commands: Vec<_> = asked.iter().map(|asked| &*asked.command).collect();
    commands.sort_unstable();
    commands.dedup();
    assert_eq!(commands, ["qom-get", "qom-list"]);
    assert_eq!(rig.relay.most_in_flight(), 1);
    let gets = asked.iter().filter(|asked| asked.command == "qom-get").count();
    let objects = rig.qemu.truth().walk();
    let below = objects
        .iter()
        .filter(|object| object.path == "/machine/q35" || object.path.starts_with("/machine/q35/"));
    assert_eq!(gets, below.map(|object| values(object).count()).sum::<usize>());
    assert_eq!(asked.len() - gets, objects.len());
});

each_qemu!(find_asks_for_the_next_listings_before_this_one_came, |which| {
    for (option, ahead) in [("no_readahead", false), ("rw", true)] {
        let rig = Rig::new(which, &[], &["-o", option]);
        rig.relay.set_reply_delay(Duration::from_millis(3));
        sh(&format!("find {} >/dev/null", rig.at(""))).ok();
        let most = rig.relay.most_in_flight();
        assert_eq!((2..=5).contains(&most), ahead, "{option}: {most} at once");
        let early: BTreeSet<_> = rig.overlapping().into_iter().map(|(_, second)| second).collect();
        let objects: BTreeSet<_> = rig.qemu.truth().walk().iter().map(|o| list(&o.path)).collect();
        assert!(early.is_subset(&objects), "{option}: {early:?}");
        // Not all: of two that follow each other the second may be sent just after the first one's reply.
        let (early, all) = (early.len(), objects.len());
        assert_eq!(early > all / 4, ahead, "{option}: {early} of {all}");
    }
});

#[test]
fn the_next_value_is_asked_for_before_this_one_came() {
    let threads: Vec<String> = (0..4).map(|n| format!("iothread,id=t{n}")).collect();
    let machine: Vec<&str> = threads.iter().flat_map(|thread| ["-object", thread]).collect();
    let mut late = Vec::new();
    // More than one walk only where the machine holds one up.
    for _ in 0..3 {
        let rig = Rig::new(Which::Old, &machine, &[]);
        rig.relay.set_reply_delay(Duration::from_millis(10));
        sh(&format!("grep -rs . {} >&2", rig.at("objects"))).ok();
        let pairs: BTreeSet<_> = rig.overlapping().into_iter().collect();
        let mut in_order = BTreeSet::new();
        for object in rig.qemu.truth().walk() {
            let names: Vec<&str> = values(&object).collect();
            let of_object = |name: &&str| get(&object.path, name);
            let gets: Vec<Asked> = names.iter().map(of_object).collect();
            in_order.extend(gets.windows(2).map(|pair| (pair[0].clone(), pair[1].clone())));
        }
        // Never more than one is ahead, and never another than the next.
        let of_one = |(first, second): &&(Asked, Asked)| {
            first.command == "qom-get" && second.command == "qom-get" && first.paths == second.paths
        };
        let ahead: BTreeSet<_> = pairs.iter().filter(of_one).cloned().collect();
        let wrong: Vec<_> = ahead.difference(&in_order).collect();
        assert!(wrong.is_empty(), "{wrong:?}");

        let expected = in_order
            .into_iter()
            .filter(|(first, _)| first.paths[0].starts_with("/objects/t"));
        let expected: Vec<_> = expected.collect();
        assert!(expected.len() >= 4 * 3, "{expected:?}");
        late = expected
            .into_iter()
            .filter(|pair| !ahead.contains(pair))
            .collect();
        if late.is_empty() {
            break;
        }
    }
    assert!(late.is_empty(), "only after the reply: {late:?}");
}
