//! Sizes: 4096 before a value is read, exact from the open on, so that tools copy silently. Listing reads no value.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use harness::mirror::{CLOCKS, Copy, Found, Told, text_of};
use harness::*;
use serde_json::{Value, json};

/// More than any value here.
const ALL: usize = 1 << 20;

/// A value of this length can be set in `/machine/append`, whose file is one longer.
fn append(qemu: &Qemu, length: usize) -> Vec<u8> {
    let text = "x".repeat(length);
    qemu.set("/machine", "append", json!(text));
    format!("{text}\n").into_bytes()
}

/// The plain values of an object that can be read and stand still, as files show them.
fn values(qemu: &Qemu, path: &str) -> BTreeMap<String, String> {
    let props = qemu.truth().list(path).into_iter();
    let plain = props.filter(|prop| prop.is_value() && !CLOCKS.contains(&&*prop.name));
    plain
        .filter_map(|prop| {
            let value = qemu.truth().get(path, &prop.name).ok()?;
            Some((prop.name, text_of(&value)))
        })
        .collect()
}

each_qemu!(unread_files_show_4096_and_read_ones_their_length, |which| {
    let (_qemu, mount) = mounted(which, "q35", &[], &[]);
    let out = sh_in(mount.path(), "find . -type f -printf '%s\\n' | sort | uniq -c");
    let (count, size) = out.ok().text().trim().split_once(' ').expect("one line");
    assert_eq!(size, "4096");
    assert!(count.parse::<usize>().expect("a number") > 900, "{out}");

    let file = mount.join("machine/type");
    let text = read_file(&file).expect("read");
    assert_eq!(lstat(&file).expect("stat").st_size, text.len() as i64);
    assert_eq!(
        lstat(mount.join("machine/append")).expect("stat").st_size,
        4096,
        "its neighbour"
    );
});

each_qemu!(a_link_is_as_long_as_its_target, |which| {
    let (qemu, mount) = mounted(which, "q35", &[], &[]);
    for link in ["memory-backend", "confidential-guest-support"] {
        let target = qemu.truth().get("/machine", link).expect("a link");
        let expected = link_text("/machine", link, target.as_str().expect("a path"));
        let path = mount.join("machine").join(link);
        assert_eq!(read_link(&path), Ok(expected.clone().into_bytes()), "{link}");
        assert_eq!(
            lstat(&path).expect("stat").st_size,
            expected.len() as i64,
            "{link}"
        );
    }
});

each_qemu!(fstat_after_open_is_exact_for_every_property, |which| {
    let (qemu, mount) = mounted(which, "q35", &XHCI, &[]);
    for object in ["/machine", "/machine/peripheral/x"] {
        let values = values(&qemu, object);
        assert!(values.len() > 15, "{object}: {values:?}");
        for (name, text) in values {
            let file = mount.join(object).join(&name);
            let held = Held::open(file, libc::O_RDONLY).expect("open");
            assert_eq!(held.size(), Ok(text.len()), "{object} {name}");
            assert_eq!(held.read(ALL), Ok(text.into_bytes()), "{object} {name}");
        }
    }
});

each_qemu!(fstat_follows_the_value_from_open_to_open, |which| {
    let qemu = Qemu::start(which, "q35", &[]);
    // The kernel may keep attributes for a minute, and must not.
    let mount = Mount::start(&qemu.socket(), &["-o", "entry_timeout=60"]);
    for length in [0, 5, 4095, 4096, 10_000, 1, 70_000, 2] {
        let text = append(&qemu, length);
        let held = Held::open(mount.join("machine/append"), libc::O_RDONLY).expect("open");
        assert_eq!(held.size(), Ok(text.len()), "{length}");
        assert_eq!(held.read(ALL), Ok(text), "{length}");
    }
});

each_qemu!(alternating_opens_each_read_their_own_value, |which| {
    let (qemu, mount) = mounted(which, "q35", &[], &["-o", "entry_timeout=60"]);
    let mut before: Option<(Held, Vec<u8>)> = None;
    for round in 0..20 {
        let text = append(&qemu, if round % 2 == 0 { 9000 + round } else { round });
        let held = Held::open(mount.join("machine/append"), libc::O_RDONLY).expect("open");
        assert_eq!(held.size(), Ok(text.len()), "{round}");
        if let Some((old, old_text)) = before {
            assert_eq!(old.read(ALL), Ok(old_text), "{round}: the earlier open");
        }
        assert_eq!(held.size(), Ok(text.len()), "{round}: after the other read");
        before = Some((held, text));
    }
});

/// A walk that reads what it lists is told lengths with the listing; not of what somebody else has open.
#[test]
fn a_listing_leaves_the_size_of_an_open_file_alone() {
    let qemu = Qemu::start(Which::New, "q35", &[]);
    // Three times, should the machine hold the walk up for longer than one may pause.
    let told = (0..3).any(|_| {
        let two = append(&qemu, 2);
        // Its listing is not to be known by the time that the walk comes to it.
        let mount = Mount::start(&qemu.socket(), &["-o", "entry_timeout=0"]);
        let open = Held::open(mount.join("machine/append"), libc::O_RDONLY).expect("open");
        append(&qemu, 7);
        act(&[
            Step::new(mount.path(), Call::List),
            Step::new(&mount.join("type"), Call::Read),
            Step::new(&mount.join("machine"), Call::List),
        ]);
        assert_eq!(open.size(), Ok(two.len()));
        assert_eq!(open.read(ALL), Ok(two));
        let size = |file: &str| lstat(mount.join("machine").join(file)).expect("stat").st_size;
        assert_eq!(size("append"), 3);
        size("type") == read_file(mount.join("machine/type")).expect("read").len() as i64
    });
    assert!(told, "no length came with a listing");
}

each_qemu!(reading_again_from_the_start_fetches_anew_with_its_size, |which| {
    let (qemu, mount) = mounted(which, "q35", &[], &[]);
    let first = append(&qemu, 30);
    let held = Held::open(mount.join("machine/append"), libc::O_RDONLY).expect("open");
    let second = append(&qemu, 5000);
    assert_eq!(held.read_at(0, 10), Ok(first[..10].to_vec()));
    let rest = held.read_at(10, 4096);
    assert_eq!(rest, Ok(first[10..].to_vec()), "pieces of one value");
    assert_eq!(held.read_at(0, ALL), Ok(second.clone()), "from the start again");
    assert_eq!(held.size(), Ok(second.len()));
    assert_eq!(held.read_at(4000, 4096), Ok(second[4000..].to_vec()));
    assert_eq!(held.read_at(6000, 10), Ok(Vec::new()), "beyond the end");
});

each_qemu!(tools_that_look_at_one_file_are_exact, |which| {
    let qemu = Qemu::start(which, "q35", &[]);
    append(&qemu, 5000);
    let values = values(&qemu, "/machine");
    assert!(values.len() > 15, "{values:?}");
    let plain = tempfile::tempdir().expect("a folder");
    for (name, text) in &values {
        std::fs::write(plain.path().join(name), text).expect("write a file to compare with");
    }
    // The same commands on plain files of the same contents. The first of each round sees a file never read before.
    for command in [
        "wc -c",
        "tail -c 3",
        "tail -c +2",
        "head -c 2",
        "head -c -1",
        "md5sum",
        "tac",
    ] {
        let each = format!("for f in {}; do {command} $f; done", names(&values));
        let expected = sh_in(plain.path(), &each);
        let mount = Mount::start(&qemu.socket(), &[]);
        for round in ["first", "again"] {
            let found = sh_in(mount.join("machine"), &each);
            assert_eq!(found.stderr, "", "{command}");
            assert_eq!(found.ok().text(), expected.ok().text(), "{command} {round}");
        }
    }
});

fn names(values: &BTreeMap<String, String>) -> String {
    let words: Vec<String> = values.keys().map(quote).collect();
    words.join(" ")
}

/// What copies a folder.
const COPIERS: [(&str, &str); 3] = [
    ("tar", "mkdir COPY && tar -C FROM -cf - . | tar -C COPY -xf -"),
    ("cp", "cp -a FROM COPY"),
    ("rsync", "rsync -a FROM/ COPY/"),
];

fn copying(command: &str, from: &Path, copy: &Path) -> String {
    let command = format!("set -o pipefail; {command}");
    command
        .replace("FROM", &quote(from))
        .replace("COPY", &quote(copy))
}

each_qemu!(copies_of_a_readable_part_are_exact_and_silent, |which| {
    let qemu = Qemu::start(which, "q35", &[]);
    let told = Told::ask(qemu.truth());
    assert!(
        !told
            .unreadable()
            .iter()
            .any(|path| path.starts_with("machine/q35"))
    );
    for (tool, command) in COPIERS {
        let mount = Mount::start(&qemu.socket(), &[]);
        let from = mount.join("machine/q35");
        let dir = tempfile::tempdir().expect("a folder");
        let copy = dir.path().join("copy");
        let silent = |command| {
            let out = sh(&copying(command, &from, &copy));
            assert!(
                out.ok().stderr.is_empty() && out.stdout.is_empty(),
                "{tool}: {out}"
            );
        };
        silent(command);
        silent("diff -r --no-dereference FROM COPY");
        if tool == "rsync" {
            silent(command);
            silent("diff -r --no-dereference FROM COPY");
            let again = sh(&copying("rsync -ai FROM/ COPY/", &from, &copy));
            assert_eq!(again.ok().text(), "", "nothing to do");
        }
        let part = Told {
            props: (told.props.iter())
                .filter_map(|((path, name), said)| {
                    let path = path.strip_prefix("/machine/q35")?;
                    Some(((format!("/{path}"), name.clone()), said.clone()))
                })
                .filter(|(_, said)| !said.kind.starts_with("link<")) // diff has compared those
                .collect(),
        };
        let mut found = Copy::of(&copy, BTreeMap::new());
        found.found.retain(|_, one| !matches!(one, Found::Link(_)));
        let compared = found.compare(&part, qemu.truth());
        assert_eq!(compared.differences, [""; 0], "{tool}");
        assert!(compared.values > 100, "{compared:?}");
    }
});

/// The places that a tool complains about, from lines such as `cp: cannot open 'MNT/a/b' for reading: Permission denied`.
fn complaints(out: &Out, mount: &Path) -> BTreeMap<String, String> {
    let start = format!("{}/", mount.display());
    let place = |line: &str| {
        let (_, rest) = line.split_once(&start)?;
        let cut = rest.find(['"', '\'']).or_else(|| rest.rfind(": "))?;
        let why = rest.rsplit_once(": ")?.1.trim_end_matches([')', '(', ' ']);
        let why = why.trim_end_matches(|c: char| c.is_ascii_digit() || " (".contains(c));
        Some((rest[..cut].to_owned(), why.to_owned()))
    };
    let lines = out.stderr.lines();
    let lines = lines.filter(|line| !line.starts_with("rsync error: "));
    lines.map(|line| place(line).expect(line)).collect()
}

each_qemu!(copies_of_a_whole_machine_lack_only_what_qemu_refuses, |which| {
    let qemu = Qemu::start(which, "q35", &XHCI);
    // tar is what every machine type is compared with.
    for (tool, command) in COPIERS.into_iter().filter(|(tool, _)| *tool != "tar") {
        let mount = Mount::start(&qemu.socket(), &[]);
        let told = Told::ask(qemu.truth()); // with the mount's own monitor connected
        let refused = told.unreadable();
        assert!(!refused.is_empty());
        let dir = tempfile::tempdir().expect("a folder");
        let copy = dir.path().join("copy");
        let out = sh(&copying(command, mount.path(), &copy));
        let complaints = complaints(out.fails(), mount.path());
        assert_eq!(
            complaints.keys().cloned().collect::<BTreeSet<_>>(),
            refused,
            "{tool}"
        );
        let compared = Copy::of(&copy, complaints).compare(&told, qemu.truth());
        assert_eq!(compared.differences, [""; 0], "{tool}");

        let diff = sh(&copying(
            "diff -r --no-dereference FROM COPY",
            mount.path(),
            &copy,
        ));
        for line in diff.fails().lines() {
            let clock = line.starts_with("diff ") && CLOCKS.iter().any(|clock| line.ends_with(clock));
            let tick = line.starts_with(['<', '>', '-', '1']);
            let missing = refused.iter().any(|place| {
                let (dir, name) = place.rsplit_once('/').unwrap_or_default();
                line == format!("Only in {}: {name}", mount.join(dir).display())
            });
            assert!(clock || tick || missing, "{tool}: {line}");
        }
        assert_eq!(diff.stderr, "", "{tool}");
    }
});

each_qemu!(listing_never_reads_a_value, |which| {
    let qemu = Qemu::start(which, "q35", &XHCI);
    let relay = Relay::start(qemu.dir(), &qemu.socket());
    let told = Told::ask(qemu.truth());
    let links: BTreeSet<(String, String)> = (told.props.iter())
        .filter(|(_, said)| said.kind.starts_with("link<"))
        .map(|(place, _)| place.clone())
        .collect();
    for (command, reads_links) in [
        ("ls -lR .", true),
        ("ls -l machine machine/q35", true),
        ("ls -FR --color=always .", true),
        ("find .", false),
        ("find . -size +1k -o -name 'type' -o -perm 777", false),
        ("find . -empty -o -newer . -o -links 2 -o -user nobody", false),
        ("du -a .", false),
        ("stat machine/* machine/type", true),
        (
            "test -f machine/type -a -r machine/type -a -w machine/type",
            false,
        ),
    ] {
        let mount = Mount::start(relay.socket(), &[]);
        relay.reset();
        let out = sh_in(mount.path(), command);
        assert_eq!(out.ok().stderr, "", "{command}");
        for request in relay.requests() {
            let request: Value = serde_json::from_str(&request).expect("a request");
            let text = |key: &str| request["arguments"][key].as_str().unwrap_or_default().to_owned();
            match request["execute"].as_str() {
                Some("qom-list") => {}
                Some("qom-get") if reads_links => {
                    assert!(
                        links.contains(&(text("path"), text("property"))),
                        "{command}: {request}"
                    );
                }
                _ => panic!("{command}: {request}"),
            }
        }
        assert!(relay.count("qom-list") >= 2, "{command} lists");
        if command == "ls -lR ." {
            assert_eq!(relay.count("qom-get"), links.len(), "each link once");
        }
        mount.unmount();
    }
});

each_qemu!(each_tool_asks_for_a_value_once, |which| {
    let (qemu, relay, mount) = relayed(which, "q35", &[], &[]);
    append(&qemu, 300_000); // more than one read
    for command in [
        "cat",
        "wc -c",
        "tail -c 5",
        "head -c 5",
        "md5sum",
        "grep -c x",
        "cat",
        "cat",
    ] {
        std::thread::sleep(Duration::from_millis(150)); // it is no walk
        relay.reset();
        sh_in(mount.join("machine"), &format!("{command} append >/dev/null")).ok();
        assert_eq!(relay.count("qom-get"), 1, "{command}");
        assert_eq!(relay.count("qom-list-get"), 0, "{command}");
    }
});
