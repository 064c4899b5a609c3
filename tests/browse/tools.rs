//! The tools that read whole trees, at work on a whole machine: they complain of what QEMU refuses, and of nothing else.

use std::collections::{BTreeMap, BTreeSet};

use harness::shown::values;
use harness::*;

/// The properties that QEMU refuses to read.
#[track_caller]
fn refused(qemu: &Qemu) -> BTreeMap<String, Errno> {
    let objects = qemu.truth().walk();
    let mut refused = BTreeMap::new();
    for (path, name) in values(&objects) {
        if let Err(errno) = truth_of(qemu.truth(), path, name) {
            refused.insert(join(path, name), errno);
        }
    }
    assert!(refused.values().any(|errno| *errno == libc::EIO), "{refused:?}");
    refused
}

/// What a tool is to say of each property that QEMU refuses.
fn complaints(
    mount: &Mount,
    refused: &BTreeMap<String, Errno>,
    before: &str,
    after: &str,
) -> BTreeSet<String> {
    let line = |(path, errno): (&String, &Errno)| {
        let text = std::io::Error::from_raw_os_error(*errno).to_string();
        let text = text.split(" (os error").next().unwrap_or_default().to_owned();
        format!("{before}{}{after}{text}", mount.join(path).display())
    };
    refused.iter().map(line).collect()
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

#[track_caller]
fn check(which: Which, machine: &str, part: &str) {
    let qemu = Qemu::start(which, machine, &[]);
    let refused = refused(&qemu);
    let mount = Mount::start(&qemu.socket(), &[]);
    let mnt = quote(mount.path());

    for command in ["find", "ls -lR", "ls -laR --color=always", "du -a"] {
        let out = sh(&format!("{command} {mnt}"));
        assert_eq!(out.ok().stderr, "", "{command}");
        assert!(out.lines().len() > 1000, "{command}: {} lines", out.lines().len());
    }

    let out = sh(&format!("grep -r . {mnt}"));
    assert_eq!(lines(&out.stderr), complaints(&mount, &refused, "grep: ", ": "));
    assert_eq!(out.status, 2, "{}", out.stderr);
    let mut files = lines(sh(&format!("find {mnt} -type f")).ok().text());
    let found: BTreeSet<_> = out
        .lines()
        .iter()
        .filter_map(|line| line.split_once(':'))
        .collect();
    let found: BTreeSet<String> = found.into_iter().map(|(file, _)| file.to_owned()).collect();
    assert!(found.is_subset(&files), "{:?}", found.difference(&files));
    files.retain(|file| !found.contains(file));
    for file in files {
        let known = refused
            .keys()
            .any(|path| mount.join(path).to_str() == Some(&file));
        assert!(
            known || read_file(&file) == Ok(b"\n".to_vec()),
            "grep -r found nothing in {file}"
        );
    }

    // A part of the machine, packed and unpacked, is that part.
    let dir = quote(qemu.dir());
    let above = mount.path().parent().expect("a folder around the mount point");
    let out = sh_in(above, &format!("tar cf {dir}/x.tar mnt/{part}"));
    assert_eq!(out.ok().stderr, "");
    let script =
        format!("tar xf {dir}/x.tar -C {dir} && diff -r --no-dereference mnt/{part} {dir}/mnt/{part}");
    let out = sh_in(above, &script);
    assert_eq!((out.ok().text(), out.stderr.as_str()), ("", ""));
    let count = format!("find mnt/{part} -type f | wc -l; find mnt/{part} -type l -o -type d | wc -l");
    let counts = sh_in(above, &count).ok().text().to_owned();
    assert_eq!(sh_in(qemu.dir(), &count).ok().text(), counts);
    assert!(!counts.starts_with("0\n"), "no file in {part}");

    let out = sh(&format!("tar -P -cf {dir}/all.tar {mnt}"));
    let mut said = lines(&out.stderr);
    said.remove("tar: Exiting with failure status due to previous errors");
    assert_eq!(said, complaints(&mount, &refused, "tar: ", ": Cannot open: "));
    assert_eq!(out.status, 2, "{}", out.stderr);
    mount.unmount();
}

each_qemu!(q35_is_read_by_tools, |which| check(which, "q35", "machine/q35"));

#[test]
fn an_old_pc_is_read_by_tools() {
    check(Which::Old, "pc", "machine/i440fx");
}

#[test]
fn a_new_microvm_is_read_by_tools() {
    check(Which::New, "microvm", "machine/unattached/device[0]/lapic");
}

each_qemu!(a_file_keeps_its_number_however_it_is_met, |which| {
    let (_qemu, mount) = mounted(which, "q35", &[], &["-o", "entry_timeout=0.1"]);
    let folder = mount.join("machine");
    // From the listing alone, from the listing asked for anew, and from a stat of each.
    let listed = "find -maxdepth 1 ! -name . -printf '%i %f\\n'";
    let (first, again) = (
        sh_in(&folder, listed),
        sh_in(&folder, &format!("sleep 0.3; {listed}")),
    );
    let stated = sh_in(
        &folder,
        "find -maxdepth 1 ! -name . -printf '%f\\0' | xargs -0 stat -c '%i %n'",
    );
    assert!(first.ok().lines().len() > 50, "{first}");
    assert_eq!(first.text(), again.ok().text());
    assert_eq!(first.text(), stated.ok().text());
});
