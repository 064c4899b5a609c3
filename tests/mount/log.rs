//! The log: where it goes, and what it says at each level.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use harness::*;
use serde_json::json;

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

each_qemu!(levels, |which| {
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
});

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
    out.exits(1).says(file);
}

/// A server with a value, `good`, and one, `bad`, that cannot be read, in so many words.
fn refusing() -> (ScriptedTree, Scripted) {
    let tree = ScriptedTree::new()
        .object("/o")
        .prop("/o", "good", "string", json!("good"))
        .unreadable("/o", "bad", "string");
    tree.hook(
        "qom-get",
        "/o",
        "bad",
        Action::error("GenericError", "x".repeat(900)),
    );
    let server = tree.serve();
    (tree, server)
}

/// Reads what cannot be read, which a line of the log says each time, and what can.
const MANY: &str = "for i in {1..300}; do cat mnt/o/bad; done 2>/dev/null; cat mnt/o/good";

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let (_tree, server) = refusing();
    let socket = quote(server.socket());
    for log in ["2> pipe", "--log-file pipe"] {
        let session = Session::new();
        // Somebody has the reading end, and does not read.
        let script = "mkfifo pipe; sleep 300 <> pipe >/dev/null 2>&1 &
            until [ -p pipe ]; do sleep 0.01; done";
        let command = match log.strip_prefix("--") {
            Some(_) => format!("exec qom-fuse -f {log} {socket} mnt"),
            None => format!("exec qom-fuse -f {socket} mnt {log}"),
        };
        let running = session.start(&format!("{script}\n{command}"));
        assert!(wait_until(SOON, || session.info().is_some()), "no mount");
        assert_eq!(session.run(MANY).ok().text(), "good", "{log}");
        // Once there is room, it says that there is something missing.
        let said = session.run(
            "timeout 1 cat pipe > before; sleep 1; cat mnt/o/bad 2>/dev/null; timeout 1 cat pipe > after; cat after",
        );
        assert!(
            said.text()
                .contains(" lines were lost: the log did not take them"),
            "{log}: {said}"
        );
        session.run(MANY).ok();
        signal(running.pid() as i32, libc::SIGTERM);
        running.finish(SOON).ok();
        session.wait_ended(SOON);
    }
}

#[test]
fn a_log_file_that_is_a_pipe_without_a_reader_stops_the_mount() {
    let (_tree, server) = refusing();
    let session = Session::new();
    let script = format!(
        "mkfifo pipe; qom-fuse --log-file pipe {} mnt",
        quote(server.socket())
    );
    let out = session.run(&script);
    out.exits(1).says("nobody reads this pipe");
}

/// What came to a socket of syslog so far.
fn received(syslog: &UnixDatagram) -> Vec<String> {
    let mut buffer = [0; 8192];
    std::iter::from_fn(|| syslog.recv(&mut buffer).ok().map(|n| buffer[..n].to_vec()))
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .collect()
}

/// A stopped journald, or one that is started anew.
/// Runs a command with a /dev that has this socket as /dev/log, for itself alone.
fn with_dev_log(path: &Path, command: &str) -> String {
    let script = format!(
        "mkdir dev && mount -t tmpfs tmpfs dev
         for n in fuse null; do touch dev/$n && mount --bind /dev/$n dev/$n; done
         ln -s {} dev/log && mount --rbind dev /dev
         {command}",
        quote(path)
    );
    format!(
        "exec unshare --mount --propagation private bash -c {}",
        quote(script)
    )
}

#[test]
fn a_syslog_that_hangs_holds_nothing_up_and_one_that_comes_back_is_found() {
    let (_tree, server) = refusing();
    let session = Session::new();
    let path = session.dir().join("log.sock");
    let bind = || {
        let socket = UnixDatagram::bind(&path).expect("a socket for syslog");
        socket.set_nonblocking(true).expect("not to wait");
        socket
    };
    let syslog = bind();
    let out = session.run(&with_dev_log(
        &path,
        &format!("qom-fuse {} mnt && {MANY}", quote(server.socket())),
    ));
    assert_eq!(out.ok().text(), "good");
    let pids = session.pids();
    let inside = |script: &str| {
        let script = format!("cd {} && {script}", quote(session.dir()));
        session.run(&format!(
            "nsenter --target {} --mount bash -c {}",
            pids[0],
            quote(script)
        ))
    };
    assert!(!received(&syslog).is_empty());
    inside("sleep 1; cat mnt/o/bad").fails();
    let after = received(&syslog);
    assert!(
        after.iter().any(|line| line.contains(" lines were lost")),
        "{after:?}"
    );
    drop(syslog);
    inside("cat mnt/o/bad").fails();
    fs::remove_file(&path).expect("remove the old socket");
    let syslog = bind();
    inside("cat mnt/o/bad").fails();
    let after = received(&syslog);
    assert!(
        after.iter().any(|line| line.contains("qom-get /o bad: xxx")),
        "{after:?}"
    );
    for pid in &pids {
        signal(*pid as i32, libc::SIGTERM);
    }
    session.wait_ended(SOON);
}

#[test]
fn no_value_that_is_set_comes_into_the_log() {
    let tree = ScriptedTree::new()
        .object("/o")
        .prop("/o", "key", "string", json!("none"));
    let server = tree.serve();
    let dir = tempfile::tempdir().expect("a folder for a log");
    let file = dir.path().join("log");
    let options = ["-vv", "--log-file", file.to_str().expect("UTF-8")];
    for launch in [
        Launch::new().args(&options),
        Launch::new().args(&options[1..]).env("RUST_LOG", "trace"),
        Launch::new().args(&["-vv"]),
    ] {
        tree.clear_hooks();
        let mount = launch.socket(server.socket()).foreground();
        write_file(mount.join("o/key"), b"s3cret-value").expect("a write");
        let words = "Property 'x.key' doesn't take value 's3cret-value'";
        tree.hook("qom-set", "/o", "key", Action::error("GenericError", words));
        assert_eq!(
            write_file(mount.join("o/key"), b"s3cret-value"),
            Err(libc::EINVAL)
        );
        let said = get_xattr(mount.join("o/key"), "user.qom.error");
        assert_eq!(said.as_deref(), Ok(words.as_bytes()), "whoever sets it is told");
        mount.unmount();
        mount.wait_exit(SOON);
        let log = mount.log() + &fs::read_to_string(&file).unwrap_or_default();
        assert!(
            log.contains("qom-set") && log.contains("doesn't take value"),
            "{log}"
        );
        assert!(!log.contains("s3cret") && !log.contains("31337"), "{log}");
    }
    let mode = fs::metadata(&file).expect("a log").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// A part of a structure, which QEMU repeats alone when it refuses it.
#[test]
fn no_part_of_a_value_that_is_set_comes_into_the_log() {
    let tree = ScriptedTree::new()
        .object("/o")
        .prop("/o", "key", "Secrets", json!({}));
    let words = "Parameter 'pass' does not accept value 's3cret-value' or 31337";
    tree.hook("qom-set", "/o", "key", Action::error("GenericError", words));
    let server = tree.serve();
    let mount = Mount::start_foreground(server.socket(), &["-vv"]);
    let (file, value) = (mount.join("o/key"), br#"{"pass":["s3cret-value",31337]}"#);
    assert_eq!(write_file(&file, value), Err(libc::EINVAL));
    let told = harness::get_xattr(&file, "user.qom.error");
    assert_eq!(told, Ok(words.as_bytes().to_vec()), "for who may see the file");
    let log = mount.log();
    assert!(log.contains("Parameter 'pass' does not accept value"), "{log}");
    assert!(!log.contains("s3cret") && !log.contains("31337"), "{log}");
}

/// A /dev/log that takes no datagrams, and no more connections either.
#[test]
fn a_syslog_that_accepts_nobody_holds_nothing_up() {
    let (_tree, server) = refusing();
    let session = Session::new();
    let path = session.dir().join("log.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let address = socket2::SockAddr::unix(&path).expect("an address");
    let connect = || {
        let socket =
            socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
        socket.set_nonblocking(true).expect("not to wait");
        socket.connect(&address).map(|()| socket)
    };
    let _waiting: Vec<_> = std::iter::repeat_with(connect).map_while(Result::ok).collect();
    let socket = quote(server.socket());
    let command = format!("timeout 20 qom-fuse {socket} mnt && {MANY} && fusermount3 -u mnt");
    let out = session.run(&with_dev_log(&path, &command));
    assert_eq!(out.ok().text(), "good");
    session.wait_ended(SOON);
}
