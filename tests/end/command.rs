//! `qom-fuse MNT -- QEMU-COMMAND`: the mount and the machine live together, and QEMU runs as if it had been started alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::*;
use serde_json::Value;

pub const SOON: Duration = Duration::from_secs(15);

/// A quiet machine, and a second monitor for the test. It runs in the folder of a session.
pub const QUIET: &str =
    "-M none -display none -nodefaults -S -pidfile pid -qmp unix:truth.sock,server=on,wait=off";

/// The command of such a machine, as one types it.
#[track_caller]
pub fn qemu(which: Which) -> String {
    format!("{} {QUIET}", quote(which.binary()))
}

/// A `qom-fuse` that has a machine of its own and has mounted it.
pub struct Pair {
    pub session: Session,
    pub running: Background,
}

impl Pair {
    /// Runs `exec qom-fuse` with the rest of a command line.
    #[track_caller]
    pub fn start(rest: &str) -> Pair {
        Pair::start_by("exec", rest)
    }

    /// Has a shell run it in another way.
    #[track_caller]
    pub fn start_by(how: &str, rest: &str) -> Pair {
        let session = Session::new();
        let running = session.start(&format!("ulimit -c 0; {how} qom-fuse {rest}"));
        let outside = lstat(session.dir()).expect("stat the session").st_dev;
        let answers = || lstat(session.mnt()).is_ok_and(|stat| stat.st_dev != outside);
        if !wait_until(SOON, answers) {
            panic!("nothing was mounted: {}", running.finish(Duration::ZERO));
        }
        Pair { session, running }
    }

    pub fn file(&self, name: &str) -> String {
        let read = fs::read_to_string(self.session.dir().join(name));
        read.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Has the mount end while QEMU is stopped, which goes on after a second.
    pub fn end_while_stopped(&self, machine: i32) {
        signal(machine, libc::SIGSTOP);
        signal(self.running.pid() as i32, libc::SIGTERM);
        std::thread::sleep(Duration::from_secs(1));
        signal(machine, libc::SIGCONT);
    }

    /// QEMU's process.
    pub fn qemu(&self) -> i32 {
        let text = self.file("pid");
        text.trim().parse().unwrap_or_else(|_| panic!("a pid: {text}"))
    }

    pub fn truth(&self) -> Truth {
        Truth::connect(&self.session.dir().join("truth.sock")).expect("QEMU's second monitor")
    }

    /// Waits for the end of `qom-fuse`; nothing may be left then. Gives what it did.
    #[track_caller]
    pub fn ends(self) -> Out {
        let out = self.running.finish(SOON);
        assert_eq!(self.session.info(), None, "still mounted: {out}");
        self.session.wait_ended(SOON);
        assert!(!out.stderr.contains("panicked"), "{out}");
        out
    }
}

each_qemu!(the_mount_comes_and_goes_with_qemu, |which| {
    let pair = Pair::start(&format!("mnt -- {}", qemu(which)));
    let mnt = pair.session.mnt();
    assert_reads(mnt.join("machine/type"), "none-machine\n");
    let info = pair.session.info().expect("a mount");
    assert_eq!(
        (info.source.to_str(), info.kind.as_str()),
        (Some("qemu-system-x86_64"), "fuse.qom-fuse")
    );
    pair.truth().execute("quit", Value::Null).expect("quit");
    let out = pair.ends();
    assert_eq!((out.ok().text(), out.status), ("", 0));
    assert!(out.stderr.lines().count() <= 1, "{out}");
});

#[test]
fn it_writes_too_and_takes_options() {
    for (option, status) in [("", 0), ("-o ro", 1)] {
        let pair = Pair::start(&format!("{option} mnt -- {}", qemu(Which::Old)));
        let out = pair.session.run("echo off > mnt/machine/graphics");
        assert_eq!(out.status, status, "{option}: {out}");
        assert_eq!(pair.session.run("echo 1 > mnt/none").status, 1);
        signal(pair.running.pid() as i32, libc::SIGTERM);
        pair.ends().ok();
    }
}

each_qemu!(the_exit_status_is_that_of_qemu, |which| {
    // Of a QEMU that a signal kills.
    for (number, status) in [(libc::SIGKILL, 137), (libc::SIGABRT, 134)] {
        let pair = Pair::start(&format!("mnt -- {}", qemu(Which::New)));
        signal(pair.qemu(), number);
        let out = pair.ends();
        assert_eq!(out.status, status, "{out}");
    }
    // Of a wrapper that stays around it.
    let pair = Pair::start(&format!("mnt -- sh -c '\"$@\"; exit 42' sh {}", qemu(which)));
    pair.truth().execute("quit", Value::Null).expect("quit");
    let out = pair.ends();
    assert_eq!(out.status, 42, "{out}");
});

#[test]
fn a_command_that_cannot_be_run() {
    let session = Session::new();
    session.run("echo 1 > plain; mkdir folder").ok();
    for (command, status, why) in [
        ("no-such-qemu", 127, "No such file"),
        ("./no/such/qemu -M none", 127, "No such file"),
        ("./plain", 126, "Permission denied"),
        ("./folder", 126, "Permission denied"),
    ] {
        let out = session.run(&format!("qom-fuse mnt -- {command}"));
        assert_eq!(out.status, status, "{out}");
        let program = command.split(' ').next().expect("a word");
        assert!(
            out.stderr
                .starts_with(&format!("qom-fuse: cannot run {program}: "))
                && out.stderr.contains(why),
            "{out}"
        );
        assert_eq!(out.stderr.lines().count(), 1, "{out}");
        session.wait_ended(SOON);
    }
    // Nothing is started for a mount that cannot be.
    for (line, word) in [
        ("missing -- sh -c 'touch started'", "missing"),
        ("plain -- sh -c 'touch started'", "plain"),
        ("sock mnt -- sh -c 'touch started'", "sock"),
        ("-o bogus mnt -- sh -c 'touch started'", "bogus"),
    ] {
        let out = session.run(&format!("qom-fuse {line}"));
        assert_eq!(out.status, 1, "{out}");
        out.says(word);
        assert!(!session.dir().join("started").exists(), "{line}");
    }
}

each_qemu!(a_qemu_that_does_not_start_speaks_for_itself, |which| {
    let binary = quote(which.binary());
    for arguments in [
        "-M nonsense",
        "-display none -device no-such",
        "-version",
        "--help",
    ] {
        let session = Session::new();
        let alone = session.run(&format!("exec {binary} {arguments}"));
        let out = session.run(&format!("exec qom-fuse mnt -- {binary} {arguments}"));
        assert_eq!(
            (out.status, &out.stderr, &out.stdout),
            (alone.status, &alone.stderr, &alone.stdout),
            "{arguments}"
        );
        session.wait_ended(SOON);
    }
});

#[test]
fn a_command_that_fails_speaks_for_itself() {
    let session = Session::new();
    let out = session.run("exec qom-fuse mnt -- sh -c 'echo some words; echo why not >&2; exit 42'");
    assert_eq!(
        (out.status, out.text(), out.stderr.as_str()),
        (42, "some words", "why not\n")
    );
    session.wait_ended(SOON);
}

/// Something that is no QEMU, and stays: the timeout ends it.
#[test]
fn a_command_that_is_no_qemu() {
    let session = Session::new();
    let started = Instant::now();
    let out = session.run("exec qom-fuse -o timeout=1 mnt -- sh -c 'echo $$ > pid; exec sleep 60'");
    assert!(out.status == 1 && out.stderr.starts_with("qom-fuse: "), "{out}");
    assert_eq!(out.stderr.lines().count(), 1, "{out}");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    session.wait_ended(SOON);
    let pid = fs::read_to_string(session.dir().join("pid")).expect("its pid");
    assert!(!alive(pid.trim().parse().expect("a number")));
}

each_qemu!(a_wrapper_script, |which| {
    let session = Session::new();
    let script = format!(
        "#!/bin/sh\n# sets the scene\nexport QEMU_AUDIO_DRV=none\necho wrapped\nexec {} {QUIET} \"$@\"\n",
        quote(which.binary())
    );
    fs::write(session.dir().join("vm.sh"), script).expect("write a script");
    let out = session.run(
        "chmod +x vm.sh
             qom-fuse mnt -- ./vm.sh -name 'a machine' &
             for i in {1..300}; do [ -d mnt/machine ] && break; sleep 0.05; done
             cat mnt/machine/type
             kill -TERM $!
             wait $!",
    );
    assert_eq!(out.ok().text(), "wrapped\nnone-machine");
    session.wait_ended(SOON);
});

each_qemu!(qemu_keeps_stdin_stdout_and_stderr, |which| {
    let session = Session::new();
    // The human monitor on QEMU's standard input and output.
    let out = session.run(&format!(
        "printf 'info status\\nno-such-command\\nquit\\n' |
             qom-fuse mnt -- {} -monitor stdio",
        qemu(which)
    ));
    let said = String::from_utf8_lossy(&out.ok().stdout).into_owned();
    assert!(said.contains("VM status: paused"), "{out}");
    assert!(said.contains("unknown command: 'no-such-command'"), "{out}");
    session.wait_ended(SOON);

    let out = session.run(&format!(
        "echo a line | qom-fuse mnt -- sh -c 'read line; echo \"[$line]\"; echo noise >&2; exec \"$@\"' sh \
             {} -monitor none 9>&1 & \
             for i in {{1..300}}; do [ -d mnt/machine ] && break; sleep 0.05; done
             kill -TERM $(cat pid); wait $!",
        qemu(which)
    ));
    assert_eq!(out.text(), "[a line]");
    assert!(out.stderr.starts_with("noise\n"), "{out}");
    session.wait_ended(SOON);
});

#[test]
fn qemu_keeps_the_terminal() {
    let session = Session::new();
    let script = format!(
        "#!/bin/sh\n[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && stty -a > settings && tty > terminal\n\
         # In the foreground of the terminal: a process of the background would be stopped for this.\n\
         stty -echo && stty echo && echo yes > foreground\n\
         exec {} \"$@\"\n",
        qemu(Which::Old)
    );
    fs::write(session.dir().join("vm.sh"), script).expect("write a script");
    fs::write(
        session.dir().join("typed.sh"),
        "exec qom-fuse mnt -- sh ./vm.sh -monitor stdio",
    )
    .expect("write a script");
    let out = session
        .run("(sleep 3; echo 'info status'; sleep 1; echo quit) | script -qec 'bash typed.sh' /dev/null");
    let said = String::from_utf8_lossy(&out.ok().stdout).into_owned();
    assert!(said.contains("VM status: paused"), "{out}");
    let read = |name: &str| fs::read_to_string(session.dir().join(name)).unwrap_or_default();
    assert!(read("terminal").starts_with("/dev/pts/"), "{out}");
    assert_eq!(read("foreground"), "yes\n", "{out}");
    session.wait_ended(SOON);
}

each_qemu!(unmounted_by_hand_qemu_goes_on, |which| {
    for lazily in ["", "z"] {
        let pair = Pair::start(&format!("mnt -- {}", qemu(which)));
        pair.session.run(&format!("fusermount3 -u{lazily} mnt")).ok();
        std::thread::sleep(Duration::from_millis(500));
        assert!(
            !pair.session.pids().is_empty() && alive(pair.qemu()),
            "they ended with the mount"
        );
        let truth = pair.truth();
        assert!(!truth.list("/").is_empty());
        truth.execute("quit", Value::Null).expect("quit");
        pair.ends().ok();
    }
    let pair = Pair::start(&format!("mnt -- {}", qemu(which)));
    pair.session.run("fusermount3 -u mnt").ok();
    signal(pair.qemu(), libc::SIGKILL);
    let out = pair.ends();
    assert_eq!(out.status, 137, "{out}");

    // Also one that comes while the end of the mount is being noticed.
    for _ in 0..10 {
        let pair = Pair::start(&format!("mnt -- {}", qemu(which)));
        pair.session.run("fusermount3 -u mnt").ok();
        let machine = pair.qemu();
        signal(pair.running.pid() as i32, libc::SIGINT);
        pair.ends().ok();
        assert!(!alive(machine), "a signal still ends it");
    }
});

#[test]
fn killed_it_leaves_no_dead_mount() {
    let pair = Pair::start(&format!("mnt -- {}", qemu(Which::Old)));
    let truth = pair.truth();
    signal(pair.running.pid() as i32, libc::SIGKILL);
    let session = pair.session;
    session.wait_ended(SOON);
    // The machine is the user's: it goes on.
    assert!(!truth.list("/").is_empty());
    truth.execute("quit", Value::Null).expect("quit");
    assert_eq!(pair.running.finish(SOON).status, 137);
}

// A machine that there can be no mount of is ended, wherever it runs.
each_qemu!(a_mount_point_that_vanishes_meanwhile, |which| {
    for more in ["", "-daemonize"] {
        let session = Session::new();
        let out = session.run(&format!(
            "exec qom-fuse mnt -- sh -c 'rmdir mnt && exec \"$@\"' sh {} {more}",
            qemu(which)
        ));
        assert_eq!(out.status, 1, "{out}");
        assert!(out.stderr.starts_with("qom-fuse: cannot mount on "), "{out}");
        session.wait_ended(SOON);
        let pid = fs::read_to_string(session.dir().join("pid")).unwrap_or_default();
        let gone = || pid.trim().parse().map_or(true, |pid| !alive(pid));
        assert!(wait_until(SOON, gone), "QEMU outlived its mount");
    }
});

/// QEMU has what it would have without us, and one end of a socket pair.
#[test]
fn qemu_inherits_its_monitor_and_nothing_else() {
    let look = "ls -l /proc/$$/fd > fds; grep -E \"^Sig(Ign|Blk|Cgt)\" /proc/$$/status > signals; \
                env | sort | grep -v ^_= > environment; pwd > folder; ulimit -a > limits; exec \"$@\"";
    let inherited = "7</dev/zero";
    let session = Session::new();
    session
        .run(&format!(
            "mkdir alone; cd alone; bash -c '{look}' bash true {inherited}"
        ))
        .ok();
    let pair = Pair::start(&format!(
        "mnt -- bash -c '{look}' bash {} {inherited}",
        qemu(Which::Old)
    ));
    let numbers = |text: &str| -> BTreeSet<String> {
        let names = text
            .lines()
            .filter_map(|line| line.split(" -> ").next()?.rsplit(' ').next());
        names
            .filter(|name| name.parse::<u32>().is_ok())
            .map(str::to_owned)
            .collect()
    };
    let alone = |name: &str| fs::read_to_string(session.dir().join("alone").join(name)).expect(name);
    let (before, with) = (alone("fds"), pair.file("fds"));
    let added: Vec<String> = numbers(&with).difference(&numbers(&before)).cloned().collect();
    assert_eq!(added.len(), 1, "{before}{with}");
    assert!(with.contains(&format!(" {} -> socket:", added[0])), "{with}");
    assert_eq!(numbers(&with).len(), numbers(&before).len() + 1, "{before}{with}");
    assert!(
        with.contains(" 7 -> /dev/zero"),
        "what the user passes on: {with}"
    );
    assert_eq!(pair.file("signals"), alone("signals"));
    let names = |text: String| -> BTreeSet<String> {
        let names = text.lines().filter_map(|line| line.split('=').next());
        names.map(str::to_owned).collect()
    };
    assert_eq!(names(pair.file("environment")), names(alone("environment")));
    assert_eq!(Path::new(pair.file("folder").trim()), pair.session.dir());
    // Nobody else holds QEMU's end, or the end of QEMU would go unnoticed.
    let machine = pair.qemu();
    let link = |pid: i32| fs::read_link(format!("/proc/{pid}/fd/{}", added[0])).expect("the monitor");
    let monitor = link(machine);
    for pid in pair.session.pids() {
        for fd in fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors") {
            let target = fs::read_link(fd.expect("a descriptor").path()).unwrap_or_default();
            assert_ne!(target, monitor, "process {pid} holds it too");
        }
    }
    signal(pair.running.pid() as i32, libc::SIGTERM);
    pair.ends().ok();
}

#[test]
fn two_at_once() {
    let one = Pair::start(&format!("mnt -- {}", qemu(Which::Old)));
    let two = Pair::start(&format!("mnt -- {}", qemu(Which::New)));
    one.truth().execute("quit", Value::Null).expect("quit");
    one.ends().ok();
    assert_reads(two.session.mnt().join("machine/type"), "none-machine\n");
    signal(two.running.pid() as i32, libc::SIGTERM);
    two.ends().ok();
}
