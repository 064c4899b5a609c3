//! Absolute paths of objects.

use std::fmt;
use std::sync::Arc;

/// The canonical path of an object: `/`, or `/` and names with `/` between them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Path(Arc<str>);

impl Path {
    /// The root of the tree.
    pub fn root() -> Path {
        Path("/".into())
    }

    /// The path of a child. `None` for a name that QEMU cannot find again because it cuts paths
    /// at `/` and skips empty parts: such a path would lead to another object.
    pub fn child(&self, name: &str) -> Option<Path> {
        if name.is_empty() || name.contains('/') {
            return None;
        }
        let parent = self.0.trim_end_matches('/');
        Some(Path(format!("{parent}/{name}").into()))
    }

    /// The path that these names make, from the root down; `None` as for [`Path::child`].
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Path> {
        let mut text = String::with_capacity(64);
        for name in names {
            if name.is_empty() || name.contains('/') {
                return None;
            }
            text.push('/');
            text.push_str(name);
        }
        if text.is_empty() {
            return Some(Path::root());
        }
        Some(Path(text.into()))
    }

    /// The path of the object around it; the root has none.
    pub fn parent(&self) -> Option<Path> {
        let (parent, last) = self.0.rsplit_once('/')?;
        match (parent, last) {
            ("", "") => None,
            ("", _) => Some(Path::root()),
            _ => Some(Path(parent.into())),
        }
    }

    /// Reads a path that QEMU sent. `None` unless it is absolute and clean: a link may not lead
    /// out of the mount, and QEMU may be compromised.
    pub fn parse(text: &str) -> Option<Path> {
        let rest = text.strip_prefix('/')?;
        let clean = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        (rest.is_empty() || rest.split('/').all(clean)).then(|| Path(text.into()))
    }

    /// The names from the root down; none for the root.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|part| !part.is_empty())
    }

    /// As QEMU takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children() {
        let machine = Path::root().child("machine").unwrap();
        assert_eq!(machine.as_str(), "/machine");
        assert_eq!(machine.child("device[1]").unwrap().as_str(), "/machine/device[1]");
        assert_eq!(machine.child("x").unwrap().parent(), Some(machine.clone()));
        assert_eq!(machine.parent(), Some(Path::root()));
        assert_eq!(Path::root().parent(), None);
        assert_eq!(Path::from_names(["machine", "x"]), machine.child("x"));
        assert_eq!(Path::from_names([]), Some(Path::root()));
        assert!(Path::from_names(["machine", "a/b"]).is_none() && Path::from_names([""]).is_none());
        assert!(machine.child("").is_none());
        assert!(machine.child("a/b").is_none());
        assert_eq!(machine.child("..").unwrap().as_str(), "/machine/..");
    }

    #[test]
    fn parse_takes_only_clean_paths() {
        for good in ["/", "/machine", "/machine/a b/ü[0]"] {
            assert_eq!(Path::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "machine",
            "/machine/",
            "//x",
            "/a//b",
            "/..",
            "/a/../b",
            "/a/.",
            "/\0",
        ] {
            assert!(Path::parse(bad).is_none(), "{bad}");
        }
        assert_eq!(
            Path::parse("/a/b").unwrap().names().collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(Path::root().names().count(), 0);
    }
}
