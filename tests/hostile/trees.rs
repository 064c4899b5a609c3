//! Trees without bounds: properties, levels, descriptions, and what is held of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use harness::hostile::{Watch, listing, server, still_serves, valued};
use harness::*;
use serde_json::json;

use crate::{ALONE, LONG};

#[test]
fn an_object_with_a_hundred_thousand_properties() {
    let _alone = ALONE.lock();
    for (kind, list_get) in ["string", "link<x>", "child<x>"]
        .into_iter()
        .flat_map(|kind| [(kind, false), (kind, true)])
    {
        let named = |number| format!(r#", "value": "property-{number}""#);
        let large = listing(100_000, kind, |_| String::new());
        let endless = listing(300_000, kind, |_| String::new());
        let large_valued = valued(&listing(100_000, kind, named));
        let endless_valued = valued(&listing(300_000, kind, named));
        let server = server(list_get, move |command, path, name| match (command, path, name) {
            ("qom-list", "/o/many", _) => Some(Action::ReturnRaw(large.clone())),
            ("qom-list", "/o/more", _) => Some(Action::ReturnRaw(endless.clone())),
            ("qom-list", "/o", _) => Some(Action::Return(json!([
                { "name": "good", "type": "string" },
                { "name": "many", "type": "child<x>" },
                { "name": "more", "type": "child<x>" },
            ]))),
            ("qom-list", path, _) if path.starts_with("/o/many/") => Some(Action::Return(json!([]))),
            ("qom-get", "/o/many", name) => Some(Action::Return(json!(name))),
            ("qom-list-get", "/o/many", _) => Some(Action::ReturnRaw(large_valued.clone())),
            ("qom-list-get", "/o/more", _) => Some(Action::ReturnRaw(endless_valued.clone())),
            _ => None,
        });
        let mount = Mount::start_foreground(server.socket(), &["-o", "entry_timeout=60"]);
        let watch = Watch::of(&mount);
        let point = quote(mount.path());
        // The shell lists and reads in one process: the new QEMU is asked for the values with the listing.
        let out = sh_deadline(
            &format!(
                "cd {point}/o; for o in many more; do : *; read -r x < good; set -- $o/*; echo $#; done"
            ),
            LONG,
        );
        assert_eq!(out.ok().lines(), ["100000", "1"], "{kind}");
        assert_eq!(server.count("qom-list-get") > 1, list_get, "{kind}");
        let out = sh_deadline(&format!("ls -f {point}/o/many | wc -l"), LONG);
        assert_eq!(out.ok().text(), "100002", "{kind}");
        let out = sh_deadline(
            &format!("find {point}/o/many -maxdepth 1 -printf '%y\\n' | sort | uniq -c"),
            LONG,
        );
        assert!(out.ok().text().contains("100000") || kind == "child<x>", "{out}");
        if kind == "string" {
            let out = sh_deadline(&format!("cd {point}/o/many; cat property-{{7,8,99999}}"), LONG);
            assert_eq!(out.ok().lines(), ["property-7", "property-8", "property-99999"]);
        }
        sh_deadline(&format!("ls -f {point}/o/more"), LONG).fails(); // more than an object may have
        assert_eq!(
            lstat(mount.join("o/many/property-0")).map(|_| ()),
            Ok(()),
            "{kind}"
        );
        watch.stayed_small(&format!("100,000 properties {kind}, list_get={list_get}"));
        still_serves(&mount);
    }
}

/// Each process that lists something leaves a walk, and each open directory what it shows.
#[test]
fn long_listings_for_many_who_hold_them() {
    let _alone = ALONE.lock();
    for list_get in [false, true] {
        let server = server(list_get, move |command, path, _| match (command, path) {
            ("qom-list", "/o") => {
                let children = (0..24).map(|n| json!({ "name": format!("d{n}"), "type": "child<x>" }));
                let good = json!({ "name": "good", "type": "string" });
                Some(Action::Return(children.chain([good]).collect()))
            }
            ("qom-list", _) if path.starts_with("/o/d") => {
                let own = format!("{}-{}-", &path[3..], "x".repeat(200));
                let long = listing(10_000, "string", |_| String::new());
                Some(Action::ReturnRaw(long.replace("property-", &own)))
            }
            _ => None,
        });
        let mount = Mount::start_foreground(server.socket(), &["-o", "entry_timeout=60"]);
        let watch = Watch::of(&mount);
        // What it shows is fixed by the first read.
        let open = |n| {
            let held = Held::open(mount.join(&format!("o/d{n}")), libc::O_RDONLY)?;
            held.lists("good").map(|_| held)
        };
        // By a process each: all of them may, and what they leave is let go.
        for n in 0..24 {
            assert!(open(n).is_ok(), "{n}");
        }
        let held: Vec<_> = (0..24).map(open).collect();
        assert!(
            held.iter().flatten().count() >= 2,
            "{:?}",
            held[..2].iter().map(Result::is_ok).collect::<Vec<_>>()
        );
        let refused = held
            .iter()
            .filter(|held| matches!(held, Err(errno) if *errno == libc::ENOMEM));
        assert_eq!(
            refused.count() + held.iter().flatten().count(),
            24,
            "another error"
        );
        assert!(held.iter().any(Result::is_err), "all of it was held");
        assert_reads(mount.join("o/good"), "good\n");
        drop(held);
        assert!(open(23).is_ok());
        watch.stayed_small(&format!("long listings, list_get={list_get}"));
        still_serves(&mount);
    }
}

#[test]
fn ten_thousand_levels() {
    let _alone = ALONE.lock();
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let server = server(false, move |command, path, name| match (command, path, name) {
        ("qom-list", path, _) if path.starts_with("/down") => Some(Action::Return(json!([
            { "name": "good", "type": "string" },
            { "name": "o", "type": "child<x>" },
            { "name": "l", "type": "link<x>" },
        ]))),
        ("qom-list", "/", _) => Some(Action::Return(json!([
            { "name": "down", "type": "child<x>" },
            { "name": "o", "type": "child<x>" },
        ]))),
        ("qom-get", "/o", "good") => None,
        ("qom-get", "/o", _) => Some(Action::ReturnRaw(deep.clone())),
        ("qom-get", path, "l") => Some(Action::Return(json!(path))),
        ("qom-get", path, _) => Some(Action::Return(json!(path.len()))),
        ("qom-list", "/o", _) => Some(Action::Return(json!([
            { "name": "good", "type": "string" },
            { "name": "deep", "type": "list" },
        ]))),
        _ => None,
    });
    let mount = Mount::start_foreground(server.socket(), &[]);
    let watch = Watch::of(&mount);
    assert_eq!(read_file(mount.join("o/deep")), Err(libc::EIO));
    // Objects in objects: a walker gets as far as it likes, or is refused.
    let script = format!(
        "cd {} && timeout -s INT 10 find down -name o -printf '%d\\n' 2>&1 | sort -n | sed -n '1p;$p'",
        quote(mount.path())
    );
    let out = sh_deadline(&script, LONG);
    eprintln!("objects in objects: {}", out.text());
    let deepest = out.lines().last().and_then(|line| line.parse().ok());
    assert!(deepest > Some(100), "{out}");
    sh_deadline(
        &format!(
            "cd {}/down; for i in {{1..60}}; do cd o || exit; done; cat good; readlink l | wc -c",
            quote(mount.path())
        ),
        LONG,
    );
    watch.stayed_small("10,000 levels");
    still_serves(&mount);
}

#[test]
fn descriptions_without_end() {
    let _alone = ALONE.lock();
    let evil = "\u{1b}]0;x\u{7}".repeat(10_000);
    let types = Arc::new(AtomicU64::new(0));
    let described = types.clone();
    let server = server(false, move |command, path, _| match (command, path) {
        ("qom-list", "/o") => Some(Action::ReturnRaw(
            listing(300, "string", |_| String::new()).replacen(
                '[',
                r#"[{"name": "good", "type": "string"},"#,
                1,
            ),
        )),
        ("qom-list-properties", _) => {
            described.fetch_add(1, Ordering::Relaxed);
            let property =
                |number| json!({ "name": format!("property-{number}"), "type": "x", "description": evil });
            Some(Action::Return((0..300).map(property).collect()))
        }
        _ => None,
    });
    let mount = Mount::start_foreground(server.socket(), &[]);
    let watch = Watch::of(&mount);
    sh_deadline(
        &format!("getfattr -R -d {} 2>&1 | tail -c 100", quote(mount.path())),
        LONG,
    );
    assert!(types.load(Ordering::Relaxed) >= 1);
    watch.stayed_small("descriptions");
    still_serves(&mount);
}

/// What is counted for open files is what they take.
#[test]
fn open_files_hold_what_is_counted() {
    let _alone = ALONE.lock();
    let value: Arc<str> = format!("\"{}\"", "x".repeat(400 << 10)).into();
    let good = r#"[{"name": "good", "type": "string"},"#;
    let many = listing(330, "string", |_| String::new()).replacen('[', good, 1);
    let server = server(false, move |command, path, name| match (command, path, name) {
        ("qom-list", "/o", _) => Some(Action::ReturnRaw(many.clone())),
        ("qom-get", _, name) if name != "good" => Some(Action::ReturnRaw(value.to_string())),
        _ => None,
    });
    let mount = Mount::start_foreground(server.socket(), &["-o", "timeout=60,no_readahead"]);
    let script = format!(
        "cd {}/o; n=0
         for i in {{0..329}}; do exec {{fd}}<property-$i && n=$((n+1)); done 2>/dev/null
         echo $n; awk '/VmRSS/ {{ print $2 }}' /proc/{}/status",
        quote(mount.path()),
        mount.pid()
    );
    let out = sh_deadline(&script, LONG);
    let numbers: Vec<u64> = out
        .ok()
        .lines()
        .iter()
        .map(|line| line.parse().expect("a number"))
        .collect();
    assert!((300..330).contains(&numbers[0]), "{numbers:?}: 128 MiB of values");
    assert!(numbers[1] < 200 << 10, "{numbers:?}");
    still_serves(&mount);
}
