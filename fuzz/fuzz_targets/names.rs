//! Names and link targets from QEMU: nothing leads out of the mount.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qom_fuse::fuzzing::{Path, file_name, file_names, link_text};

fuzz_target!(|input: (Vec<String>, String, String)| {
    let (names, object, target) = input;
    let files = file_names(names.iter().map(String::as_str));
    let mut sorted = files.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), names.len());
    for file in &files {
        assert!(!file.is_empty() && file.len() <= 255);
        assert!(!file.contains(['/', '\0']) && file != "." && file != "..");
    }
    let Some(object) = Path::parse(&object) else {
        return;
    };
    let text = link_text(&object, "link", &target, |_, name| Some(file_name(name).into_owned()));
    assert!(!text.is_empty() && text.len() <= 4095 && !text.starts_with('/') && !text.contains('\0'));
    let mut level = object.names().count() as i64;
    for part in text.split('/') {
        level += match part {
            ".." => -1,
            "." | "" => 0,
            _ => 1,
        };
        assert!(level >= 0, "{text}");
    }
});
