//! A QEMU that stops, and one that goes: who reads is told in time.

use std::time::{Duration, Instant};

use harness::*;

const READERS: usize = 50;

/// Readers of one file, and of many, while QEMU is stopped.
#[track_caller]
fn all_end_in_time(which: Which, options: &[&str], timeout: Duration) {
    let (qemu, mount) = mounted(which, "q35", &[], options);
    let point = quote(mount.path());
    let files = sh(&format!(
        "find {point}/machine -type f -name type | head -n {}",
        READERS / 2
    ));
    let many: Vec<&str> = files.ok().lines();
    assert_eq!(many.len(), READERS / 2);
    sh(&format!(
        "cat {}",
        many.iter().map(quote).collect::<Vec<_>>().join(" ")
    ))
    .ok();
    qemu.stop();
    let start = Instant::now();
    let readers: Vec<_> = (0..READERS)
        .map(|number| {
            let file = if number % 2 == 0 {
                many[0]
            } else {
                many[number / 2]
            };
            sh_start(&format!("exec cat {}", quote(file)))
        })
        .collect();
    let end = start + timeout + 2 * SECOND;
    for reader in readers {
        let out = reader.finish(end.saturating_duration_since(Instant::now()));
        out.exits(1).says("Connection timed out");
    }
    assert!(start.elapsed() >= timeout, "{:?}", start.elapsed());
    // What is known is told, and what is not is refused at once.
    let start = Instant::now();
    sh(&format!("ls {point} >/dev/null && cat {}", quote(many[1]))).fails();
    assert!(start.elapsed() < SECOND, "{:?}", start.elapsed());
    qemu.cont();
    let kind = qemu.truth().get("/machine", "type").expect("a type");
    let expected = format!("{}\n", kind.as_str().expect("text")).into_bytes();
    let back = wait_until(10 * SECOND, || {
        read_file(mount.join("machine/type")).as_ref() == Ok(&expected)
    });
    assert!(back, "it did not come back");
    let out = sh(&format!(
        "for f in {}; do cat \"$f\"; done",
        many.iter().map(quote).collect::<Vec<_>>().join(" ")
    ));
    let truth: Vec<String> = many
        .iter()
        .map(|file| {
            let object = file
                .strip_prefix(mount.path().to_str().expect("UTF-8"))
                .expect("in the mount");
            let object = object.strip_suffix("/type").expect("a type");
            let kind = qemu.truth().get(object, "type").expect("a type");
            kind.as_str().expect("text").to_owned()
        })
        .collect();
    assert_eq!(out.ok().lines(), truth, "somebody else's value");
}

each_qemu!(fifty_readers_of_a_stopped_qemu, |which| all_end_in_time(
    which,
    &["-o", "timeout=1"],
    SECOND
));

#[test]
fn ten_seconds_unless_told_otherwise() {
    all_end_in_time(Which::New, &[], 10 * SECOND);
}

each_qemu!(a_qemu_that_goes_is_unmounted_within_two_seconds, |which| {
    for stopped in [false, true] {
        let qemu = Qemu::start(which, "none", &[]);
        let mount = Mount::start_foreground(&qemu.socket(), &["-v"]);
        let file = mount.join("machine/type");
        let held = Held::open(&file, libc::O_RDONLY).expect("an open file");
        assert_eq!(held.read(100), Ok(b"none-machine\n".into()));
        let writer = Held::open(mount.join("machine/kernel"), libc::O_WRONLY).expect("an open file");
        let sitting = sh_start(&format!(
            "cd {}/machine && while sleep 0.05; do cat type >/dev/null || exit 7; done",
            quote(mount.path())
        ));
        let cwd = format!("/proc/{}/cwd", sitting.pid());
        let inside = || std::fs::read_link(&cwd).is_ok_and(|cwd| cwd.starts_with(mount.path()));
        assert!(wait_until(10 * SECOND, inside), "nobody sits in the mount");
        let waiting = stopped.then(|| {
            qemu.stop();
            let waiting = sh_start(&format!("cat {}", quote(&file)));
            std::thread::sleep(SECOND / 5);
            waiting
        });
        let start = Instant::now();
        qemu.kill();
        assert!(
            wait_until(2 * SECOND, || !mount.is_mounted()),
            "still mounted: {}",
            mount.log()
        );
        // The shell and the open files are still there; what they ask for is not. What is under way when the
        // program exits, the kernel aborts.
        let cut = [Err(libc::ENOTCONN), Err(libc::ECONNABORTED)];
        let read = held.seek(0).and_then(|_| held.read(100)).map(drop);
        let written = writer.write(b"x").map(drop);
        assert!(
            cut.contains(&read) && cut.contains(&written),
            "{read:?}, {written:?}"
        );
        let out = sitting.finish(10 * SECOND);
        let told = ["not connected", "connection abort"];
        assert!(
            out.status == 7 && told.iter().any(|text| out.stderr.contains(text)),
            "{out}"
        );
        if let Some(waiting) = waiting {
            waiting.finish(10 * SECOND).fails();
        }
        assert_eq!(mount.wait_exit(10 * SECOND).code(), Some(0), "{}", mount.log());
        assert_eq!(held.seek(0).and_then(|_| held.read(100)), Err(libc::ENOTCONN));
        assert_eq!(writer.write(b"x"), Err(libc::ENOTCONN));
        assert!(
            mount.log().contains("QEMU closed the monitor; unmounting"),
            "{}",
            mount.log()
        );
        eprintln!("{:?}", start.elapsed());
    }
});
