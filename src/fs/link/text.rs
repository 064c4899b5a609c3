//! Links: what they read as.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fs::dir::listing::Listing;
use crate::fs::dir::names::is_odd;
use crate::fs::error::Doing;
use crate::fs::{Error, Ino, Process, ROOT, Result, Tree, Wait};
use crate::qom::{Kind, Path, Reason, Request};

/// The longest link target that Linux takes.
const TARGET_MAX: usize = 4095;

/// The text of a link that is shown as `file` in the directory of `object`: relative, with one
/// `..` per level, so that it resolves wherever the mount is. `shown_as` tells the file name of
/// an object by its parent and name, `None` when it has none there.
pub fn link_text(
    object: &Path,
    file: &str,
    target: &str,
    shown_as: impl Fn(&Path, &str) -> Option<String>,
) -> String {
    if target.is_empty() {
        return format!("unset:[{file}]");
    }
    let relative = || {
        let target = Path::parse(target)?;
        let mut text = vec![".."; object.names().count()].join("/");
        let mut at = Path::root();
        for name in target.names() {
            if text.len() > TARGET_MAX {
                return None;
            }
            if !text.is_empty() {
                text.push('/');
            }
            text.push_str(&shown_as(&at, name)?);
            at = at.child(name)?;
        }
        Some(if text.is_empty() { ".".to_owned() } else { text })
    };
    match relative() {
        Some(text) if text.len() <= TARGET_MAX => text,
        _ => format!("invalid:[{file}]"),
    }
}

/// True for the text of an unset link: `unset:[NAME]`.
pub fn is_unset(text: &str) -> bool {
    text.strip_prefix("unset:[")
        .is_some_and(|rest| rest.ends_with(']'))
}

/// How long something may take that needs several answers: as long as one, so that no path and no link
/// keeps its caller for longer, however many names it has.
pub struct Patience {
    limit: Duration,
    until: Instant,
}

impl Patience {
    /// # Errors
    /// ETIMEDOUT when it has run out.
    pub fn check(&self) -> Result<()> {
        if Instant::now() < self.until {
            return Ok(());
        }
        let why = format!("looking up its names has taken longer than {:?}", self.limit);
        Err(Error::refused(libc::ETIMEDOUT, &why))
    }
}

impl Tree {
    pub(crate) fn patience(&self) -> Patience {
        let limit = self.qom.monitor().timeout();
        Patience {
            limit,
            until: Instant::now() + limit,
        }
    }

    /// The file name of an object; `None` when there is no such object. That of an odd name is settled by
    /// its parent's listing only.
    fn shown_as(&self, parent: &Path, name: &str, patience: &Patience) -> Result<Option<String>> {
        if !is_odd(name) {
            return Ok(Some(name.to_owned()));
        }
        let listing = match self.known_listing(parent) {
            Some(listing) => listing,
            None => {
                patience.check()?;
                match self.listing_at(parent) {
                    Ok(listing) => Arc::new(listing),
                    Err(e) if e.reason() == Reason::NotFound => return Ok(None),
                    Err(e) => return Err(Error::from_qom(&e, Doing::List)),
                }
            }
        };
        let mut children = listing.children().iter();
        let child = children.find(|child| *child.name == *name);
        Ok(child.map(|child| child.file.to_string()))
    }

    /// The listing of an object, if it is in memory.
    pub(crate) fn known_listing(&self, object: &Path) -> Option<Arc<Listing>> {
        let inodes = self.inodes.lock();
        let ino = object
            .names()
            .try_fold(ROOT, |above, name| inodes.child(above, name))?;
        drop(inodes);
        self.listings.get(ino)
    }

    /// Where a link leads.
    ///
    /// # Errors
    /// EINVAL for what is no link, or why QEMU does not tell.
    pub fn read_link(&self, ino: Ino, process: Process, wait: Wait) -> Result<String> {
        if let Some(target) = self.inodes.lock().temporary_target(ino) {
            return Ok(target.to_owned());
        }
        let (_, path, entry) = self.property(ino)?;
        if entry.kind != Kind::Link {
            return Err(libc::EINVAL.into());
        }
        wait.allowed()?;
        let access = self.access(process, &path);
        let answer = match self.prefetcher.value_at_hand(access, &entry.name) {
            Some(served) => served,
            None => self.qom.request(Request::get(&path, &entry.name)),
        };
        let target = self.read(ino, answer)?;
        self.ensure_alive(ino)?;
        let (patience, failure) = (self.patience(), Cell::new(None));
        let text = link_text(&path, &entry.file, &target, |parent, name| {
            let shown = self.shown_as(parent, name, &patience);
            shown.unwrap_or_else(|e| {
                failure.set(Some(e));
                None
            })
        });
        if let Some(e) = failure.take() {
            return Err(self.record_error(ino, e));
        }
        self.set_read_size(ino, text.len());
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::dir::names::file_name;
    use proptest::prelude::*;

    fn text(object: &str, name: &str, target: &str) -> String {
        let shown_as = |_: &Path, name: &str| Some(file_name(name).into_owned());
        link_text(&Path::parse(object).unwrap(), &file_name(name), target, shown_as)
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
