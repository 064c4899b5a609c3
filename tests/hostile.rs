//! A QEMU that a guest has taken over floods whoever asks it: memory stays bounded, the log short and clean, and the
//! mount answers or ends as documented.

mod common;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::sh::{quote, sh_deadline};
use common::*;
use parking_lot::Mutex;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(60);
const MOST_KIB: u64 = 300 << 10;

/// One at a time: each takes memory, here too.
static ALONE: Mutex<()> = Mutex::new(());

/// Watches the memory of a process until it is dropped; the process may end meanwhile.
struct Watch {
    most: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn of(mount: &Mount) -> Watch {
        let (most, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, ended, pid) = (most.clone(), done.clone(), mount.pid());
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let peak = peak.and_then(|peak| peak.split_whitespace().next()?.parse().ok());
                seen.fetch_max(peak.unwrap_or(0), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(2));
            }
        });
        Watch {
            most,
            done,
            thread: Some(thread),
        }
    }

    /// The most that it ever took is within bounds.
    #[track_caller]
    fn stayed_small(mut self, what: &str) {
        thread::sleep(Duration::from_millis(20));
        self.done.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
        let most = self.most.load(Ordering::Relaxed);
        eprintln!("{what}: {} MiB", most >> 10);
        assert!(most > 0 && most <= MOST_KIB, "{what}: {} MiB", most >> 10);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// A server with an object `/o` that has a property `good`; `odd` answers first, with None for what it leaves alone.
#[track_caller]
fn server(mut odd: impl FnMut(&str, &str, &str) -> Option<Action> + Send + 'static) -> Scripted {
    let tree = ScriptedTree::new()
        .object("/o")
        .prop("/o", "good", "string", json!("good"));
    let mut answer = tree.handler();
    Scripted::start(move |command, args: &Value| {
        let text = |key: &str| args[key].as_str().unwrap_or_default();
        odd(command, text("path"), text("property")).unwrap_or_else(|| answer(command, args))
    })
}

#[track_caller]
fn still_serves(mount: &Mount) {
    assert_eq!(
        read_file(mount.join("o/good")).as_deref(),
        Ok(b"good\n".as_slice()),
        "{}",
        mount.log()
    );
    log_is_clean(mount);
    mount.unmount();
    assert_eq!(mount.wait_exit(SOON).code(), Some(0), "{}", mount.log());
}

#[track_caller]
fn log_is_clean(mount: &Mount) {
    let log = mount.log();
    let lines = log.lines().count();
    assert!(lines < 2000, "{lines} lines");
    assert!(
        log.lines().all(|line| line.starts_with("qom-fuse: ")),
        "{:.4000}",
        log
    );
    let bad = |c: char| c != '\n' && (c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c));
    assert!(!log.contains(bad), "{:.4000?}", log);
    assert!(
        !log.contains("panicked") && log.len() < 4 << 20,
        "{} bytes: {:.4000}",
        log.len(),
        log
    );
}

fn listing(count: usize, kind: &str) -> String {
    let entry = |number| format!(r#"{{"name": "property-{number}", "type": "{kind}"}}"#);
    format!("[{}]", (0..count).map(entry).collect::<Vec<_>>().join(","))
}

#[test]
fn an_object_with_a_hundred_thousand_properties() {
    let _alone = ALONE.lock();
    for kind in ["string", "link<x>", "child<x>"] {
        let large = listing(100_000, kind);
        let endless = listing(300_000, kind);
        let server = server(move |command, path, name| match (command, path, name) {
            ("qom-list", "/o/many", _) => Some(Action::ReturnRaw(large.clone())),
            ("qom-list", "/o/more", _) => Some(Action::ReturnRaw(endless.clone())),
            ("qom-list", "/o", _) => Some(Action::Return(json!([
                { "name": "good", "type": "string" },
                { "name": "many", "type": "child<x>" },
                { "name": "more", "type": "child<x>" },
            ]))),
            ("qom-list", path, _) if path.starts_with("/o/many/") => Some(Action::Return(json!([]))),
            ("qom-get", "/o/many", name) => Some(Action::Return(json!(name))),
            _ => None,
        });
        let mount = Mount::start_foreground(server.socket(), &["-o", "entry_timeout=60"]);
        let watch = Watch::of(&mount);
        let point = quote(mount.path());
        let out = sh_deadline(&format!("ls -f {point}/o/many | wc -l"), LONG);
        assert_eq!(out.ok().text(), "100002", "{kind}");
        let out = sh_deadline(
            &format!("find {point}/o/many -maxdepth 1 -printf '%y\\n' | sort | uniq -c"),
            LONG,
        );
        assert!(out.ok().text().contains("100000") || kind == "child<x>", "{out}");
        if kind == "string" {
            assert_eq!(
                read_file(mount.join("o/many/property-99999")).as_deref(),
                Ok(b"property-99999\n".as_slice())
            );
        }
        sh_deadline(&format!("ls -f {point}/o/more"), LONG).fails(); // more than an object may have
        assert_eq!(
            child::lstat(mount.join("o/many/property-0")).map(|_| ()),
            Ok(()),
            "{kind}"
        );
        watch.stayed_small(&format!("100,000 properties {kind}"));
        still_serves(&mount);
    }
}

#[test]
fn ten_thousand_levels() {
    let _alone = ALONE.lock();
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let server = server(move |command, path, name| match (command, path, name) {
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
fn lines_without_an_end() {
    let _alone = ALONE.lock();
    let starts: [&[u8]; 3] = [br#"{"return": ""#, br#"{"event": "X", "data": ["#, b""];
    for start in starts {
        let endless = vec![if start.ends_with(b"[") { b'[' } else { b'x' }; 80 << 20];
        let bytes = [start, endless.as_slice()].concat();
        let server = server(move |command, _, name| {
            (command == "qom-get" && name == "good").then(|| Action::Raw(bytes.clone()))
        });
        let mount = Mount::start_foreground(server.socket(), &[]);
        let watch = Watch::of(&mount);
        assert_eq!(read_file(mount.join("o/good")), Err(libc::EIO));
        mount.wait_unmounted(SOON);
        assert_eq!(mount.wait_exit(SOON).code(), Some(1), "{}", mount.log());
        log_is_clean(&mount);
        watch.stayed_small("an endless line");
    }
}

#[test]
fn floods_of_events() {
    let _alone = ALONE.lock();
    let events: [fn(usize) -> Value; 4] = [
        |number| json!({ "event": "STOP", "data": { "number": number }, "timestamp": {} }),
        |number| json!({ "event": "DEVICE_DELETED", "data": { "path": format!("/o/x{number}") } }),
        |_| json!({ "event": "DEVICE_DELETED", "data": { "path": "/o" } }),
        |_| json!({ "event": "DEVICE_DELETED\n\u{1b}[2J", "data": "x".repeat(1000) }),
    ];
    for (number, event) in events.into_iter().enumerate() {
        let flood: String = (0..100_000)
            .map(|number| format!("{}\r\n", event(number)))
            .collect();
        let server = server(|_, _, _| None);
        let mount = Mount::start_foreground(server.socket(), &[]);
        let watch = Watch::of(&mount);
        sh(&format!("ls -R {}", quote(mount.path()))).ok();
        thread::scope(|scope| {
            scope.spawn(|| server.send_raw(flood.as_bytes()));
            for _ in 0..20 {
                let start = Instant::now();
                let read = read_file(mount.join("o/good"));
                // An object that goes while it is looked at may be gone.
                let gone = number == 2 && read == Err(libc::ENOENT);
                assert!(gone || read.as_deref() == Ok(b"good\n".as_slice()), "{read:?}");
                assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
            }
        });
        assert!(wait_until(SOON, || read_file(mount.join("o/good")).is_ok()));
        thread::sleep(Duration::from_millis(500));
        watch.stayed_small(&format!("events of kind {number}"));
        still_serves(&mount);
    }
}

#[test]
fn events_that_cannot_be_decoded_and_errors_with_control_characters() {
    let _alone = ALONE.lock();
    let evil = "\u{1b}[2J\r\nqom-fuse: error: forged\u{202e}\u{9b}".repeat(2000);
    let text = json!({ "class": "GenericError", "desc": evil }).to_string();
    let reply = format!("{{\"error\": {text}}}\r\n");
    let server = server(move |command, _, name| {
        (command == "qom-get" && name != "good").then(|| Action::Raw(reply.clone().into_bytes()))
    });
    let mount = Mount::start_foreground(server.socket(), &[]);
    let watch = Watch::of(&mount);
    let odd = "{\"timestamp\": {}, \"event\": \"X\\u001b[2J\", \"data\": \"\\q\x1b[31m\"}\r\n";
    server.send_raw(odd.repeat(20_000).as_bytes());
    let script = format!(
        "cd {}/o; for i in {{1..2000}}; do echo \"$(<type)\"; done 2>&1 | sort -u",
        quote(mount.path())
    );
    let start = Instant::now();
    let out = sh_deadline(&script, LONG);
    assert!(out.stderr.len() + out.stdout.len() < 10_000, "{out}");
    let lines = mount.log().lines().count() as f64;
    let allowed = 220.0 + 2.0 * 20.0 * (start.elapsed().as_secs_f64() + 2.0);
    assert!(lines < allowed, "{lines} lines, {allowed} allowed");
    assert!(
        mount.log().contains("came too fast") || lines > 200.0,
        "{lines} lines"
    );
    let said = child::get_xattr(mount.join("o/type"), "user.qom.error").expect("an error");
    assert!(
        said.len() <= 64 << 10 && !said.iter().any(u8::is_ascii_control),
        "{} bytes",
        said.len()
    );
    watch.stayed_small("evil texts");
    still_serves(&mount);
}

#[test]
fn values_of_sixty_mebibytes_at_once() {
    let _alone = ALONE.lock();
    const LENGTH: usize = 60 << 20;
    let large: Arc<str> = format!("{{\"return\": \"{}\"}}\r\n", "x".repeat(LENGTH)).into();
    let server = server(move |command, _, name| {
        (command == "qom-get" && name == "type").then(|| Action::Raw(large.as_bytes().to_vec()))
    });
    let mount = Mount::start_foreground(server.socket(), &["-o", "timeout=30"]);
    let watch = Watch::of(&mount);
    let script = format!(
        "cd {}/o; for i in {{1..10}}; do cat type 2>&1 | wc -c & done; wait",
        quote(mount.path())
    );
    let out = sh_deadline(&script, LONG);
    let whole = out
        .lines()
        .iter()
        .filter(|line| **line == (LENGTH + 1).to_string())
        .count();
    assert!(whole >= 1 && out.lines().len() == 10, "{out}");
    // The others were told at open, so there is nothing but the message.
    let partial = out
        .lines()
        .iter()
        .filter(|line| (1000..=LENGTH).contains(&line.parse().expect("a number")))
        .count();
    assert_eq!(partial, 0, "{out}");
    let held: Vec<_> = (0..5)
        .map(|_| Held::open(mount.join("o/type"), libc::O_RDONLY))
        .collect();
    for held in &held {
        match held {
            Ok(held) => assert_eq!(held.size(), Ok(LENGTH + 1)),
            Err(errno) => assert_eq!(*errno, libc::ENOMEM),
        }
    }
    assert!(held.iter().any(Result::is_ok) && held.iter().any(Result::is_err));
    drop(held);
    watch.stayed_small("values of 60 MiB");
    still_serves(&mount);
}

#[test]
fn descriptions_without_end() {
    let _alone = ALONE.lock();
    let evil = "\u{1b}]0;x\u{7}".repeat(10_000);
    let types = Arc::new(AtomicU64::new(0));
    let described = types.clone();
    let server = server(move |command, path, _| match (command, path) {
        ("qom-list", "/o") => Some(Action::ReturnRaw(listing(300, "string").replacen(
            '[',
            r#"[{"name": "good", "type": "string"},"#,
            1,
        ))),
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
