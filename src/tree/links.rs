//! Links: what they read as.

use super::names::file_name;
use super::{Ino, Process, Result, Tree};
use crate::qom::{Kind, Path, Request};

/// The longest link target that Linux takes.
const TARGET_MAX: usize = 4095;

/// The text of a link that is shown as `file` in the directory of `object`: relative, with one
/// `..` per level, so that it resolves wherever the mount is.
pub fn link_text(object: &Path, file: &str, target: &str) -> String {
    if target.is_empty() {
        return format!("unset:[{file}]");
    }
    let relative = Path::parse(target).map(|target| {
        let mut parts: Vec<_> = object.names().map(|_| "..".into()).collect();
        parts.extend(target.names().map(file_name));
        if parts.is_empty() {
            ".".to_owned()
        } else {
            parts.join("/")
        }
    });
    match relative {
        Some(text) if text.len() <= TARGET_MAX => text,
        _ => format!("invalid:[{file}]"),
    }
}

/// True for the text of an unset link: `unset:[NAME]`.
pub fn is_unset(text: &str) -> bool {
    text.strip_prefix("unset:[")
        .is_some_and(|rest| rest.ends_with(']'))
}

impl Tree {
    /// Where a link leads.
    ///
    /// # Errors
    /// EINVAL for what is no link, or why QEMU does not tell.
    pub fn read_link(&self, ino: Ino, process: Process) -> Result<String> {
        if let Some(target) = self.temporary_target(ino) {
            return Ok(target);
        }
        let (_, path, entry) = self.property(ino)?;
        if entry.kind != Kind::Link {
            return Err(libc::EINVAL.into());
        }
        let answer = match self.ahead.serve(process, &path, &entry.name) {
            Some(served) => served,
            None => self.qom.request(Request::get(&path, &entry.name)),
        };
        let text = link_text(&path, &entry.file, &self.read(ino, answer)?);
        self.show_size(ino, text.len());
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(object: &str, name: &str, target: &str) -> String {
        link_text(&Path::parse(object).unwrap(), &file_name(name), target)
    }

    #[test]
    fn targets() {
        for (object, target, want) in [
            ("/machine", "/objects/pc.ram", "../objects/pc.ram"),
            ("/machine/a/b", "/machine", "../../../machine"),
            ("/", "/machine", "machine"),
            ("/machine", "/", ".."),
            ("/", "/", "."),
            ("/machine", "", "unset:[l]"),
            ("/machine", "/machine/..", "invalid:[l]"),
            ("/machine", "../../etc", "invalid:[l]"),
            ("/machine", "//x", "invalid:[l]"),
            ("/machine", "5", "invalid:[l]"),
        ] {
            assert_eq!(text(object, "l", target), want, "{object} {target}");
        }
        assert_eq!(text("/machine", "../x", ""), r"unset:[..\x2fx]");
        assert_eq!(text("/machine", "l", &"/x".repeat(4000)), "invalid:[l]");
    }

    proptest! {
        /// No target that QEMU can send leads out of the mount.
        #[test]
        fn never_out_of_the_mount(depth in 0usize..5, name in ".*", target in "(/|\\.|\\.\\.|a|\0)*|.*") {
            let object = format!("/{}", vec!["d"; depth].join("/"));
            let text = text(&object, &name, &target);
            prop_assert!(!text.starts_with('/'));
            let mut level = depth as isize;
            for part in text.split('/') {
                level += match part { ".." => -1, "." | "" => 0, _ => 1 };
                prop_assert!(level >= 0, "{}", text);
            }
        }
    }
}
