//! QEMU's words for the last failure of each file, for `user.qom.error`.

use std::collections::{BTreeMap, HashMap};

use super::inodes::Ino;
use crate::text::escaped;

/// The longest text kept: what an extended attribute can hold.
const MAX_LENGTH: usize = 64 << 10;
/// How much is kept in all; the oldest go first.
const MAX_BYTES: usize = 1 << 20;

/// The last failure of each inode that has one.
#[derive(Default)]
pub struct LastErrors {
    /// With the place in `order`.
    texts: HashMap<Ino, (u64, String)>,
    /// In the order in which they were set.
    order: BTreeMap<u64, Ino>,
    next: u64,
    bytes: usize,
}

impl LastErrors {
    pub fn set(&mut self, ino: Ino, words: &str) {
        self.clear(ino);
        // People print these to a terminal.
        let words = escaped(words);
        let mut cut = words.len().min(MAX_LENGTH);
        while !words.is_char_boundary(cut) {
            cut -= 1;
        }
        self.bytes += cut;
        self.texts.insert(ino, (self.next, words[..cut].to_owned()));
        self.order.insert(self.next, ino);
        self.next += 1;
        while (self.bytes > MAX_BYTES || self.order.len() > MAX_BYTES / 64)
            && let Some((_, oldest)) = self.order.first_key_value()
        {
            self.clear(*oldest);
        }
    }

    pub fn clear(&mut self, ino: Ino) {
        if let Some((place, text)) = self.texts.remove(&ino) {
            self.order.remove(&place);
            self.bytes -= text.len();
        }
    }

    pub fn get(&self, ino: Ino) -> Option<&str> {
        self.texts.get(&ino).map(|(_, text)| text.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_in_length_and_in_all() {
        let mut errors = LastErrors::default();
        errors.set(1, &"ü".repeat(MAX_LENGTH));
        assert!(errors.get(1).is_some_and(|t| t.len() <= MAX_LENGTH));
        for ino in 2..100 {
            errors.set(ino, &"x".repeat(MAX_LENGTH));
        }
        assert!(errors.get(1).is_none() && errors.get(99).is_some());
        assert!(errors.bytes <= MAX_BYTES);
        for ino in 2..200_000 {
            errors.set(ino, "");
        }
        assert!(errors.order.len() <= MAX_BYTES / 64);
        errors.set(199_999, "again");
        assert_eq!(errors.get(199_999), Some("again"));
        errors.clear(199_999);
        assert!(errors.get(199_999).is_none());
    }
}
