//! Ends that are made difficult: a thread that waits in the kernel, no /proc, no further process, signals that mean
//! nothing. The mount goes, who waits gets an error, and no process is left.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use harness::*;

use crate::kernel::inject;

const SOON: Duration = Duration::from_secs(15);

/// The process of a session that serves, and not the one that watches over it.
#[track_caller]
pub fn daemon(session: &Session) -> u32 {
    let pids = session.pids();
    let has_parent = |pid: &u32| proc::parent(*pid).is_some_and(|parent| pids.contains(&parent));
    let serving: Vec<_> = pids.iter().filter(|pid| !has_parent(pid)).collect();
    assert!(serving.len() == 1, "served by {serving:?} of {pids:?}");
    *serving[0]
}

/// What a script of a session prints in a mount namespace of its own.
#[track_caller]
fn in_namespace(session: &Session, script: &str) -> Out {
    let who = if proc::is_root() { "" } else { "--map-root-user" };
    // Not the mounts of other tests: a copy here would keep them when they are unmounted there.
    let script = format!("umount --all --lazy --types fuse.qom-fuse\n{script}");
    session.run(&format!("exec unshare {who} --mount bash -c {}", quote(script)))
}

#[test]
fn without_proc_it_mounts_and_unmounts() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let socket = quote(qemu.socket());
    let outside = "$(stat -c %d mnt)";
    for end in ["busybox umount mnt", "kill $!", "kill -9 $!"] {
        let session = Session::new();
        let script = format!(
            "before={outside}
             mount -t tmpfs none /proc
             qom-fuse -f -o timeout=5 {socket} mnt &
             for i in {{1..200}}; do [ {outside} != $before ] && break; sleep 0.05; done
             cat mnt/machine/type
             {end}
             for i in {{1..200}}; do [ {outside} = $before ] && echo gone && break; sleep 0.05; done"
        );
        let out = in_namespace(&session, &script);
        assert_eq!(out.lines(), ["none-machine", "gone"], "{end}: {out}");
        session.wait_ended(SOON);
    }
    // One that fails after it has mounted.
    let session = Session::new();
    let script = format!(
        "before={outside}
         mount -t tmpfs none /proc
         qom-fuse --log-file /nowhere/log {socket} mnt && echo mounted
         [ {outside} = $before ] && echo gone"
    );
    let out = in_namespace(&session, &script);
    assert!(
        out.text() == "gone" && out.stderr.contains("/nowhere/log"),
        "{out}"
    );
    session.wait_ended(SOON);
}

/// fusermount3 mounts without /proc, and cannot unmount then.
#[test]
fn without_proc_an_ordinary_user_leaves_nothing() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let user = User::new(&qemu);
    let script = format!(
        "before=$(stat -c %d mnt)
         mount -t tmpfs none /proc
         {} ./qom-fuse -o timeout=5 vm.sock mnt && busybox umount mnt
         [ $(stat -c %d mnt) = $before ] && echo gone",
        user.as_user
    );
    let out = in_namespace(&user.session, &script);
    assert!(out.text() == "gone", "{out}");
    assert!(
        user.as_user.is_empty() || out.stderr.contains("without /proc"),
        "{out}"
    );
    user.session.wait_ended(SOON);
}

/// Whatever fails for want of a descriptor: either it serves, or nothing is left.
#[test]
fn few_descriptors() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let user = User::new(&qemu);
    let by_user = |script: &str| user.run(script);
    let by_root = |script: &str| user.session.run(script);
    for run in [&by_user as &dyn Fn(&str) -> Out, &by_root] {
        let mut outcomes = [0, 0];
        for limit in 4..=20 {
            let out = run(&format!(
                "ulimit -n {limit}; exec qom-fuse -o timeout=5 vm.sock mnt"
            ));
            outcomes[usize::from(out.status == 0)] += 1;
            if out.status == 0 {
                assert_eq!(
                    run("cat mnt/machine/type").ok().text(),
                    "none-machine",
                    "limit {limit}"
                );
                run("fusermount3 -u mnt").ok();
            } else {
                assert_eq!(user.session.info(), None, "limit {limit}: {out}");
            }
            user.session.wait_ended(SOON);
        }
        assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
    }
}

/// Whatever fails for want of a process or thread: either it serves, or nothing is left.
#[test]
fn an_ordinary_user_who_may_start_few_processes() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let mut user = User::new(&qemu);
    if proc::is_root() {
        // One who does nothing else meanwhile: what is limited is the user's, and other tests run as nobody.
        (user.id, user.as_user) = (2, "setpriv --reuid=2 --regid=2 --clear-groups");
        chown(user.session.mnt(), Some(2), Some(2)).expect("give the mount point away");
    }
    let mut outcomes = [0, 0];
    for more in 1..=24 {
        let limit = threads_of(user.id) + more;
        let out = user.run(&format!(
            "ulimit -u {limit}; exec qom-fuse -o timeout=5 vm.sock mnt"
        ));
        outcomes[usize::from(out.status == 0)] += 1;
        if out.status == 0 {
            assert_eq!(user.run("cat mnt/machine/type").ok().text(), "none-machine");
            user.run("fusermount3 -u mnt").ok();
        } else {
            assert_eq!(user.session.info(), None, "limit {limit}: {out}");
            assert!(out.stderr.starts_with("qom-fuse: "), "limit {limit}: {out}");
        }
        user.session.wait_ended(SOON);
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
}

/// How many threads a user has, which is what `ulimit -u` limits.
fn threads_of(user: u32) -> usize {
    let entries = fs::read_dir("/proc").expect("list /proc").filter_map(Result::ok);
    let statuses = entries.filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok());
    let number = |status: &str, field: &str| -> Option<usize> {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let theirs = statuses.filter(|status| number(status, "Uid:") == Some(user as usize));
    theirs.filter_map(|status| number(&status, "Threads:")).sum()
}

#[test]
fn an_unmount_that_can_start_no_process() {
    for both in [false, true] {
        for number in [libc::SIGTERM, 0] {
            let qemu = Qemu::start(Which::Old, "none", &[]);
            let user = User::new(&qemu);
            user.run("qom-fuse vm.sock mnt").ok();
            let daemon = daemon(&user.session);
            for pid in user.session.pids() {
                if both || pid == daemon {
                    user.run(&format!("prlimit --pid {pid} --nproc=1:1")).ok();
                }
            }
            match number {
                0 => qemu.kill(),
                _ => signal(daemon as i32, number),
            }
            user.session.wait_ended(SOON);
            assert_eq!(user.session.run("ls -A mnt").ok().text(), "");
        }
    }
}

#[test]
fn a_lock_that_there_is_not() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let session = Session::new();
    let out = session.run(&format!(
        "exec strace -f -qq -o trace --seccomp-bpf -e trace=flock -e inject=flock:error=ENOLCK qom-fuse -f {} mnt & \
         for i in {{1..100}}; do [ -d mnt/machine ] && break; sleep 0.1; done; cat mnt/machine/type; fusermount3 -u mnt",
        quote(qemu.socket())
    ));
    assert_eq!(out.text(), "none-machine", "{out}");
    session.wait_ended(SOON);
    let trace = fs::read_to_string(session.dir().join("trace")).expect("a trace");
    assert!(trace.contains("INJECTED"), "{trace}");
}

/// What cannot be asked for is no proof that a mount is another's.
#[test]
fn a_mount_that_cannot_be_identified_again() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    for number in [libc::SIGTERM, libc::SIGKILL] {
        let mount = Mount::start(&qemu.socket(), &[]);
        let _blind = inject(&[mount.pid(), mount.watchdog()], "statx:error=EACCES");
        mount.signal(number);
        mount.wait_unmounted(SOON);
    }
}

#[test]
fn a_signal_to_the_watchdog_means_nothing() {
    let (_qemu, mount) = mounted(Which::Old, "none", &[], &[]);
    for number in [
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGALRM,
    ] {
        signal(mount.watchdog() as i32, number);
        std::thread::sleep(Duration::from_millis(200));
        assert!(mount.is_mounted(), "signal {number} to the watchdog unmounts");
        assert_reads(mount.join("machine/type"), "none-machine\n");
    }
    assert_ne!(mount.watchdog(), 0, "it is still there");
    mount.signal(libc::SIGKILL);
    mount.wait_unmounted(SOON);
}

/// The kernel gives a connection the number of one that has just gone.
#[test]
fn a_watchdog_that_is_late_cuts_no_other_connection() {
    let qemus = [0, 1].map(|_| Qemu::start(Which::Old, "none", &[]));
    let sockets = [0, 1].map(|which: usize| quote(qemus[which].socket()));
    let session = Session::new();
    let script = format!(
        "mount -t fusectl none /sys/fs/fuse/connections
         mkdir new
         qom-fuse -f {0} mnt &
         daemon=$!
         for i in {{1..200}}; do [ -d mnt/machine ] && break; sleep 0.05; done
         watchdog=$(cat /proc/$daemon/task/$daemon/children | tr -d ' ')
         number=$(stat -c %d mnt)
         kill -STOP $watchdog; kill -9 $daemon; wait $daemon
         fusermount3 -uz mnt; qom-fuse {1} new
         [ $(stat -c %d new) = $number ] && echo reused
         kill -CONT $watchdog
         while [ -e /proc/$watchdog ]; do sleep 0.05; done
         cat new/machine/type
         umount new",
        sockets[0], sockets[1]
    );
    let out = in_namespace(&session, &script);
    let out = out.lines();
    assert!(
        out == ["reused", "none-machine"] || out == ["none-machine"],
        "{out:?}"
    );
    session.wait_ended(SOON);
}

/// Root cannot ask for the unique id of an ordinary user's mount, which has got the number of one that has just gone.
#[test]
fn another_users_mount_is_left_alone() {
    let qemus = [0, 1].map(|_| Qemu::start(Which::Old, "none", &[]));
    for late in ["daemon", "watchdog"] {
        for _ in 0..3 {
            let old = Mount::start(&qemus[0].socket(), &[]);
            let user = User::new(&qemus[1]);
            let (daemon, watchdog) = (old.pid(), old.watchdog());
            let late = if late == "daemon" { daemon } else { watchdog };
            signal(late as i32, libc::SIGSTOP);
            if late == watchdog {
                signal(daemon as i32, libc::SIGKILL);
            }
            sh(&format!("fusermount3 -uz {}", quote(old.path()))).ok();
            user.run("qom-fuse vm.sock mnt").ok();
            signal(late as i32, libc::SIGCONT);
            old.wait_unmounted(SOON);
            assert_eq!(user.run("cat mnt/machine/type").ok().text(), "none-machine");
            user.run("fusermount3 -u mnt").ok();
            user.session.wait_ended(SOON);
        }
    }
}

/// Before Linux 5.9 there is no close_range.
#[test]
fn what_is_inherited_is_closed_one_by_one() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let stream = UnixStream::connect(qemu.socket()).expect("connect to QEMU");
    let session = Session::new();
    let wrapper = session.dir().join("qom-fuse");
    let trace = session.dir().join("trace");
    let text = format!(
        "#!/bin/sh\nexec strace -D -f -qq -o {} --seccomp-bpf -e trace=close_range -e inject=close_range:error=ENOSYS {} \"$@\"\n",
        quote(&trace),
        quote(env!("CARGO_BIN_EXE_qom-fuse"))
    );
    fs::write(&wrapper, text).expect("write a script");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("make it a program");
    let launch = Launch::new().program(wrapper).inherit(&stream);
    let mount = launch.socket(format!("fd:{}", stream.as_raw_fd())).foreground();
    drop(stream);
    let held = fs::read_dir(format!("/proc/{}/fd", mount.watchdog())).expect("descriptors");
    let held = held.map(|fd| fs::read_link(fd.expect("a descriptor").path()).expect("its target"));
    let held: Vec<_> = held
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .collect();
    assert!(held.is_empty(), "the watchdog holds {held:?}");
    // So does the thread that may wait in the kernel, but for its connection.
    let tasks = format!("/proc/{}/task", mount.pid());
    let forgetter = fs::read_dir(tasks).expect("threads").find_map(|thread| {
        let path = thread.expect("a thread").path();
        let name = fs::read(path.join("comm")).unwrap_or_default(); // it may end meanwhile
        (name == b"forgetter\n").then(|| path.join("fd"))
    });
    let forgetter = forgetter.expect("a thread");
    let count = || fs::read_dir(&forgetter).map_or(0, Iterator::count);
    assert!(wait_until(SOON, || count() == 1), "{} descriptors", count());
    mount.unmount();
    let trace = fs::read_to_string(trace).expect("a trace");
    assert!(trace.contains("INJECTED"), "{trace}");
}

/// The kernel spares the first process of a container what it has no handler for.
#[test]
fn the_first_process_of_a_container_ends_by_a_signal() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let holder = Truth::connect(&qemu.socket()).expect("be the first client");
    let who = if proc::is_root() {
        ""
    } else {
        "--map-root-user --mount"
    };
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let session = Session::new();
        let start = session.start(&format!(
            "exec unshare {who} --pid --fork --kill-child qom-fuse -f -o timeout=60 {} mnt",
            quote(qemu.socket())
        ));
        assert!(
            wait_until(SOON, || session.pids().len() >= 2),
            "it has not started"
        );
        std::thread::sleep(Duration::from_millis(300)); // into the wait for the greeting
        signal(daemon(&session) as i32, number);
        let out = start.finish(SOON);
        assert_eq!(out.status, 128 + number, "{out}");
        session.wait_ended(SOON);
    }
    drop(holder);
    // Connected, it ends in good order.
    let session = Session::new();
    let start = session.start(&format!(
        "exec unshare {who} --pid --fork --kill-child qom-fuse -f {} mnt",
        quote(qemu.socket())
    ));
    assert!(wait_until(SOON, || session.pids().len() >= 2
        && (!proc::is_root() || session.info().is_some())));
    std::thread::sleep(Duration::from_millis(500));
    signal(daemon(&session) as i32, libc::SIGTERM);
    start.finish(SOON).ok();
    session.wait_ended(SOON);
    // So it does with a QEMU of its own.
    let session = Session::new();
    let start = session.start(&format!(
        "exec unshare {who} --pid --fork --kill-child qom-fuse -f mnt -- {} -M none -display none -S",
        quote(Which::New.binary())
    ));
    let mounted = || session.pids().len() >= 2 && (!proc::is_root() || session.info().is_some());
    assert!(wait_until(SOON, mounted), "it does not start");
    std::thread::sleep(Duration::from_millis(500));
    signal(daemon(&session) as i32, libc::SIGTERM);
    start.finish(SOON).ok();
    session.wait_ended(SOON);
}
