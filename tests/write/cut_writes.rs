//! Programs that write a value in pieces: a newline of its own ends it, anything else is refused, and none ends with
//! exit status 0 and half a value set.

use harness::*;
use serde_json::json;

const ARGS: [&str; 0] = [];

#[track_caller]
fn string_of(qemu: &Qemu) -> String {
    let value = qemu.truth().get("/machine", "append").expect("a string");
    value.as_str().expect("a string").to_owned()
}

each_qemu!(a_newline_in_a_write_of_its_own_ends_the_value, |which| {
    let (qemu, mount) = mounted(which, "none", &ARGS, &[]);
    let file = quote(mount.join("machine/append"));
    for (command, value) in [
        (format!("(printf hello; echo) > {file}"), "hello"),
        (format!("(printf hello; echo) >> {file}"), "hello"),
        (
            format!("PYTHONUNBUFFERED=1 python3 -c 'print(\"py\")' > {file}"),
            "py",
        ),
        (format!("stdbuf -o0 /usr/bin/printf 'x\\n' > {file}"), "x"),
        (
            format!("node -e 'process.stdout.write(\"node\"); process.stdout.write(\"\\n\")' > {file}"),
            "node",
        ),
        (
            format!("perl -e '$|=1; print \"perl\"; print \"\\n\"' > {file}"),
            "perl",
        ),
        (format!("printf 'y\\n' | dd of={file} bs=1 status=none"), "y"),
        (
            format!("exec 3> {file}; printf one >&3; echo >&3; printf two >&3; echo >&3"),
            "two",
        ),
        (format!("exec 3> {file}; echo one >&3; echo two >&3"), "two"),
        (format!("echo > {file}"), ""),
        (
            format!("exec 3> {file}; printf one >&3; echo >&3; echo two >&3"),
            "two",
        ),
        (format!("(printf %4096s; echo) > {file}"), &" ".repeat(4096)),
    ] {
        qemu.set("/machine", "append", json!("before"));
        sh(&command).ok();
        assert_eq!(string_of(&qemu), value, "{command}");
    }
});

each_qemu!(the_rest_of_a_cut_value_is_refused, |which| {
    let (qemu, mount) = mounted(which, "none", &ARGS, &[]);
    let file = quote(mount.join("machine/append"));
    let large = quote(qemu.dir().join("large"));
    sh(&format!("seq 40000 > {large}")).ok();
    let pwrite = "import os, sys
f = os.open(sys.argv[1], os.O_WRONLY)
os.pwrite(f, b\"hel\", 0)
for text in (b\"lo\", b\"lo\", b\"\\n\"):
    try: os.pwrite(f, text, 3)
    except OSError as e: print(e.errno)";
    for command in [
        format!("printf 'hello\\n' | dd of={file} bs=1"),
        format!("(printf hel; printf lo) > {file}"),
        format!("(printf hel; printf lo) >> {file}"),
        format!("(printf hel; printf lo; echo) > {file}"),
        format!("(printf hel; stat {file} > /dev/null; printf lo) >> {file}"),
        format!("busybox cat {large} > {file}"),
        format!("cat {large} {large} > {file}"),
        format!("node -e 'process.stdout.write(\"a\"); process.stdout.write(\"b\")' > {file}"),
        format!("perl -e '$|=1; print \"a\"; print \"b\" or die $!' > {file}"),
        // An empty line behind a value is more of it, and not an empty value.
        format!("(printf hello; echo; echo) > {file}"),
        format!("exec 3> {file}; echo one >&3; echo >&3"),
        format!("PYTHONUNBUFFERED=1 python3 -c 'print(\"hello\\n\")' > {file}"),
        // O_APPEND can be set later.
        format!(
            "python3 -c 'import fcntl, os, sys; f = os.open(sys.argv[1], os.O_WRONLY); fcntl.fcntl(f, fcntl.F_SETFL, os.O_APPEND); os.write(f, b\"hel\"); os.stat(sys.argv[1]); os.write(f, b\"lo\")' {file}"
        ),
        // A newline that may be where a buffer ended.
        format!(
            "head -c 4095 /dev/zero | tr '\\0' x > {large}.x; echo >> {large}.x; (cat {large}.x; echo) > {file}"
        ),
    ] {
        let out = sh(&command);
        assert!(
            out.fails().stderr.contains("File too large") || out.stderr.contains("EFBIG"),
            "{out}"
        );
    }
    let out = sh(&format!("python3 -c {} {file}", quote(pwrite)));
    assert_eq!(out.ok().text(), "27\n27\n27");
    let why = sh(&format!("getfattr --only-values -n user.qom.error {file}"));
    why.ok().shows("came in pieces");
    // From the start it is a new value.
    sh(&format!(
        "exec 3> {file}; printf hel >&3; printf lo >&3; echo whole > {file}"
    ))
    .ok();
    assert_eq!(string_of(&qemu), "whole");
});

// Tools that set the mode of what they copy to.
each_qemu!(copying_into_a_property_sets_it, |which| {
    let copy = "require(\"fs\").copyFileSync(process.argv[1], process.argv[2])";
    let (qemu, mount) = mounted(which, "none", &ARGS, &[]);
    let (from, file) = (
        quote(qemu.dir().join("from")),
        quote(mount.join("machine/append")),
    );
    for (number, tool) in [
        "cp",
        "busybox cp",
        "/usr/lib/cargo/bin/coreutils/cp",
        &format!("node -e {}", quote(copy)),
    ]
    .iter()
    .enumerate()
    {
        let out = sh(&format!(
            "echo value{number} > {from}; chmod 644 {from}; {tool} {from} {file}"
        ));
        assert_eq!((out.status, out.stderr.as_str()), (0, ""), "{out}");
        assert_eq!(string_of(&qemu), format!("value{number}"), "{tool}");
    }
    sh(&format!(
        "chmod 644 {file} && chown $(stat -c %u:%g {file}) {file}"
    ))
    .ok();
    sh(&format!("chmod 600 {file} || chown 12345 {file} || touch {file}")).fails();
});

each_qemu!(a_refusal_is_not_made_good_by_a_newline, |which| {
    let (qemu, relay, mount) = relayed(which, "q35", &ARGS, &[]);
    let acpi = quote(mount.join("machine/acpi"));
    let before = qemu.truth().get("/machine", "acpi").expect("a value");
    for command in [
        format!("(printf bad; echo) > {acpi}"),
        format!("(printf bad; echo; echo) > {acpi}"),
        format!("(printf bad; echo) >> {acpi}"),
        format!("(echo bad; echo) > {acpi}"),
        format!("perl -e '$|=1; print \"bad\"; print \"\\n\" or die $!' > {acpi}"),
    ] {
        relay.reset();
        let out = sh(&command);
        assert!(out.fails().stderr.contains("Invalid argument"), "{out}");
        assert_eq!(relay.count("qom-set"), 1, "{command}: {:?}", relay.requests());
        assert_eq!(
            qemu.truth().get("/machine", "acpi"),
            Ok(before.clone()),
            "{command}"
        );
    }
    // What is good after what was bad is set.
    sh(&format!("exec 3> {acpi}; printf bad >&3; printf off >&3")).ok();
    assert_eq!(qemu.truth().get("/machine", "acpi"), Ok(json!("off")));
});
