//! Signals to a `qom-fuse` that has a machine of its own, and to that machine.

use std::fs;
use std::time::{Duration, Instant};

use harness::*;

use crate::command::{Pair, SOON, qemu};

each_qemu!(signals_end_qemu_and_unmount, |which| {
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let pair = Pair::start(&format!("mnt -- {}", qemu(which)));
        let machine = pair.qemu();
        let asked = Instant::now();
        signal(pair.running.pid() as i32, number);
        let out = pair.ends();
        out.ok();
        assert!(!alive(machine), "QEMU outlived its mount");
        assert!(
            asked.elapsed() < Duration::from_secs(3),
            "it was not asked nicely: {:?}",
            asked.elapsed()
        );
        assert_eq!(out.stderr, "", "{out}");
    }
});

/// What `nohup`, or a shell for what runs in the background, has ignored stays so. QEMU catches both itself.
#[test]
fn ignored_signals_stay_ignored() {
    let pair = Pair::start_by("trap '' HUP INT; exec", &format!("mnt -- {}", qemu(Which::New)));
    let machine = pair.qemu();
    for number in [libc::SIGHUP, libc::SIGINT] {
        signal(pair.running.pid() as i32, number);
    }
    std::thread::sleep(Duration::from_millis(500));
    assert!(pair.session.info().is_some() && alive(machine), "it ended");
    signal(pair.running.pid() as i32, libc::SIGTERM);
    pair.ends().ok();
    assert!(!alive(machine), "QEMU outlived its mount");
}

// As Ctrl-C does: QEMU gets it too.
each_qemu!(a_signal_to_the_whole_group_ends_both, |which| {
    for number in [libc::SIGINT, libc::SIGTERM] {
        let pair = Pair::start(&format!("mnt -- {}", qemu(which)));
        let machine = pair.qemu();
        signal(-(pair.running.pid() as i32), number);
        pair.ends().ok();
        assert!(!alive(machine), "QEMU outlived its mount");
    }
});

// One that answers nothing gets SIGTERM, which waits until it goes on, and then SIGKILL.
each_qemu!(a_qemu_that_hangs_is_killed, |which| {
    let pair = Pair::start(&format!("mnt -- {}", qemu(which)));
    let machine = pair.qemu();
    signal(machine, libc::SIGSTOP);
    let asked = Instant::now();
    signal(pair.running.pid() as i32, libc::SIGTERM);
    let out = pair.ends();
    assert_eq!(out.status, 137, "{out}");
    out.says("SIGTERM").says("SIGKILL");
    assert!(!alive(machine), "QEMU outlived its mount");
    assert!(asked.elapsed() < Duration::from_secs(12), "{:?}", asked.elapsed());
});

/// One that wakes up in between ends by itself.
#[test]
fn a_qemu_that_wakes_up_ends_by_itself() {
    let pair = Pair::start(&format!("mnt -- {}", qemu(Which::New)));
    let machine = pair.qemu();
    pair.end_while_stopped(machine);
    pair.ends().ok();
}

#[test]
fn interrupted_before_it_answers_it_leaves_nothing() {
    let session = Session::new();
    let running = session.start("exec qom-fuse -o timeout=600 mnt -- sh -c 'echo $$ > pid; exec sleep 60'");
    let started = || {
        fs::read_to_string(session.dir().join("pid"))
            .is_ok_and(|text| text.ends_with('\n') && session.pids().len() == 2)
    };
    assert!(wait_until(SOON, started), "it did not start");
    let pid = fs::read_to_string(session.dir().join("pid")).expect("its pid");
    signal(running.pid() as i32, libc::SIGTERM);
    let out = running.finish(SOON);
    assert_eq!((out.status, &*out.stderr), (128 + libc::SIGTERM, ""), "{out}");
    session.wait_ended(SOON);
    assert!(!alive(pid.trim().parse().expect("a number")), "{out}");
}
