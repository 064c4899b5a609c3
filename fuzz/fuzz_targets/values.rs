//! Values as text: text to value never panics, and value to text to value loses nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qom_fuse::fuzzing::{from_text, retyped, to_text};
use serde_json::Value;

fuzz_target!(|input: (String, String, String)| {
    let (declared, text, refusal) = input;
    let _ = from_text(&declared, &text);
    let _ = retyped(&refusal, "p", &text);
    let Ok(value) = serde_json::from_str::<Value>(&text) else {
        return;
    };
    let kind = match &value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let refusal = format!("Invalid parameter type for 'p', expected: {kind}");
    assert_eq!(retyped(&refusal, "p", &to_text(&value.to_string()).unwrap()), Some(value));
});
