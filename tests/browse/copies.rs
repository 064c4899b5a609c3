//! Copies with all attributes, and what asks for the filesystem's room: nothing to complain of.

use harness::*;

each_qemu!(copies_with_all_attributes_succeed, |which| {
    let qemu = Qemu::start(
        which,
        "q35",
        &[
            "-device",
            "qemu-xhci,id=x",
            "-device",
            "usb-tablet,id=tab,bus=x.0",
        ],
    );
    let mount = Mount::start(&qemu.socket(), &[]);
    let from = quote(mount.join("machine/peripheral/tab"));
    let links = sh(&format!("find {from} -type l"));
    assert!(!links.ok().lines().is_empty(), "no link to copy");
    for (number, command) in [
        "rsync -aX",
        "rsync -aXA --no-group",
        "cp -r --preserve=xattr",
        "cp -a --no-preserve=timestamps",
        "busybox cp -a",
    ]
    .into_iter()
    .enumerate()
    {
        let out = sh_in(qemu.dir(), &format!("{command} {from} copy{number}"));
        assert_eq!((out.status, out.stderr.as_str()), (0, ""), "{out}");
        assert!(
            !sh_in(qemu.dir(), &format!("find copy{number} -type l"))
                .ok()
                .lines()
                .is_empty(),
            "{command}"
        );
    }
    let out = sh_in(
        qemu.dir(),
        &format!(
            "tar --xattrs --xattrs-include='*' -cf x.tar -C {from} . && mkdir x && tar --xattrs --xattrs-include='*' -xf x.tar -C x"
        ),
    );
    assert_eq!((out.status, out.stderr.as_str()), (0, ""), "{out}");
});

#[test]
fn there_are_no_inodes_and_no_blocks_to_run_out_of() {
    let (_qemu, relay, mount) = relayed(Which::Old, "none", &[], &[]);
    relay.reset();
    let point = quote(mount.path());
    for (option, columns) in [("-i", "0 0 0 -"), ("-k", "0 0 0 -")] {
        let out = sh(&format!(
            "df {option} {point} | awk 'NR == 2 {{ print $2, $3, $4, $5 }}'"
        ));
        assert_eq!(out.ok().text(), columns, "df {option}");
    }
    // df opens the mount point, but does not read it.
    assert_eq!(relay.requests(), Vec::<String>::new());
    sh(&format!("ls {point}")).ok();
    assert_eq!(relay.count("qom-list"), 1);
}

/// Opening a folder asks nothing, so its errors come with the first read.
#[test]
fn a_folder_that_cannot_be_listed_fails_when_it_is_read() {
    let tree = ScriptedTree::new().object("/a");
    tree.hook("qom-list", "/a", "", Action::error("GenericError", "not now"));
    let (_server, mount) = tree.mounted(&[]);
    let out = sh(&format!("ls {}", quote(mount.join("a"))));
    out.fails().says("reading directory");
    out.says("Input/output error");
    tree.clear_hooks();
    assert_eq!(sh(&format!("ls {}", quote(mount.join("a")))).ok().text(), "type");
}
