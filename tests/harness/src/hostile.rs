//! A QEMU that a guest has taken over, and what must hold of a mount that it floods.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use crate::child::read_file;
use crate::mount::Mount;
use crate::script::{Action, Scripted};
use crate::tree::ScriptedTree;

const SOON: Duration = Duration::from_secs(10);
const MOST_KIB: u64 = 300 << 10;

/// Watches the memory of a process until it is dropped; the process may end meanwhile.
pub struct Watch {
    most: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to watch.
    pub fn of(mount: &Mount) -> Watch {
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
    pub fn stayed_small(mut self, what: &str) {
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

/// A server with an object `/o` that has a property `good`, with `qom-list-get` or without it; `odd` answers first to
/// the command, path and property, with None for what it leaves alone. It is asked about each object of a
/// `qom-list-get`, and answers that with [`Action::ReturnRaw`] of [`valued`], or with what is sent instead of a reply.
#[track_caller]
pub fn server(
    list_get: bool,
    mut odd: impl FnMut(&str, &str, &str) -> Option<Action> + Send + 'static,
) -> Scripted {
    let tree = ScriptedTree::new()
        .object("/o")
        .prop("/o", "good", "string", json!("good"))
        .with_list_get(list_get);
    let mut answer = tree.handler();
    Scripted::start_as(tree.greeting(), move |command, args: &Value| {
        let text = |key: &str| args[key].as_str().unwrap_or_default();
        let Some(paths) = args["paths"].as_array().filter(|_| list_get) else {
            return odd(command, text("path"), text("property")).unwrap_or_else(|| answer(command, args));
        };
        let mut objects = Vec::new();
        for path in paths {
            let alone = || answer(command, &json!({ "paths": [path] }));
            match odd(command, path.as_str().unwrap_or_default(), "").unwrap_or_else(alone) {
                Action::ReturnRaw(object) => objects.push(object.trim_matches(['[', ']']).to_owned()),
                other => return other,
            }
        }
        Action::ReturnRaw(format!("[{}]", objects.join(",")))
    })
}

/// An object of a `qom-list-get`, by its properties in JSON.
pub fn valued(properties: &str) -> String {
    format!(r#"{{"properties": {properties}}}"#)
}

/// It answers, its log is clean, and it ends as it should.
#[track_caller]
pub fn still_serves(mount: &Mount) {
    assert_eq!(
        read_file(mount.join("o/good")),
        Ok(b"good\n".into()),
        "{}",
        mount.log()
    );
    log_is_clean(mount);
    mount.unmount();
    assert_eq!(mount.wait_exit(SOON).code(), Some(0), "{}", mount.log());
}

/// Nothing that came from QEMU looks like the log, or does anything to a terminal.
#[track_caller]
pub fn log_is_clean(mount: &Mount) {
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

/// Properties of a type, in JSON, with whatever is after the type.
pub fn listing(count: usize, kind: &str, value: impl Fn(usize) -> String) -> String {
    let entry = |number| {
        format!(
            r#"{{"name": "property-{number}", "type": "{kind}"{}}}"#,
            value(number)
        )
    };
    format!("[{}]", (0..count).map(entry).collect::<Vec<_>>().join(","))
}
