//! File names for property names.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// The longest file name Linux takes, in bytes.
const NAME_MAX: usize = 255;
/// The longest `~2`, `~3`, … that is ever needed, in bytes; listings are shorter than ten million names.
const LONGEST_COUNTER: usize = 8;

/// The name under which a property is shown, before collisions are settled: bytes that a
/// file name cannot hold are written `\xNN`, as QEMU itself does for memory regions, and a
/// name that is too long is cut and ends with a hash of the whole.
pub fn file_name(name: &str) -> Cow<'_, str> {
    match name {
        "" => return r"\x".into(),
        "." => return r"\x2e".into(),
        ".." => return r"\x2e\x2e".into(),
        _ => {}
    }
    let mut shown = Cow::Borrowed(name);
    if name.contains(['/', '\0']) {
        shown = name.replace('/', r"\x2f").replace('\0', r"\x00").into();
    }
    if shown.len() > NAME_MAX {
        shown = with_suffix(&shown, &format!("~{:08x}", fnv1a(name.as_bytes()))).into();
    }
    shown
}

/// Whether the name may be shown under another file name than its own, by its own doing or by
/// that of another name in the same listing.
pub fn is_odd(name: &str) -> bool {
    name.contains('~') || name.contains(r"\x") || *file_name(name) != *name
}

/// Gives every name of a listing, in order, a file name of its own.
pub fn file_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Cow<'a, str>> {
    let mut shown: Vec<Cow<'a, str>> = names.into_iter().map(file_name).collect();
    let mut taken: HashSet<&str> = HashSet::with_capacity(shown.len());
    let late: Vec<usize> = (0..shown.len()).filter(|i| !taken.insert(&shown[*i])).collect();
    // Counted by what is left of a name before the longest counter: so each counter is tried once behind
    // what is left, however many names are cut to it, and no two of those that are given are equal.
    let mut next: HashMap<&str, usize> = HashMap::new();
    let mut given = Vec::with_capacity(late.len());
    for i in late {
        let count = next.entry(cut(&shown[i], LONGEST_COUNTER)).or_insert(2);
        let unique = loop {
            let candidate = with_suffix(&shown[i], &format!("~{count}"));
            *count += 1;
            if !taken.contains(&*candidate) {
                break candidate;
            }
        };
        given.push((i, unique));
    }
    for (i, unique) in given {
        shown[i] = unique.into();
    }
    shown
}

/// `base` and `suffix`, with `base` cut at a character so that both fit.
fn with_suffix(base: &str, suffix: &str) -> String {
    format!("{}{suffix}", cut(base, suffix.len()))
}

/// What is left of a name, cut at a character, when so many bytes are to follow.
fn cut(base: &str, following: usize) -> &str {
    let mut cut = base.len().min(NAME_MAX - following);
    while !base.is_char_boundary(cut) {
        cut -= 1;
    }
    &base[..cut]
}

/// The 32-bit FNV-1a hash: short, and the same in every version of qom-fuse.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_linux_cannot_hold() {
        for (name, file) in [
            ("device[1]", "device[1]"),
            ("a/b", r"a\x2fb"),
            ("a\0b", r"a\x00b"),
            (".", r"\x2e"),
            ("..", r"\x2e\x2e"),
            ("...", "..."),
            ("", r"\x"),
            ("über\n", "über\n"),
        ] {
            assert_eq!(file_name(name), file, "{name:?}");
        }
        let long = "ü".repeat(200);
        let shown = file_name(&long);
        assert!(shown.len() <= 255 && shown.len() > 250, "{}", shown.len());
        assert!(shown.starts_with("üü") && shown[..shown.len() - 8].ends_with('~'));
        assert_ne!(shown, file_name(&"ü".repeat(201)));
    }

    #[test]
    fn collisions() {
        assert_eq!(
            file_names(["a/b", r"a\x2fb", "c", "c", "c", "c~2"]),
            [r"a\x2fb", r"a\x2fb~2", "c", "c~3", "c~4", "c~2"]
        );
    }

    #[test]
    fn many_equal_names_cost_no_square() {
        let names = file_names(std::iter::repeat_n("x", 100_000));
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), 100_000);
    }

    #[test]
    fn many_names_that_are_cut_to_the_same_cost_no_square() {
        let name = |i: u32| char::from_u32(0x10000 + i).map(|c| "a".repeat(251) + &c.to_string());
        let names: Vec<String> = (0..50_000).chain(0..50_000).filter_map(name).collect();
        let shown = file_names(names.iter().map(String::as_str));
        assert_eq!(shown.iter().collect::<HashSet<_>>().len(), 100_000);
        assert!(shown.iter().all(|name| name.len() <= NAME_MAX));
    }

    proptest! {
        #[test]
        fn always_distinct_and_fit_for_linux(names in prop::collection::vec(".{0,3}|[./\\\\x2f\0]{0,3}|a{250,300}", 0..40)) {
            let shown = file_names(names.iter().map(String::as_str));
            let distinct: HashSet<_> = shown.iter().collect();
            prop_assert_eq!(distinct.len(), names.len());
            for name in &shown {
                prop_assert!(!name.is_empty() && name.len() <= 255);
                prop_assert!(!name.contains(['/', '\0']) && *name != "." && *name != "..");
            }
        }
    }
}
