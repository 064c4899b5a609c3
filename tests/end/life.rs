//! The end of a mount, whoever brings it about: it is unmounted, its processes are gone, and the exit status is right.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use harness::*;
use serde_json::Value;

/// A process that sits in a directory and holds a file of the mount open, until it is dropped.
#[track_caller]
fn sit_in(mount: &Mount) -> Background {
    let point = quote(mount.path());
    let sitting = sh_start(&format!("cd {point}/machine && exec 9< type && exec sleep 60"));
    let there = || fs::read_link(format!("/proc/{}/fd/9", sitting.pid())).is_ok();
    assert!(wait_until(SOON, there), "nobody sits in the mount");
    sitting
}

/// In the background or the foreground, left alone or with a process sitting in it.
const SHAPES: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

#[track_caller]
fn mount(qemu: &Qemu, foreground: bool, options: &[&str]) -> Mount {
    match foreground {
        true => Mount::start_foreground(&qemu.socket(), options),
        false => Mount::start(&qemu.socket(), options),
    }
}

/// It is unmounted, nobody serves it, it exits with 0 and did not complain; QEMU's monitor is free again.
#[track_caller]
fn has_ended_well(mount: &Mount, foreground: bool) {
    mount.wait_unmounted(SOON);
    if foreground {
        let status = mount.wait_exit(SOON);
        assert_eq!(status.code(), Some(0), "{status:?}: {}", mount.log());
        assert!(!mount.log().contains("error: "), "{}", mount.log());
        assert!(!mount.log().contains("panicked"), "{}", mount.log());
    }
    assert_eq!(sh(&format!("ls -A {}", quote(mount.path()))).ok().text(), "");
}

#[test]
fn signals_unmount() {
    for (which, number) in [
        (Which::Old, libc::SIGINT),
        (Which::New, libc::SIGTERM),
        (Which::Old, libc::SIGHUP),
    ] {
        let qemu = Qemu::start(which, "none", &[]);
        for (foreground, busy) in SHAPES {
            let mount = mount(&qemu, foreground, &[]);
            let _sitting = busy.then(|| sit_in(&mount));
            mount.signal(number);
            has_ended_well(&mount, foreground);
        }
        assert!(!qemu.truth().list("/").is_empty());
    }
}

/// What a terminal does at Ctrl-C and when it closes: the signal goes to all processes of the group.
#[test]
fn a_signal_to_the_whole_group_unmounts() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    for number in [libc::SIGINT, libc::SIGHUP] {
        let mount = mount(&qemu, true, &[]);
        signal(-(mount.pid() as i32), number);
        has_ended_well(&mount, true);
    }
}

each_qemu!(fusermount_unmounts, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    for foreground in [false, true] {
        let mount = mount(&qemu, foreground, &[]);
        mount.unmount();
        has_ended_well(&mount, foreground);
    }
    let mount = mount(&qemu, true, &[]);
    let point = quote(mount.path());
    let sitting = sit_in(&mount);
    let out = sh(&format!("fusermount3 -u {point}"));
    out.fails().says("busy");
    assert_reads(mount.join("machine/type"), "none-machine\n");
    sh(&format!("fusermount3 -uz {point}")).ok();
    assert!(!mount.is_mounted());
    drop(sitting); // the last one to use it
    has_ended_well(&mount, true);
});

each_qemu!(when_qemu_quits_the_mount_goes, |which| {
    for (foreground, busy) in SHAPES {
        let qemu = Qemu::start(which, "none", &[]);
        let log = qemu.dir().join("mount.log");
        let mount = mount(&qemu, foreground, &["--log-file", log.to_str().expect("UTF-8")]);
        let _sitting = busy.then(|| sit_in(&mount));
        if busy {
            qemu.kill();
        } else {
            qemu.truth().execute("quit", Value::Null).expect("quit");
        }
        has_ended_well(&mount, foreground);
        let said = fs::read_to_string(log).expect("a log");
        assert!(said.contains("QEMU closed the monitor; unmounting"), "{said}");
        assert!(said.contains(qemu.socket().to_str().expect("UTF-8")), "{said}");
    }
});

#[test]
fn in_the_foreground_the_log_says_why_on_stderr() {
    let qemu = Qemu::start(Which::New, "none", &[]);
    let mount = mount(&qemu, true, &[]);
    qemu.kill();
    has_ended_well(&mount, true);
    assert!(
        mount.log().contains("QEMU closed the monitor; unmounting"),
        "{}",
        mount.log()
    );
    assert_eq!(mount.stdout(), "");
}

/// A caller waits for the daemon in a directory, and the daemon for him: to take a name out of it.
#[test]
fn a_daemon_that_is_killed_while_it_waits_in_the_kernel() {
    let tree = ScriptedTree::new().object("/d").object("/d/gone");
    let server = tree.serve();
    for foreground in [true, false] {
        let mount = match foreground {
            true => Mount::start_foreground(server.socket(), &["-o", "entry_timeout=0.2"]),
            false => Mount::start(server.socket(), &["-o", "entry_timeout=0.2"]),
        };
        lstat(mount.join("d/gone")).expect("the kernel has it now");
        std::thread::sleep(Duration::from_millis(300));
        tree.hook("qom-list", "/d", "", Action::Silence);
        server.reset();
        let caller = sh_start(&format!("exec stat {}", quote(mount.join("d/other"))));
        let asked = || server.requests().iter().any(|(_, args)| args["path"] == "/d");
        assert!(wait_until(SOON, asked), "nobody waits");
        server.send_raw(b"{\"event\": \"DEVICE_DELETED\", \"data\": {\"path\": \"/d/gone\"}}\r\n");
        std::thread::sleep(Duration::from_millis(300));
        mount.signal(libc::SIGKILL);
        mount.wait_unmounted(SOON);
        caller.finish(SOON).fails();
        assert!(wait_until(SOON, || mount.pids().is_empty()), "still there");
        tree.clear_hooks();
    }
}

each_qemu!(a_killed_daemon_leaves_no_dead_mount, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    for (foreground, busy) in SHAPES {
        let mount = mount(&qemu, foreground, &[]);
        let _sitting = busy.then(|| sit_in(&mount));
        mount.signal(libc::SIGKILL);
        mount.wait_unmounted(SOON);
        if foreground {
            assert_eq!(mount.wait_exit(SOON).signal(), Some(libc::SIGKILL));
        }
    }
});

#[test]
fn without_its_watchdog_a_mount_serves_and_ends_as_ever() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    for foreground in [false, true] {
        let mount = mount(&qemu, foreground, &[]);
        let watchdog = mount.watchdog();
        signal(watchdog as i32, libc::SIGKILL);
        assert!(
            wait_until(SOON, || !alive(watchdog as i32)),
            "the watchdog outlived SIGKILL"
        );
        assert_reads(mount.join("machine/type"), "none-machine\n");
        if foreground {
            mount.signal(libc::SIGTERM);
        } else {
            mount.unmount();
        }
        has_ended_well(&mount, foreground);
    }
}

/// The kernel gives a mount the number of one that has just gone. Whoever ends late must not take that one away.
#[track_caller]
fn ends_late(watched: bool) {
    let qemus = [
        Qemu::start(Which::Old, "none", &[]),
        Qemu::start(Which::Old, "none", &[]),
    ];
    for _ in 0..3 {
        let old = mount(&qemus[0], false, &[]);
        let (pid, watchdog) = (old.pid(), old.watchdog());
        // Held up between its unmounting and what it does about that.
        let late = if watched { watchdog } else { pid };
        signal(late as i32, libc::SIGSTOP);
        if watched {
            signal(pid as i32, libc::SIGKILL);
        }
        sh(&format!("fusermount3 -uz {}", quote(old.path()))).ok();
        let new = mount(&qemus[1], false, &[]);
        signal(late as i32, libc::SIGCONT);
        old.wait_unmounted(SOON);
        assert!(new.is_mounted(), "the new mount went with the old one");
        assert_reads(new.join("machine/type"), "none-machine\n");
        new.unmount();
    }
}

#[test]
fn a_daemon_that_ends_late_leaves_other_mounts_alone() {
    ends_late(false);
}

#[test]
fn a_watchdog_that_is_late_leaves_other_mounts_alone() {
    ends_late(true);
}

#[test]
fn mount_and_findmnt_show_it() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let socket = qemu.socket().display().to_string();
    let cases: [(&[&str], &str, &str); 6] = [
        (&[], &socket, "fuse.qom-fuse"),
        (&["-o", "fsname=my machine"], "my machine", "fuse.qom-fuse"),
        (&["-o", "subtype=qom"], &socket, "fuse.qom"),
        (&["-o", "fsname=a\\,b", "-o", "subtype=x.y"], "a,b", "fuse.x.y"),
        (&["-o", "ro"], &socket, "fuse.qom-fuse"),
        (
            &["-o", "noexec,noatime,allow_other,default_permissions"],
            &socket,
            "fuse.qom-fuse",
        ),
    ];
    for (options, source, kind) in cases {
        let mount = mount(&qemu, false, options);
        let info = mount.info().expect("a mount");
        assert_eq!(
            (info.source.to_str(), info.kind.as_str()),
            (Some(source), kind),
            "{options:?}"
        );
        let flags: Vec<&str> = info
            .options
            .split(',')
            .chain(info.super_options.split(','))
            .collect();
        let given = |word: &str| {
            options
                .iter()
                .any(|option| option.split(',').any(|given| given == word))
        };
        for word in ["noexec", "noatime", "allow_other", "default_permissions", "ro"] {
            assert_eq!(
                flags.contains(&word),
                given(word),
                "{word} of {options:?}: {flags:?}"
            );
        }
        assert!(flags.contains(&"nosuid") && flags.contains(&"nodev"), "{flags:?}");
        let point = mount.path().display();
        let out = sh(&format!(
            "findmnt -rn -o FSTYPE,SOURCE,TARGET {}",
            quote(mount.path())
        ));
        let source = source.replace(' ', "\\x20");
        assert_eq!(out.ok().text(), format!("{kind} {source} {point}"));
        let shown = sh(&format!("mount -t {kind}"));
        shown.ok().shows(&format!(" on {point} type {kind} ("));
        mount.unmount();
    }
}

each_qemu!(the_monitor_is_free_once_the_mount_has_ended, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    for round in 0..10 {
        let mount = Launch::new()
            .args(&["-o", "timeout=5"])
            .socket(qemu.socket())
            .background();
        let mount = mount.unwrap_or_else(|out| panic!("round {round}: {out}"));
        assert_reads(mount.join("machine/type"), "none-machine\n");
        mount.unmount();
    }
    assert_eq!(
        fs::read_dir(qemu.dir()).expect("list").count(),
        3,
        "two sockets and a log"
    );
});

/// Interrupted before there is a mount, it leaves none, and no process.
#[test]
fn a_start_that_is_interrupted_leaves_nothing() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let _holder = Truth::connect(&qemu.socket()).expect("be the first client");
    for command in ["exec qom-fuse -f", "exec qom-fuse"] {
        for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            let session = Session::new();
            let start = session.start(&format!("{command} {} mnt", quote(qemu.socket())));
            assert!(
                wait_until(SOON, || session.pids().len() >= 2),
                "it has not started"
            );
            std::thread::sleep(Duration::from_millis(100)); // into the wait for the greeting
            signal(-(start.pid() as i32), number);
            session.wait_ended(SOON);
            assert_ne!(start.finish(SOON).status, 0);
        }
    }
}

each_qemu!(work_leaves_no_descriptor_and_no_thread_behind, |which| {
    let (_qemu, mount) = mounted(which, "q35", &[], &[]);
    let count = |what: &str| {
        fs::read_dir(format!("/proc/{}/{what}", mount.pid()))
            .expect("a running daemon")
            .count()
    };
    let work = format!(
        "grep -r . {0} 2>&1 | wc -l; ls -lR {0} | wc -l",
        quote(mount.path())
    );
    let lines = sh(&work).ok().text().to_owned();
    let before = (count("fd"), count("task"));
    assert_eq!(sh(&work).ok().text().lines().count(), lines.lines().count());
    let settled = || (count("fd"), count("task")) <= before;
    assert!(
        wait_until(SOON, settled),
        "{before:?}, then {:?}",
        (count("fd"), count("task"))
    );
});
