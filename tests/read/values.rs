//! Values both ways: every kind of JSON, whatever the declared type says, of any length.

use std::time::Duration;

use harness::mirror::{CLOCKS, text_of};
use harness::tree::json_type;
use harness::*;
use serde_json::{Value, json};

/// Values in JSON, and the texts that files show for them, less the newline at the end.
const SHOWN: [(&str, &str); 31] = [
    ("true", "true"),
    ("false", "false"),
    ("null", "null"),
    ("0", "0"),
    ("-1", "-1"),
    ("9223372036854775807", "9223372036854775807"),
    ("-9223372036854775808", "-9223372036854775808"),
    ("9223372036854775808", "9223372036854775808"),
    ("18446744073709551615", "18446744073709551615"),
    ("0.1", "0.1"),
    ("-2.5", "-2.5"),
    (r#""""#, ""),
    (r#""plain""#, "plain"),
    (r#""a\nb""#, "a\nb"),
    (r#""ends\n""#, "ends\n"),
    (r#""\n""#, "\n"),
    (r#""a\u0000b\u0000""#, "a\0b\0"),
    (r#""\u00fcber \ud83d\ude00 ""#, "\u{fc}ber \u{1f600} "),
    (r#""tab\tquote\"back\\""#, "tab\tquote\"back\\"),
    (r#""true""#, "true"),
    (r#""on""#, "on"),
    (r#""5""#, "5"),
    (r#""0x10""#, "0x10"),
    (r#""null""#, "null"),
    (r#""{}""#, "{}"),
    ("{}", "{}"),
    ("[]", "[]"),
    ("[ ]", "[]"),
    ("[1, -2, 18446744073709551615]", "[1,-2,18446744073709551615]"),
    (
        r#"{"z": [true, null, {"b": "x\ny", "a": 0.5}], "a": {}}"#,
        r#"{"a":{},"z":[true,null,{"a":0.5,"b":"x\ny"}]}"#,
    ),
    (r#"[[["deep"]]]"#, r#"[[["deep"]]]"#),
];

const FLOATS: [f64; 10] = [
    0.0,
    -0.0,
    1.0,
    0.1,
    1e300,
    5e-324,
    f64::MAX,
    f64::MIN_POSITIVE,
    1.0 / 3.0,
    123_456_789.125,
];

/// Serves a tree whose properties take only the JSON type that they have, whatever is declared.
fn strict(tree: &ScriptedTree) -> Scripted {
    let (tree, mut answer) = (tree.clone(), tree.handler());
    Scripted::start(move |command, args| {
        let text = |key: &str| args[key].as_str().unwrap_or_default();
        let present = tree.value(text("path"), text("property"));
        let present = present.and_then(|json| serde_json::from_str::<Value>(&json).ok());
        let (present, name) = (present.unwrap_or_default(), text("property"));
        if command == "qom-set" && json_type(&present) != json_type(&args["value"]) {
            let expected = json_type(&present);
            let words = format!("Invalid parameter type for '{name}', expected: {expected}");
            return Action::error("GenericError", words);
        }
        answer(command, args)
    })
}

#[test]
fn every_kind_of_value_is_shown() {
    let tree = ScriptedTree::new().object("/a");
    for (number, (value, _)) in SHOWN.iter().enumerate() {
        tree.raw_prop("/a", &format!("p{number}"), "any", value);
    }
    for (number, value) in FLOATS.iter().enumerate() {
        tree.prop("/a", &format!("f{number}"), "number", json!(value));
    }
    let (_server, mount) = tree.mounted(&[]);
    for (number, (value, text)) in SHOWN.iter().enumerate() {
        let file = mount.join(&format!("a/p{number}"));
        let shown = format!("{text}\n").into_bytes();
        assert_eq!(read_file(&file), Ok(shown.clone()), "{value}");
        assert_eq!(lstat(&file).expect("stat").st_size, shown.len() as i64, "{value}");
    }
    for (number, value) in FLOATS.iter().enumerate() {
        let text = read_file(mount.join(&format!("a/f{number}"))).expect("read");
        let text = String::from_utf8(text).expect("UTF-8");
        let shown: f64 = text.trim_end().parse().expect("a number");
        assert_eq!(shown.to_bits(), value.to_bits(), "{value}: {text}");
    }
}

#[test]
fn what_cat_printed_can_be_written_back_whatever_is_declared() {
    let declared = [
        "bool",
        "int",
        "uint8",
        "uint64_t",
        "size",
        "busnr",
        "str",
        "string",
        "number",
        "OnOffAuto",
        "struct tm",
        "SMPConfiguration",
        "any",
        "",
    ];
    let floats = FLOATS.iter().map(|value| json!(value).to_string());
    let values: Vec<String> = (SHOWN.iter().map(|(value, _)| (*value).to_owned()))
        .chain(floats)
        .collect();
    let tree = ScriptedTree::new();
    for (number, kind) in declared.iter().enumerate() {
        let path = format!("/o{number}");
        tree.object(&path);
        for (index, value) in values.iter().enumerate() {
            tree.raw_prop(&path, &format!("p{index:02}"), kind, value);
        }
    }
    let server = strict(&tree);
    let mount = Mount::start(server.socket(), &["-o", "no_readahead"]);
    for (number, kind) in declared.iter().enumerate() {
        // One write each, of exactly what was read.
        let script = "value=$(mktemp); for f in p*; do dd bs=1M if=$f of=$value status=none && \
                      dd bs=1M conv=notrunc if=$value of=$f status=none || echo $f; done; rm $value";
        let out = sh_in(mount.join(&format!("o{number}")), script);
        assert_eq!(
            (out.ok().text(), out.stderr.as_str()),
            ("", ""),
            "declared {kind:?}"
        );
        for (index, value) in values.iter().enumerate() {
            let value: Value = serde_json::from_str(value).expect("JSON");
            let now = tree.value(&format!("/o{number}"), &format!("p{index:02}"));
            let now: Value = serde_json::from_str(&now.expect("a value")).expect("JSON");
            assert_eq!(
                now.to_string(),
                value.to_string(),
                "declared {kind:?}: {value} came back as {now}"
            );
        }
        assert!(server.count("qom-set") >= values.len() * (number + 1));
    }
}

#[test]
fn values_of_20_mb_are_read_exactly() {
    let dir = tempfile::tempdir().expect("a folder");
    let length = 20_000_000;
    let words: String = (0..)
        .map(|number| format!("{number:x}\n\u{1}\u{fc}\""))
        .take(length / 8)
        .collect();
    let numbers: Vec<u32> = (0..1_500_000).collect();
    let mut tree = ScriptedTree::new().object("/a");
    let values = [
        ("plain", json!("x".repeat(length))),
        ("odd", json!(words)),
        ("list", json!(numbers)),
    ];
    for (name, value) in &values {
        tree = tree.prop("/a", name, "any", value.clone());
        let text = text_of(value);
        assert!(text.len() > 10_000_000, "{name}: {}", text.len());
        std::fs::write(dir.path().join(name), text).expect("write a file to compare with");
    }
    let (server, mount) = tree.mounted(&["-o", "timeout=60"]);
    for (name, value) in &values {
        let (file, copy) = (quote(mount.join("a").join(name)), quote(dir.path().join(name)));
        let limit = Duration::from_secs(150); // 20 MB are much for an unoptimized build
        let out = sh_deadline(&format!("cmp {file} {copy} && stat -c %s {file}"), limit);
        assert_eq!(out.ok().text(), text_of(value).len().to_string(), "{name}");
        if *name == "plain" {
            let tail = format!("tail -c 100 {file} | cmp - <(tail -c 100 {copy})");
            assert_eq!(sh_deadline(&tail, limit).ok().text(), "");
        }
    }
    assert_eq!(server.clients(), 1);
}

each_qemu!(writing_back_leaves_a_machine_as_it_was, |which| {
    let args = [
        "-device",
        "qemu-xhci,id=x",
        "-object",
        "memory-backend-ram,id=m2,size=1M",
    ];
    let qemu = Qemu::start(which, "q35", &args);
    let truth = qemu.truth();
    let mount = Mount::start(&qemu.socket(), &[]);
    let (mut taken, mut refused) = (0, 0);
    for path in [
        "/machine",
        "/machine/peripheral/x",
        "/objects/m2",
        "/machine/q35/mch",
    ] {
        for prop in truth.list(path) {
            let skipped = prop.is_child() || prop.is_link() || CLOCKS.contains(&&*prop.name);
            let (false, Ok(before)) = (skipped, truth.get(path, &prop.name)) else {
                continue;
            };
            let file = mount.join(path).join(&prop.name);
            let text = read_file(&file).expect("read");
            assert_eq!(text, text_of(&before).into_bytes(), "{path} {}", prop.name);
            match write_file(&file, &text) {
                Ok(()) => taken += 1,
                Err(libc::EACCES | libc::EINVAL | libc::EBUSY) => refused += 1,
                Err(errno) => panic!("{path} {}: errno {errno}", prop.name),
            }
            assert_eq!(truth.get(path, &prop.name), Ok(before), "{path} {}", prop.name);
        }
    }
    assert!(taken > 30 && refused > 20, "{taken} taken, {refused} refused");
});

each_qemu!(declared_types_that_do_not_tell_the_json_type, |which| {
    let args = ["-object", "memory-backend-ram,id=m2,size=1M"];
    let qemu = Qemu::start(which, "q35", &args);
    let truth = qemu.truth();
    let mount = Mount::start(&qemu.socket(), &[]);
    let set = |path: &str, name: &str, text: &str| write_file(mount.join(path).join(name), text.as_bytes());
    let declared = |path: &str, name: &str| {
        let props = truth.list(path).into_iter();
        props
            .filter(|prop| prop.name == name)
            .map(|prop| prop.kind)
            .collect::<String>()
    };
    // An int that holds a list.
    assert_eq!(declared("/objects/m2", "host-nodes"), "int");
    assert_eq!(truth.get("/objects/m2", "host-nodes"), Ok(json!([])));
    assert_eq!(
        read_file(mount.join("objects/m2/host-nodes")),
        Ok(b"[]\n".to_vec())
    );
    // Enums and structs.
    for (name, text, value) in [
        ("acpi", "off", json!("off")),
        ("acpi", "auto\n", json!("auto")),
        (
            "boot",
            r#"{"order": "d", "menu": true}"#,
            json!({ "order": "d", "menu": true }),
        ),
        ("graphics", "off", json!(false)),
        ("graphics", "1", json!(true)),
        ("append", "17", json!("17")),
        ("append", "true", json!("true")),
        ("append", r#"{"a":1}"#, json!(r#"{"a":1}"#)),
        ("max-ram-below-4g", "0x40000000", json!(0x4000_0000)),
    ] {
        let result = set("machine", name, text);
        let now = truth.get("/machine", name).expect("a value");
        assert_eq!(result, Ok(()), "{name} {text}");
        assert_eq!(now, value, "{name} {text}");
    }
    // Every mismatch that there is in the whole machine shows as what it is.
    let mut odd = 0;
    for ((path, name), said) in mirror::Told::ask(truth).props {
        let Some(Ok(value)) = said.value else { continue };
        let is_odd = match said.kind.as_str() {
            "bool" => !value.is_boolean(),
            "str" | "string" => !value.is_string(),
            kind if kind.contains("int") => !value.is_number(),
            _ => false,
        };
        if is_odd {
            odd += 1;
            let shown = read_file(mount.join(&mirror::below(&path, &name)));
            assert_eq!(shown, Ok(text_of(&value).into_bytes()), "{path} {name}");
        }
    }
    assert!(odd > 0, "{odd}");
});
