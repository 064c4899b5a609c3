//! Who gets in: the mounting user alone, unless other users are let in, and then as the modes say.

use std::os::unix::fs::PermissionsExt;

use harness::*;
use serde_json::json;

/// Runs a script as the users 0, nobody, or any other, whoever runs the tests. Who is not root needs sudo for that.
#[track_caller]
fn run_as(user: u32, group: u32, script: &str) -> Out {
    let how = format!(
        "setpriv --reuid={user} --regid={group} --clear-groups bash -c {}",
        quote(script)
    );
    // SAFETY: a plain system call.
    match unsafe { libc::getuid() } {
        0 => sh(&how),
        _ => sh(&format!("sudo -n {how}")),
    }
}

#[track_caller]
fn refused(out: &Out) {
    out.fails().says("Permission denied");
}

/// A mount in a folder that everybody may pass.
#[track_caller]
fn open_mount(qemu: &Qemu, options: &str) -> Mount {
    let mount = Mount::start(&qemu.socket(), &["-o", options]);
    let parent = mount.path().parent().expect("a folder around the mount");
    std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o711)).expect("open up");
    mount
}

each_qemu!(others_are_kept_out_by_default, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    for options in [
        "rw",
        "ro",
        "default_permissions",
        "umask=000",
        "uid=65534,gid=65534",
    ] {
        let mount = open_mount(&qemu, options);
        let point = quote(mount.path());
        for command in [
            "ls",
            "cat machine/type",
            "stat machine",
            "echo x > machine/kernel",
        ] {
            refused(&run_as(NOBODY, NOBODY, &format!("cd {point} && {command}")));
            refused(&run_as(1, 0, &format!("cd {point} && {command}")));
        }
        refused(&run_as(NOBODY, NOBODY, &format!("cat {point}/machine/type")));
        refused(&run_as(
            NOBODY,
            NOBODY,
            &format!("echo x > {point}/machine/kernel"),
        ));
        assert_reads(mount.join("machine/type"), "none-machine\n");
        mount.unmount();
    }
    assert_eq!(qemu.truth().get("/machine", "kernel"), Ok(json!("")));
});

/// An ordinary user's mount is closed to root, unless `allow_root` says otherwise and the administrator lets it.
#[test]
fn root_is_kept_out_too() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let user = User::new(&qemu);
    user.run("qom-fuse vm.sock mnt").ok();
    let point = quote(user.session.mnt());
    for command in ["ls", "cat machine/type", "echo x > machine/kernel"] {
        refused(&run_as(0, 0, &format!("cd {point} && {command}")));
    }
    refused(&run_as(0, 0, &format!("cat {point}/machine/type; ls {point}")));
    assert_eq!(user.run("cat mnt/machine/type").ok().text(), "none-machine");
    assert_eq!(qemu.truth().get("/machine", "kernel"), Ok(json!("")));
    user.run("fusermount3 -u mnt").ok();
    user.session.wait_ended(SOON);

    let out = user.run("qom-fuse -o allow_root vm.sock mnt");
    if out.status == 0 {
        assert_eq!(
            run_as(0, 0, &format!("cat {point}/machine/type")).ok().text(),
            "none-machine"
        );
        refused(&run_as(1, 1, &format!("cat {point}/machine/type")));
        user.run("fusermount3 -u mnt").ok();
    } else {
        out.says("user_allow_other");
    }
    user.session.wait_ended(SOON);
}

each_qemu!(others_who_are_let_in_read_and_do_not_write, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    let mount = open_mount(&qemu, "allow_other");
    let info = mount.info().expect("a mount");
    for word in ["allow_other", "default_permissions"] {
        assert!(
            info.super_options.split(',').any(|option| option == word),
            "{info:?}"
        );
    }
    let point = quote(mount.path());
    let as_other = |command: &str| run_as(NOBODY, NOBODY, &format!("cd {point} && {command}"));
    assert_eq!(as_other("cat machine/type").ok().text(), "none-machine");
    as_other("ls -lR && grep -rs . . >/dev/null && getfattr -d machine").ok();
    for command in [
        "echo x > machine/kernel",
        "echo x >> machine/kernel",
        "true 1<> machine/kernel",
        "truncate -s 0 machine/kernel",
    ] {
        refused(&as_other(command));
    }
    for command in [
        "ln -sfn 'unset:[x]' machine/memory-backend",
        "rm machine/kernel",
        "chmod 666 machine/kernel",
    ] {
        as_other(command).fails();
    }
    assert_eq!(qemu.truth().get("/machine", "kernel"), Ok(json!("")));
    write_file(mount.join("machine/kernel"), b"mine").expect("the owner writes");
    assert_eq!(qemu.truth().get("/machine", "kernel"), Ok(json!("mine")));
    mount.unmount();

    // Who says so gets a mount that everybody may write to.
    let mount = open_mount(&qemu, "allow_other,no_default_permissions");
    let point = quote(mount.path());
    run_as(NOBODY, NOBODY, &format!("echo theirs > {point}/machine/kernel")).ok();
    assert_eq!(qemu.truth().get("/machine", "kernel"), Ok(json!("theirs")));
});

#[track_caller]
fn shows(mount: &Mount, below: &str) -> (u32, u32, u32) {
    let stat = lstat(mount.join(below)).unwrap_or_else(|errno: Errno| panic!("{below}: errno {errno}"));
    (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777)
}

#[test]
fn owner_group_and_modes_are_as_wished_and_judge() {
    let qemu = Qemu::start(Which::New, "none", &[]);
    for (options, owner, file, dir) in [
        ("uid=65534,gid=7", (65534, 7), 0o644, 0o755),
        ("uid=7,gid=65534", (7, 65534), 0o644, 0o755),
        ("uid=65534,gid=7,umask=077", (65534, 7), 0o600, 0o700),
        ("uid=7,gid=65534,umask=027", (7, 65534), 0o640, 0o750),
        ("uid=7,gid=7,umask=077", (7, 7), 0o600, 0o700),
        ("uid=65534,gid=7,umask=0777", (65534, 7), 0, 0),
        ("uid=65534,gid=7,ro", (65534, 7), 0o444, 0o555),
        ("uid=7,gid=65534,umask=027,ro", (7, 65534), 0o440, 0o550),
    ] {
        let mount = open_mount(&qemu, &format!("allow_other,{options}"));
        for below in ["", "machine", "machine/peripheral"] {
            assert_eq!(shows(&mount, below), (owner.0, owner.1, dir), "{options} {below}");
        }
        assert_eq!(
            shows(&mount, "machine/kernel"),
            (owner.0, owner.1, file),
            "{options}"
        );
        // What the modes say is what happens to nobody.
        let shift = match owner {
            (NOBODY, _) => 6,
            (_, NOBODY) => 3,
            _ => 0,
        };
        let (file, dir) = (file >> shift & 7, dir >> shift & 7);
        let path = quote(mount.join("machine/kernel"));
        let reads = run_as(NOBODY, NOBODY, &format!("cat {path}"));
        assert_eq!(
            reads.status == 0,
            dir & 1 != 0 && file & 4 != 0,
            "{options}: {reads}"
        );
        let writes = run_as(NOBODY, NOBODY, &format!("echo x > {path}"));
        assert_eq!(
            writes.status == 0,
            dir & 1 != 0 && file & 2 != 0,
            "{options}: {writes}"
        );
        let lists = run_as(NOBODY, NOBODY, &format!("ls {}", quote(mount.path())));
        assert_eq!(lists.status == 0, dir & 4 != 0, "{options}: {lists}");
        mount.unmount();
    }
}

/// Who mounts is who asks QEMU: a user's own modes do not let in whom the kernel keeps out.
#[test]
fn an_ordinary_users_wishes() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let user = User::new(&qemu);
    for (options, shown) in [
        ("umask=077", "600"),
        ("umask=000", "644"),
        ("uid=0,gid=0", "644"),
        ("ro", "444"),
    ] {
        let out = user.run(&format!(
            "qom-fuse -o {options} vm.sock mnt && stat -c %a mnt/machine/kernel"
        ));
        assert_eq!(out.ok().text(), shown, "{options}");
        refused(&run_as(
            1,
            1,
            &format!("cat {}/machine/type", quote(user.session.mnt())),
        ));
        user.run("fusermount3 -u mnt").ok();
        user.session.wait_ended(SOON);
    }
}
