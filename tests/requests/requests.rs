//! What each kind of work asks of QEMU, counted on the socket: the speed of the mount without a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::sleep;
use std::time::Duration;

use harness::rig::{Asked, evaluations, get, list, values};
use harness::*;

/// How often a walk is tried: one that the machine holds up for too long must ask again for what was asked for ahead.
const TRIES: usize = 3;

each_qemu!(find_asks_for_each_listing_once_and_for_nothing_else, |which| {
    let cold = || {
        let rig = Rig::new(which, &[], &[]);
        sh(&format!("find {}", rig.at(""))).ok();
        let asked = rig.asked(); // since the mount began
        let listed: BTreeSet<_> = asked.iter().cloned().collect();
        let expected: BTreeSet<_> = rig.qemu.truth().walk().iter().map(|o| list(&o.path)).collect();
        assert_eq!(listed, expected);
        (asked.len() == expected.len()).then_some(rig)
    };
    let rig = (0..TRIES).find_map(|_| cold());
    let rig = rig.unwrap_or_else(|| panic!("asked again for some listings, each time"));
    let find = format!("find {}", rig.at(""));
    assert_eq!(rig.asked_by(&find), [], "find within entry_timeout");
    assert_eq!(
        rig.asked_by(&format!("{find} -size +1k -newermt 1970-01-01")),
        [],
        "with a stat each"
    );
});

#[test]
fn find_asks_again_when_its_listings_have_expired() {
    let rig = Rig::new(Which::Old, &[], &["-o", "entry_timeout=1"]);
    let find = format!("find {}", rig.at("objects"));
    sh(&find).ok();
    sleep(Duration::from_millis(1100));
    let asked = rig.asked_by(&find);
    assert!(asked.contains(&list("/objects")), "{asked:?}");
    assert_eq!(evaluations(&asked), [] as [&Asked; 0]);
}

each_qemu!(looking_around_evaluates_nothing, |which| {
    let rig = Rig::new(which, &[], &[]);
    for command in [
        "ls {}/machine",
        "ls -U {}/machine {}/machine/unattached/*",
        "stat {}/machine/type {}/machine/graphics {}/machine/smp",
        "du -a {}/machine/unattached",
        "test -e {}/machine/nothing -o -e {}/machine/type",
        "cd {}/machine && echo *",
    ] {
        let command = command.replace("{}", &rig.at(""));
        let asked = rig.asked_by(&command);
        assert_eq!(evaluations(&asked), [] as [&Asked; 0], "{command}");
    }
});

each_qemu!(a_long_listing_asks_only_where_its_links_lead, |which| {
    let rig = Rig::new(which, &[], &[]);
    let links: BTreeSet<_> = rig.qemu.truth().walk().into_iter().flat_map(links_of).collect();
    for folder in ["machine", "machine/q35", "machine/unattached"] {
        let asked = rig.asked_by(&format!("ls -l {}", rig.at(folder)));
        for asked in evaluations(&asked) {
            let is_link = links.contains(&(asked.paths[0].clone(), asked.property.clone()));
            assert!(is_link, "ls -l {folder} asked {asked:?}");
        }
    }
});

fn links_of(object: Object) -> Vec<(String, String)> {
    let links = object.props.into_iter().filter(|prop| prop.is_link());
    links.map(|prop| (object.path.clone(), prop.name)).collect()
}

each_qemu!(one_ls_asks_for_the_listings_on_its_way_and_none_ahead, |which| {
    let rig = Rig::new(which, &[], &[]);
    let (folder, sibling) = ("machine/unattached", "machine/q35");
    sh(&format!("ls {}", rig.at(folder))).ok();
    let way = [list("/"), list("/machine"), list("/machine/unattached")];
    assert_eq!(rig.asked(), way, "since the mount began");
    let again = format!("for i in 1 2 3 4 5; do ls {}; done", rig.at(folder));
    assert_eq!(rig.asked_by(&again), [], "{again}");
    let ls = format!("ls -U {}", rig.at(sibling));
    assert_eq!(rig.asked_by(&ls), [list("/machine/q35")], "{ls}");
});

each_qemu!(one_ls_again_and_again_is_no_walk, |which| {
    let rig = Rig::new(which, &[], &["-o", "entry_timeout=0.02"]);
    let folder = rig.at("machine/unattached");
    let list_once = |_| {
        let folder = rig.mount.join("machine/unattached");
        let pause = Step::pause(Duration::from_millis(30));
        [Step::new(&folder, Call::List), pause]
    };
    let in_one_process: Vec<Step> = (0..5).flat_map(list_once).collect();
    let of_many = format!("for i in 1 2 3 4 5; do ls {folder}; sleep 0.03; done");
    let inside = format!("cd {folder}; {of_many}");
    for work in [None, Some(&of_many), Some(&inside)] {
        sleep(PAUSE);
        rig.relay.reset();
        match work {
            Some(command) => _ = sh(command),
            None => _ = act(&in_one_process),
        }
        let asked = rig.asked();
        let listed = |path: &str| asked.iter().filter(|asked| **asked == list(path)).count();
        let itself = listed("/machine/unattached");
        assert_eq!(itself, 5, "{work:?}: {asked:?}");
        let way = itself + listed("/") + listed("/machine"); // which expire too
        assert_eq!(way, asked.len(), "{work:?}: {asked:?}");
    }
});

each_qemu!(one_cat_reads_one_value, |which| {
    let rig = Rig::new(which, &[], &[]);
    let file = rig.at("machine/type");
    sh(&format!("cat {file}")).ok();
    let way = [list("/"), list("/machine"), get("/machine", "type")];
    assert_eq!(rig.asked(), way, "since the mount began");
    assert_eq!(rig.asked_by(&format!("cat {file}")), [get("/machine", "type")]);

    // One process that reads the same again and again, and processes that follow each other.
    for command in [
        format!("cat {file} {file} {file} {file} {file}"),
        format!("for i in 1 2 3 4 5; do cat {file}; done"),
        format!("for i in 1 2 3 4 5; do read -r line < {file}; done"),
    ] {
        assert_eq!(
            rig.asked_by(&command),
            vec![get("/machine", "type"); 5],
            "{command}"
        );
    }
    // Different ones, each by a process of its own.
    let folder = rig.at("machine");
    let names = ["type", "graphics", "usb", "smp", "kernel"];
    let asked = rig.asked_by(&format!("for f in {}; do cat {folder}/$f; done", names.join(" ")));
    assert_eq!(asked, names.map(|name| get("/machine", name)));
});

/// The fewest requests of up to three walks, each by a mount of its own: one that the machine held up
/// for longer than the window for values asked ahead has to ask again, which is not what is tested here.
#[track_caller]
fn walk(which: Which, options: &[&str], enough: impl Fn(&[Asked], &[Object]) -> bool) -> (Vec<Asked>, Rig) {
    let mut best: Option<(Vec<Asked>, Rig)> = None;
    for _ in 0..TRIES {
        let rig = Rig::new(which, &[], options);
        sh(&format!("grep -rs . {} >&2", rig.at(""))).fails(); // some properties cannot be read
        let asked = rig.asked();
        let done = enough(&asked, &rig.qemu.truth().walk());
        if best.as_ref().is_none_or(|(fewest, _)| asked.len() < fewest.len()) {
            best = Some((asked, rig));
        }
        if done {
            break;
        }
    }
    best.expect("a walk")
}

fn least(objects: &[Object]) -> usize {
    objects.iter().map(|object| 1 + values(object).count()).sum()
}

#[test]
fn grep_on_an_old_qemu_asks_hardly_more_than_it_must() {
    let within = |asked: &[Asked], objects: &[Object]| asked.len() * 100 <= least(objects) * 102;
    let (asked, rig) = walk(Which::Old, &[], within);
    let objects = rig.qemu.truth().walk();
    assert!(
        within(&asked, &objects),
        "{} requests where {} are needed",
        asked.len(),
        least(&objects)
    );
    let (seen, count): (BTreeSet<_>, _) = (asked.iter().collect(), asked.len());
    for object in &objects {
        assert!(seen.contains(&list(&object.path)), "{}", object.path);
        for name in values(object) {
            assert!(seen.contains(&get(&object.path, name)), "{} {name}", object.path);
        }
    }
    assert!(
        asked.iter().all(|asked| asked.command != "qom-list-get"),
        "{count}"
    );
}

#[test]
fn grep_on_a_new_qemu_asks_for_several_objects_at_once() {
    let most = |asked: &[Asked]| asked.iter().map(|asked| asked.paths.len()).max();
    let within =
        |asked: &[Asked], objects: &[Object]| asked.len() * 2 <= objects.len() && most(asked) == Some(8);
    let (asked, rig) = walk(Which::New, &[], within);
    let objects = rig.qemu.truth().walk();
    let mut commands = BTreeMap::<_, usize>::new();
    for asked in &asked {
        *commands.entry(&*asked.command).or_default() += 1;
    }
    assert!(
        within(&asked, &objects),
        "{} objects, but {commands:?}",
        objects.len()
    );
    let seen: BTreeSet<_> = asked.iter().flat_map(|asked| &asked.paths).collect();
    for object in &objects {
        assert!(seen.contains(&object.path), "{}", object.path);
    }
}

#[test]
fn walks_that_cannot_be_foreseen_evaluate_hardly_more_than_they_read() {
    let threads: Vec<String> = (0..48).map(|n| format!("iothread,id=t{n}")).collect();
    let machine: Vec<&str> = threads.iter().flat_map(|thread| ["-object", thread]).collect();
    let rig = Rig::new(Which::New, &machine, &[]);
    let truth = rig.qemu.truth();
    let children = truth.list("/objects").into_iter().filter(|prop| prop.is_child());
    let listed: Vec<String> = children.map(|child| format!("/objects/{}", child.name)).collect();
    // None of those that come next in the listing is read while its values would be fresh, or hardly one.
    let jumping: Vec<String> = (0..48).map(|n| listed[n * 11 % 48].clone()).collect();
    let step = |path: &str, doing| Step::new(&rig.mount.join(path), doing);
    // So slow that of several objects in one reply all but the first would be too old; and in another order.
    for (objects, pause) in [(&listed[..32], 60), (&jumping[..], 5)] {
        let mut steps = vec![step("/objects", Call::List), step("/objects/type", Call::Read)];
        for path in objects {
            steps.push(step(path, Call::List));
            let object = truth.list(path).into_iter();
            let plain = object.filter(|prop| prop.is_value());
            steps.extend(plain.map(|prop| step(&format!("{path}/{}", prop.name), Call::Read)));
            steps.push(Step::pause(Duration::from_millis(pause)));
        }
        let within = objects.len() / 2..=objects.len() * 3 / 2;
        let mut counts = Vec::new();
        while counts.len() < TRIES && !counts.last().is_some_and(|count| within.contains(count)) {
            sleep(PAUSE);
            rig.relay.reset();
            act(&steps);
            counts.push(evaluated(&rig.asked()));
        }
        let last = counts.last().expect("a walk");
        assert!(
            within.contains(last),
            "{} objects, but {counts:?} evaluations",
            objects.len()
        );
    }
}

/// How often an object's values were evaluated, all together.
fn evaluated(asked: &[Asked]) -> usize {
    let batches = asked.iter().filter(|asked| asked.command == "qom-list-get");
    batches.map(|asked| asked.paths.len()).sum()
}

#[test]
fn walks_beside_each_other_keep_what_was_asked_for_each() {
    let rig = Rig::new(Which::New, &[], &[]);
    let folder = rig.at("machine/q35");
    let walked = rig.qemu.truth().walk();
    let walked = walked
        .iter()
        .filter(|object| object.path.starts_with("/machine/q35"));
    let grep = format!("grep -rs . {folder} >/dev/null");
    let asked = rig.asked_by(&format!("{grep} & {grep} & {grep} & wait"));
    let (objects, evaluated) = (walked.count(), evaluated(&asked));
    assert!(
        evaluated <= 2 * 3 * objects,
        "{objects} objects, but {evaluated} evaluations for three walks"
    );
}

each_qemu!(a_find_beside_a_grep_evaluates_nothing, |which| {
    let names: Vec<String> = (0..20).map(|n| format!("iothread,id=t{n}")).collect();
    let machine: Vec<&str> = names.iter().flat_map(|name| ["-object", name]).collect();
    let rig = Rig::new(which, &machine, &["-o", "entry_timeout=0.02"]);
    let (walked, found) = (rig.at("machine/unattached"), rig.at("objects"));
    let grep = sh_start(&format!("for i in 1 2 3; do grep -rs . {walked} >&2; done; true"));
    let find = sh_start(&format!("for i in {{1..40}}; do find {found} >/dev/null; done"));
    find.finish(harness::sh::DEADLINE).ok();
    grep.finish(harness::sh::DEADLINE).ok();
    let asked = rig.asked();
    let of_objects = |asked: &&Asked| asked.paths.iter().any(|path| path.starts_with("/objects"));
    let listed = asked
        .iter()
        .filter(of_objects)
        .filter(|asked| asked.command == "qom-list");
    assert!(listed.count() > 40, "find listed nothing anew");
    let read: Vec<_> = evaluations(&asked).into_iter().filter(of_objects).collect();
    assert_eq!(read, [] as [&Asked; 0]);
    let evaluated = evaluations(&asked).len();
    assert!(evaluated > 100, "only {evaluated} evaluations for grep");
});
