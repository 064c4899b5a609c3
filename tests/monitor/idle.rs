//! `-o idle=SECONDS`: a monitor that is not used serves others, and is taken again when it is needed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::*;
use serde_json::json;

use super::{at, on_tcp};

/// The given monitor is used with both.
const OPTIONS: [&str; 3] = ["-v", "-o", "monitor=given,idle=0.5,timeout=2,entry_timeout=60"];

/// Waits until the mount has let go of its monitor.
fn away() {
    thread::sleep(Duration::from_millis(900));
}

fn read(mount: &Mount, name: &str) -> Result<String, Errno> {
    read_file(mount.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

each_qemu!(others_are_served_while_nothing_is_asked, |which| {
    let (qemu, mount) = mounted(which, "none", &[], &OPTIONS);
    assert_reads(mount.join("machine/type"), "none-machine\n");
    let began = Instant::now();
    let other = Truth::connect(&qemu.socket()).expect("another client is greeted");
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    for _ in 0..2 {
        let began = Instant::now();
        assert_eq!(read(&mount, "machine/type"), Err(libc::ETIMEDOUT));
        let took = began.elapsed();
        assert!(took > SECOND && took < 4 * SECOND, "{took:?}");
        thread::sleep(SECOND / 2); // so that it is another access for sure
    }
    let out = sh(&format!("cat {}", quote(mount.join("machine/type"))));
    out.fails().says("Connection timed out");
    drop(other);
    assert_reads(mount.join("machine/type"), "none-machine\n");
    // It waits for who leaves in time.
    let other = Truth::connect(&qemu.socket()).expect("another client is greeted");
    let leaving = thread::spawn(move || {
        thread::sleep(SECOND);
        drop(other);
    });
    assert_reads(mount.join("machine/type"), "none-machine\n");
    leaving.join().expect("the other client");
    for _ in 0..3 {
        away();
        let began = Instant::now();
        let other = Truth::connect(&qemu.socket()).expect("another client is greeted");
        assert!(began.elapsed() < SECOND / 2, "{:?}", began.elapsed());
        drop(other);
        assert_reads(mount.join("machine/type"), "none-machine\n");
    }
    mount.unmount();
});

each_qemu!(a_machine_that_ends_meanwhile_unmounts, |which| {
    let (qemu, mount) = mounted(which, "none", &[], &OPTIONS);
    away();
    drop(Truth::connect(&qemu.socket()).expect("another client is greeted"));
    qemu.kill();
    mount.wait_unmounted(3 * SECOND); // unasked: its process is known

    let (port, qemu) = on_tcp(which);
    let mount = Launch::new()
        .args(&["-o", "idle=0.5,entry_timeout=60"])
        .socket(format!("127.0.0.1:{port}"));
    let mount = mount.foreground();
    // It may be another one each time: nobody knows.
    let held = Held::open(mount.join("machine/kernel"), libc::O_WRONLY).expect("a file");
    away();
    assert_reads(mount.join("machine/type"), "none-machine\n");
    assert_eq!(held.write(b"a"), Err(libc::ESTALE));
    for value in ["b", "c"] {
        write_file(mount.join("machine/kernel"), value.as_bytes()).expect("a write");
        assert_eq!(qemu.truth().get("/machine", "kernel"), Ok(json!(value)));
        away(); // the kernel still has the name, and looks nothing up
    }
    qemu.kill();
    away();
    assert!(mount.is_mounted(), "{}", mount.log());
    assert_eq!(read(&mount, "machine/type"), Err(libc::ENOTCONN));
    mount.wait_unmounted(3 * SECOND);
    assert_eq!(mount.wait_exit(SOON).code(), Some(0), "{}", mount.log());
    assert!(mount.log().contains("QEMU has ended since"), "{}", mount.log());
});

each_qemu!(
    another_machine_at_the_address_ends_the_mount_or_is_what_reconnect_finds,
    |which| {
        let session = Session::new();
        let socket = session.dir().join("vm.sock");
        let first = at(&socket, which, "q35");
        let plain = Mount::start_foreground(&socket, &["-o", "monitor=given,idle=0.2"]);
        away();
        let kept = Mount::start_foreground(&socket, &["-o", "monitor=given,idle=0.2,reconnect"]);
        let held = Held::open(kept.join("machine/graphics"), libc::O_WRONLY).expect("a file");
        away();
        // It lives on: that another one has its address shows on access.
        let second = at(&socket, which, "q35");
        assert_eq!(read(&plain, "machine/type"), Err(libc::ENOTCONN));
        plain.wait_unmounted(3 * SECOND);
        assert!(read(&kept, "machine/type").is_ok());
        write_file(kept.join("machine/graphics"), b"off").expect("a write");
        assert_eq!(second.truth().get("/machine", "graphics"), Ok(json!(false)));
        assert_eq!(first.truth().get("/machine", "graphics"), Ok(json!(true)));
        assert_eq!(held.write(b"on"), Err(libc::ESTALE));
        let log = kept.log();
        assert_eq!(log.matches("waiting for it to come back").count(), 1, "{log}");
    }
);

#[test]
fn another_machine_whose_process_nobody_knows_is_said_to_be_another_with_reconnect() {
    let (port, first) = on_tcp(Which::Old);
    let address = format!("127.0.0.1:{port}");
    let launch = Launch::new().args(&["-o", "idle=0.5,reconnect"]).socket(&address);
    let mount = launch.foreground();
    assert_reads(mount.join("machine/type"), "none-machine\n");
    away();
    first.kill();
    let monitor = format!("tcp:{address},server=on,wait=off");
    let _second = Qemu::start(Which::Old, "q35", &["-qmp", &monitor]);
    let machine = read(&mount, "machine/type").expect("a value of the other machine");
    assert!(machine.starts_with("pc-q35"), "{machine}");
    let said = || mount.log().contains("connected again, to another machine");
    assert!(wait_until(SOON, said), "{}", mount.log());
}

each_qemu!(open_files_inodes_and_writes_outlast_it, |which| {
    let (qemu, mount) = mounted(which, "q35", &XHCI, &OPTIONS);
    let held = Held::open(mount.join("machine/graphics"), libc::O_WRONLY).expect("a file");
    let value = Held::open(mount.join("machine/type"), libc::O_RDONLY).expect("a file");
    let inode = || {
        lstat(mount.join("machine/peripheral/x"))
            .expect("a device")
            .st_ino
    };
    let before = inode();
    qemu.truth()
        .device_add(json!({ "driver": "usb-tablet", "bus": "x.0", "id": "t" }));
    away();
    qemu.truth().device_del("t"); // which nobody tells the mount
    assert_eq!(held.write(b"off"), Ok(3));
    assert_eq!(qemu.truth().get("/machine", "graphics"), Ok(json!(false)));
    away();
    assert!(value.read(100).expect("a value").starts_with(b"pc-q35"));
    assert_eq!(inode(), before);
    let listed = sh(&format!("ls {}", quote(mount.join("machine/peripheral"))));
    assert!(!listed.ok().lines().contains(&"t"), "{listed}");
});

/// A client that comes for moments beside a mount that is used now and then.
#[test]
fn who_comes_for_moments_and_the_mount_both_get_through() {
    let (qemu, mount) = mounted(Which::Old, "none", &[], &["-o", "idle=0.5"]);
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut slowest = Duration::ZERO;
    thread::scope(|scope| {
        let socket = qemu.socket();
        let (over, served) = (&over, &served);
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let other = Truth::connect(&socket).expect("the other client is greeted");
                assert!(other.get("/machine", "type").is_ok());
                drop(other);
                served.fetch_add(1, Ordering::Relaxed);
                thread::sleep(SECOND / 10);
            }
        });
        for _ in 0..8 {
            let before = served.load(Ordering::Relaxed);
            let began = Instant::now();
            let value = read(&mount, "machine/type");
            slowest = slowest.max(began.elapsed());
            if value.as_deref() != Ok("none-machine\n") {
                over.store(true, Ordering::Relaxed);
                panic!("{value:?} after {:?}", began.elapsed());
            }
            thread::sleep(SECOND);
            let came = served.load(Ordering::Relaxed) - before;
            if came < 2 {
                over.store(true, Ordering::Relaxed);
                panic!("the other client came {came} times");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(slowest < SECOND, "{slowest:?}");
}

/// It comes and goes between any two requests, and none is lost over it.
#[test]
fn letting_go_at_any_moment_loses_nothing() {
    let (qemu, mount) = mounted(Which::Old, "none", &[], &["-o", "idle=0.002"]);
    let file = quote(mount.join("machine/type"));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            sh_start(&format!(
                "for n in $(seq 100); do cat {file}; sleep 0.00$((n % 7)); done"
            ))
        })
        .collect();
    for _ in 0..20 {
        let other = Truth::connect(&qemu.socket()).expect("another client is greeted");
        assert_eq!(other.get("/machine", "type"), Ok(json!("none-machine")));
    }
    for reader in readers {
        let out = reader.finish(60 * SECOND);
        assert_eq!(out.ok().lines(), ["none-machine"; 100]);
    }
}

#[test]
fn what_uses_it_all_the_time_keeps_it() {
    let (qemu, mount) = mounted(Which::Old, "none", &[], &["-o", "idle=1"]);
    let busy = format!(
        "for n in $(seq 30); do cat {}; sleep 0.1; done",
        quote(mount.join("machine/type"))
    );
    let busy = sh_start(&busy);
    assert_reads(mount.join("machine/type"), "none-machine\n");
    let began = Instant::now();
    drop(Truth::connect(&qemu.socket()).expect("another client is greeted"));
    assert!(began.elapsed() > 2 * SECOND, "{:?}", began.elapsed());
    assert_eq!(busy.finish(SOON).ok().lines().len(), 30);
}

#[test]
fn a_socket_that_is_gone_is_no_end_while_the_machine_lives() {
    let session = Session::new();
    let socket = session.dir().join("vm.sock");
    let qemu = at(&socket, Which::Old, "none");
    let mount = Mount::start_foreground(&socket, &["-o", "idle=0.2"]);
    away();
    let aside = session.dir().join("aside.sock");
    std::fs::rename(&socket, &aside).expect("rename a socket");
    assert_eq!(read(&mount, "machine/type"), Err(libc::ENOTCONN));
    assert!(mount.log().contains("No such file"), "{}", mount.log());
    thread::sleep(SECOND / 2);
    std::fs::rename(&aside, &socket).expect("rename a socket");
    assert_reads(mount.join("machine/type"), "none-machine\n");
    drop(qemu);
    mount.wait_unmounted(3 * SECOND);
}

#[test]
fn a_stopped_machine_is_no_end() {
    let (qemu, mount) = mounted(Which::Old, "none", &[], &OPTIONS);
    away();
    qemu.stop();
    assert_eq!(read(&mount, "machine/type"), Err(libc::ETIMEDOUT));
    qemu.cont();
    let back = || read(&mount, "machine/type").as_deref() == Ok("none-machine\n");
    assert!(wait_until(SOON, back));
}

#[test]
fn with_a_monitor_of_its_own_a_mount_lets_go_of_nothing() {
    let qemu = Qemu::start(Which::New, "none", &[]);
    let mount = Mount::start_foreground(&qemu.socket(), &["-vv", "-o", "idle=0.2"]);
    away();
    assert_reads(mount.join("machine/type"), "none-machine\n");
    assert!(!mount.log().contains("nothing was asked"), "{}", mount.log());
    drop(Truth::connect(&qemu.socket()).expect("another client is greeted"));
}

/// Proxmox's own tools need its sockets; the folder is one of this test's, in a namespace of its own.
#[test]
fn proxmoxs_sockets_are_let_go_of_after_a_second() {
    if !is_root() {
        return;
    }
    let qemu = Which::Old.binary();
    let session = Session::new();
    let script = format!(
        "unshare -m bash -ec '
        mount -t tmpfs none /run; mkdir /run/qemu-server
        {} -M none -display none -nodefaults -S -qmp unix:/run/qemu-server/100.qmp,server=on,wait=off &
        trap \"kill $!\" EXIT
        until [ -S /run/qemu-server/100.qmp ]; do sleep 0.1; done
        qom-fuse -vv --log-file=log /run/qemu-server/100.qmp mnt; sleep 2; cat mnt/machine/type; cat log'",
        quote(&qemu)
    );
    let out = session.run(&script);
    assert!(out.text().contains("nothing was asked for 1s"), "{out}");
}
