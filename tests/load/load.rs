//! Walkers that read everything, a writer and a hot-plugger at once: no wrong value, no error but for what is plugged,
//! and memory that does not grow. For 15 s, or as many as QOM_FUSE_SOAK_SECONDS says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::shown::values;
use harness::*;
use serde_json::json;

const WARM_UP: Duration = Duration::from_secs(4);
const MOST_GROWTH_KIB: i64 = 8 << 10;
const LONG: Duration = Duration::from_secs(60);
/// Where the writer writes; it holds `w` and a number.
const WRITTEN: &str = "/machine/kernel";

fn duration() -> Duration {
    let seconds = std::env::var("QOM_FUSE_SOAK_SECONDS").ok();
    let seconds = seconds.map(|text| {
        text.parse()
            .expect("QOM_FUSE_SOAK_SECONDS is a number of seconds")
    });
    Duration::from_secs(seconds.unwrap_or(15))
}

/// `child[7]` as `child[]`: what is plugged gets another number each time.
fn unnumbered(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut inside = false;
    for c in path.chars() {
        inside = inside && c != ']' || c == '[';
        if !inside || !c.is_ascii_digit() {
            plain.push(c);
        }
    }
    plain
}

/// What may be read: for each file what it may show, and the entries that may come and go.
struct Expected {
    files: BTreeMap<String, Vec<Shown>>,
    dirs: BTreeMap<String, BTreeSet<String>>,
    /// Without numbers.
    plugged: BTreeSet<String>,
    /// Below these nothing is sure.
    passing: Vec<String>,
}

impl Expected {
    /// Asks three times: with the device, and twice without, for some values change by themselves.
    fn learn(truth: &Truth) -> Expected {
        let plain = truth.walk();
        let mut files: BTreeMap<String, Vec<Shown>> = BTreeMap::new();
        let mut learn = |objects: &[Object]| {
            for (path, name) in values(objects) {
                files
                    .entry(join(path, name))
                    .or_default()
                    .push(truth_of(truth, path, name));
            }
        };
        learn(&plain);
        plug(truth);
        let with = truth.walk();
        learn(&with);
        unplug(truth);
        learn(&plain);
        let names = |objects: &[Object]| -> BTreeSet<String> {
            let each = |object: &Object| {
                let names = object.props.iter().map(|prop| join(&object.path, &prop.name));
                names.collect::<Vec<_>>()
            };
            objects.iter().flat_map(each).collect()
        };
        let (without, with) = (names(&plain), names(&with));
        let passing: Vec<String> = with.difference(&without).cloned().collect();
        assert!(
            passing.iter().any(|path| path.ends_with("/peripheral/t")),
            "{passing:?}"
        );
        let dirs = plain.iter().map(|object| {
            let names = object.props.iter().map(|prop| prop.name.clone());
            (object.path.clone(), names.collect())
        });
        Expected {
            dirs: dirs.collect(),
            plugged: passing.iter().map(|path| unnumbered(path)).collect(),
            passing,
            files,
        }
    }

    /// Whether it has to do with the device.
    fn comes_and_goes(&self, path: &str) -> bool {
        let under = |one: &String| {
            path.strip_prefix(one.as_str())
                .is_some_and(|rest| rest.starts_with('/'))
        };
        self.plugged.contains(&unnumbered(path)) || self.passing.iter().any(under)
    }

    #[track_caller]
    fn check(&self, path: &str, shown: &Shown) {
        if self.comes_and_goes(path) {
            let gone = shown.as_ref().err().is_none_or(|errno| *errno == libc::ENOENT);
            let refused = self.files.get(path).is_some_and(|known| known.contains(shown));
            assert!(gone || refused, "{path}: {shown:?}");
            return;
        }
        let known = self.files.get(path).unwrap_or_else(|| panic!("no file {path}"));
        if path == WRITTEN {
            let text = String::from_utf8_lossy(shown.as_ref().expect("what was written")).into_owned();
            let number = text.trim_end().strip_prefix('w').map(str::parse::<usize>);
            assert!(text == "\n" || matches!(number, Some(Ok(_))), "{path}: {text:?}");
            return;
        }
        let restless = known.iter().any(|one| one != &known[0]);
        let readable = restless && shown.is_ok() == known[0].is_ok();
        assert!(
            readable || known.contains(shown),
            "{path}: {shown:?}, not {:?}",
            known[0]
        );
    }
}

fn plug(truth: &Truth) {
    truth.device_add(json!({ "driver": "usb-tablet", "bus": "x.0", "id": "t" }));
}

fn unplug(truth: &Truth) {
    truth.device_del("t");
    loop {
        // Its parts are announced too, without an id.
        let event = truth.wait_event("DEVICE_DELETED", LONG);
        if event["data"]["device"] == "t" {
            return;
        }
    }
}

/// Lists every object and reads what is in it, by plain system calls.
fn walk_by_calls(mount: &Mount, expected: &Expected) -> usize {
    let dirs: Vec<_> = expected.dirs.keys().collect();
    let paths: Vec<_> = dirs.iter().map(|dir| mount.join(dir)).collect();
    for (dir, listed) in dirs.iter().zip(list_dirs(&paths)) {
        let listed = listed.unwrap_or_else(|errno| panic!("{dir}: errno {errno}"));
        let names: BTreeSet<&str> = listed.iter().map(|entry| entry.name.as_str()).collect();
        for name in &expected.dirs[*dir] {
            let there = names.contains(name.as_str());
            assert!(
                there || expected.comes_and_goes(&join(dir, name)),
                "{dir} has no {name}"
            );
        }
        for name in names.into_iter().filter(|name| ![".", ".."].contains(name)) {
            let known = expected.dirs[*dir].contains(name) || expected.comes_and_goes(&join(dir, name));
            assert!(known, "{dir} has a {name}");
        }
    }
    let files: Vec<_> = expected.files.keys().collect();
    let paths: Vec<_> = files.iter().map(|file| mount.join(file)).collect();
    for (file, shown) in files.iter().zip(read_files(&paths)) {
        expected.check(file, &shown);
    }
    files.len()
}

/// As `grep -r` walks, which is read ahead for.
fn walk_by_grep(mount: &Mount, expected: &Expected) -> usize {
    let out = sh_deadline(&format!("cd {} && grep -arZ '' .", quote(mount.path())), LONG);
    let mut found: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for line in out.stdout.split_inclusive(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == 0);
        let path = String::from_utf8_lossy(parts.next().unwrap_or_default())[1..].to_owned();
        found
            .entry(path)
            .or_default()
            .extend(parts.next().unwrap_or_default());
    }
    let mut failed: BTreeMap<String, i32> = BTreeMap::new();
    for line in out.stderr.lines() {
        let (path, why) = line
            .strip_prefix("grep: .")
            .and_then(|rest| rest.rsplit_once(": "))
            .unwrap_or_else(|| panic!("{line}"));
        let errno = match why {
            "No such file or directory" => libc::ENOENT,
            "Permission denied" => libc::EACCES,
            "Input/output error" => libc::EIO,
            other => panic!("{path}: {other}"),
        };
        failed.insert(path.to_owned(), errno);
    }
    for (path, text) in &found {
        if !failed.contains_key(path) {
            expected.check(path, &Ok(text.clone()));
        }
    }
    for (path, errno) in &failed {
        expected.check(path, &Err(*errno));
    }
    for path in expected
        .files
        .keys()
        .filter(|path| !expected.comes_and_goes(path))
    {
        assert!(
            found.contains_key(path) || failed.contains_key(path),
            "{path} was not read"
        );
    }
    found.len()
}

fn resident(pid: u32) -> i64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("VmRSS");
    let number = line
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok());
    number.expect("a number")
}

#[track_caller]
fn load(which: Which) {
    let (qemu, mount) = mounted(which, "q35", &["-device", "qemu-xhci,id=x"], &[]); // first, for QEMU shows who is connected
    let expected = Expected::learn(qemu.truth());
    let (mount, expected) = (&mount, &expected);
    let end = Instant::now() + WARM_UP + duration();
    let (read, written, plugged) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let stop = || Instant::now() >= end;
    let growth = thread::scope(|scope| {
        for number in 0..8 {
            let read = &read;
            scope.spawn(move || {
                while !stop() {
                    let files = match number % 2 {
                        0 => walk_by_calls(mount, expected),
                        _ => walk_by_grep(mount, expected),
                    };
                    read.fetch_add(files, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            while !stop() {
                let text = format!("w{}", written.fetch_add(1, Ordering::Relaxed));
                write_file(mount.join(WRITTEN), text.as_bytes())
                    .unwrap_or_else(|errno| panic!("errno {errno}"));
                let shown = read_file(mount.join(WRITTEN)).expect("what was written");
                assert_eq!(String::from_utf8_lossy(&shown), text + "\n");
                thread::sleep(Duration::from_millis(5));
            }
        });
        scope.spawn(|| {
            while !stop() {
                plug(qemu.truth());
                thread::sleep(Duration::from_millis(50));
                let name = read_file(mount.join("machine/peripheral/t/type"));
                assert!(
                    name.as_deref() == Ok(b"usb-tablet\n") || name == Err(libc::ENOENT),
                    "{name:?}"
                );
                unplug(qemu.truth());
                plugged.fetch_add(1, Ordering::Relaxed);
            }
        });
        thread::sleep(WARM_UP);
        let (pid, before) = (mount.pid(), resident(mount.pid()));
        let mut most = before;
        while !stop() {
            most = most.max(resident(pid));
            thread::sleep(Duration::from_millis(100));
        }
        eprintln!("{which:?}: resident {before} KiB, then at most {most} KiB");
        most - before
    });
    eprintln!("{which:?}: {read:?} values read, {written:?} written, plugged {plugged:?} times");
    assert!(growth <= MOST_GROWTH_KIB, "grew by {growth} KiB");
    for (count, least) in [(&read, 2 * expected.files.len()), (&written, 10), (&plugged, 10)] {
        assert!(count.load(Ordering::Relaxed) >= least, "{count:?}, not {least}");
    }
    // And when all is quiet, everything is as before.
    thread::sleep(Duration::from_millis(1100));
    walk_by_calls(mount, expected);
    assert_eq!(
        read_file(mount.join("machine/peripheral/t/type")),
        Err(libc::ENOENT)
    );
    mount.unmount();
}

each_qemu!(everybody_at_once, load);
