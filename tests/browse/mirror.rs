//! Whole machines, mounted: nothing more and nothing less than what QMP says, byte for byte.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use harness::shown::{text, values};
use harness::*;

fn below(mount: &Mount, path: &str, name: &str) -> PathBuf {
    mount.join(&join(path, name))
}

/// A machine, its tree as QMP tells it, and a mount of it.
struct Mirror {
    qemu: Qemu,
    objects: Vec<Object>,
    mount: Mount,
}

impl Mirror {
    #[track_caller]
    fn new(which: Which, machine: &str) -> Mirror {
        let qemu = Qemu::start(which, machine, &[]);
        let mount = Mount::start(&qemu.socket(), &[]);
        let objects = qemu.truth().walk(); // with what QEMU has made for the mount
        Mirror { qemu, objects, mount }
    }

    /// Every name, type and attribute, from one `find` over the whole mount.
    #[track_caller]
    fn check_names_and_attributes(&self) {
        let mut expected = BTreeMap::from([(String::new(), ('d', "755"))]);
        for Object { path, props } in &self.objects {
            for prop in props {
                let shape = match prop {
                    prop if prop.is_child() => ('d', "755"),
                    prop if prop.is_link() => ('l', "777"),
                    _ => ('f', "644"),
                };
                let name = join(path, &prop.name)[1..].to_owned();
                assert!(
                    expected.insert(name, shape).is_none(),
                    "{path} has two {}",
                    prop.name
                );
            }
        }
        let format = r"%P\0%y\0%m\0%U %G\0%n\0%s\0";
        let mnt = quote(self.mount.path());
        let out = sh(&format!("find {mnt} -printf '{format}'"));
        assert_eq!(out.ok().stderr, "");
        let fields: Vec<&str> = out.text().split('\0').collect();
        // SAFETY: plain system calls.
        let owner = unsafe { format!("{} {}", libc::getuid(), libc::getgid()) };
        let mut found = BTreeSet::new();
        for entry in fields[..fields.len() - 1].chunks(6) {
            let [name, kind, mode, owned, links, size] = entry else {
                panic!("find printed {entry:?}");
            };
            let Some((want_kind, want_mode)) = expected.get(*name) else {
                panic!("QEMU has no {name}");
            };
            assert_eq!(
                (*kind, *mode),
                (want_kind.to_string().as_str(), *want_mode),
                "{name}"
            );
            assert_eq!((*owned, *links), (owner.as_str(), "1"), "{name}");
            assert!(
                *kind != "f" || *size == "4096",
                "{name}, never read, has {size} bytes"
            );
            assert!(found.insert(*name), "{name} is listed twice");
        }
        let missing: Vec<_> = expected
            .keys()
            .filter(|name| !found.contains(name.as_str()))
            .collect();
        assert!(missing.is_empty(), "not in the mount: {missing:?}");
    }

    /// What a directory's own listing tells of each entry, without a stat.
    #[track_caller]
    fn check_listings(&self) {
        let paths: Vec<PathBuf> = self
            .objects
            .iter()
            .map(|object| self.mount.join(&object.path))
            .collect();
        let mut inodes = BTreeSet::new();
        for (object, listed) in self.objects.iter().zip(list_dirs(&paths)) {
            let path = &object.path;
            let listed = listed.unwrap_or_else(|errno| panic!("listing {path}: errno {errno}"));
            let own = ["..", "."];
            let (dots, entries): (Vec<_>, Vec<_>) = listed
                .into_iter()
                .partition(|entry| own.contains(&entry.name.as_str()));
            let dots: BTreeSet<_> = dots.iter().map(|dot| (dot.name.as_str(), dot.kind)).collect();
            assert_eq!(dots, own.map(|name| (name, libc::DT_DIR)).into(), "{path}");
            let kind = |prop: &truth::Prop| match prop {
                prop if prop.is_child() => libc::DT_DIR,
                prop if prop.is_link() => libc::DT_LNK,
                _ => libc::DT_REG,
            };
            let mut expected: Vec<_> = object.props.iter().map(|prop| (kind(prop), &prop.name)).collect();
            let rank = |kind: u8| {
                [libc::DT_REG, libc::DT_LNK, libc::DT_DIR]
                    .iter()
                    .position(|k| *k == kind)
            };
            let order: Vec<_> = entries.iter().map(|entry| rank(entry.kind)).collect();
            assert!(
                order.is_sorted(),
                "{path}: values, then links, then children: {entries:?}"
            );
            let mut found: Vec<_> = entries.iter().map(|entry| (entry.kind, &entry.name)).collect();
            expected.sort();
            found.sort();
            assert_eq!(found, expected, "{path}");
            for entry in entries {
                assert!(inodes.insert(entry.ino), "{path}/{} shares its inode", entry.name);
            }
        }
    }

    /// Every value, read by one who reads everything, and every refusal.
    #[track_caller]
    fn check_values(&self) {
        let truth = self.qemu.truth();
        let values = values(&self.objects);
        let ask = || -> Vec<Shown> {
            values
                .iter()
                .map(|(path, name)| truth_of(truth, path, name))
                .collect()
        };
        let files: Vec<PathBuf> = values
            .iter()
            .map(|(path, name)| below(&self.mount, path, name))
            .collect();
        let before = ask();
        let found = read_files(&files);
        let after = ask();
        let mut refused = 0;
        for (index, (path, name)) in values.iter().enumerate() {
            if before[index] == after[index] {
                assert!(
                    found[index] == before[index],
                    "{}",
                    differ(path, name, &found[index], &before[index])
                );
            } else {
                self.check_changing(path, name);
            }
            refused += usize::from(before[index].is_err());
        }
        assert!(
            refused > 0,
            "QEMU refused nothing: there is no machine without crash-information"
        );
    }

    /// A value that changes by itself: read between two questions to QEMU that get the same answer.
    #[track_caller]
    fn check_changing(&self, path: &str, name: &str) {
        for _ in 0..20 {
            let before = truth_of(self.qemu.truth(), path, name);
            let found = read_file(below(&self.mount, path, name));
            let after = truth_of(self.qemu.truth(), path, name);
            if before == after {
                assert!(found == before, "{}", differ(path, name, &found, &before));
                return;
            }
            let number = |shown: &Shown| -> Option<i128> {
                let text = String::from_utf8(shown.clone().ok()?).ok()?;
                text.strip_suffix('\n')?.parse().ok()
            };
            if let (Some(low), Some(high)) = (number(&before), number(&after)) {
                let range = low.min(high)..=low.max(high);
                let value =
                    number(&found).unwrap_or_else(|| panic!("{}", differ(path, name, &found, &before)));
                assert!(
                    range.contains(&value),
                    "{path} {name}: {value} is not in {range:?}"
                );
                return;
            }
        }
        panic!("{path} {name} never stands still");
    }

    /// Every link: its text, where it leads, and what is there.
    #[track_caller]
    fn check_links(&self) {
        let truth = self.qemu.truth();
        let links = self.objects.iter().flat_map(|object| {
            let links = object.props.iter().filter(|prop| prop.is_link());
            links.map(|prop| (object.path.as_str(), prop.name.as_str()))
        });
        let targets: Vec<(&str, &str, String)> = links
            .map(|(path, name)| {
                let target = truth
                    .get(path, name)
                    .unwrap_or_else(|error| panic!("{path} {name}: {error:?}"));
                (
                    path,
                    name,
                    target
                        .as_str()
                        .unwrap_or_else(|| panic!("{path} {name}: {target}"))
                        .to_owned(),
                )
            })
            .collect();
        let mnt = quote(self.mount.path());
        let out = sh(&format!(r"find {mnt} -type l -printf '%P\0%l\0'"));
        assert_eq!(out.ok().stderr, "");
        let fields: Vec<&str> = out.text().split('\0').collect();
        let found: BTreeMap<&str, &str> = fields.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        assert_eq!(found.len(), targets.len());
        let (unset, set): (Vec<_>, Vec<_>) = targets.iter().partition(|(.., target)| target.is_empty());
        assert!(
            !unset.is_empty() && set.len() > 50,
            "{} unset, {} set",
            unset.len(),
            set.len()
        );
        for (path, name, target) in &targets {
            let expected = link_text(path, name, target);
            assert_eq!(
                found[&join(path, name)[1..]],
                expected,
                "{path} {name} -> {target:?}"
            );
        }

        let at = |(path, name, _): &&(&str, &str, String)| below(&self.mount, path, name);
        let paths: Vec<PathBuf> = set.iter().map(at).collect();
        for ((path, name, target), real) in set.iter().zip(resolve(&paths)) {
            let expected = self
                .mount
                .join(target)
                .to_str()
                .expect("UTF-8")
                .trim_end_matches('/')
                .to_owned();
            let real = real.map(|real| String::from_utf8(real).expect("UTF-8"));
            assert_eq!(real, Ok(expected), "{path} {name} -> {target}");
        }
        // The same by the tool: each of the set ones resolves, none of the unset ones does.
        let list = self.qemu.dir().join("links");
        for (links, status) in [(&set, 0), (&unset, 123)] {
            let names: String = links
                .iter()
                .map(|link| format!("{}\0", at(link).display()))
                .collect();
            fs::write(&list, names).expect("write a list of links");
            let out = sh(&format!("xargs -0 -a {} readlink -e --", quote(&list)));
            assert_eq!(out.status, status, "{out}");
            assert_eq!(
                out.stdout.split(|byte| *byte == b'\n').count() - 1,
                if status == 0 { set.len() } else { 0 }
            );
        }
        let types: Vec<PathBuf> = paths.iter().map(|path| path.join("type")).collect();
        for ((path, name, target), kind) in set.iter().zip(read_files(&types)) {
            assert_eq!(
                kind,
                truth_of(truth, target, "type"),
                "the type through {path} {name}"
            );
        }
    }
}

#[track_caller]
fn differ(path: &str, name: &str, found: &Shown, expected: &Shown) -> String {
    let show = |shown: &Shown| {
        shown
            .as_ref()
            .map(|text| String::from_utf8_lossy(text).into_owned())
            .map_err(|e| *e)
    };
    format!(
        "{path} {name}: shows {:?}, QEMU says {:?}",
        show(found),
        show(expected)
    )
}

#[track_caller]
fn check(which: Which, machine: &str) {
    let mirror = Mirror::new(which, machine);
    mirror.check_names_and_attributes();
    mirror.check_listings();
    mirror.check_values();
    mirror.check_links();
    mirror.mount.unmount();
    let status = mirror
        .qemu
        .truth()
        .execute("query-status", serde_json::Value::Null);
    assert_eq!(status.expect("QEMU still answers")["status"], "prelaunch");
}

each_qemu!(q35_is_mirrored, |which| check(which, "q35"));

each_qemu!(pc_is_mirrored, |which| check(which, "pc"));

each_qemu!(microvm_is_mirrored, |which| check(which, "microvm"));

/// What the mounts are compared with is itself as designed.
#[test]
fn the_expected_texts_are_known_ones() {
    let value = serde_json::json!({ "b": [true, null, -1], "a": { "z": u64::MAX, "y": "\"ü\n" } });
    let line = r#"{"a":{"y":"\"ü\n","z":18446744073709551615},"b":[true,null,-1]}"#;
    assert_eq!(text(&value), line);
    assert_eq!(text(&serde_json::json!("a \"b\"\n")), "a \"b\"\n");
    assert_eq!(link_text("/machine/a", "l", "/objects/b"), "../../objects/b");
    assert_eq!(link_text("/", "l", "/machine"), "machine");
    assert_eq!(link_text("/", "l", ""), "unset:[l]");
}
