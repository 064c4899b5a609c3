//! Setting a link: a symbolic link under any other name, renamed over it, as `ln -sfn` does.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use log::warn;

use crate::fs::error::Doing;
use crate::fs::link::text::is_unset;
use crate::fs::{Error, Found, Ino, Result, Tree, Wait};
use crate::qom::{Kind, Path, Request};
use crate::text::printable;

/// How long a symbolic link has to be renamed.
const LIFETIME: Duration = Duration::from_secs(5);
/// As deep as Linux follows links.
const MAX_LINKS: usize = 40;

impl Tree {
    /// Finds a temporary link, and counts it as given to the kernel.
    pub(crate) fn temporary_link(&self, parent: Ino, file: &str) -> Option<Found> {
        let mut inodes = self.inodes.lock();
        let ino = inodes.look_up_temporary(parent, file)?;
        Some(Found {
            attributes: self.attributes_of(ino, Kind::Link, inodes.tell_size(ino)),
            lifetime: Duration::ZERO,
        })
    }

    /// Makes a symbolic link, to be renamed over one that it sets.
    ///
    /// # Errors
    /// EEXIST, EROFS; ENOSPC when there are too many, ENOMEM when no thread is left that would remove it.
    pub fn make_link(&self, parent: Ino, file: &str, target: &str, wait: Wait) -> Result<Found> {
        if self.settings.read_only {
            return Err(libc::EROFS.into());
        }
        if self.listing(parent, wait)?.find(file).is_some() {
            return Err(libc::EEXIST.into());
        }
        self.inodes.lock().make_temporary(parent, file, target)?;
        if !self.links_watched.swap(true, Ordering::AcqRel) {
            let tree = self.this.clone();
            let watch = move || {
                while let Some(left) = tree.upgrade().and_then(|tree| tree.remove_old_links()) {
                    thread::sleep(left);
                }
            };
            if thread::Builder::new().name("links".into()).spawn(watch).is_err() {
                self.links_watched.store(false, Ordering::Release);
                self.remove_link(parent, file)?;
                return Err(libc::ENOMEM.into());
            }
        }
        self.temporary_link(parent, file).ok_or_else(|| libc::EIO.into())
    }

    /// Removes the links whose time has ended. Tells how long the next one has left; `None` when there is none.
    fn remove_old_links(&self) -> Option<Duration> {
        loop {
            let mut inodes = self.inodes.lock();
            let Some((parent, file, target, since)) = inodes.oldest_temporary() else {
                self.links_watched.store(false, Ordering::Release);
                return None;
            };
            let left = LIFETIME.saturating_sub(since.elapsed());
            if !left.is_zero() {
                return Some(left);
            }
            let why = format!(
                "the symbolic link '{file}' to '{target}' is gone: it was not renamed over a link within \
                 {LIFETIME:?}, which is all that it can be made for"
            );
            inodes.remove_temporary(parent, &file);
            drop(inodes); // what is said to the log is said under no lock
            warn!("{}", printable(&why));
        }
    }

    /// Removes a temporary link; nothing else can be removed.
    ///
    /// # Errors
    /// EPERM
    pub fn remove_link(&self, parent: Ino, file: &str) -> Result<()> {
        let removed = self.inodes.lock().remove_temporary(parent, file);
        removed.map(drop).ok_or(libc::EPERM.into())
    }

    /// Renames a temporary link over a link property, which sets that property. The temporary
    /// link is gone afterwards, whatever comes of it.
    ///
    /// # Errors
    /// EPERM for any other renaming; EINVAL, ENOTDIR when the target is no object of this machine; or
    /// QEMU's verdict.
    pub fn rename_link(&self, from: (Ino, &str), to: (Ino, &str), wait: Wait) -> Result<()> {
        if self.settings.read_only {
            return Err(libc::EROFS.into());
        }
        wait.allowed()?;
        let connection = self.qom.monitor().connection_number();
        let temporary = self.inodes.lock().remove_temporary(from.0, from.1);
        let (ino, target) = temporary.ok_or(libc::EPERM)?;
        let (parent, file) = to;
        let listing = self.listing(parent, wait)?;
        let link = listing.find(file).filter(|(_, entry)| entry.kind == Kind::Link);
        let (_, entry) = link.ok_or(libc::EPERM)?;
        let replaced = self.inodes.lock().named(parent, file);
        let object = self.object(parent)?;
        let outcome = self.target(&object, &target).and_then(|target| {
            let set = || {
                let target = target.as_ref();
                self.qom.set_link(connection, &object, &entry.name, target)
            };
            let outcome = self.write_to(parent, set);
            outcome.map_err(|e| Error::from_qom(&e, Doing::Write))
        });
        // After ENOENT the kernel would forget the link, and QEMU's words with it.
        let outcome = outcome.map_err(|e| Error {
            errno: if e.errno == libc::ENOENT {
                libc::EINVAL
            } else {
                e.errno
            },
            ..e
        });
        if let Err(e) = outcome {
            return Err(match replaced {
                Some(link) => self.record_error(link, e),
                None => e,
            });
        }
        // To the kernel, the link now is the inode that had the temporary name.
        self.inodes.lock().adopt(ino, parent, entry.clone());
        Ok(())
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
                if *links > MAX_LINKS {
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
