//! What is started gets none of the program's descriptors, but for the one that it is to have.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use harness::*;

/// What a shell that takes a command's place has open: `number -> what`, a line each. Without its own three, and
/// without the one by which `ls` reads the folder.
fn open_files(listing: &str) -> Vec<String> {
    let lines = listing.lines().filter_map(|line| line.split_once(" -> "));
    let files = lines.filter_map(|(before, target)| Some((before.split(' ').next_back()?, target)));
    files
        .filter(|(number, target)| !["0", "1", "2"].contains(number) && !target.starts_with("/proc/"))
        .map(|(number, target)| format!("{number} {target}"))
        .collect()
}

/// What everything gets that is started here, for whoever started the tests left it open.
fn passed_on() -> Vec<String> {
    open_files(sh("ls -l /proc/$$/fd").ok().text())
}

fn script(path: &std::path::Path, text: &str) {
    fs::write(path, text).expect("write a script");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it a program");
}

each_qemu!(a_qemu_that_is_started_gets_its_own_monitor_only, |which| {
    let dir = tempfile::tempdir().expect("a folder");
    let (spy, seen) = (dir.path().join("spy"), dir.path().join("seen"));
    let text = format!(
        "#!/bin/bash\nls -l /proc/$$/fd > {0}.new; echo \"$*\" > {0}.args; mv {0}.new {0}\nexec {1} \"$@\"\n",
        quote(&seen),
        quote(which.binary())
    );
    script(&spy, &text);
    let spy = spy.to_str().expect("UTF-8");
    let mount = Launch::new()
        .command(&[spy, "-M", "none", "-display", "none", "-nodefaults", "-S"])
        .foreground();
    let open = open_files(&fs::read_to_string(&seen).expect("what was open"));
    let ours = passed_on();
    let rest = |line: &&String| !line.ends_with("/spy") && !ours.contains(line); // bash reads its script
    let open: Vec<_> = open.iter().filter(rest).collect();
    let args = fs::read_to_string(dir.path().join("seen.args")).expect("the arguments");
    let fd = args
        .split("fd=")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    let number = fd.unwrap_or_else(|| panic!("no fd= in {args}"));
    assert!(
        open.len() == 1 && open[0].starts_with(&format!("{number} socket:")),
        "{open:?}, wanted {number}"
    );
    // Nor does it get them later, nor the device of the mount.
    let qemu = fs::read_to_string(format!("/proc/{0}/task/{0}/children", mount.pid())).expect("children");
    let mut met = 0;
    for pid in qemu.split_whitespace() {
        let links = sh(&format!("ls -l /proc/{pid}/fd"));
        assert!(!links.ok().text().contains("/dev/fuse"), "{links}");
        met += 1;
    }
    assert!(met >= 1, "no QEMU");
    assert_reads(mount.join("machine/type"), "none-machine\n");
});

// fusermount3 is given what it mounts on and the socket by which it hands over the device: nothing of QEMU's.
each_qemu!(fusermount_gets_no_monitor, |which| {
    let qemu = Qemu::start(which, "none", &[]);
    let user = User::new(&qemu);
    let real = sh("command -v fusermount3").ok().text().to_owned();
    let folder = user.session.dir().join("seen");
    fs::create_dir(&folder).expect("a folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("open up");
    let text = format!(
        "#!/bin/bash\nls -l /proc/$$/fd > {0}/fd.$$; env > {0}/env.$$\nexec {real} \"$@\"\n",
        quote(&folder)
    );
    script(&user.session.dir().join("fusermount3"), &text);
    user.run("QMP_SOCKET=$PWD/vm.sock qom-fuse mnt && cat mnt/machine/type")
        .ok();
    user.run("fusermount3 -u mnt").ok();
    user.session.wait_ended(SOON);
    user.run("qom-fuse $PWD/vm.sock mnt").ok();
    for pid in user.session.pids() {
        proc::signal(pid as i32, libc::SIGTERM); // it unmounts through fusermount3 itself
    }
    user.session.wait_ended(SOON);
    let mut calls = 0;
    for entry in fs::read_dir(&folder)
        .expect("what was seen")
        .filter_map(Result::ok)
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("fd.") {
            continue;
        }
        calls += 1;
        let listing = fs::read_to_string(entry.path()).expect("a listing");
        let open = open_files(&listing);
        let ours = passed_on();
        let rest = |line: &&String| !line.ends_with("/fusermount3") && !ours.contains(line);
        let open: Vec<_> = open.iter().filter(rest).collect();
        let env = fs::read_to_string(folder.join(name.replace("fd.", "env."))).expect("an environment");
        let handed = env.lines().find_map(|line| line.strip_prefix("_FUSE_COMMFD="));
        let rightful = handed.map(|fd| format!("{fd} socket:"));
        for line in &open {
            let rightful = rightful
                .as_ref()
                .is_some_and(|rightful| line.starts_with(rightful));
            assert!(rightful, "{line} of {open:?}, handed over by {handed:?}");
        }
    }
    assert!(calls >= 3, "fusermount3 was called {calls} times");
});
