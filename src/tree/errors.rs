//! QEMU's words for the last failure of each file, for `user.qom.error`.

use std::collections::{HashMap, VecDeque};

use super::inodes::Ino;
use crate::qmp::escaped;

/// The longest text kept: what an extended attribute can hold.
const LONGEST: usize = 64 << 10;
/// How much is kept in all; the oldest go first.
const MOST: usize = 1 << 20;

/// The last failure of each inode that has one.
#[derive(Default)]
pub struct LastErrors {
    texts: HashMap<Ino, String>,
    /// In the order in which they were set; may name inodes that have none any more.
    order: VecDeque<Ino>,
    bytes: usize,
}

impl LastErrors {
    pub fn set(&mut self, ino: Ino, words: &str) {
        // People print these to a terminal.
        let words = escaped(words);
        let mut cut = words.len().min(LONGEST);
        while !words.is_char_boundary(cut) {
            cut -= 1;
        }
        self.bytes += cut;
        match self.texts.insert(ino, words[..cut].to_owned()) {
            Some(old) => self.bytes -= old.len(),
            None => self.order.push_back(ino),
        }
        while (self.bytes > MOST || self.order.len() > MOST / 64)
            && let Some(oldest) = self.order.pop_front()
        {
            self.remove(oldest);
        }
    }

    pub fn clear(&mut self, ino: Ino) {
        if self.remove(ino) {
            self.order.retain(|other| *other != ino);
        }
    }

    fn remove(&mut self, ino: Ino) -> bool {
        let old = self.texts.remove(&ino);
        self.bytes -= old.as_ref().map_or(0, String::len);
        old.is_some()
    }

    pub fn get(&self, ino: Ino) -> Option<&str> {
        self.texts.get(&ino).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_in_length_and_in_all() {
        let mut errors = LastErrors::default();
        errors.set(1, &"ü".repeat(LONGEST));
        assert!(errors.get(1).is_some_and(|t| t.len() <= LONGEST));
        for ino in 2..100 {
            errors.set(ino, &"x".repeat(LONGEST));
        }
        assert!(errors.get(1).is_none() && errors.get(99).is_some());
        assert!(errors.bytes <= MOST);
        for ino in 2..200_000 {
            errors.set(ino, "");
        }
        assert!(errors.order.len() <= MOST / 64);
        errors.clear(199_999);
        assert!(errors.get(199_999).is_none());
    }
}
