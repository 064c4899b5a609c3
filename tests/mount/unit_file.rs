//! The service for systemd. No systemd runs the tests: it checks the file, and what the file says is done by hand.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use harness::*;

const SOON: Duration = Duration::from_secs(15);

fn unit() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/qom-fuse@.service");
    fs::read_to_string(file).expect("read the unit")
}

/// The values of a setting.
fn values<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines
        .filter(|(n, _)| *n == name)
        .map(|(_, value)| value)
        .collect()
}

#[track_caller]
fn value<'a>(unit: &'a str, name: &str) -> &'a str {
    let found = values(unit, name);
    assert!(found.len() == 1, "{name}: {found:?}");
    found[0]
}

/// As it will be installed, below another root.
#[test]
fn systemd_finds_no_fault() {
    let session = Session::new();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/qom-fuse.1");
    let unit = unit();
    let program = value(&unit, "ExecStart").split(' ').next().expect("a program");
    assert_eq!(program, "/usr/bin/qom-fuse");
    let here = session.dir().display().to_string();
    // The program and the page are where they are, not where a package puts them.
    let checked = unit
        .replace(program, env!("CARGO_BIN_EXE_qom-fuse"))
        .replace("man:qom-fuse(1)", &format!("file:{}", page.display()));
    fs::write(session.dir().join("qom-fuse@.service"), checked).expect("write a unit");
    let out = session.run(&format!(
        "SYSTEMD_LOG_LEVEL=warning systemd-analyze verify {here}/qom-fuse@web.service {here}/qom-fuse@.service"
    ));
    assert_eq!((out.ok().text(), out.stderr.as_str()), ("", ""));
}

/// Nothing in it hides the mount from others: what gives a service a mount namespace of its own.
#[test]
fn it_lives_in_the_hosts_mount_namespace() {
    let unit = unit();
    let hides = [
        "BindPaths",
        "BindReadOnlyPaths",
        "DynamicUser",
        "ExecPaths",
        "ExtensionImages",
        "InaccessiblePaths",
        "MountAPIVFS",
        "MountImages",
        "NoExecPaths",
        "PrivateDevices",
        "PrivateIPC",
        "PrivateNetwork",
        "PrivateTmp",
        "PrivateUsers",
        "ProcSubset",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RootDirectory",
        "RootImage",
        "TemporaryFileSystem",
        "CacheDirectory",
        "LogsDirectory",
        "StateDirectory",
    ];
    for name in hides {
        assert_eq!(values(&unit, name), Vec::<&str>::new(), "{name}");
    }
    assert_eq!(value(&unit, "PrivateMounts"), "no");
}

/// Its command, with its capabilities and nothing else, tells the service manager when the mount answers.
#[test]
fn its_command_mounts_and_says_when() {
    assert!(
        is_root(),
        "needs root: the service runs as root with few capabilities"
    );
    let unit = unit();
    assert_eq!(value(&unit, "Type"), "notify");
    let name = format!("unit-{}", std::process::id());
    for (which, options, by_name) in [
        (Which::Old, "", false),
        (Which::New, "-o ro,reconnect -v", false),
        (Which::Old, "-o reconnect", true),
    ] {
        let qemu = Qemu::start(which, "none", &["-name", &name]);
        let session = Session::new();
        let (socket, point) = (qemu.socket(), session.dir().join("run/qom/web"));
        let ready = UnixDatagram::bind(session.dir().join("notify")).expect("a socket for the news");
        ready.set_read_timeout(Some(SOON)).expect("set a deadline");
        // As systemd has it: ${X} is one word, $X as many as it holds.
        let filled = |line: &str| {
            line.replace("${SOCKET}", &if by_name { name.clone() } else { quote(&socket) })
                .replace("${MOUNTPOINT}", &quote(&point))
                .replace("$OPTIONS", options)
                .replace("/usr/bin/qom-fuse", env!("CARGO_BIN_EXE_qom-fuse"))
        };
        let capabilities: Vec<String> = value(&unit, "CapabilityBoundingSet")
            .split(' ')
            .map(|name| format!("+{}", name.strip_prefix("CAP_").expect("CAP_").to_lowercase()))
            .collect();
        assert_eq!(value(&unit, "NoNewPrivileges"), "yes");
        let running = session.start(&format!(
            "{}\nexport NOTIFY_SOCKET=$PWD/notify\nexec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all,{} {}",
            filled(value(&unit, "ExecStartPre")),
            capabilities.join(","),
            filled(value(&unit, "ExecStart"))
        ));
        let mut buffer = [0; 100];
        let length = ready.recv(&mut buffer).expect("news of readiness");
        assert_eq!(&buffer[..length], b"READY=1\n");
        assert_reads(point.join("machine/type"), "none-machine\n");
        // KillMode=control-group: all of its processes are told.
        assert_eq!(value(&unit, "KillMode"), "control-group");
        for pid in session.pids() {
            signal(pid as i32, libc::SIGTERM);
        }
        running.finish(SOON).ok();
        session.wait_ended(SOON);
    }
}

/// The defaults are what the text at the top says, and the file of settings can replace them.
#[test]
fn names_follow_the_convention() {
    let unit = unit();
    assert_eq!(
        value(&unit, "Environment"),
        "SOCKET=/run/qemu/%i.qmp MOUNTPOINT=/run/qom/%i OPTIONS="
    );
    assert_eq!(value(&unit, "EnvironmentFile"), "-/etc/default/qom-fuse-%i");
    for word in ["/run/qemu/web.qmp", "/run/qom/web", "/etc/default/qom-fuse-web"] {
        let told = unit
            .lines()
            .any(|line| line.starts_with('#') && line.contains(word));
        assert!(told, "{word} is not explained");
    }
}

/// As many threads as it ever has, and the process that watches over it.
#[test]
fn it_may_have_as_many_threads_as_it_needs() {
    let most: usize = value(&unit(), "TasksMax").parse().expect("a number");
    let tree = ScriptedTree::new();
    for number in 0..100 {
        tree.prop("/", &format!("p{number}"), "string", "x".into());
    }
    let mut answer = tree.handler();
    let mut first = true;
    let server = Scripted::start(move |command, args| match command {
        "qom-get" if std::mem::take(&mut first) => {
            Action::Delay(Duration::from_secs(3), Box::new(answer(command, args)))
        }
        _ => answer(command, args),
    });
    let mount = Mount::start_foreground(server.socket(), &["-o", "reconnect"]);
    let readers = harness::sh::sh_start(&format!(
        "cd {} && for i in {{0..99}}; do cat p$i & done; wait",
        quote(mount.path())
    ));
    let tasks = || {
        let of = |pid: &u32| fs::read_dir(format!("/proc/{pid}/task")).map_or(0, |tasks| tasks.count());
        mount.pids().iter().map(of).sum::<usize>()
    };
    let mut seen = 0;
    wait_until(Duration::from_secs(3), || {
        seen = seen.max(tasks());
        false
    });
    assert_eq!(readers.finish(SOON).ok().lines().len(), 100);
    assert!(seen > 64 && seen + 16 < most, "{seen} tasks, {most} allowed");
}
