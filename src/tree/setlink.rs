//! Setting a link: a symbolic link under any other name, renamed over it, as `ln -sfn` does.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use log::warn;

use super::error::Doing;
use super::links::is_unset;
use super::{Attributes, Error, Found, Ino, Result, Tree};
use crate::qmp::printable;
use crate::qom::{Kind, Path, Request};

/// How long a link has to be renamed.
const LIFETIME: Duration = Duration::from_secs(5);
const MOST: usize = 64;
/// As deep as Linux follows links.
const MOST_LINKS: usize = 40;

/// The symbolic links that were made and not renamed yet.
#[derive(Default)]
pub struct Temporaries {
    links: HashMap<Ino, Temporary>,
    /// A thread waits for the end of their time.
    watched: bool,
}

struct Temporary {
    parent: Ino,
    file: String,
    target: String,
    made: Instant,
    lookups: u64,
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
    /// EEXIST, EROFS; ENOSPC when there are too many.
    pub fn make_link(&self, parent: Ino, file: &str, target: &str) -> Result<Found> {
        if self.settings.read_only {
            return Err(libc::EROFS.into());
        }
        if self.listing(parent)?.find(file).is_some() {
            return Err(libc::EEXIST.into());
        }
        let ino = self.inodes.lock().unnamed();
        let mut temporaries = self.temporaries.lock();
        if temporaries.find(parent, file).is_some() {
            return Err(libc::EEXIST.into());
        }
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
        let watched = std::mem::replace(&mut temporaries.watched, true);
        drop(temporaries);
        if !watched {
            self.watch_temporaries();
        }
        self.temporary(parent, file).ok_or_else(|| libc::EIO.into())
    }

    /// Removes links as their time ends, until there are none.
    fn watch_temporaries(&self) {
        let tree = self.this.clone();
        let watch = move || {
            while let Some(left) = tree.upgrade().and_then(|tree| tree.drop_old_temporaries()) {
                thread::sleep(left);
            }
        };
        let thread = thread::Builder::new().name("links".into()).spawn(watch);
        if thread.is_err() {
            self.temporaries.lock().watched = false; // the next link tries again
        }
    }

    /// Removes the links whose time has ended. Gives the time until the next one's end; `None` when there
    /// is none.
    fn drop_old_temporaries(&self) -> Option<Duration> {
        let mut temporaries = self.temporaries.lock();
        let old = temporaries.links.extract_if(|_, t| t.made.elapsed() >= LIFETIME);
        let old: Vec<Temporary> = old.map(|(_, temporary)| temporary).collect();
        let first = temporaries.links.values().map(|t| t.made).min();
        temporaries.watched = first.is_some();
        drop(temporaries);
        for Temporary { file, target, .. } in old {
            let why = format!(
                "the symbolic link '{file}' to '{target}' is gone: it was not renamed over a link within \
                 {LIFETIME:?}, which is all that it can be made for"
            );
            warn!("{}", printable(&why));
        }
        first.map(|made| LIFETIME.saturating_sub(made.elapsed()))
    }

    /// Removes a temporary link; nothing else can be removed.
    ///
    /// # Errors
    /// EPERM
    pub fn remove_link(&self, parent: Ino, file: &str) -> Result<()> {
        let mut temporaries = self.temporaries.lock();
        let ino = temporaries.find(parent, file).ok_or(libc::EPERM)?;
        temporaries.links.remove(&ino);
        Ok(())
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
        let found = temporaries.find(from.0, from.1);
        let temporary = found.and_then(|ino| Some((ino, temporaries.links.remove(&ino)?)));
        drop(temporaries);
        let (ino, temporary) = temporary.ok_or(libc::EPERM)?;
        let (parent, file) = to;
        let listing = self.listing(parent)?;
        let link = listing.find(file).filter(|(_, entry)| entry.kind == Kind::Link);
        let (_, entry) = link.ok_or(libc::EPERM)?;
        let replaced = self.inodes.lock().named(parent, file);
        let object = self.object(parent)?;
        let outcome = self.target(&object, &temporary.target).and_then(|target| {
            self.ahead.wrote();
            let outcome = self.qom.set_link(&object, &entry.name, target.as_ref());
            self.ahead.wrote();
            self.written(parent, file);
            outcome.map_err(|e| Error::from_qom(&e, Doing::Write))
        });
        if let Err(e) = outcome {
            return Err(match replaced {
                Some(link) => self.failed(link, e),
                None => e,
            });
        }
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
