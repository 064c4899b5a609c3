//! Setting a link with `ln -sfn`: a symbolic link under a temporary name, renamed over the old.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::error::Doing;
use super::links::is_unset;
use super::{Attributes, Error, Found, Ino, Result, Tree};
use crate::qom::{Kind, Path, Request};

/// `ln` renames at once; what is left after this long was left by one that broke off.
const LIFETIME: Duration = Duration::from_secs(5);
const MOST: usize = 64;
/// As deep as Linux follows links.
const MOST_LINKS: usize = 40;

/// The temporary names in use.
#[derive(Default)]
pub struct Temporaries {
    links: HashMap<Ino, Temporary>,
}

struct Temporary {
    parent: Ino,
    file: String,
    target: String,
    made: Instant,
    lookups: u64,
}

/// The names that coreutils' `ln` uses: `Cu` and six letters or digits. Any other name would
/// be a link that its maker wants to keep, and there is none to be kept.
fn is_temporary_name(file: &str) -> bool {
    file.len() == 8 && file.starts_with("Cu") && file.bytes().all(|b| b.is_ascii_alphanumeric())
}

impl Temporaries {
    fn find(&self, parent: Ino, file: &str) -> Option<Ino> {
        let is_it = |t: &Temporary| t.parent == parent && t.file == file && t.made.elapsed() < LIFETIME;
        self.links.iter().find(|(_, t)| is_it(t)).map(|(ino, _)| *ino)
    }
}

impl Tree {
    /// Finds a temporary link, and counts it as given to the kernel.
    pub(super) fn temporary(&self, parent: Ino, file: &str) -> Option<Found> {
        let mut temporaries = self.temporaries.lock();
        if temporaries.links.is_empty() {
            return None;
        }
        let ino = temporaries.find(parent, file)?;
        temporaries.links.get_mut(&ino)?.lookups += 1;
        drop(temporaries);
        Some(Found {
            attributes: self.temporary_attributes(ino)?,
            lifetime: Duration::ZERO,
        })
    }

    pub(super) fn temporary_attributes(&self, ino: Ino) -> Option<Attributes> {
        let size = self.temporary_target(ino)?.len() as u64;
        Some(self.attributes_of(ino, Kind::Link, size))
    }

    pub(super) fn temporary_target(&self, ino: Ino) -> Option<String> {
        let temporaries = self.temporaries.lock();
        temporaries.links.get(&ino).map(|t| t.target.clone())
    }

    /// Makes a temporary link, the first step of `ln -sfn`.
    ///
    /// # Errors
    /// EPERM for any other name, EEXIST, EROFS.
    pub fn make_link(&self, parent: Ino, file: &str, target: &str) -> Result<Found> {
        if self.settings.read_only {
            return Err(libc::EROFS.into());
        }
        if self.listing(parent)?.find(file).is_some() {
            return Err(libc::EEXIST.into());
        }
        if !is_temporary_name(file) {
            return Err(libc::EPERM.into());
        }
        let ino = self.inodes.lock().unnamed();
        let mut temporaries = self.temporaries.lock();
        temporaries.links.retain(|_, t| t.made.elapsed() < LIFETIME);
        if temporaries.links.len() >= MOST {
            return Err(libc::ENOSPC.into());
        }
        temporaries.links.insert(
            ino,
            Temporary {
                parent,
                file: file.to_owned(),
                target: target.to_owned(),
                made: Instant::now(),
                lookups: 0,
            },
        );
        drop(temporaries);
        self.temporary(parent, file).ok_or_else(|| libc::EIO.into())
    }

    /// Removes a temporary link; nothing else can be removed.
    ///
    /// # Errors
    /// EPERM; ENOENT for a temporary link that is gone.
    pub fn remove_link(&self, parent: Ino, file: &str) -> Result<()> {
        let mut temporaries = self.temporaries.lock();
        match temporaries.find(parent, file) {
            Some(ino) => {
                temporaries.links.remove(&ino);
                Ok(())
            }
            None if is_temporary_name(file) => Err(libc::ENOENT.into()),
            None => Err(libc::EPERM.into()),
        }
    }

    /// Renames a temporary link over a link property, which sets that property. The temporary
    /// link is gone afterwards, whatever comes of it.
    ///
    /// # Errors
    /// EPERM for any other renaming; ENOENT, ENOTDIR, EINVAL when the target is no object of
    /// this machine; or QEMU's verdict.
    pub fn rename_link(&self, from: (Ino, &str), to: (Ino, &str)) -> Result<()> {
        if self.settings.read_only {
            return Err(libc::EROFS.into());
        }
        let mut temporaries = self.temporaries.lock();
        let Some(ino) = temporaries.find(from.0, from.1) else {
            return Err(libc::EPERM.into());
        };
        let Some(temporary) = temporaries.links.remove(&ino) else {
            return Err(libc::EPERM.into());
        };
        drop(temporaries);
        let (parent, file) = to;
        let listing = self.listing(parent)?;
        let Some((_, entry)) = listing.find(file) else {
            return Err(libc::EPERM.into());
        };
        if entry.kind != Kind::Link || parent != temporary.parent {
            return Err(libc::EPERM.into());
        }
        let object = self.object(parent)?;
        let target = self.target(&object, &temporary.target)?;
        self.ahead.wrote();
        let outcome = self.qom.set_link(&object, &entry.name, target.as_ref());
        self.ahead.wrote();
        self.written(parent, file);
        outcome.map_err(|e| Error::from_qom(&e, Doing::Write))?;
        // To the kernel, the link now is the inode that had the temporary name.
        self.inodes
            .lock()
            .adopt(ino, parent, entry.clone(), temporary.lookups);
        Ok(())
    }

    /// The kernel forgets a temporary link.
    pub(super) fn forget_temporary(&self, ino: Ino, count: u64) {
        let mut temporaries = self.temporaries.lock();
        if let Some(temporary) = temporaries.links.get_mut(&ino) {
            temporary.lookups = temporary.lookups.saturating_sub(count);
            if temporary.lookups == 0 {
                temporaries.links.remove(&ino);
            }
        }
    }

    /// The object that a link text written in the directory of `object` names; `None` for an
    /// unset link.
    fn target(&self, object: &Path, text: &str) -> Result<Option<Path>> {
        if is_unset(text) {
            return Ok(None);
        }
        let outside = || {
            Error::refused(
                libc::EINVAL,
                &format!("link target '{text}' is outside of the mount"),
            )
        };
        let (mut at, rest) = if text.starts_with('/') {
            let below = std::path::Path::new(text)
                .strip_prefix(&self.settings.mount_point)
                .map_err(|_| outside())?;
            (Path::root(), below.to_str().unwrap_or_default().to_owned())
        } else {
            (object.clone(), text.to_owned())
        };
        let (mut links, patience) = (0, self.patience());
        for part in rest.split('/') {
            patience.check()?;
            at = match part {
                "" | "." => at,
                ".." => at.parent().ok_or_else(outside)?,
                file => self.step(&at, file, text, &mut links)?,
            };
        }
        Ok(Some(at))
    }

    /// The object under a file name of an object, through a link if it is one.
    fn step(&self, at: &Path, file: &str, text: &str, links: &mut usize) -> Result<Path> {
        let no_object = |errno, why: &str| Error::refused(errno, &format!("link target '{text}': {why}"));
        let listing = self
            .listing_at(at)
            .map_err(|e| Error::from_qom(&e, Doing::List))?;
        let Some((_, entry)) = listing.find(file) else {
            return Err(no_object(libc::ENOENT, &format!("there is no '{file}' in {at}")));
        };
        match entry.kind {
            Kind::Child => at
                .child(&entry.name)
                .ok_or_else(|| no_object(libc::ENOENT, "QEMU cannot find it by a path")),
            Kind::Value => Err(no_object(
                libc::ENOTDIR,
                &format!("'{file}' in {at} is a property, not an object"),
            )),
            Kind::Link => {
                *links += 1;
                if *links > MOST_LINKS {
                    return Err(libc::ELOOP.into());
                }
                let target = self
                    .qom
                    .request(Request::get(at, &entry.name))
                    .map_err(|e| Error::from_qom(&e, Doing::Read))?;
                Path::parse(&target)
                    .ok_or_else(|| no_object(libc::ENOENT, &format!("the link '{file}' in {at} is unset")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ln() {
        for (name, is) in [
            ("CuAb12xY", true),
            ("CuAb12x", false),
            ("XuAb12xY", false),
            ("Cu../../", false),
        ] {
            assert_eq!(is_temporary_name(name), is, "{name}");
        }
    }
}
