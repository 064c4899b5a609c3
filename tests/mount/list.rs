//! `qom-fuse --list`, and the same list where no socket is given.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use harness::*;

const SOON: Duration = Duration::from_secs(15);

/// The line of `--list` for a process and a socket, as its words.
#[track_caller]
fn line_of(out: &Out, pid: u32) -> Vec<Vec<String>> {
    let words = |line: &&str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    out.ok()
        .lines()
        .iter()
        .map(words)
        .filter(|words| words.first() == Some(&pid.to_string()))
        .collect()
}

fn words(of: &[&str]) -> Vec<String> {
    of.iter().map(|word| (*word).to_owned()).collect()
}

/// A process with these arguments that is no QEMU, and is called as one.
#[track_caller]
fn fake(session: &Session, name: &str, arguments: &str) -> Background {
    let running = session.start(&format!("exec -a {name} bash -c 'sleep 60; :' {arguments}"));
    let started = || {
        fs::read(format!("/proc/{}/cmdline", running.pid()))
            .is_ok_and(|line| line.starts_with(name.as_bytes()))
    };
    assert!(wait_until(SOON, started), "it did not start");
    running
}

each_qemu!(it_shows_machines_with_name_pid_and_sockets, |which| {
    let session = Session::new();
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = free.local_addr().expect("its address").port();
    drop(free);
    let tcp = format!("tcp:127.0.0.1:{port},server=on,wait=off");
    let named = Qemu::start(which, "none", &["-name", "web,debug-threads=on", "-qmp", &tcp]);
    let nameless = Qemu::start(which, "none", &[]);
    let out = session.run("qom-fuse --list");
    assert_eq!(out.stderr, "");
    assert_eq!(
        out.lines()
            .first()
            .map(|line| line.split_whitespace().collect::<Vec<_>>()),
        Some(vec!["PID", "NAME", "SOCKET"])
    );
    let sockets =
        |qemu: &Qemu| ["qmp.sock", "truth.sock"].map(|name| qemu.dir().join(name).display().to_string());
    let pid = named.pid().to_string();
    let [qmp, truth] = sockets(&named);
    let tcp = format!("tcp:127.0.0.1:{port}");
    assert_eq!(
        line_of(&out, named.pid()),
        [&qmp, &truth, &tcp].map(|socket| words(&[&pid, "web", socket]))
    );
    let pid = nameless.pid().to_string();
    assert_eq!(
        line_of(&out, nameless.pid()),
        sockets(&nameless).map(|socket| words(&[&pid, "-", &socket]))
    );
    // Each can be taken as it is shown.
    for socket in [qmp, tcp] {
        session
            .run(&format!(
                "qom-fuse {socket} mnt && cat mnt/machine/type && fusermount3 -u mnt"
            ))
            .ok();
        session.wait_ended(SOON);
    }
});

#[test]
fn a_relative_path_is_shown_so_that_it_works_from_anywhere() {
    let session = Session::new();
    let qemu = session.start(&format!(
        "exec {} -M none -display none -nodefaults -S -chardev socket,path=a.sock,server=on,wait=off,id=mon0 \
         -mon mon0,mode=control -name guest=rel",
        quote(Which::Old.binary())
    ));
    assert!(
        wait_until(SOON, || session.dir().join("a.sock").exists()),
        "no QEMU"
    );
    let out = session.run("cd /; qom-fuse -l");
    let socket = session.dir().join("a.sock").display().to_string();
    assert_eq!(
        line_of(&out, qemu.pid()),
        [words(&[&qemu.pid().to_string(), "rel", &socket])]
    );
}

/// With no socket, the error shows the machines, and a command that works once the mount point is filled in.
#[test]
fn without_a_socket_the_error_says_what_to_type() {
    let session = Session::new();
    let qemu = Qemu::start(Which::New, "none", &["-name", "mine"]);
    let out = session.run("qom-fuse mnt");
    assert_eq!((out.status, out.text()), (1, ""), "{out}");
    let list = session.run("qom-fuse --list");
    assert!(out.stderr.starts_with("qom-fuse: no QMP socket given"), "{out}");
    for line in list
        .ok()
        .lines()
        .iter()
        .filter(|line| line.contains(&qemu.pid().to_string()))
    {
        assert!(out.stderr.contains(line), "{line} is not in {out}");
    }
    let advice = out.stderr.lines().last().expect("a line");
    let command = advice.strip_prefix("Try: ").unwrap_or_else(|| panic!("{out}"));
    let command = command
        .strip_suffix(" MOUNTPOINT")
        .unwrap_or_else(|| panic!("{out}"));
    // Whose machine is the first is not ours to say where other tests run: take it only if it is this one.
    let first = command.strip_prefix("qom-fuse ").expect("our name");
    assert!(list.text().contains(first), "{first} is not in {list}");
    if first == qemu.socket().display().to_string() {
        session
            .run(&format!(
                "{command} mnt && cat mnt/machine/type && fusermount3 -u mnt"
            ))
            .ok();
    }
    session.wait_ended(SOON);
}

/// Where it is the only machine in sight, the command is for this one: a namespace of processes of its own.
#[test]
fn the_command_that_is_shown_works() {
    let session = Session::new();
    let script = format!(
        "mount -t proc proc /proc
         umount --all --lazy --types fuse.qom-fuse # or this copy would keep other tests' mounts
         qom-fuse --list
         {} -M none -display none -nodefaults -S -name only -qmp unix:only.sock,server=on,wait=off &
         for i in {{1..300}}; do [ -S only.sock ] && break; sleep 0.05; done
         said=$(qom-fuse mnt 2>&1) && exit 1
         echo \"$said\"
         command=$(sed -n 's/^Try: \\(.*\\) MOUNTPOINT$/\\1/p' <<< \"$said\")
         $command mnt && cat mnt/machine/type && fusermount3 -u mnt
         kill %1; wait",
        quote(Which::Old.binary())
    );
    fs::write(session.dir().join("alone.sh"), script).expect("write a script");
    let out = session.run("unshare --mount --pid --fork --kill-child bash alone.sh");
    let text = out.ok().text();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].contains("no QEMU with a QMP monitor is in sight"),
        "{out}"
    );
    let socket = session.dir().join("only.sock").display().to_string();
    assert!(
        lines.contains(&format!("Try: qom-fuse {socket} MOUNTPOINT").as_str()),
        "{out}"
    );
    assert_eq!(lines.last(), Some(&"none-machine"), "{out}");
}

/// As Proxmox VE, libvirt and others start theirs.
#[test]
fn command_lines_of_others() {
    let session = Session::new();
    for (name, arguments, shown) in [
        (
            "/usr/bin/kvm",
            "-id 100 -name 'web,debug-threads=on' -no-shutdown \
             -chardev 'socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off' \
             -mon 'chardev=qmp,mode=control' \
             -chardev 'socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5' \
             -mon 'chardev=qmp-event,mode=control'",
            "web /var/run/qemu-server/100.qmp",
        ),
        (
            "/usr/bin/qemu-system-x86_64",
            "-name 'guest=dom,debug-threads=on' -S -no-user-config -nodefaults \
             -chardev 'socket,id=charmonitor,fd=24,server=on,wait=off' \
             -mon 'chardev=charmonitor,id=monitor,mode=control'",
            "dom libvirt:dom (held by libvirt)",
        ),
        (
            "/usr/bin/qemu-system-x86_64",
            "-name other -chardev 'socket,id=m,fd=24,server=on,wait=off' -mon 'chardev=m,mode=control'",
            "other (held by what started it)",
        ),
        (
            "/usr/libexec/qemu-kvm",
            "-chardev 'socket,id=m,host=127.0.0.1,port=4444,server,nowait' -qmp chardev:m",
            "- tcp:127.0.0.1:4444",
        ),
        (
            "qemu-system-aarch64",
            "-qmp-pretty 'unix:/tmp/with,,comma,server,nowait' --name spaces",
            "spaces /tmp/with,comma",
        ),
    ] {
        let running = fake(&session, name, arguments);
        let out = session.run("qom-fuse --list");
        let lines = line_of(&out, running.pid());
        let shown = format!("{} {shown}", running.pid());
        assert_eq!(
            lines.iter().map(|line| line.join(" ")).collect::<Vec<_>>(),
            [shown],
            "{out}"
        );
    }
    // No QMP monitor to reach, or no machine.
    for (name, arguments) in [
        (
            "qemu-system-x86_64",
            "-M q35 -monitor 'unix:/tmp/hmp,server=on,wait=off'",
        ),
        (
            "qemu-system-x86_64",
            "-chardev 'socket,id=s,path=/tmp/serial,server=on' -serial chardev:s",
        ),
        ("sudo", "qemu-system-x86_64 -qmp 'unix:/tmp/x,server=on'"),
        (
            "qom-fuse",
            "mnt -- qemu-system-x86_64 -qmp 'unix:/tmp/x,server=on'",
        ),
    ] {
        let running = fake(&session, name, arguments);
        let out = session.run("qom-fuse --list");
        assert_eq!(
            line_of(&out, running.pid()),
            Vec::<Vec<String>>::new(),
            "{name} {arguments}"
        );
    }
}

/// The machine of `qom-fuse MNT -- QEMU` has no socket that anybody could use.
#[test]
fn a_machine_of_our_own() {
    let session = Session::new();
    let running = session.start(&format!(
        "exec qom-fuse mnt -- {} -M none -display none -nodefaults -S -pidfile pid -name ours",
        quote(Which::Old.binary())
    ));
    assert!(wait_until(SOON, || session.info().is_some()), "no mount");
    let out = session.run("qom-fuse --list");
    let pid: u32 = session.run("cat pid").ok().text().parse().expect("a pid");
    let lines = line_of(&out, pid);
    assert_eq!(lines.len(), 1, "{out}");
    assert!(
        lines[0].join(" ").starts_with(&format!("{pid} ours (held by ")),
        "{out}"
    );
    harness::proc::signal(running.pid() as i32, libc::SIGTERM);
    running.finish(SOON).ok();
    session.wait_ended(SOON);
}

/// QEMU 11.1 and later tell people to write it in this way.
#[test]
fn the_newest_form() {
    let session = Session::new();
    let chardev = format!(
        "socket,id=c,path={}/new.sock,server=on,wait=off",
        session.dir().display()
    );
    let qemu = Qemu::start(
        Which::New,
        "none",
        &["-chardev", &chardev, "-object", "monitor-qmp,id=m,chardev=c"],
    );
    let out = session.run("qom-fuse --list");
    let socket = session.dir().join("new.sock").display().to_string();
    let found = line_of(&out, qemu.pid());
    assert!(
        found.iter().any(|words| words[2] == socket),
        "{socket} is not in {found:?}"
    );
}

/// What others call their processes neither acts on a terminal nor is a command to paste.
#[test]
fn words_of_other_users() {
    let session = Session::new();
    let script = r#"
        mount -t proc proc /proc
        umount --all --lazy --types fuse.qom-fuse
        start() { # as whom, and what it says of its monitor
            $1 bash -c 'exec -a qemu-kvm bash -c "sleep 60; :" x -name "$2" -qmp "$1,server=on"' x "$2" "$3" &
            until [[ $(tr '\0' ' ' < /proc/$!/cmdline) = qemu-kvm* ]]; do sleep 0.01; done
        }
        other="setpriv --reuid=65534 --regid=65534 --clear-groups"
        start "$other" $'unix:/tmp/x;touch pwned \x23\e]0;X\a\e[2J' $'a  /tmp/b\e[2J'
        start "$other" $'tcp:a\xe2\x80\xae:1' c
        qom-fuse --list; qom-fuse mnt 2>&1; echo ==
        start "$other" "unix:/tmp/it's;touch pwned" d
        qom-fuse mnt 2>&1 | tail -n 1
        start "" unix:/tmp/own e
        qom-fuse mnt 2>&1 | tail -n 1
    "#;
    fs::write(session.dir().join("alone.sh"), script).expect("write a script");
    let out = session.run("unshare --mount --pid --fork --kill-child bash alone.sh");
    let text = out.ok().text();
    let acts = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
    assert!(!text.contains(acts) && out.stderr.is_empty(), "{out}");
    let (first, after) = text.split_once("==\n").expect("both parts");
    assert!(!first.contains("Try:"), "{out}");
    assert!(
        first.contains(r"'/tmp/x;touch pwned #\u{1b}]0;X\u{7}\u{1b}[2J'"),
        "{out}"
    );
    assert!(first.contains(r"'a  /tmp/b\u{1b}[2J'"), "{out}");
    assert_eq!(
        after.lines().collect::<Vec<_>>(),
        [
            r"Try: qom-fuse '/tmp/it'\''s;touch pwned' MOUNTPOINT",
            "Try: qom-fuse /tmp/own MOUNTPOINT"
        ]
    );
}
