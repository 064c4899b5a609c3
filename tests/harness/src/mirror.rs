//! A whole mount compared with QEMU's own answers.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};
use tar::{Archive, EntryType};

use crate::sh::{quote, sh};
use crate::shown::{link_text, text};
use crate::truth::{QmpError, Truth, join};

/// Values that change while the machine stands still: clocks.
pub const CLOCKS: [&str; 2] = ["date", "rtc-time"];

/// What QEMU tells of its whole tree: each property by the path of its object and its name.
pub struct Told {
    pub props: BTreeMap<(String, String), Said>,
}

/// One property.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its declared type.
    pub kind: String,
    /// Its value; none for a child.
    pub value: Option<Result<Value, QmpError>>,
}

/// What a copy of a mount holds, by the path below it.
pub struct Copy {
    pub found: BTreeMap<String, Found>,
    /// What could not be read, and the words for the errno.
    pub refused: BTreeMap<String, String>,
}

/// What stands under one name.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Dir,
    Link(String),
    File(Vec<u8>),
}

/// What was compared.
#[derive(Debug, Default)]
pub struct Compared {
    pub objects: usize,
    pub values: usize,
    pub links: usize,
    pub refused: usize,
    pub differences: Vec<String>,
}

impl Told {
    /// Asks for everything, with `qom-list-get` where that exists.
    #[track_caller]
    pub fn ask(truth: &Truth) -> Told {
        let mut props = BTreeMap::new();
        let mut level = vec!["/".to_owned()];
        let batch = truth.execute("qom-list-get", json!({ "paths": ["/"] })).is_ok();
        while !level.is_empty() {
            let mut below = Vec::new();
            for paths in level.chunks(32) {
                let objects = if batch {
                    all_at_once(truth, paths)
                } else {
                    one_by_one(truth, paths)
                };
                for (path, entries) in objects {
                    for (name, said) in entries {
                        // No path leads to a child whose name holds a `/`.
                        if said.value.is_none() && !name.contains('/') {
                            below.push(join(&path, &name));
                        }
                        props.insert((path.clone(), name), said);
                    }
                }
            }
            level = below;
        }
        Told { props }
    }

    /// The paths below the mount of the values that QEMU does not give.
    pub fn unreadable(&self) -> BTreeSet<String> {
        let refused = |said: &Said| matches!(said.value, Some(Err(_)));
        let props = self.props.iter().filter(|(_, said)| refused(said));
        props.map(|((path, name), _)| below(path, name)).collect()
    }
}

type Entries = Vec<(String, Said)>;

fn all_at_once(truth: &Truth, paths: &[String]) -> Vec<(String, Entries)> {
    let answer = truth.execute("qom-list-get", json!({ "paths": paths }));
    let answer = answer.unwrap_or_else(|error| panic!("qom-list-get {paths:?}: {error:?}"));
    let objects = answer.as_array().expect("a list of objects");
    assert_eq!(objects.len(), paths.len());
    let entry = |path: &str, entry: &Value| {
        let word = |key: &str| entry[key].as_str().expect("a name or type").to_owned();
        let (name, kind) = (word("name"), word("type"));
        let value = (!kind.starts_with("child<")).then(|| match entry.get("value") {
            Some(value) => Ok(value.clone()),
            None => truth.get(path, &name),
        });
        (name, Said { kind, value })
    };
    let entries = |(path, object): (&String, &Value)| {
        let props = object["properties"].as_array().expect("a list of properties");
        (path.clone(), props.iter().map(|prop| entry(path, prop)).collect())
    };
    paths.iter().zip(objects).map(entries).collect()
}

fn one_by_one(truth: &Truth, paths: &[String]) -> Vec<(String, Entries)> {
    let entries = |path: &String| {
        let props = truth.list(path).into_iter();
        let entry = |prop: crate::truth::Prop| {
            let value = (!prop.is_child()).then(|| truth.get(path, &prop.name));
            let kind = prop.kind;
            (prop.name, Said { kind, value })
        };
        (path.clone(), props.map(entry).collect())
    };
    paths.iter().map(entries).collect()
}

impl Copy {
    /// Reads a whole mount with tar, which complains when a file is not as long as it was said to be.
    #[track_caller]
    pub fn take(mount: &Path) -> Copy {
        let out = sh(&format!(
            "tar --format=gnu --quoting-style=literal -C {} -cf - .",
            quote(mount)
        ));
        let mut refused = BTreeMap::new();
        for line in out.stderr.lines() {
            let place = line
                .strip_prefix("tar: ./")
                .and_then(|rest| rest.rsplit_once(": Cannot open: "));
            match place {
                Some((place, why)) => drop(refused.insert(place.to_owned(), why.to_owned())),
                None => assert!(
                    line == "tar: Exiting with failure status due to previous errors",
                    "tar complains: {line}"
                ),
            }
        }
        assert!(out.status == 0 || !refused.is_empty(), "{}", out.stderr);
        Copy {
            found: untar(&out.stdout),
            refused,
        }
    }

    /// A copy in a folder; what could not be read must be told.
    #[track_caller]
    pub fn of(dir: &Path, refused: BTreeMap<String, String>) -> Copy {
        let mut found = BTreeMap::new();
        collect(dir, "", &mut found);
        Copy { found, refused }
    }

    /// Compares names, kinds, values, links and refusals. `before` was told before the copy was taken; a clock that
    /// QEMU now tells another time of is not compared.
    pub fn compare(&self, before: &Told, truth: &Truth) -> Compared {
        let mut compared = Compared::default();
        let mut expected = BTreeSet::new();
        for ((path, name), said) in &before.props {
            let place = below(path, name);
            if let Err(difference) = self.compare_one(path, name, said, truth, &mut compared) {
                compared.differences.push(format!("{place}: {difference}"));
            }
            assert!(expected.insert(place), "{path} {name}: told twice");
        }
        let places = self.found.keys().chain(self.refused.keys());
        for extra in places.filter(|place| !expected.contains(*place)) {
            compared.differences.push(format!("{extra}: QEMU has no such"));
        }
        compared
    }

    fn compare_one(
        &self,
        path: &str,
        name: &str,
        said: &Said,
        truth: &Truth,
        compared: &mut Compared,
    ) -> Result<(), String> {
        let place = below(path, name);
        let found = self.found.get(&place);
        let Some(value) = &said.value else {
            compared.objects += 1;
            return same(&Some(&Found::Dir), &found);
        };
        if said.kind.starts_with("link<") {
            compared.links += 1;
            let target = value.as_ref().map_err(|error| format!("{error:?}"))?;
            let expected = link_text(path, name, target.as_str().unwrap_or_default());
            return same(&Some(&Found::Link(expected)), &found);
        }
        let found = match found {
            Some(Found::File(bytes)) => Ok(String::from_utf8_lossy(bytes)),
            Some(other) => return Err(format!("{other:?}, should be a file")),
            None => Err(self.refused.get(&place).ok_or("missing")?.as_str()),
        };
        let expected: Result<Cow<str>, &str> = match value {
            Ok(value) => Ok(text_of(value).into()),
            Err(error) => Err(words_for(error)),
        };
        match expected {
            Ok(_) => compared.values += 1,
            Err(_) => compared.refused += 1,
        }
        if CLOCKS.contains(&name) && truth.get(path, name) != *value {
            return Ok(());
        }
        same(&expected, &found)
    }
}

fn same<T: PartialEq + Debug>(expected: &T, found: &T) -> Result<(), String> {
    (expected == found)
        .then_some(())
        .ok_or_else(|| format!("{found:?}, should be {expected:?}"))
}

/// Everything in a folder.
fn collect(dir: &Path, prefix: &str, found: &mut BTreeMap<String, Found>) {
    for entry in fs::read_dir(dir).expect("list a copy") {
        let path = entry.expect("list a copy").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let place = format!("{prefix}{name}");
        let kind = path.symlink_metadata().expect("stat a copy").file_type();
        let one = if kind.is_dir() {
            collect(&path, &format!("{place}/"), found);
            Found::Dir
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).expect("read a copied link");
            Found::Link(target.to_string_lossy().into_owned())
        } else {
            Found::File(fs::read(&path).expect("read a copied file"))
        };
        found.insert(place, one);
    }
}

/// The members of a tar archive.
#[track_caller]
fn untar(archive: &[u8]) -> BTreeMap<String, Found> {
    let mut found = BTreeMap::new();
    for member in Archive::new(archive).entries().expect("an archive") {
        let mut member = member.expect("a member");
        let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        let place = name.trim_start_matches("./").trim_end_matches('/');
        let one = match member.header().entry_type() {
            EntryType::Directory => Found::Dir,
            EntryType::Symlink => {
                let target = member.link_name_bytes().unwrap_or_default();
                Found::Link(String::from_utf8_lossy(&target).into_owned())
            }
            EntryType::Regular => {
                let mut data = Vec::new();
                member.read_to_end(&mut data).expect("a whole member");
                Found::File(data)
            }
            other => panic!("a tar member of type {other:?}"),
        };
        if !place.is_empty() {
            let double = found.insert(place.to_owned(), one);
            assert!(double.is_none(), "{place} is there twice");
        }
    }
    found
}

/// Where a property is below the mount. Names that Linux cannot hold are tested by themselves.
pub fn below(path: &str, name: &str) -> String {
    join(path, &name.replace('/', r"\x2f"))
        .trim_start_matches('/')
        .to_owned()
}

/// What a file shows for a value.
pub fn text_of(value: &Value) -> String {
    format!("{}\n", text(value))
}

/// The words for the errno that a failed read has.
pub fn words_for(error: &QmpError) -> &'static str {
    if error.class == "DeviceNotFound" || error.desc.ends_with("' not found") {
        "No such file or directory"
    } else if error.desc.ends_with(" is not readable") {
        "Permission denied"
    } else {
        "Input/output error"
    }
}
