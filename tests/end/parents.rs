//! What whoever starts us has made of signals: we do not rely on it, and a QEMU that we start gets it all the same.

use std::time::Duration;

use harness::*;

const SOON: Duration = Duration::from_secs(15);

/// Parents that ignore SIGCHLD, and one that blocks signals besides; each runs what follows in its own place. (SIGPIPE
/// is the default for whatever a program in Rust starts.)
const PARENTS: [&str; 3] = [
    "perl -e '$SIG{CHLD} = \"IGNORE\"; exec @ARGV' --",
    "perl -MPOSIX -e '$SIG{CHLD} = \"IGNORE\"; sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGTERM, SIGINT, SIGHUP, SIGCHLD, SIGUSR1)); exec @ARGV' --",
    "/usr/bin/python3 -c 'import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); signal.signal(signal.SIGPIPE, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])'",
];

#[test]
fn a_mount_comes_and_goes_whoever_starts_it() {
    for (parent, which) in PARENTS.into_iter().zip([Which::Old, Which::New, Which::Old]) {
        let qemu = Qemu::start(which, "none", &[]);
        let user = User::new(&qemu);
        let by_user = |script: &str| user.run(script);
        let by_root = |script: &str| user.session.run(script);
        for run in [&by_user as &dyn Fn(&str) -> Out, &by_root] {
            for number in [libc::SIGTERM, libc::SIGINT, libc::SIGKILL, 0] {
                let out = run(&format!("exec {parent} qom-fuse vm.sock mnt"));
                assert_eq!(out.ok().stderr, "", "{parent}");
                assert_eq!(run("cat mnt/machine/type").ok().text(), "none-machine");
                let pids = user.session.pids();
                let is_watchdog = |pid: &u32| proc::parent(*pid).is_some_and(|parent| pids.contains(&parent));
                let daemon = pids.iter().find(|pid| !is_watchdog(pid)).expect("a daemon");
                match number {
                    0 => _ = run("fusermount3 -u mnt").ok(),
                    _ => signal(*daemon as i32, number),
                }
                user.session.wait_ended(SOON);
            }
        }
    }
}

#[test]
fn the_exit_status_of_a_command_is_known() {
    for parent in PARENTS {
        let session = Session::new();
        for (command, status) in [("exit 7", 7), ("kill -9 $$", 137)] {
            let out = session.run(&format!("exec {parent} qom-fuse mnt -- sh -c {}", quote(command)));
            assert_eq!((out.status, out.stderr.as_str()), (status, ""), "{parent}: {out}");
            session.wait_ended(SOON);
        }
        let out = session.run(&format!("exec {parent} qom-fuse nowhere.sock mnt"));
        out.exits(1).says("nowhere.sock");
    }
}

#[test]
fn a_command_gets_the_signals_as_they_were() {
    // A shell would change them.
    let look = "perl -e 'open F, \"/proc/self/status\"; print grep /^Sig(Ign|Blk)/, <F>' --";
    let mut seen = Vec::new();
    for parent in PARENTS {
        let session = Session::new();
        let alone = session.run(&format!("exec {parent} {look}"));
        let with = session.run(&format!("exec {parent} qom-fuse mnt -- {look}"));
        assert_eq!(with.text(), alone.ok().text(), "{parent}");
        session.wait_ended(SOON);
        seen.push(with.text().to_owned());
    }
    assert_ne!(seen[0], seen[1], "one blocks some");
}
