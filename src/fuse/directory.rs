//! Directories as the kernel reads them.

use std::time::Duration;

use fuser::{FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::reply::{bare_attr, errno, file_attr};
use crate::fs::{Item, Result, Shown, Tree};

/// Names, numbers and types.
pub(super) fn list(tree: &Tree, shown: Result<Shown>, offset: u64, mut reply: ReplyDirectory) {
    let mut found = Vec::new();
    let done = shown.and_then(|shown| {
        tree.read_directory(&shown, offset, |item, next| match item {
            Item::Dots(ino, name) => reply.add(INodeNo(ino), next, FileType::Directory, name),
            Item::Entry(entry, name) => {
                let attr = file_attr(&entry.attributes);
                let full = reply.add(attr.ino, next, attr.kind, name);
                if !full {
                    found.push(attr.ino.0);
                }
                full
            }
        })
    });
    // This way of listing tells numbers but hands out no references.
    for ino in found {
        tree.forget(ino, 1);
    }
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

/// The same with what a lookup of each name would give, which saves the kernel the lookups.
pub(super) fn list_plus(tree: &Tree, shown: Result<Shown>, offset: u64, mut reply: ReplyDirectoryPlus) {
    let done = shown.and_then(|shown| {
        tree.read_directory(&shown, offset, |item, next| match item {
            Item::Dots(ino, name) => {
                let attr = bare_attr(ino);
                reply.add(attr.ino, next, name, &Duration::ZERO, &attr, Generation(0))
            }
            Item::Entry(entry, name) => {
                let attr = file_attr(&entry.attributes);
                reply.add(attr.ino, next, name, &entry.lifetime, &attr, Generation(0))
            }
        })
    });
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}
