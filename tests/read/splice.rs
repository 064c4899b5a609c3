//! Programs that read through the kernel's page cache (`splice`, `sendfile`, private `mmap`) get the whole value,
//! however it has grown or shrunk, and so does what reads as usual.

use std::time::Duration;

use harness::*;
use serde_json::json;

const UUTILS: &str = "/usr/lib/cargo/bin/coreutils";

const SENDFILE: &str = "import os, sys
f = os.open(sys.argv[1], os.O_RDONLY)
while os.sendfile(1, f, None, 1 << 16): pass";

const SPLICE: &str = "import os, sys
f, (r, w) = os.open(sys.argv[1], os.O_RDONLY), os.pipe()
while n := os.splice(f, w, 1 << 16):
    while n: n -= len(data := os.read(r, n)); sys.stdout.buffer.write(data)";

const MMAP: &str = "import mmap, os, sys
f = os.open(sys.argv[1], os.O_RDONLY)
sys.stdout.buffer.write(mmap.mmap(f, os.fstat(f).st_size, access=mmap.ACCESS_COPY))";

/// Commands that write to standard output what is in a file, in a folder of their own.
fn readers(file: &str) -> Vec<String> {
    let python = |script: &str| format!("python3 -c {} {file}", quote(script));
    vec![
        format!("busybox cat {file}"),
        format!("rm -f copy; busybox cp {file} copy; cat copy"),
        format!("{UUTILS}/cat {file}"),
        format!("rm -f copy; {UUTILS}/cp {file} copy; cat copy"),
        python(SENDFILE),
        python(SPLICE),
        python(MMAP),
        format!("cat {file}"),
        format!("dd if={file} status=none"),
        format!("dd if={file} bs=7 status=none"),
        format!("rm -f copy; cp {file} copy; cat copy"),
        format!("exec 3< {file}; busybox cat <&3"),
    ]
}

#[track_caller]
fn every_length(which: Which) {
    let (qemu, mount) = mounted(which, "none", &[], &["-o", "timeout=30"]);
    let file = quote(mount.join("machine/append"));
    // Lengths at the end of a page, of a READ, and beside them.
    let lengths = [
        0, 6000, 10, 9000, 300_000, 4095, 4096, 3, 100, 16_385, 8191, 16_383, 2,
    ];
    for (turn, reader) in readers(&file).into_iter().enumerate() {
        // A reader each, so that none profits from what another one told the kernel.
        for length in lengths {
            let letter = char::from(b'a' + turn as u8);
            let text: String = std::iter::repeat_n(letter, length).collect();
            qemu.set("/machine", "append", json!(text));
            let out = sh_in(qemu.dir(), &reader);
            assert!(
                out.ok().stdout == format!("{text}\n").into_bytes(),
                "{which:?}, {length} bytes, {reader}: {} bytes",
                out.stdout.len()
            );
        }
    }
}

each_qemu!(every_reader_gets_the_whole_value, every_length);

each_qemu!(a_value_just_written_is_read_whole, |which| {
    let (qemu, mount) = mounted(which, "none", &[], &[]);
    let (flag, text) = (
        quote(mount.join("machine/dump-guest-core")),
        quote(mount.join("machine/append")),
    );
    for reader in readers(&flag) {
        for (word, shown) in [("off", "false"), ("on", "true"), ("off", "false")] {
            let out = sh_in(qemu.dir(), &format!("echo {word} > {flag}; {reader}"));
            assert_eq!(out.ok().text(), shown, "{reader}");
        }
    }
    for reader in readers(&text) {
        for command in [
            "truncate -s 0",
            "echo >",
            "echo longer than before >>",
            "printf x | dd of=",
        ] {
            let write = match command.strip_suffix('=') {
                Some(_) => format!("{command}{text} status=none"),
                None => format!("{command} {text}"),
            };
            let out = sh_in(qemu.dir(), &format!("{write}; {reader}"));
            let now = qemu.truth().get("/machine", "append").expect("a string");
            assert_eq!(
                out.ok().text(),
                now.as_str().expect("a string"),
                "{write}; {reader}"
            );
        }
    }
});

// Somebody who opens a property while it is written learns nothing that makes the next reader stop early.
each_qemu!(readers_during_a_write_do_not_spoil_the_next, |which| {
    let script = "import mmap, os, sys, time
file, going = sys.argv[1], mmap.mmap(-1, 1)
def read():
    f, data = os.open(file, os.O_RDONLY), b''
    with open(os.memfd_create('x'), 'r+b') as copy:
        while os.sendfile(copy.fileno(), f, None, 1 << 16): pass
        os.close(f)
        copy.seek(0)
        return copy.read()
for round in range(150):
    going[0], children = 1, []
    for _ in range(2):
        child = os.fork()
        if not child:
            while going[0]:
                f = os.open(file, os.O_RDONLY); os.read(f, 64); os.close(f)
            os._exit(0)
        children.append(child)
    time.sleep(0.004)
    f = os.open(file, os.O_WRONLY | os.O_TRUNC); os.write(f, b'off\\n'); os.close(f)
    going[0] = 0
    for child in children: os.waitpid(child, 0)
    for again in range(2):
        if read() != b'false\\n': print(round, again, read())";
    let (_qemu, mount) = mounted(which, "none", &[], &[]);
    let flag = quote(mount.join("machine/dump-guest-core"));
    let out = sh(&format!("python3 -c {} {flag}", quote(script)));
    assert_eq!(out.ok().text(), "");
});

// A walk costs no request more, and each reader one `qom-get`.
each_qemu!(it_takes_no_further_request, |which| {
    let (qemu, relay, mount) = relayed(which, "none", &[], &["-o", "entry_timeout=60"]);
    let file = quote(mount.join("machine/append"));
    sh(&format!("stat {file}")).ok();
    for reader in readers(&file) {
        qemu.set("/machine", "append", json!("x".repeat(10_000)));
        relay.reset();
        sh_in(qemu.dir(), &reader).ok();
        // uutils' cp reads it a second time, from the start.
        let most = if reader.contains("coreutils/cp") { 2 } else { 1 };
        let asked = relay.requests();
        assert!(
            asked.len() <= most && relay.count("qom-get") == asked.len(),
            "{reader}: {asked:?}"
        );
    }
});

/// The kernel waits for a READ while it is told of a length: many who open and many who read one file at once,
/// with a value that changes each time and a slow QEMU, do not hold each other up.
#[test]
fn many_at_once_do_not_wait_for_each_other() {
    let tree = ScriptedTree::new()
        .object("/a")
        .prop("/a", "text", "string", json!(""));
    let mut answer = tree.handler();
    let mut turn = 0_usize;
    let server = Scripted::start(move |command, args| {
        if command != "qom-get" {
            return answer(command, args);
        }
        turn += 1;
        let value = Action::Return(json!("x".repeat(turn * 7919 % 40_000)));
        Action::Delay(Duration::from_millis(2), Box::new(value))
    });
    let mount = Mount::start(server.socket(), &["-o", "timeout=60"]);
    let again = "import os, sys
f = os.open(sys.argv[1], os.O_RDONLY)
for _ in range(10):
    os.lseek(f, 0, os.SEEK_SET)
    while os.sendfile(1, f, None, 1 << 16): pass";
    let file = quote(mount.join("a/text"));
    let again = format!("python3 -c {} {file}", quote(again));
    let loops: Vec<_> = (0..90)
        .map(|number| {
            sh_start(&match number % 3 {
                0 => format!("{again} > /dev/null"),
                _ => format!("for i in 1 2 3 4 5; do busybox cat {file}; done > /dev/null"),
            })
        })
        .collect();
    for running in loops {
        running.finish(Duration::from_secs(300)).ok();
    }
    mount.unmount();
}
