//! `qom-fuse MNT -- QEMU-COMMAND` where pidfd_open is refused, as by old rules of containers, or missing (Linux 5.2).

use std::fs;
use std::time::Duration;

use harness::*;
use serde_json::Value;

use crate::command::QUIET;

const SOON: Duration = Duration::from_secs(20);

/// Runs what follows with system calls that fail. strace stays their parent, and ends as they do.
const REFUSED: &str = "strace -f -qq -o trace --seccomp-bpf -e trace=pidfd_open,pidfd_send_signal \
                       -e inject=pidfd_open,pidfd_send_signal:error=EPERM";

/// What ends the machine.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Signal,
    Quit,
    Kill,
    Stopped,
}

#[test]
fn a_machine_comes_and_goes() {
    for (which, more, ending, status) in [
        (Which::Old, "", Ending::Signal, 0),
        (Which::New, "", Ending::Quit, 0),
        (Which::Old, "", Ending::Kill, 137),
        (Which::New, "", Ending::Stopped, 137),
        (Which::Old, "-daemonize", Ending::Signal, 0),
        (Which::New, "-daemonize", Ending::Quit, 0),
        (Which::New, "-daemonize", Ending::Stopped, 0),
    ] {
        let session = Session::new();
        let binary = quote(which.binary());
        let running = session.start(&format!("exec {REFUSED} qom-fuse mnt -- {binary} {QUIET} {more}"));
        let answers = || session.info().is_some() && session.dir().join("pid").exists();
        assert!(wait_until(SOON, answers), "nothing was mounted");
        assert_eq!(session.run("cat mnt/machine/type").ok().text(), "none-machine");
        let pid = fs::read_to_string(session.dir().join("pid")).expect("QEMU's pid");
        let machine: i32 = pid.trim().parse().expect("a number");
        let pids = session.pids();
        let is_watchdog = |pid: &u32| proc::parent(*pid).is_some_and(|parent| pids.contains(&parent));
        let daemon = *pids.iter().find(|pid| !is_watchdog(pid)).expect("a daemon") as i32;
        match ending {
            Ending::Signal => signal(daemon, libc::SIGTERM),
            Ending::Kill => signal(machine, libc::SIGKILL),
            Ending::Stopped => {
                signal(machine, libc::SIGSTOP);
                signal(daemon, libc::SIGTERM);
            }
            Ending::Quit => {
                let truth = Truth::connect(&session.dir().join("truth.sock")).expect("a monitor");
                truth.execute("quit", Value::Null).expect("quit");
            }
        }
        let out = running.finish(SOON);
        assert_eq!(out.status, status, "{ending:?} {more}: {out}");
        assert!(
            wait_until(SOON, || !alive(machine)),
            "{ending:?} {more}: QEMU is left: {out}"
        );
        session.wait_ended(SOON);
        let trace = fs::read_to_string(session.dir().join("trace")).expect("a trace");
        // The command itself needs no descriptor: its number is its own until it was waited for.
        assert_eq!(trace.contains("INJECTED"), !more.is_empty(), "{trace}");
    }
}

#[test]
fn the_exit_status_of_a_command_that_is_no_machine() {
    let session = Session::new();
    for (command, status) in [("exit 7", 7), ("kill -9 $$", 137)] {
        let out = session.run(&format!(
            "exec {REFUSED} qom-fuse mnt -- sh -c {}",
            quote(command)
        ));
        assert_eq!((out.status, out.stderr.as_str()), (status, ""), "{out}");
        session.wait_ended(SOON);
    }
    let command = "echo $$ > own; exec sleep 60";
    let out = session.run(&format!(
        "exec {REFUSED} qom-fuse -o timeout=1 mnt -- sh -c {}",
        quote(command)
    ));
    out.exits(1).says("has not begun to speak QMP");
    let own = fs::read_to_string(session.dir().join("own")).expect("its pid");
    assert!(!alive(own.trim().parse().expect("a number")), "it is left: {out}");
    session.wait_ended(SOON);
}

/// A thread that cannot be had for it: nothing was started, and that is what is said.
#[test]
fn a_command_that_cannot_be_waited_for_is_not_started() {
    let session = Session::new();
    // The thread for signals.
    let out = session.run(
        "exec strace -f -qq -o trace --seccomp-bpf -e trace=clone3 -e inject=clone3:error=EAGAIN:when=1+ \
         qom-fuse mnt -- sh -c 'touch started; exec sleep 60'",
    );
    assert!(
        out.status != 0 && out.stderr.contains("Resource temporarily unavailable"),
        "{out}"
    );
    assert!(!session.dir().join("started").exists(), "{out}");
    session.wait_ended(SOON);
}
