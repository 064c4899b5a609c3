//! Writes to a mounted machine: what QEMU then holds, as its second socket tells, or why it refused.

use harness::*;
use serde_json::{Value, json};

const MACHINE: &str = "/machine";

/// A q35 and a mount of it, with a relay that records what the mount asks.
struct Writable {
    qemu: Qemu,
    relay: Relay,
    mount: Mount,
}

impl Writable {
    #[track_caller]
    fn new(which: Which) -> Writable {
        let (qemu, relay, mount) = relayed(which, "q35", &[], &[]);
        Writable { qemu, relay, mount }
    }

    #[track_caller]
    fn get(&self, path: &str, name: &str) -> Value {
        let value = self.qemu.truth().get(path, name);
        value.unwrap_or_else(|error| panic!("{path} {name}: {error:?}"))
    }

    #[track_caller]
    fn set(&self, path: &str, name: &str, value: Value) {
        let result = self.qemu.truth().set(path, name, value.clone());
        result.unwrap_or_else(|error| panic!("{path} {name} = {value}: {error:?}"));
    }

    /// The file of a property of the machine, as a word of a shell command.
    fn file(&self, name: &str) -> String {
        quote(self.mount.join(MACHINE).join(name))
    }

    /// Each text, written, makes the property hold that value, whatever it held before.
    #[track_caller]
    fn check(&self, path: &str, name: &str, others: [Value; 2], texts: &[(&str, Value)]) {
        let file = self.mount.join(path).join(name);
        for (text, value) in texts {
            let other = others
                .iter()
                .find(|other| *other != value)
                .expect("another value");
            self.set(path, name, other.clone());
            assert_ne!(
                &self.get(path, name),
                value,
                "{name} cannot show what writing {text:?} does"
            );
            assert_eq!(write_file(&file, text.as_bytes()), Ok(()), "{name} {text:?}");
            assert_eq!(&self.get(path, name), value, "{name} after {text:?}");
        }
    }
}

each_qemu!(booleans_in_every_spelling, |which| {
    let machine = Writable::new(which);
    let texts = [
        ("true", true),
        ("on", true),
        ("yes", true),
        ("1", true),
        ("true\n", true),
        ("1\n", true),
    ];
    let texts = texts
        .into_iter()
        .chain([("false", false), ("off", false), ("no\n", false), ("0", false)]);
    let texts: Vec<_> = texts.map(|(text, value)| (text, json!(value))).collect();
    machine.check(MACHINE, "graphics", [json!(true), json!(false)], &texts);
});

each_qemu!(integers_of_64_bits_in_decimal_and_hexadecimal, |which| {
    let machine = Writable::new(which);
    let signed = [
        ("5", json!(5)),
        ("-5\n", json!(-5)),
        ("0x1F", json!(31)),
        ("0XfF", json!(255)),
        ("-0x10", json!(-16)),
        ("0", json!(0)),
    ];
    machine.check(MACHINE, "phandle-start", [json!(7), json!(8)], &signed);
    let unsigned = [
        ("18446744073709551615", json!(u64::MAX)),
        ("0xffffffffffffffff\n", json!(u64::MAX)),
        ("9223372036854775808", json!(1_u64 << 63)),
        ("0", json!(0)),
    ];
    machine.check(MACHINE, "bus-lock-ratelimit", [json!(7), json!(8)], &unsigned);
    let sizes = [
        ("1073741824", json!(1 << 30)),
        ("0x80000000\n", json!(1_u64 << 31)),
    ];
    machine.check(
        MACHINE,
        "max-ram-below-4g",
        [json!(1 << 29), json!(1 << 28)],
        &sizes,
    );
});

each_qemu!(strings_as_they_are, |which| {
    let machine = Writable::new(which);
    let same = [
        "x",
        "two words",
        "  blanks around  ",
        "it's \"quoted\" \\ \\n",
        "größer ☃ \u{1f427}",
        "5",
        "true",
    ];
    let same = same.into_iter().chain([
        "null",
        r#"{"a": [1]}"#,
        "in\nner\tlines",
        "\u{1}\u{7f}",
        "\r",
        "a\r",
    ]);
    let mut texts: Vec<_> = same.map(|text| (text, json!(text))).collect();
    texts.extend([
        ("end\n", json!("end")),
        ("end\n\n", json!("end\n")),
        ("\n", json!("")),
        ("\n\n", json!("\n")),
    ]);
    texts.push(("a\r\n", json!("a\r")));
    machine.check(MACHINE, "kernel", [json!("before"), json!("")], &texts);
    let long = "0123456789abcde\n".repeat(4000);
    machine.check(
        MACHINE,
        "append",
        [json!("before"), json!("")],
        &[(long.as_str(), json!(long[..63_999]))],
    );
});

each_qemu!(enumerations_and_structures, |which| {
    let machine = Writable::new(which);
    let texts = [
        ("on\n", json!("on")),
        ("off", json!("off")),
        ("auto", json!("auto")),
    ];
    machine.check(MACHINE, "acpi", [json!("on"), json!("off")], &texts);
    let texts = [("bind", json!("bind")), ("preferred", json!("preferred"))];
    machine.check(
        "/objects/pc.ram",
        "policy",
        [json!("default"), json!("bind")],
        &texts,
    );
    let texts = [
        (r#"{"order":"cd"}"#, json!({ "order": "cd" })),
        ("{ \"order\": \"n\" }\n", json!({ "order": "n" })),
        (
            r#"{"menu":true,"order":"d"}"#,
            json!({ "order": "d", "menu": true }),
        ),
    ];
    machine.check(
        MACHINE,
        "boot",
        [json!({ "order": "a" }), json!({ "order": "dc" })],
        &texts,
    );

    assert_eq!(
        write_file(machine.mount.join("machine/smp"), br#"{"cpus": 4, "cores": 2}"#),
        Ok(())
    );
    let smp = machine.get(MACHINE, "smp");
    assert_eq!((&smp["cpus"], &smp["cores"]), (&json!(4), &json!(2)), "{smp}");
});

// `host-nodes` of a memory backend is declared as an integer and holds a list.
each_qemu!(
    a_value_of_another_type_than_declared_is_written_as_the_type_that_qemu_names,
    |which| {
        let machine = Writable::new(which);
        let ram = "/objects/pc.ram";
        let file = machine.mount.join(ram).join("host-nodes");
        assert_eq!(machine.get(ram, "host-nodes"), json!([]));
        machine.relay.reset();
        assert_eq!(write_file(&file, b"[0]\n"), Ok(()));
        assert_eq!(machine.get(ram, "host-nodes"), json!([0]));
        assert_eq!(machine.relay.count("qom-set"), 2);
        assert_eq!(write_file(&file, b"zero"), Err(libc::EINVAL));
        assert_eq!(machine.get(ram, "host-nodes"), json!([0]));
    }
);

#[test]
fn one_retry_and_no_more() {
    let refused = |prop: &str, kind: &str| {
        Action::error(
            "GenericError",
            format!("Invalid parameter type for '{prop}', expected: {kind}"),
        )
    };
    let tree = ScriptedTree::new()
        .object("/a")
        .prop("/a", "flag", "bool", json!("words"))
        .prop("/a", "addr", "str", json!(5))
        .prop("/a", "count", "uint32", json!(true))
        .prop("/a", "contrary", "int", json!(1))
        .prop("/a", "outer", "Pair", json!("x"));
    tree.hook("qom-set", "/a", "contrary", refused("contrary", "string"));
    tree.hook("qom-set", "/a", "outer", refused("outer.inner", "string"));
    let (server, mount) = tree.mounted(&[]);
    let cases = [
        ("flag", "yes", Ok(()), vec![json!(true), json!("yes")]),
        ("addr", "0x10", Ok(()), vec![json!("0x10"), json!(16)]),
        ("count", "1", Ok(()), vec![json!(1), json!(true)]),
        ("contrary", "5", Err(libc::EINVAL), vec![json!(5), json!("5")]),
        (
            "outer",
            r#"{"inner":1}"#,
            Err(libc::EINVAL),
            vec![json!({ "inner": 1 })],
        ),
    ];
    for (prop, text, result, sent) in cases {
        server.reset();
        assert_eq!(
            write_file(mount.join("a").join(prop), text.as_bytes()),
            result,
            "{prop}"
        );
        let requests = server
            .requests()
            .into_iter()
            .filter(|(command, _)| command == "qom-set");
        let values: Vec<Value> = requests.map(|(_, args)| args["value"].clone()).collect();
        assert_eq!(values, sent, "{prop}");
    }
}

each_qemu!(what_qemu_refuses_is_what_echo_says, |which| {
    let invalid = "Invalid argument";
    let cpu = "machine/unattached/device[0]";
    let machine = Writable::new(which);
    let cases = [
        ("machine/acpi", "bogus", invalid),
        ("machine/acpi", "", invalid),
        ("machine/graphics", "maybe", invalid),
        ("machine/phandle-start", "5x", invalid),
        ("machine/phandle-start", "", invalid),
        ("machine/max-ram-below-4g", "8589934592", invalid),
        ("machine/x-oem-id", "longer than six", invalid),
        ("machine/smp", r#"{"bogus":1}"#, invalid),
        ("machine/smp", "{bad", invalid),
        (&format!("{cpu}/family"), "100000", invalid),
        ("machine/type", "x", "Permission denied"),
        ("machine/rtc-time", "{}", "Permission denied"),
        (&format!("{cpu}/hotplugged"), "true", "Permission denied"),
        (&format!("{cpu}/crash-information"), "{}", "Permission denied"),
        ("objects/pc.ram/share", "true", "Device or resource busy"),
        ("objects/pc.ram/size", "1048576", "Device or resource busy"),
        ("machine/q35/mch/addr", "5", "Device or resource busy"),
    ];
    for (file, text, message) in cases {
        let (path, name) = file.rsplit_once('/').expect("a path");
        let ask = || machine.qemu.truth().get(&format!("/{path}"), name);
        let before = ask();
        let out = sh(&format!("echo '{text}' > {}", quote(machine.mount.join(file))));
        assert_eq!(out.status, 1, "{file} {text}: {out}");
        assert!(
            out.stderr
                .trim_end()
                .ends_with(&format!("write error: {message}")),
            "{file} {text}: {out}"
        );
        let after = ask();
        assert!(
            after == before || name == "rtc-time",
            "{file}: {before:?}, then {after:?}"
        );
    }
});

each_qemu!(shells_and_tools_write, |which| {
    let machine = Writable::new(which);
    let file = machine.file("kernel");
    let source = quote(machine.qemu.dir().join("value"));
    let cases = [
        ("echo one > FILE", "one"),
        ("echo two >> FILE", "two"),
        ("printf three > FILE", "three"),
        ("echo > FILE", ""),
        ("echo four | tee FILE", "four"),
        ("echo five | dd of=FILE status=none", "five"),
        ("echo six > SOURCE; cp SOURCE FILE", "six"),
        ("echo seven > SOURCE; cat SOURCE > FILE", "seven"),
        ("echo eight 1<> FILE", "eight"),
        ("exec 3> FILE; echo nine >&3; echo ten >&3", "ten"),
        ("cat <<< eleven > FILE", "eleven"),
        ("sh -c 'echo twelve > FILE'", "twelve"),
    ];
    for (script, value) in cases {
        let script = script.replace("SOURCE", &source);
        let script = match script.contains('\'') {
            true => script.replace("FILE", &file.replace('\'', "")),
            false => script.replace("FILE", &file),
        };
        assert_eq!(sh(&script).ok().stderr, "", "{script}");
        assert_eq!(machine.get(MACHINE, "kernel"), value, "{script}");
    }
    // Opening for writing, truncation and writing nothing change nothing, and ask QEMU nothing.
    machine.relay.reset();
    let nothing = [
        ": > FILE",
        ": >> FILE",
        "truncate -s 0 FILE",
        "truncate -s 100 FILE",
        "printf '' > FILE",
    ];
    for script in nothing.into_iter().chain(["true 3<> FILE", "cp /dev/null FILE"]) {
        assert_eq!(sh(&script.replace("FILE", &file)).ok().stderr, "", "{script}");
    }
    assert_eq!(machine.relay.count("qom-set"), 0);
    assert_eq!(machine.get(MACHINE, "kernel"), "twelve");
});

// Whatever `cat` prints of a property, writing it back has QEMU's verdict on the value that it already has.
each_qemu!(what_cat_printed_can_be_written_back, |which| {
    let machine = Writable::new(which);
    let truth = machine.qemu.truth();
    // Not all objects: QEMU 7.2 itself dies of a property of its ICH9 that is set to the value it has.
    let own = ["/machine", "/objects/pc.ram", "/machine/unattached/device[0]"];
    let objects = own.map(|path| truth::Object {
        path: path.to_owned(),
        props: truth.list(path),
    });
    let mut written = 0;
    for (path, name) in shown::values(&objects) {
        let Ok(value) = truth.get(path, name) else {
            continue;
        };
        let verdict = truth.set(path, name, value.clone());
        let file = machine.mount.join(path).join(name);
        let text = format!("{}\n", shown::text(&value));
        assert_eq!(
            write_file(&file, text.as_bytes()).is_ok(),
            verdict.is_ok(),
            "{path} {name}: {verdict:?}"
        );
        if verdict.is_ok() {
            assert_eq!(machine.get(path, name), value, "{path} {name}");
            written += 1;
        }
    }
    assert!(written > 50, "only {written} properties could be written");
});
