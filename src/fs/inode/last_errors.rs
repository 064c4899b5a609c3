//! QEMU's words for the last failure of each file, for `user.qom.error`.

use std::collections::{BTreeMap, HashMap};

use crate::fs::inode::table::Ino;
use crate::limits::{ATTRIBUTE_BYTES, ERROR_BYTES};
use crate::text::escaped;

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
        let cut = |words: &str| {
            let mut end = words.len().min(ATTRIBUTE_BYTES);
            while !words.is_char_boundary(end) {
                end -= 1;
            }
            words[..end].to_owned()
        };
        // People print these to a terminal.
        let words = cut(&escaped(&cut(words)));
        self.bytes += words.len();
        self.texts.insert(ino, (self.next, words));
        self.order.insert(self.next, ino);
        self.next += 1;
        while (self.bytes > ERROR_BYTES || self.order.len() > ERROR_BYTES / 64)
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
        errors.set(1, &"ü".repeat(ATTRIBUTE_BYTES));
        assert!(errors.get(1).is_some_and(|t| t.len() <= ATTRIBUTE_BYTES));
        for ino in 2..100 {
            errors.set(ino, &"x".repeat(ATTRIBUTE_BYTES));
        }
        assert!(errors.get(1).is_none() && errors.get(99).is_some());
        assert!(errors.bytes <= ERROR_BYTES);
        for ino in 2..200_000 {
            errors.set(ino, "");
        }
        assert!(errors.order.len() <= ERROR_BYTES / 64);
        errors.set(199_999, "again");
        assert_eq!(errors.get(199_999), Some("again"));
        errors.clear(199_999);
        assert!(errors.get(199_999).is_none());
    }
}
