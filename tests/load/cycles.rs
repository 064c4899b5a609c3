//! Mounted and unmounted again and again, in every way: nothing is left, and what others do to a mount point is survived.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use harness::*;

const CYCLES: usize = 200;
const AT_ONCE: usize = 4;

fn count(pid: u32, what: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count)
}

/// Each of the ways in which a mount ends, in turn; `$end` is the number of the cycle.
const CYCLE: &str = r#"
serving() { for pid in $(pgrep -x qom-fuse); do
    grep -qz "^TEST_SESSION=$TEST_SESSION$" /proc/$pid/environ 2>/dev/null || continue
    read -r _ _ _ parent _ < /proc/$pid/stat
    [[ $(</proc/$parent/comm) == qom-fuse ]] || echo $pid
done 2>/dev/null; }
for ((end = 0; end < CYCLES; end++)); do
    qom-fuse vm.sock mnt || exit
    [[ $(<mnt/machine/type) == none-machine ]] || { echo "cycle $end: a wrong value"; exit 1; }
    case $((end % 5)) in
        0) fusermount3 -u mnt ;;
        1) kill -TERM $(serving) ;;
        2) cd mnt/machine && fusermount3 -uz "$TEST_SESSION/mnt"; cd "$TEST_SESSION" ;;
        3) kill -KILL $(serving) ;;
        4) pid=$(serving); kill -INT $pid & fusermount3 -u mnt 2>/dev/null; wait ;; # whoever is first
    esac
    for ((try = 0; try < 1000; try++)); do mountpoint -q mnt || break; sleep 0.01; done
    for ((try = 0; try < 1000; try++)); do [[ -z $(serving) ]] && break; sleep 0.01; done
    ls mnt >/dev/null || { echo "cycle $end: a dead mount"; exit 1; }
done
"#;

#[test]
fn two_hundred_cycles_leave_nothing() {
    thread::scope(|scope| {
        for number in 0..AT_ONCE {
            let which = Which::ALL[number % 2];
            scope.spawn(move || {
                let qemu = Qemu::start(which, "none", &[]);
                let session = Session::new();
                session
                    .run(&format!(
                        "ln -s {} vm.sock && qom-fuse vm.sock mnt && fusermount3 -u mnt",
                        quote(qemu.socket())
                    ))
                    .ok();
                session.wait_ended(SOON);
                let before = (count(qemu.pid(), "fd"), count(qemu.pid(), "task"));
                let files = fs::read_dir(qemu.dir()).expect("QEMU's folder").count();
                let script = format!("CYCLES={}\n{CYCLE}", CYCLES / AT_ONCE);
                let out = session.start(&script).finish(Duration::from_secs(120));
                assert_eq!((out.ok().text(), out.stderr.as_str()), ("", ""), "{out}");
                session.wait_ended(SOON);
                let settled = || {
                    // QEMU's coroutine threads come and go by themselves.
                    count(qemu.pid(), "fd") <= before.0 && count(qemu.pid(), "task") <= before.1 + 1
                };
                assert!(
                    wait_until(SOON, settled),
                    "before {before:?}, now {:?}",
                    (count(qemu.pid(), "fd"), count(qemu.pid(), "task"))
                );
                assert_eq!(fs::read_dir(qemu.dir()).expect("QEMU's folder").count(), files);
                assert_eq!(sh(&format!("ls -A {}", quote(session.mnt()))).ok().text(), "");
                let next = Truth::connect(&qemu.socket()).expect("the monitor is free");
                assert!(!next.list("/").is_empty());
            });
        }
    });
}

/// Both may look at the mount point before either mounts: then there are two mounts, one above the other.
#[test]
fn two_daemons_at_one_mount_point() {
    for round in 0..5 {
        let qemus = [
            Qemu::start(Which::Old, "none", &[]),
            Qemu::start(Which::New, "none", &[]),
        ];
        let session = Session::new();
        let mut starts = Vec::new();
        for qemu in &qemus {
            starts.push(session.start(&format!("qom-fuse {} mnt", quote(qemu.socket()))));
        }
        let outs: Vec<_> = starts.into_iter().map(|start| start.finish(SOON)).collect();
        let served = outs.iter().filter(|out| out.status == 0).count();
        assert!(served >= 1, "round {round}: {} {}", outs[0], outs[1]);
        for out in outs.iter().filter(|out| out.status != 0) {
            out.says("already");
        }
        assert_eq!(session.run("cat mnt/machine/type").ok().text(), "none-machine");
        for left in (0..served).rev() {
            // Whichever is asked to end, the mount that is left answers.
            if round % 2 == 0 {
                session.run("fusermount3 -u mnt").ok();
            } else {
                let pids = session.pids();
                let daemon = pids
                    .iter()
                    .find(|pid| !proc::parent(**pid).is_some_and(|parent| pids.contains(&parent)));
                signal(*daemon.expect("a daemon") as i32, libc::SIGTERM);
            }
            let here = || {
                mounts()
                    .iter()
                    .filter(|mount| mount.point == session.mnt())
                    .count()
            };
            assert!(
                wait_until(SOON, || here() == left),
                "{} mounts, not {left}",
                here()
            );
            if left > 0 {
                assert_eq!(session.run("cat mnt/machine/type").ok().text(), "none-machine");
            }
        }
        session.wait_ended(SOON);
        assert!(lstat(session.mnt()).is_ok());
    }
}

/// How a mount is ended whose mount point is no longer where it was.
#[derive(Clone, Copy, Debug)]
enum End {
    Signal,
    Qemu,
    Killed,
    Unmount,
}

#[track_caller]
fn end(how: End, session: &Session, qemu: &Qemu, now_at: &Path) {
    let pids = session.pids();
    let daemon = pids
        .iter()
        .find(|pid| !proc::parent(**pid).is_some_and(|parent| pids.contains(&parent)))
        .copied();
    match (how, daemon) {
        (End::Signal, Some(pid)) => signal(pid as i32, libc::SIGTERM),
        (End::Killed, Some(pid)) => signal(pid as i32, libc::SIGKILL),
        (End::Qemu, _) => qemu.kill(),
        (End::Unmount, _) => drop(session.run(&format!("fusermount3 -u {}", quote(now_at)))),
        (_, None) => panic!("no daemon"),
    }
}

#[test]
fn a_mount_point_whose_folder_is_renamed() {
    for how in [End::Signal, End::Qemu, End::Killed, End::Unmount] {
        for replaced in [false, true] {
            let qemu = Qemu::start(Which::Old, "none", &[]);
            let session = Session::new();
            let socket = quote(qemu.socket());
            session
                .run(&format!("mkdir -p a/b && qom-fuse {socket} a/b && mv a z"))
                .ok();
            if replaced {
                session.run("mkdir -p a/b && touch a/b/theirs").ok();
            }
            assert_eq!(session.run("cat z/b/machine/type").ok().text(), "none-machine");
            end(how, &session, &qemu, &session.dir().join("z/b"));
            session.wait_ended(SOON);
            assert_eq!(session.run("ls -A z/b").ok().text(), "", "{how:?}");
            assert!(
                !replaced || session.run("ls -A a/b").ok().text() == "theirs",
                "{how:?}"
            );
        }
    }
}

#[test]
fn a_mount_point_whose_filesystem_is_taken_away() {
    let as_root = as_root();
    for how in [End::Signal, End::Qemu, End::Killed] {
        for busy in [false, true] {
            let qemu = Qemu::start(Which::New, "none", &[]);
            let session = Session::new();
            let socket = quote(qemu.socket());
            session
                .run(&format!(
                    "mkdir t && {as_root} mount -t tmpfs -o mode=777 none t && mkdir t/mnt && qom-fuse {socket} t/mnt"
                ))
                .ok();
            let sitting = busy.then(|| session.start("cd t/mnt/machine && exec sleep 60"));
            let point = session.dir().join("t/mnt");
            if let Some(sitting) = &sitting {
                let cwd = format!("/proc/{}/cwd", sitting.pid());
                let there = || fs::read_link(&cwd).is_ok_and(|cwd| cwd.starts_with(&point));
                assert!(wait_until(SOON, there), "nobody sits in the mount");
            }
            session.run(&format!("{as_root} umount -l t")).ok();
            if busy {
                // The mount lives on for the one who sits in it.
                thread::sleep(Duration::from_millis(200));
                assert!(!session.pids().is_empty(), "{how:?}");
                end(how, &session, &qemu, &point);
            }
            session.wait_ended(SOON);
            drop(sitting);
            assert_eq!(session.run("ls -A t").ok().text(), "", "{how:?}");
        }
    }
}

/// By `umount -f`, say, while somebody sits in it: the mount would stay, and answer nothing any more.
#[test]
fn a_mount_whose_connection_is_cut() {
    let qemu = Qemu::start(Which::New, "none", &[]);
    let session = Session::new();
    session
        .run(&format!("qom-fuse {} mnt", quote(qemu.socket())))
        .ok();
    let sitting = session.start("cd mnt/machine && exec sleep 60");
    let cwd = format!("/proc/{}/cwd", sitting.pid());
    let there = || fs::read_link(&cwd).is_ok_and(|cwd| cwd.starts_with(session.mnt()));
    assert!(wait_until(SOON, there), "nobody sits in the mount");
    let cut = session.run(&format!("{} umount -f mnt", as_root()));
    cut.says("busy");
    session.wait_ended(SOON);
    drop(sitting);
    assert!(session.info().is_none());
    assert!(!qemu.truth().list("/").is_empty());
}

/// What makes a command run as root.
fn as_root() -> &'static str {
    if is_root() { "" } else { "sudo -n" }
}
