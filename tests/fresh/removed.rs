//! What is no longer in QEMU is gone in the mount, in listings and in the kernel, as soon as anything tells.

use harness::*;
use serde_json::json;

/// A machine with an object `m`, mounted so that nothing expires, and looked at.
#[track_caller]
fn looked_at(which: Which) -> (Qemu, Mount) {
    let qemu = Qemu::start(which, "none", &[]);
    let args = json!({ "qom-type": "memory-backend-ram", "id": "m", "size": 1 << 20 });
    qemu.truth().execute("object-add", args).expect("object-add");
    let mount = Mount::start(&qemu.socket(), &["-o", "entry_timeout=3600"]);
    let look = sh_in(
        mount.path(),
        "ls objects objects/m >/dev/null; stat objects/m/type objects/m/size",
    );
    look.ok();
    (qemu, mount)
}

// `object-del` is announced by nothing: the first request that QEMU answers with "Device '/objects/m' not
// found" tells that the whole object is gone.
each_qemu!(the_object_is_gone_with_the_property_that_was_asked_for, |which| {
    for ask in [
        "cat objects/m/type",
        "echo 5 > objects/m/size",
        "cat objects/m/size",
        "readlink objects/m/nolink || cat objects/m/share",
    ] {
        let (qemu, mount) = looked_at(which);
        qemu.truth()
            .execute("object-del", json!({ "id": "m" }))
            .expect("object-del");
        let out = sh_in(mount.path(), ask);
        assert!(
            out.fails().stderr.contains("No such file or directory"),
            "{ask}: {out}"
        );
        let listed = sh_in(mount.path(), "ls objects");
        assert!(!listed.ok().lines().contains(&"m"), "{ask}: {listed}");
        // The kernel is told by another thread.
        let gone = |path: &str| wait_until(SOON, || lstat(mount.join(path)).err() == Some(libc::ENOENT));
        assert!(
            gone("objects/m") && gone("objects/m/type") && gone("objects/m/size"),
            "{ask}"
        );
        sh_in(mount.path(), "test -d objects/m").fails();
    }
});

#[test]
fn a_property_that_is_gone_takes_nothing_else_along() {
    let tree = ScriptedTree::new()
        .object("/a")
        .prop("/a", "stays", "string", json!("here"))
        .prop("/a", "goes", "string", json!("here"));
    let (_server, mount) = tree.mounted(&["-o", "entry_timeout=3600"]);
    sh_in(mount.path(), "cat a/stays a/goes").ok();
    let before = lstat(mount.join("a")).expect("an object").st_ino;
    tree.remove_prop("/a", "goes");
    assert_eq!(read_file(mount.join("a/goes")), Err(libc::ENOENT));
    let listed = sh_in(mount.path(), "ls a");
    assert_eq!(listed.ok().lines(), ["stays", "type"]);
    assert_eq!(lstat(mount.join("a")).expect("still there").st_ino, before);
}

/// A refusal that names another object is about the value, and the object that was written stays.
#[test]
fn a_value_that_names_nothing_takes_nothing_along() {
    let tree = ScriptedTree::new()
        .object("/a")
        .prop("/a", "peer", "string", json!(""));
    tree.hook(
        "qom-set",
        "/a",
        "peer",
        Action::error("DeviceNotFound", "Device 'nobody' not found"),
    );
    let (_server, mount) = tree.mounted(&["-o", "entry_timeout=3600"]);
    let before = lstat(mount.join("a")).expect("an object").st_ino;
    let out = sh(&format!("echo nobody > {}", quote(mount.join("a/peer"))));
    out.fails().says("No such file or directory");
    assert_eq!(lstat(mount.join("a")).expect("still there").st_ino, before);
    assert_eq!(sh_in(mount.path(), "ls a").ok().lines(), ["peer", "type"]);
}
