//! What cannot be done to a mounted machine: nothing is created, removed, renamed or reattributed.

use harness::*;
use serde_json::json;

fn names(objects: &[Object]) -> Vec<(String, String, String)> {
    let all = objects
        .iter()
        .flat_map(|object| object.props.iter().map(|prop| (&object.path, prop)));
    all.map(|(path, prop)| (path.clone(), prop.name.clone(), prop.kind.clone()))
        .collect()
}

/// Each is one system call that would change a tree of files.
const CHANGES: &[&str] = &[
    "touch new",
    "touch machine/kernel",
    "touch -h machine/memory-backend",
    "touch machine",
    "echo x > machine/new",
    "mkdir new",
    "mkdir machine/new",
    "mkfifo new",
    "mknod new c 1 3",
    "ln machine/kernel machine/new",
    "ln machine/kernel machine/append -f",
    "mv machine/kernel machine/new",
    "mv machine/kernel machine/append",
    "mv machine/kernel kernel",
    "mv machine/q35 machine/new",
    "mv -T machine/q35 objects",
    "mv machine/memory-backend machine/new",
    "rm machine/kernel",
    "rm -f machine/memory-backend",
    "unlink machine/type",
    "rmdir machine/peripheral",
    "rmdir machine",
    "chmod 600 machine/kernel",
    "chmod a+x machine/kernel",
    "chmod 700 machine",
    "chown 12345 machine/kernel",
    "chown -h 12345 machine/memory-backend",
    "chgrp 12345 machine",
];

each_qemu!(nothing_can_be_created_removed_renamed_or_reattributed, |which| {
    let qemu = Qemu::start(which, "q35", &[]);
    let truth = qemu.truth();
    qemu.set("/machine", "kernel", json!("kept"));
    let before = names(&truth.walk());
    let relay = Relay::start(qemu.dir(), &qemu.socket());
    let mount = Mount::start(relay.socket(), &[]);
    let mnt = quote(mount.path());
    let attributes = format!("find {mnt} -printf '%P %y %m %U %G %T@ %C@\\n' | sort | md5sum");
    let shown = sh(&attributes).ok().text().to_owned();
    for change in CHANGES {
        let out = sh_in(mount.path(), change);
        out.fails().says("Operation not permitted");
    }
    assert_eq!(relay.count("qom-set"), 0);
    assert_eq!(names(&truth.walk()), before);
    assert_eq!(sh(&attributes).ok().text(), shown);
    assert_eq!(truth.get("/machine", "kernel"), Ok(json!("kept")));
});

each_qemu!(a_stray_rm_harms_no_machine, |which| {
    let qemu = Qemu::start(which, "q35", &["-device", "qemu-xhci,id=usb"]);
    let before = names(&qemu.truth().walk());
    let relay = Relay::start(qemu.dir(), &qemu.socket());
    let mount = Mount::start(relay.socket(), &["-o", "monitor=given"]);
    for what in ["machine", "*", "machine/peripheral/usb"] {
        let out = sh_in(mount.path(), &format!("rm -rf {what}"));
        assert_eq!(out.status, 1, "{}", out.stderr);
        assert!(
            out.stderr
                .lines()
                .all(|line| line.ends_with("Operation not permitted")),
            "{}",
            out.stderr
        );
    }
    assert_eq!(relay.count("qom-set"), 0);
    let asked: Vec<String> = relay
        .requests()
        .into_iter()
        .filter(|request| !request.contains("\"qom-"))
        .collect();
    assert_eq!(asked.len(), 1, "only qmp_capabilities: {asked:?}");
    assert_eq!(names(&qemu.truth().walk()), before);
    assert_eq!(
        lstat(mount.join("machine/peripheral/usb/type")).map(|stat| stat.st_size),
        Ok(4096)
    );
});

each_qemu!(a_read_only_mount_reads_and_no_more, |which| {
    let qemu = Qemu::start(which, "q35", &[]);
    let before = names(&qemu.truth().walk());
    let relay = Relay::start(qemu.dir(), &qemu.socket());
    let mount = Mount::start(relay.socket(), &["-o", "ro"]);
    let info = mount.info().expect("a mount");
    assert!(info.options.split(',').any(|word| word == "ro"), "{info:?}");
    let mnt = quote(mount.path());
    let modes = sh(&format!("find {mnt} -printf '%y%m\\n' | sort -u"));
    assert_eq!(modes.ok().lines(), ["d555", "f444", "l777"]);
    assert_reads(mount.join("machine/graphics"), "true\n");

    let calls = [
        "echo off > machine/graphics",
        "echo off >> machine/graphics",
        ": > machine/graphics",
    ];
    let calls = calls
        .into_iter()
        .chain(["truncate -s 0 machine/graphics", "true 1<> machine/graphics"]);
    let link = [
        "ln -sfn objects machine/memory-backend",
        "ln -sfn 'unset:[x]' machine/memory-backend",
    ];
    for change in calls.chain(link).chain(CHANGES.iter().copied()) {
        let out = sh_in(mount.path(), change);
        out.fails().says("Read-only file system");
    }
    assert_eq!(
        write_file(mount.join("machine/graphics"), b"off"),
        Err(libc::EROFS)
    );
    for how in ["-w machine/graphics", "-w machine", "-w .", "-x machine/graphics"] {
        assert_eq!(
            sh_in(mount.path(), &format!("test {how}")).status,
            1,
            "test {how}"
        );
    }
    assert_eq!(relay.count("qom-set"), 0);
    assert_eq!(qemu.truth().get("/machine", "graphics"), Ok(json!(true)));
    assert_eq!(names(&qemu.truth().walk()), before);

    // A remount for writing would get past the modes, not past the program.
    sh(&format!("mount -i -o remount,rw {mnt}"));
    assert_eq!(
        write_file(mount.join("machine/graphics"), b"off"),
        Err(libc::EROFS)
    );
    assert_eq!(qemu.truth().get("/machine", "graphics"), Ok(json!(true)));
});
