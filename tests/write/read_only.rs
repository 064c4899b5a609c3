//! `-o ro`, as the server sees it: whatever is tried, nothing but reads is ever sent.

use harness::*;
use serde_json::json;

const READS: [&str; 4] = ["qom-list", "qom-get", "qom-list-get", "qom-list-properties"];

/// Each in the mount, where all of them fail.
const WRITES: [&str; 27] = [
    "echo x > o/p",
    "echo x >> o/p",
    "printf x > o/p",
    "true 1<> o/p",
    ": > o/p",
    "truncate -s 0 o/p",
    "truncate -s 9 o/p",
    "fallocate -l 9 o/p",
    "dd if=/dev/zero of=o/p bs=8 count=1 status=none",
    "dd if=/dev/zero of=o/p bs=8 count=1 conv=notrunc status=none",
    "cp /etc/hostname o/p",
    "cp -f /etc/hostname o/p",
    "ln -sfn ../o o/l",
    "ln -sfn 'unset:[l]' o/l",
    "ln -s ../o o/CuAbCdEf",
    "mv o/l o/m",
    "rm -f o/p",
    "rm -rf o",
    "mkdir o/new",
    "touch o/p",
    "touch o/new",
    "chmod 600 o/p",
    "chown 0:0 o/p",
    "setfattr -n user.qom.error -v x o/p",
    "setfattr -n user.new -v x o/p",
    "setfattr -x user.qom.type o/p",
    "mv --backup o/p o/b",
];

fn tree() -> ScriptedTree {
    ScriptedTree::new()
        .object("/o")
        .prop("/o", "p", "string", json!("kept"))
        .prop("/o", "b", "bool", json!(true))
        .prop("/o", "l", "link<container>", json!("/"))
}

#[track_caller]
fn only_reads(server: &Scripted, after: &str) {
    let others: Vec<_> = server
        .requests()
        .into_iter()
        .filter(|(command, _)| !READS.contains(&command.as_str()))
        .collect();
    assert!(others.is_empty(), "after {after}: {others:?}");
}

#[test]
fn nothing_but_reads_is_sent() {
    for list_get in [false, true] {
        let tree = tree().with_list_get(list_get);
        let server = tree.serve();
        for options in [
            "ro",
            "ro,entry_timeout=0",
            "rw,ro,no_readahead",
            "ro,allow_other",
            "ro,no_default_permissions",
        ] {
            let mount = Mount::start(server.socket(), &["-o", options]);
            let mnt = quote(mount.path());
            for command in WRITES {
                sh_in(mount.path(), command).fails();
                only_reads(&server, command);
            }
            for flags in [0, libc::O_TRUNC, libc::O_APPEND, libc::O_CREAT] {
                assert_eq!(
                    child::write_flags(mount.join("o/p"), flags, b"x"),
                    Err(libc::EROFS)
                );
            }
            assert_eq!(
                Held::open(mount.join("o/p"), libc::O_RDWR).err(),
                Some(libc::EROFS)
            );
            // The kernel's word is one thing; the program keeps its own.
            for command in [
                format!("mount -i -o remount,rw {mnt}"),
                format!("mount -i -o remount,bind,rw {mnt}"),
            ] {
                sh(&command);
                for command in WRITES {
                    sh_in(mount.path(), command).fails();
                    only_reads(&server, command);
                }
                assert_eq!(write_file(mount.join("o/p"), b"x"), Err(libc::EROFS), "{command}");
            }
            // It reads all the same.
            sh(&format!(
                "grep -r . {mnt} && getfattr -R -d {mnt} && ls -lR {mnt}"
            ))
            .ok();
            only_reads(&server, "reading");
            assert_reads(mount.join("o/p"), "kept\n");
            mount.unmount();
        }
        assert!(server.count("qom-get") > 0);
        assert_eq!(server.count("qom-list-get") > 0, list_get);
        assert_eq!(tree.value("/o", "p").as_deref(), Some("\"kept\""));
        assert_eq!(tree.value("/o", "l").as_deref(), Some("\"/\""));
    }
}

/// With `reconnect` it also asks whose machine it is, which changes nothing.
#[test]
fn nor_after_a_reconnection() {
    let tree = tree();
    let (server, mount) = tree.mounted(&["-o", "ro,reconnect"]);
    for _ in 0..3 {
        assert_eq!(write_file(mount.join("o/p"), b"x"), Err(libc::EROFS));
        server.drop_client();
        assert_eq!(write_file(mount.join("o/p"), b"x"), Err(libc::EROFS));
        let back = wait_until(child::DEADLINE, || read_file(mount.join("o/p")).is_ok());
        assert!(back, "it did not come back");
    }
    let harmless = ["query-name", "query-uuid"];
    for (command, arguments) in server.requests() {
        let known = READS.contains(&command.as_str()) || harmless.contains(&command.as_str());
        assert!(known, "{command} {arguments}");
    }
}
