//! Inodes by name.

use std::collections::HashMap;
use std::sync::Arc;

use crate::fs::inode::table::Ino;

/// The inodes under each name, by directory.
#[derive(Debug, Default)]
pub struct ByName(HashMap<Ino, HashMap<Arc<str>, Ino>>);

impl ByName {
    pub fn get(&self, parent: Ino, file: &str) -> Option<Ino> {
        self.0.get(&parent)?.get(file).copied()
    }

    pub fn insert(&mut self, parent: Ino, file: Arc<str>, ino: Ino) {
        self.0.entry(parent).or_default().insert(file, ino);
    }

    /// Takes a name away if it is this inode's.
    pub fn remove(&mut self, parent: Ino, file: &str, ino: Ino) {
        let Some(of_parent) = self.0.get_mut(&parent) else {
            return;
        };
        if of_parent.get(file) == Some(&ino) {
            of_parent.remove(file);
        }
        if of_parent.is_empty() {
            self.0.remove(&parent);
        }
    }

    /// Gives memory back.
    pub fn shrink(&mut self) {
        self.0.shrink_to_fit();
    }
}
