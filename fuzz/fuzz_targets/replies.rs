//! Lines from a QMP server: whatever they are, they are classed and decoded without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qom_fuse::fuzzing::{Message, Path, Request, decode, escaped, printable};

fuzz_target!(|line: &[u8]| {
    match decode(line) {
        Message::Reply(Ok(raw)) => {
            let root = Path::root();
            let _ = (Request::list(&root).decode)(raw.get());
            let _ = (Request::get(&root, "x").decode)(raw.get());
            let _ = (Request::list_get(&[]).decode)(raw.get());
            let _ = (Request::describe("x").decode)(raw.get());
            let _ = (Request::machine_name().decode)(raw.get());
        }
        Message::Reply(Err(e)) => assert!(!e.to_string().chars().any(char::is_control)),
        Message::Event(event) => {
            let _ = event.path.as_deref().map(Path::parse);
        }
        _ => {}
    }
    let text = String::from_utf8_lossy(line);
    for safe in [printable(&text), escaped(&text)] {
        assert!(!safe.chars().any(char::is_control));
    }
});
