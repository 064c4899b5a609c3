//! Mounts by somebody who is not root: through fusermount3, with what it lets an ordinary user do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use harness::*;
use serde_json::json;

each_qemu!(an_ordinary_user_mounts_reads_writes_and_unmounts, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    let user = User::new(&qemu);
    for (options, source, kind) in [
        ("", "vm.sock", "fuse.qom-fuse"),
        (
            "-o fsname='a b\\,c',subtype=qom,noatime,noexec",
            "a b,c",
            "fuse.qom",
        ),
        ("-o default_permissions", "vm.sock", "fuse.qom-fuse"),
    ] {
        let out = user.run(&format!("qom-fuse {options} vm.sock mnt"));
        assert_eq!((out.ok().text(), out.stderr.as_str()), ("", ""));
        let info = user.session.info().expect("a mount");
        assert_eq!((info.source.to_str(), info.kind.as_str()), (Some(source), kind));
        assert!(
            info.options.contains("nosuid") && info.options.contains("nodev"),
            "{info:?}"
        );
        assert_eq!(user.run("cat mnt/machine/type").ok().text(), "none-machine");
        user.run("echo mine > mnt/machine/kernel").ok();
        assert_eq!(qemu.truth().get("/machine", "kernel"), Ok(json!("mine")));
        let shown = user.run("find mnt -printf '%y%m %U %G\\n' | sort -u");
        let expected = ["d755", "f644", "l777"].map(|shape| format!("{shape} {0} {0}", user.id));
        assert_eq!(shown.ok().lines(), expected);
        // Not even root is let in.
        if user.as_user.is_empty() {
            assert_eq!(lstat(user.session.mnt()).map(|stat| stat.st_uid), Ok(user.id));
        } else {
            assert_eq!(
                read_file(user.session.mnt().join("machine/type")),
                Err(libc::EACCES)
            );
        }
        user.run("fusermount3 -u mnt").ok();
        user.session.wait_ended(SOON);
    }
    user.run("qom-fuse -o ro vm.sock mnt").ok();
    user.run("echo more > mnt/machine/kernel")
        .says("Read-only file system");
    assert_eq!(qemu.truth().get("/machine", "kernel"), Ok(json!("mine")));
    user.run("fusermount3 -u mnt").ok();
    user.session.wait_ended(SOON);
});

#[test]
fn an_ordinary_users_mount_ends_in_every_way() {
    for busy in [false, true] {
        for number in [libc::SIGTERM, libc::SIGINT, libc::SIGKILL, 0] {
            let qemu = Qemu::start(Which::Old, "none", &[]);
            let user = User::new(&qemu);
            user.run("qom-fuse vm.sock mnt").ok();
            let sitting = busy.then(|| {
                user.session.start(&format!(
                    "{} bash -c 'cd mnt/machine; exec sleep 60'",
                    user.as_user
                ))
            });
            if let Some(sitting) = &sitting {
                let there = || {
                    let children = format!("/proc/{0}/task/{0}/children", sitting.pid());
                    let mut pids = fs::read_to_string(children).unwrap_or_default();
                    pids += &sitting.pid().to_string();
                    pids.split_whitespace().any(|pid| {
                        fs::read_link(format!("/proc/{pid}/cwd"))
                            .is_ok_and(|cwd| cwd.starts_with(user.session.mnt()))
                    })
                };
                assert!(wait_until(SOON, there), "nobody sits in the mount");
            }
            let pids = user.session.pids();
            let serving = pids
                .iter()
                .find(|pid| !proc::parent(**pid).is_some_and(|parent| pids.contains(&parent)));
            match number {
                0 => qemu.kill(),
                _ => signal(*serving.expect("a daemon") as i32, number),
            }
            user.session.wait_ended(SOON);
            assert_eq!(
                fs::metadata(user.session.mnt()).expect("the mount point").uid(),
                user.id
            );
        }
    }
}

#[test]
fn what_fusermount_refuses_is_said() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let user = User::new(&qemu);
    user.session
        .run("mkdir theirs closed; chmod 755 theirs; chmod 700 closed; mkdir closed/mnt")
        .ok();
    if !user.as_user.is_empty() {
        let out = user.run("qom-fuse vm.sock theirs");
        out.exits(1).says("cannot mount on theirs");
        let out = user.run("qom-fuse vm.sock closed/mnt");
        out.exits(1).says("closed/mnt").says("ermission denied");
        fs::set_permissions(qemu.socket(), fs::Permissions::from_mode(0o700)).expect("close the socket");
        let out = user.run("qom-fuse vm.sock mnt");
        out.exits(1).says("vm.sock").says("another user");
        fs::set_permissions(qemu.socket(), fs::Permissions::from_mode(0o777)).expect("open the socket");
    }
    let allowed = fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"));
    let out = user.run("qom-fuse -o allow_other vm.sock mnt");
    if allowed {
        assert_eq!(out.ok().stderr, "");
    } else {
        out.exits(1).says("user_allow_other");
    }
    let out = user.run("PATH=$PWD:/nowhere; qom-fuse vm.sock mnt");
    assert!(
        allowed || (out.status == 1 && out.stderr.contains("fusermount3")),
        "{out}"
    );
    user.session.run("fusermount3 -u mnt");
    user.session.wait_ended(SOON);
}
