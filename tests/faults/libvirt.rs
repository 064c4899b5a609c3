//! Machines that libvirt runs, through its own `virt-qemu-qmp-proxy`.

use std::collections::BTreeSet;
use std::time::Duration;

use harness::mirror::CLOCKS;
use harness::*;
use serde_json::{Value, json};

/// The proxy takes 5 ms for a request, and more on a machine that is busy.
const LONG: Duration = Duration::from_secs(300);

/// `find` shows every object, and as many names as there are properties.
#[track_caller]
fn shows_all(mount: &Mount, objects: &[Object]) {
    let at = quote(mount.path());
    let names = sh(&format!("find {at}")).ok().lines().len();
    let properties: usize = objects.iter().map(|object| object.props.len()).sum();
    assert_eq!(names, 1 + properties);
    let found = sh(&format!("find {at} -type d -printf '/%P\\n'"));
    let found: BTreeSet<_> = found.ok().lines().into_iter().collect();
    let expected: BTreeSet<_> = objects.iter().map(|object| &*object.path).collect();
    assert_eq!(found, expected);
}

/// On libvirt's proxy for a domain, with the other QEMU installed on the host.
fn behind_the_proxy(which: Which, host: Which) {
    let libvirt = Libvirt::start(host);
    libvirt.start_domain("web", which);
    let (proxy, others) = (libvirt.proxy("web"), libvirt.proxy("web"));
    let truth = Truth::connect(others.socket()).expect("connect");
    // Events that nobody was there for come before the greeting.
    for command in ["cont", "stop"] {
        let command = format!("virsh qemu-monitor-command web '{{\"execute\": \"{command}\"}}'");
        libvirt.run(&command).ok();
    }
    let objects = truth.walk();
    let version = truth.execute("query-version", Value::Null).expect("a version");

    let launch = mount::Launch::new().args(&["-v"]).socket(proxy.socket());
    let mount = launch.foreground();
    let package = version["package"].as_str().expect("a package");
    let is_said = wait_until(SOON, || mount.log().contains(package));
    assert!(is_said, "{}", mount.log());
    shows_all(&mount, &objects);

    let at = quote(mount.path());
    // Each value of an older QEMU is a request: a part of the tree is enough.
    let part = if which == Which::Old { "machine/q35" } else { "." };
    let greps: Vec<_> = (0..8)
        .map(|_| sh_start(&format!("cd {at} && grep -r . {part} type machine/type")))
        .collect();
    let shown = greps.into_iter().map(|grep| {
        let out = grep.finish(LONG);
        assert!(!out.stderr.contains("timed out"), "{}", out.stderr);
        let clock = |line: &str| CLOCKS.iter().any(|name| line.contains(&format!("/{name}:")));
        let timeless = out.lines().into_iter().filter(|line| !clock(line));
        timeless.map(str::to_owned).collect::<Vec<_>>()
    });
    let mut shown: Vec<_> = shown.collect();
    let kind = truth.get("/machine", "type").expect("a type");
    let line = format!("machine/type:{}", kind.as_str().expect("a string"));
    assert!(shown[0].len() > 100 && shown[0].contains(&line), "{line}");
    shown.dedup();
    assert_eq!(shown.len(), 1, "{shown:?}");

    for length in [5, 1024, 3000] {
        let value = "x".repeat(length);
        assert_eq!(write_file(mount.join("machine/kernel"), value.as_bytes()), Ok(()));
        assert_eq!(truth.get("/machine", "kernel"), Ok(json!(value)));
        let shown = read_file(mount.join("machine/kernel"));
        assert_eq!(shown, Ok(format!("{value}\n").into_bytes()));
    }
    mount.unmount();

    // The proxy serves the next client, with no more requests than a plain one would send.
    let relay = Relay::start(libvirt.dir(), proxy.socket());
    let mount = Mount::start(relay.socket(), &["-o", "entry_timeout=60"]);
    let at = quote(mount.path());
    sh(&format!("find {at}")).ok();
    assert_eq!(relay.count("qom-list"), objects.len());
    assert_eq!(relay.requests().len(), objects.len() + 2);
    mount.unmount();
    let mount = Mount::start(relay.socket(), &["-o", "entry_timeout=60"]);
    relay.reset();
    sh_deadline(&format!("grep -rs . {}", quote(mount.path())), LONG);
    let values = objects.iter().flat_map(|object| &object.props);
    let values = values.filter(|prop| prop.is_value()).count();
    match which {
        Which::Old => {
            assert_eq!(relay.count("qom-get"), values);
            assert_eq!(relay.requests().len(), values + objects.len());
        }
        Which::New => assert!(relay.requests().len() <= objects.len(), "{:?}", relay.requests()),
    }
    assert_eq!((relay.most_in_flight(), relay.overlapping()), (1, Vec::new()));

    // The end of the domain shows with the next command.
    libvirt.run("virsh destroy web").ok();
    assert_eq!(read_file(mount.join("machine/type")), Err(libc::ENOTCONN));
    mount.wait_unmounted(SOON);
}

#[test]
fn an_old_qemu_behind_libvirts_proxy() {
    behind_the_proxy(Which::Old, Which::New);
}

#[test]
fn a_new_qemu_behind_libvirts_proxy() {
    behind_the_proxy(Which::New, Which::Old);
}
