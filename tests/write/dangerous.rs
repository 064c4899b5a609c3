//! What must not be done to a machine by a stray `echo`, and sizes as people write them.

use harness::*;
use serde_json::{Value, json};

const MEMORY: [&str; 6] = [
    "-m",
    "64M,slots=2,maxmem=16G",
    "-object",
    "memory-backend-ram,id=more,size=1G",
    "-device",
    "virtio-mem-pci,id=vm,memdev=more",
];

each_qemu!(nothing_is_unrealized, |which| {
    let (qemu, relay, mount) = relayed(which, "q35", &MEMORY, &["-o", "entry_timeout=60"]);
    let found = sh_in(mount.path(), "find -name realized -type f");
    let files = found.ok().lines();
    for part in [
        "peripheral/vm/",
        "device[0]/",
        "ide.0/",
        "q35/",
        "mch/",
        "sysbus/",
    ] {
        let has = files.iter().any(|file| file.contains(part));
        assert!(has, "nothing of {part} in {files:?}");
    }
    relay.reset();
    for (number, file) in files.iter().enumerate() {
        let word = ["off", "false", "0", "no"][number % 4];
        let out = sh_in(mount.path(), &format!("echo {word} > '{file}'"));
        out.fails().says("Operation not permitted");
    }
    assert_eq!(relay.count("qom-set"), 0);
    let words = sh(&format!(
        "getfattr --only-values -n user.qom.error {}",
        quote(mount.join("machine/peripheral/vm/realized"))
    ));
    words.ok().shows("device_del");
    // What `cat` printed can be written back.
    let file = mount.join("machine/peripheral/vm/realized");
    assert_reads(&file, "true\n");
    assert_eq!(write_file(&file, b"true\n"), Ok(()));
    assert_eq!(
        qemu.truth().get("/machine/peripheral/vm", "realized"),
        Ok(json!(true))
    );
});

each_qemu!(sizes_are_taken_as_people_write_them, |which| {
    let (qemu, mount) = mounted(which, "q35", &MEMORY, &[]);
    let file = quote(mount.join("machine/peripheral/vm/requested-size"));
    let get = || {
        qemu.truth()
            .get("/machine/peripheral/vm", "requested-size")
            .expect("a size")
    };
    for (text, bytes) in [
        ("500M", 500_u64 << 20),
        ("0.5g", 512 << 20),
        ("2048K", 2 << 20),
        ("1G", 1 << 30),
        ("0x200000", 2 << 20),
        ("0B", 0),
        ("4194304", 4 << 20),
    ] {
        sh(&format!("echo {text} > {file}")).ok();
        assert_eq!(get(), json!(bytes), "{text}");
    }
    let before: Value = get();
    for text in [
        "1X",
        "G",
        "0x1G",
        "-1M",
        "1e3",
        "16E",
        "1125899906842624.000000000000000000E",
        "99999999999999999999",
        "1.3K",
        "1 M",
        "1.5",
    ] {
        let out = sh(&format!("echo '{text}' > {file}"));
        assert!(out.fails().stderr.contains("Invalid argument"), "{text}: {out}");
        assert_eq!(get(), before, "{text}");
    }
});
