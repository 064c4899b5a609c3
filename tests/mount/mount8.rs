//! mount(8), umount(8) and fstab, as root, in a mount namespace of their own: `qom-fuse` is found there where an installed
//! one is, and nothing outside changes.

use std::fs;
use std::path::Path;

use harness::*;

/// Where mount.fuse3 finds programs even if it was started without a PATH.
const PLACE: &str = "/usr/local/sbin";

/// Runs a script as root in namespaces of its own, with `$sock` a machine's socket and `mnt` a folder.
///
/// The namespace of processes ends with the script, and takes along what that left.
#[track_caller]
fn as_root(qemu: &Qemu, script: &str) -> (Session, Out) {
    let session = Session::new();
    let program = Path::new(env!("CARGO_BIN_EXE_qom-fuse"));
    fs::create_dir(session.dir().join("sbin")).expect("make a folder");
    fs::copy(program, session.dir().join("sbin/qom-fuse")).expect("copy the program");
    let text = format!(
        "set -e -o pipefail
         mount -t proc proc /proc
         # Not the mounts of other tests: a copy here would keep them when they are unmounted there.
         umount --all --lazy --types fuse.qom-fuse || true
         mount --bind sbin {PLACE}
         sock={}
         waited() {{ for i in {{1..200}}; do \"$@\" && return; sleep 0.05; done; echo \"in vain: $*\" >&2; exit 1; }}
         gone() {{ ! findmnt mnt > findmnt.out; }}
         ended() {{ ! pgrep -x qom-fuse > pgrep.out; }}
         {script}",
        quote(qemu.socket())
    );
    fs::write(session.dir().join("script"), text).expect("write a script");
    let who = if is_root() { "" } else { "--map-root-user" };
    let out = session.run(&format!(
        "unshare {who} --mount --pid --fork --kill-child true ||
         {{ echo 'this test needs root, or namespaces of its own (unshare --map-root-user)' >&2; exit 77; }}
         exec unshare {who} --mount --pid --fork --kill-child bash script"
    ));
    (session, out)
}

each_qemu!(mount_and_umount, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    let (session, out) = as_root(
        &qemu,
        "mount -t fuse.qom-fuse $sock $PWD/mnt -o ro,allow_other
             findmnt -rn -o FSTYPE,SOURCE,TARGET mnt
             findmnt -rn -o VFS-OPTIONS,FS-OPTIONS mnt
             mount -t fuse.qom-fuse | grep -F \" on $PWD/mnt \"
             cat mnt/machine/type
             if echo off > mnt/machine/graphics; then exit 1; fi
             umount mnt
             waited gone; waited ended
             ls -A mnt",
    );
    let lines = out.ok().lines();
    let (socket, point) = (
        qemu.socket().display().to_string(),
        session.mnt().display().to_string(),
    );
    assert_eq!(lines[0], format!("fuse.qom-fuse {socket} {point}"));
    let options: Vec<&str> = lines[1].split([',', ' ']).collect();
    for word in ["ro", "nosuid", "nodev", "allow_other", "default_permissions"] {
        assert!(options.contains(&word), "{word} is not in {}", lines[1]);
    }
    assert!(
        lines[2].starts_with(&format!("{socket} on {point} type fuse.qom-fuse (ro,")),
        "{}",
        lines[2]
    );
    assert_eq!(lines[3..], ["none-machine"]);
    out.says("Read-only file system");
});

/// Started by the system, it has hardly an environment: no PATH and no HOME.
#[test]
fn with_no_environment() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let (_, out) = as_root(
        &qemu,
        "env -i $(type -P mount) -t fuse.qom-fuse $sock $PWD/mnt
         cat mnt/machine/type; echo off > mnt/machine/graphics; cat mnt/machine/graphics
         env -i $(type -P umount) mnt; waited gone",
    );
    assert_eq!(out.ok().text(), "none-machine\nfalse");
}

#[test]
fn a_mount_that_fails_says_so_to_mount() {
    let qemu = Qemu::start(Which::Old, "none", &[]);
    let (session, out) = as_root(
        &qemu,
        "mount -t fuse.qom-fuse $PWD/no-such-socket $PWD/mnt && exit 1
         mount -t fuse.qom-fuse $sock $PWD/mnt -o bogus && exit 1
         gone; ended",
    );
    out.ok();
    let missing = session.dir().join("no-such-socket").display().to_string();
    out.says(&missing).says("bogus");
}

// Lines as they are written in /etc/fstab.
each_qemu!(fstab, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    let (_, out) = as_root(
        &qemu,
        "words=nofail,x-systemd.automount,x-systemd.requires=vm.service,x-systemd.mount-timeout=20,_netdev
             echo \"$sock $PWD/mnt fuse.qom-fuse ro,allow_other,$words 0 0\" > fstab
             echo \"$sock $PWD/other fuse.qom-fuse noauto,user,comment=web 0 0\" >> fstab
             mkdir other
             mount --fstab fstab $PWD/mnt
             findmnt -rn -o SOURCE,FSTYPE mnt
             umount mnt; waited gone; waited ended
             # All of it, twice: what is mounted stays, once.
             mount --fstab fstab --all
             mount --fstab fstab --all
             findmnt -rn mnt | wc -l
             ! findmnt -rn other
             pgrep -xo qom-fuse | wc -l
             cat mnt/machine/type
             umount mnt; waited gone; waited ended
             # What a rule for all of a type takes away.
             mount --fstab fstab --all
             umount --all --types fuse.qom-fuse || true
             waited gone; waited ended",
    );
    let socket = qemu.socket().display().to_string();
    assert_eq!(
        out.ok().lines(),
        [
            format!("{socket} fuse.qom-fuse").as_str(),
            "1",
            "1",
            "none-machine"
        ]
    );
    assert_eq!(out.stderr, "");
});

/// `nofail` is for the one who starts all mounts at boot; a machine that is not there is one line of that.
#[test]
fn a_machine_that_is_not_there_does_not_stop_the_others() {
    let qemu = Qemu::start(Which::New, "none", &[]);
    let (_, out) = as_root(
        &qemu,
        "mkdir off
         echo \"$PWD/off.sock $PWD/off fuse.qom-fuse nofail 0 0\" > fstab
         echo \"$sock $PWD/mnt fuse.qom-fuse nofail,ro 0 0\" >> fstab
         mount --fstab fstab --all && echo all || echo some: $?
         cat mnt/machine/type
         umount mnt; waited gone",
    );
    let lines = out.ok().lines();
    assert_eq!(lines[1], "none-machine", "{out}");
    assert!(lines[0] == "all" || lines[0] == "some: 64", "{out}");
    out.says("off.sock");
}

/// systemd's own reading of an fstab line: an automount unit, and a mount unit that it starts.
#[test]
fn systemd_understands_the_fstab_line() {
    let generator = "/usr/lib/systemd/system-generators/systemd-fstab-generator";
    assert!(
        Path::new(generator).exists(),
        "needs {generator} (package systemd)"
    );
    let session = Session::new();
    let out = session.run(&format!(
        "mkdir normal early late
         echo '/run/qemu/web.qmp /run/qom/web fuse.qom-fuse ro,allow_other,nofail,x-systemd.automount,x-systemd.requires=vm.service 0 0' > fstab
         SYSTEMD_FSTAB=$PWD/fstab SYSTEMD_LOG_TARGET=console {generator} normal early late
         cat normal/run-qom-web.mount
         echo; cat normal/run-qom-web.automount
         ls -A normal/*.wants"
    ));
    let text = out.ok().text();
    for line in [
        "What=/run/qemu/web.qmp",
        "Where=/run/qom/web",
        "Type=fuse.qom-fuse",
        "Requires=vm.service",
        "After=vm.service",
        "[Automount]",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {out}");
    }
}

// A machine can be named in place of its socket.
each_qemu!(fstab_with_the_name_of_a_machine, |which| {
    let name = format!("web-{}-{which:?}", std::process::id());
    let qemu = Qemu::start(which, "none", &["-name", &name]);
    // It is looked for among the processes, which are the host's.
    let session = Session::new();
    let program = quote(qom_fuse());
    let script = format!(
        "set -e; mkdir sbin; cp {program} sbin/qom-fuse; mount --bind sbin {PLACE}
         umount --all --lazy --types fuse.qom-fuse || true
         echo \"{name} $PWD/mnt fuse.qom-fuse ro,nofail,reconnect 0 0\" > fstab
         cd /; mount --fstab $OLDPWD/fstab $OLDPWD/mnt; cd - > /dev/null
         findmnt -rn -o SOURCE,FSTYPE mnt
         cat mnt/machine/type
         umount mnt"
    );
    fs::write(session.dir().join("script"), script).expect("write a script");
    let out = session.run("exec unshare --mount bash script");
    let source = format!("{name} fuse.qom-fuse");
    assert_eq!(out.ok().lines(), [source.as_str(), "none-machine"], "{out}");
    session.wait_ended(SOON);
    drop(qemu);
});
