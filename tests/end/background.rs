//! Commands that go to the background, or stay around QEMU: whose end is the end of the mount.

use std::time::Duration;

use harness::*;
use serde_json::Value;

use crate::command::{Pair, SOON, qemu};

each_qemu!(a_qemu_that_goes_to_the_background, |which| {
    let pair = Pair::start(&format!("mnt -- {} -daemonize", qemu(which)));
    assert_reads(pair.session.mnt().join("machine/type"), "none-machine\n");
    let machine = pair.qemu();
    // It gets to its monitor late: what it was told may not be lost by then.
    pair.end_while_stopped(machine);
    pair.ends().ok();
    assert!(wait_until(SOON, || !alive(machine)), "QEMU outlived its mount");

    let pair = Pair::start(&format!("mnt -- {} -daemonize", qemu(which)));
    pair.truth().execute("quit", Value::Null).expect("quit");
    pair.ends().ok();

    // Unmounted by hand, its end is still waited for, and a signal still ends it.
    for ends_by_signal in [false, true] {
        let pair = Pair::start(&format!("mnt -- {} -daemonize", qemu(which)));
        let machine = pair.qemu();
        pair.session.run("fusermount3 -u mnt").ok();
        std::thread::sleep(Duration::from_millis(500));
        assert!(
            !pair.session.pids().is_empty() && alive(machine),
            "they ended with the mount"
        );
        if ends_by_signal {
            signal(pair.running.pid() as i32, libc::SIGTERM);
        } else {
            pair.truth().execute("quit", Value::Null).expect("quit");
        }
        pair.ends().ok();
        assert!(wait_until(SOON, || !alive(machine)), "QEMU outlived its mount");
    }
});

/// The process that speaks at the monitor is the one to be ended, whatever was started.
#[test]
fn a_qemu_in_the_background_that_hangs() {
    let pair = Pair::start(&format!("mnt -- {} -daemonize", qemu(Which::New)));
    let machine = pair.qemu();
    signal(machine, libc::SIGSTOP);
    signal(pair.running.pid() as i32, libc::SIGTERM);
    let out = pair.ends();
    out.ok().says("SIGKILL");
    assert!(!alive(machine), "QEMU outlived its mount");

    // One that owes a reply cannot be told to quit before it has given it.
    let pair = Pair::start(&format!("-o timeout=0.5 mnt -- {} -daemonize", qemu(Which::New)));
    let machine = pair.qemu();
    signal(machine, libc::SIGSTOP);
    pair.session.run("cat mnt/machine/type").fails();
    signal(pair.running.pid() as i32, libc::SIGTERM);
    std::thread::sleep(Duration::from_secs(1));
    signal(machine, libc::SIGCONT);
    let out = pair.ends();
    assert!(!out.ok().stderr.contains("SIGTERM"), "{out}");
    assert!(!alive(machine), "QEMU outlived its mount");
}

#[test]
fn a_wrapper_that_qemu_leaves_behind() {
    let start = |options: &str| {
        let wrapper = "\"$@\" -daemonize; exec sleep 2";
        let (wrapper, qemu) = (quote(wrapper), qemu(Which::New));
        Pair::start(&format!("{options} mnt -- sh -c {wrapper} sh {qemu}"))
    };
    let pair = start("");
    let machine = pair.qemu();
    signal(machine, libc::SIGSTOP);
    signal(pair.running.pid() as i32, libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(2500)); // the wrapper has ended
    signal(machine, libc::SIGCONT);
    pair.ends().ok();
    assert!(wait_until(SOON, || !alive(machine)), "QEMU outlived its mount");

    // The end of the wrapper is not QEMU's, even of one that answers nothing just then.
    let pair = start("-o timeout=0.5");
    let machine = pair.qemu();
    signal(machine, libc::SIGSTOP);
    pair.session.run("cat mnt/machine/type").fails();
    std::thread::sleep(Duration::from_secs(4));
    signal(machine, libc::SIGCONT);
    let answers = || pair.session.run("cat mnt/machine/type").status == 0;
    assert!(wait_until(SOON, answers), "it gave QEMU up");
    signal(pair.running.pid() as i32, libc::SIGTERM);
    pair.ends().ok();
    assert!(!alive(machine), "QEMU outlived its mount");
}

/// QEMU's end is its end, whoever else holds its monitor.
#[test]
fn a_wrapper_whose_helper_inherits_the_monitor() {
    for (which, more) in [(Which::Old, ""), (Which::New, ""), (Which::New, "-daemonize")] {
        let wrapper = "sleep 60 >/dev/null 2>&1 & echo $! > helper; exec \"$@\"";
        let (wrapper, qemu) = (quote(wrapper), qemu(which));
        let pair = Pair::start(&format!("mnt -- sh -c {wrapper} sh {qemu} {more}"));
        let helper: i32 = pair.file("helper").trim().parse().expect("a pid");
        pair.truth().execute("quit", Value::Null).expect("quit");
        let out = pair.ends();
        signal(helper, libc::SIGKILL);
        out.ok().says("still holds its monitor");
    }
}
