//! The log: where it goes, and what it says at each level.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::mount::Launch;
use common::*;

const SOON: Duration = Duration::from_secs(10);

/// Mounts with these options, reads a value, is refused another, and is unmounted; gives the log.
#[track_caller]
fn log_of(qemu: &Qemu, launch: Launch) -> String {
    let mount = launch.socket(qemu.socket()).foreground();
    assert!(read_file(mount.join("machine/type")).is_ok());
    assert_eq!(
        write_file(mount.join("machine/graphics"), b"purple"),
        Err(libc::EINVAL)
    );
    mount.unmount();
    mount.wait_exit(SOON);
    mount.log()
}

fn lines<'a>(log: &'a str, level: &str) -> Vec<&'a str> {
    let start = format!("qom-fuse: {level}: ");
    log.lines().filter_map(|line| line.strip_prefix(&start)).collect()
}

#[test]
fn levels() {
    for which in Which::ALL {
        let qemu = Qemu::start(which, "none", &[]);
        for (launch, info, debug) in [
            (Launch::new(), false, false),
            (Launch::new().args(&["-v"]), true, false),
            (Launch::new().args(&["-vv"]), true, true),
            (Launch::new().env("RUST_LOG", "info"), true, false),
            (Launch::new().args(&["-vv"]).env("RUST_LOG", "warn"), false, false),
        ] {
            let log = log_of(&qemu, launch);
            let warnings = lines(&log, "warn");
            assert_eq!(warnings.len(), 1, "{log}");
            assert!(
                warnings[0].contains("Invalid parameter type for 'graphics'"),
                "{log}"
            );
            assert_eq!(lines(&log, "error"), Vec::<&str>::new());
            // One line for the mount, and one for its end.
            let said = lines(&log, "info");
            let socket = qemu.socket().display().to_string();
            assert_eq!(said.len(), if info { 2 } else { 0 }, "{log}");
            if info {
                assert!(said[0].starts_with(&format!("{socket} is mounted on ")), "{log}");
                assert_eq!(said[1], format!("{socket} was unmounted"));
            }
            // Each request, with what came of it and how long it took.
            let requests = lines(&log, "debug");
            assert_eq!(!requests.is_empty(), debug, "{log}");
            if debug {
                let get = requests
                    .iter()
                    .find(|line| line.contains("qom-get") && line.contains("type"));
                let get = get.unwrap_or_else(|| panic!("no qom-get in {log}"));
                assert!(get.contains(" in ") && get.ends_with('s'), "no time in: {get}");
            }
        }
    }
}

#[test]
fn a_log_file_is_appended_to_by_both_forms() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let file = qemu.dir().join("mount.log");
    fs::write(&file, "from before\n").expect("write");
    let options = ["-v", "--log-file", file.to_str().expect("UTF-8")];
    let mount = Mount::start(&qemu.socket(), &options);
    assert_eq!(
        write_file(mount.join("machine/graphics"), b"purple"),
        Err(libc::EINVAL)
    );
    mount.unmount();
    let log = log_of(&qemu, Launch::new().args(&options));
    assert_eq!(log, "", "it goes to the file in place of the terminal");
    let text = fs::read_to_string(&file).expect("a log");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("from before"));
    assert_eq!(text.matches(" is mounted on ").count(), 2, "{text}");
    assert_eq!(
        text.matches("Invalid parameter type for 'graphics'").count(),
        2,
        "{text}"
    );
    for line in lines {
        let time = line.split(' ').next().unwrap_or_default();
        assert!(time.parse::<f64>().is_ok(), "no time: {line}");
    }
}

#[test]
fn a_log_file_that_cannot_be_opened_stops_the_mount() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let file = "/no/such/folder/log";
    assert!(!Path::new(file).exists());
    let out = Launch::new()
        .args(&["--log-file", file])
        .socket(qemu.socket())
        .background();
    let out = out.err().expect("a refusal");
    assert!(out.status == 1 && out.stderr.contains(file), "{out}");
}
