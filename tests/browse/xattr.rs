//! Extended attributes: what QEMU knows of a property beyond its value.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use harness::*;
use serde_json::{Value, json};

type Attributes = BTreeMap<String, String>;

/// What `getfattr -d` shows of everything in a folder, by name; with `-m -`, of links too.
#[track_caller]
fn attributes_in(dir: &Path) -> BTreeMap<String, Attributes> {
    let out = sh_in(dir, "getfattr -h -d -m - -e hex -- * .[!.]* 2>/dev/null; true");
    let mut all = BTreeMap::new();
    for block in out.ok().text().split("\n\n") {
        let mut lines = block.lines();
        let Some(name) = lines.next().and_then(|line| line.strip_prefix("# file: ")) else {
            continue;
        };
        let pair = |line: &str| {
            let (key, hex) = line.split_once("=0x").unwrap_or_else(|| panic!("{line}"));
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
            let bytes = (0..hex.len()).step_by(2).map(byte).collect();
            (key.to_owned(), String::from_utf8(bytes).expect("UTF-8"))
        };
        all.insert(name.to_owned(), lines.map(pair).collect());
    }
    all
}

/// Descriptions and defaults, by property, as the truth tells them of a type.
#[track_caller]
fn told(truth: &Truth, kind: &str) -> HashMap<String, Attributes> {
    let args = json!({ "typename": kind });
    let Ok(answer) = truth.execute("qom-list-properties", args) else {
        return HashMap::new(); // not every type can tell
    };
    let one = |info: &Value| {
        let mut attributes = Attributes::new();
        if let Some(text) = info["description"].as_str() {
            attributes.insert("user.qom.description".into(), text.to_owned());
        }
        if let Some(value) = info.get("default-value") {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            attributes.insert("user.qom.default".into(), text);
        }
        (info["name"].as_str().expect("a name").to_owned(), attributes)
    };
    answer.as_array().expect("a list").iter().map(one).collect()
}

each_qemu!(types_descriptions_and_defaults_are_qemus, |which| {
    let qemu = Qemu::start(which, "q35", &XHCI);
    let truth = qemu.truth();
    let mount = Mount::start(&qemu.socket(), &[]);
    let (mut descriptions, mut defaults, mut links) = (0, 0, 0);
    for path in [
        "/",
        "/machine",
        "/machine/peripheral/x",
        "/machine/unattached/device[0]",
        "/objects",
        "/machine/q35/mch",
    ] {
        let kind = truth.get(path, "type").expect("a type");
        let told = told(truth, kind.as_str().expect("a name"));
        let shown = attributes_in(&mount.join(path));
        let props = truth.list(path);
        let links_here = props.iter().filter(|prop| prop.is_link()).count();
        assert_eq!(shown.len() + links_here, props.len(), "{path}");
        for prop in props {
            if prop.is_link() {
                links += 1;
                // Told when it is asked for, and not listed: what copies all could not keep it.
                let told = get_xattr(mount.join(path).join(&prop.name), "qom.type");
                assert_eq!(told, Ok(prop.kind.clone().into_bytes()), "{path} {}", prop.name);
                assert!(!shown.contains_key(&prop.name), "{path} {}", prop.name);
                continue;
            }
            let mut expected = told.get(&prop.name).cloned().unwrap_or_default();
            descriptions += usize::from(expected.contains_key("user.qom.description"));
            defaults += usize::from(expected.contains_key("user.qom.default"));
            expected.insert("user.qom.type".into(), prop.kind.clone());
            assert_eq!(shown[&prop.name], expected, "{path} {}", prop.name);
        }
    }
    assert!(descriptions > 20 && links > 5, "{descriptions} {links}");
    // An old QEMU tells no defaults here.
    assert_eq!(defaults > 20, which == Which::New, "{defaults}");
    let root = truth.get("/", "type").expect("the root's type");
    assert_eq!(
        get_xattr(mount.path(), "user.qom.type"),
        Ok(root.as_str().expect("a name").as_bytes().to_vec())
    );
});

#[test]
fn getfattr_shows_them_as_users_see_them() {
    let (_qemu, mount) = mounted(Which::Old, "q35", &[], &[]);
    let out = sh_in(mount.path(), "getfattr -d machine/graphics machine");
    assert_eq!(
        out.ok().lines(),
        [
            "# file: machine/graphics",
            "user.qom.description=\"Set on/off to enable/disable graphics emulation\"",
            "user.qom.type=\"bool\"",
            "",
            "# file: machine",
            "user.qom.type=\"child<pc-q35-7.2-machine>\"",
        ]
    );
    assert_eq!(out.stderr, "");
    let out = sh_in(
        mount.path(),
        "getfattr --only-values -n user.qom.type machine/smp",
    );
    assert_eq!(out.ok().text(), "SMPConfiguration");
    let out = sh_in(
        mount.path(),
        "getfattr -h --only-values -n qom.type machine/memory-backend",
    );
    assert_eq!(out.ok().text(), "link<memory-backend>");
}

each_qemu!(descriptions_cost_one_request_for_each_type_ever, |which| {
    let (qemu, relay, mount) = relayed(which, "q35", &XHCI, &["-o", "entry_timeout=0.2"]);
    relay.reset();
    let first = attributes_in(&mount.join("machine"));
    assert!(first.len() > 40, "{}", first.len());
    assert_eq!(relay.count("qom-list-properties"), 1);
    let asked = |relay: &Relay| -> Vec<String> {
        let requests = relay.requests().into_iter();
        requests
            .filter(|request| request.contains("qom-list-properties"))
            .collect()
    };
    assert_eq!(attributes_in(&mount.join("machine")), first);
    assert_eq!(relay.count("qom-list-properties"), 1, "known by now");

    let kinds: BTreeSet<String> = (qemu.truth().walk().into_iter())
        .flat_map(|object| object.props)
        .filter(|prop| prop.is_child())
        .map(|prop| prop.kind)
        .collect();
    for round in ["first", "again"] {
        sh_in(mount.path(), "getfattr -R -P -h -d . >/dev/null").ok();
        let asked = asked(&relay);
        let distinct: BTreeSet<&String> = asked.iter().collect();
        assert_eq!(distinct.len(), asked.len(), "{round}: one was asked for twice");
        assert!(asked.len() > 10 && asked.len() <= kinds.len() + 1, "{round}");
    }
    assert_eq!(relay.count("qom-list-get"), 0);
    let reads = relay.count("qom-get"); // of the root's type alone, which no parent declares
    assert!(reads <= 1, "{reads} values were read");
});

each_qemu!(what_does_not_exist_is_no_data, |which| {
    let (_qemu, mount) = mounted(which, "q35", &[], &[]);
    for (file, name) in [
        ("machine/graphics", "user.qom.error"),
        ("machine/graphics", "user.qom.nope"),
        ("machine/graphics", "user.nope"),
        ("machine/graphics", "qom.type"),
        ("machine/type", "user.qom.description"),
        ("machine", "user.qom.error"),
        ("machine", "user.qom.default"),
        ("machine", "user.qom"),
        (".", "user.qom.description"),
        ("machine/memory-backend", "user.qom.type"),
        ("machine/memory-backend", "qom.error"),
        ("machine/memory-backend", "qom.nope"),
    ] {
        assert_eq!(
            get_xattr(mount.join(file), name),
            Err(libc::ENODATA),
            "{file} {name}"
        );
    }
    assert_eq!(
        get_xattr(mount.join("machine/nope"), "user.qom.type"),
        Err(libc::ENOENT)
    );
});

#[test]
fn none_can_be_set_or_removed() {
    let (_qemu, mount) = mounted(Which::Old, "q35", &[], &[]);
    for file in ["machine/graphics", "machine", "."] {
        for change in [
            "-n user.qom.type -v x",
            "-n user.qom.error -v x",
            "-n user.new -v x",
            "-x user.qom.type",
            "-x user.new",
        ] {
            let out = sh_in(mount.path(), &format!("setfattr {change} {file}"));
            assert_eq!(
                out.fails().stderr,
                format!("setfattr: {file}: Operation not permitted\n"),
                "{change}"
            );
        }
    }
    for change in ["-n qom.type -v x", "-x qom.type"] {
        let out = sh_in(
            mount.path(),
            &format!("setfattr -h {change} machine/memory-backend"),
        );
        out.fails().says("Operation not permitted");
    }
    assert_eq!(
        get_xattr(mount.join("machine/graphics"), "user.qom.type"),
        Ok(b"bool".to_vec())
    );
}

each_qemu!(
    the_last_failure_is_told_in_qemus_words_until_the_next_success,
    |which| {
        let qemu = Qemu::start(which, "q35", &[]);
        let truth = qemu.truth();
        let mount = Mount::start(&qemu.socket(), &[]);
        let cpu = "/machine/unattached/device[0]";
        let file = mount.join(&join(cpu, "crash-information"));
        assert_eq!(read_file(&file), Err(libc::EIO));
        let words = truth.get(cpu, "crash-information").expect_err("no crash").desc;
        assert_eq!(get_xattr(&file, "user.qom.error"), Ok(words.into_bytes()));

        let file = mount.join("machine/graphics");
        let error = || get_xattr(&file, "user.qom.error").map(|text| String::from_utf8(text).expect("UTF-8"));
        let wrong = |value: &str| {
            assert_eq!(write_file(&file, value.as_bytes()), Err(libc::EINVAL));
            let refused = truth.set("/machine", "graphics", json!(value));
            assert_eq!(error(), Ok(refused.expect_err("no boolean").desc), "{value}");
        };
        wrong("maybe");
        wrong("perhaps");
        assert_eq!(write_file(&file, b"off\n"), Ok(()));
        assert_eq!(error(), Err(libc::ENODATA), "after a write");
        wrong("maybe");
        let listed = sh(&format!("getfattr -d {}", quote(&file)));
        listed.ok().shows("user.qom.error=");
        assert_eq!(read_file(&file), Ok(b"false\n".to_vec()));
        assert_eq!(error(), Err(libc::ENODATA), "after a read");
        let listed = sh(&format!("getfattr -d {}", quote(&file)));
        assert!(!listed.ok().text().contains("error"), "{listed}");

        assert_eq!(write_file(mount.join("machine/type"), b"x"), Err(libc::EACCES));
        assert_eq!(error(), Err(libc::ENODATA), "another file's failure");
    }
);

#[test]
fn a_directory_that_cannot_be_listed_says_why() {
    let tree = ScriptedTree::new().object("/a");
    let (_server, mount) = tree.mounted(&["-o", "entry_timeout=0"]);
    tree.hook_once(
        "qom-list",
        "/a",
        "",
        Action::error("GenericError", "not\nnow \u{fc}"),
    );
    let out = sh_in(mount.path(), "ls a");
    out.fails().says("Input/output error");
    assert_eq!(
        get_xattr(mount.join("a"), "user.qom.error"),
        Ok("not\\nnow \u{fc}".as_bytes().to_vec())
    );
    sh_in(mount.path(), "ls a").ok();
    assert_eq!(get_xattr(mount.join("a"), "user.qom.error"), Err(libc::ENODATA));
}

#[test]
fn a_failure_of_any_length_is_cut_to_what_an_attribute_holds() {
    let tree = ScriptedTree::new().object("/a");
    tree.prop("/a", "p", "str", json!("x"));
    let (_server, mount) = tree.mounted(&[]);
    for words in ["x".repeat(65_536), "x".repeat(65_537), "\u{fc}".repeat(500_000)] {
        tree.hook_once("qom-get", "/a", "p", Action::error("GenericError", words.clone()));
        assert_eq!(read_file(mount.join("a/p")), Err(libc::EIO));
        let told = get_xattr(mount.join("a/p"), "user.qom.error").expect("words");
        assert!((65_533..=65_536).contains(&told.len()), "{}", told.len());
        let told = String::from_utf8(told).expect("cut between characters");
        assert!(words.starts_with(&told));
        let out = sh_in(mount.path(), "getfattr -d a/p | wc -c");
        assert!(out.ok().text().trim().parse::<usize>().expect("a number") > 65_000);
    }
}

#[test]
fn a_type_that_cannot_tell_is_asked_once() {
    let tree = ScriptedTree::new().object_of("/a", "odd");
    tree.prop("/a", "p", "str", json!("x"));
    tree.hook(
        "qom-list-properties",
        "odd",
        "",
        Action::error("GenericError", "Parameter 'typename' expects device"),
    );
    let (server, mount) = tree.mounted(&[]);
    for _ in 0..3 {
        assert_eq!(
            get_xattr(mount.join("a/p"), "user.qom.description"),
            Err(libc::ENODATA)
        );
        assert_eq!(get_xattr(mount.join("a/p"), "user.qom.type"), Ok(b"str".to_vec()));
    }
    assert_eq!(server.count("qom-list-properties"), 1);
}

#[test]
fn defaults_of_every_kind_are_told_as_values_are() {
    let tree = ScriptedTree::new().object_of("/a", "thing");
    let defaults = [
        json!("text"),
        json!(true),
        json!(u64::MAX),
        json!(i64::MIN),
        json!({ "b": 1, "a": [null] }),
        json!(0.1),
    ];
    let texts = [
        "text",
        "true",
        "18446744073709551615",
        "-9223372036854775808",
        r#"{"a":[null],"b":1}"#,
        "0.1",
    ];
    let mut infos = Vec::new();
    for (number, value) in defaults.iter().enumerate() {
        let name = format!("p{number}");
        tree.prop("/a", &name, "str", json!(""));
        infos.push(json!({ "name": name, "type": "str", "default-value": value }));
    }
    tree.describe("thing", infos);
    let (_server, mount) = tree.mounted(&[]);
    for (number, text) in texts.iter().enumerate() {
        assert_eq!(
            get_xattr(mount.join(&format!("a/p{number}")), "user.qom.default"),
            Ok(text.as_bytes().to_vec())
        );
    }
}
