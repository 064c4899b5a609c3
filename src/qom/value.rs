//! The value that a text means.

use serde_json::Value;

/// The value that a text means for a property of this declared type. Never fails: what does
/// not fit the type goes as a string, for QEMU to judge in its own words.
pub fn from_text(declared: &str, text: &str) -> Value {
    let typed = match declared {
        "bool" => parse_bool(text).map(Value::from),
        "string" | "str" => None,
        "number" | "double" | "float" => integer(text).or_else(|| number(text)),
        d if is_integer(d) => integer(text),
        _ => compound(text),
    };
    typed.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// The value that a text means after QEMU refused `property` for its JSON type alone, naming
/// the one that it wants; `None` when the refusal is about something else, or the text is no
/// such value.
pub fn retyped(refusal: &str, property: &str, text: &str) -> Option<Value> {
    let wanted = if let Some(rest) = refusal.strip_prefix("Invalid parameter type for '") {
        rest.strip_prefix(property)?.strip_prefix("', expected: ")?
    } else {
        let rest = refusal.strip_prefix("Parameter '")?;
        rest.strip_prefix(property)?.strip_prefix("' expects ")?
    };
    match wanted {
        "boolean" => parse_bool(text).map(Value::from),
        "string" => Some(Value::String(text.to_owned())),
        "number" => integer(text).or_else(|| number(text)),
        "object" | "array" | "list" | "dict" => compound(text),
        "null" => (text == "null").then_some(Value::Null),
        w if is_integer(w) => integer(text),
        _ => None,
    }
}

/// `int`, `integer`, `uint8`, `int64_t`, … and QEMU's own names for integers.
fn is_integer(declared: &str) -> bool {
    let name = declared.strip_suffix("_t").unwrap_or(declared);
    let name = name.strip_prefix('u').unwrap_or(name);
    matches!(
        name,
        "int" | "int8" | "int16" | "int32" | "int64" | "integer" | "size" | "busnr"
    )
}

/// The words that QEMU takes for a bool.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "true" | "on" | "yes" | "1" => Some(true),
        "false" | "off" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// Decimal, `0x…` or a size with a suffix, from the least i64 to the greatest u64.
fn integer(text: &str) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let (digits, radix) = hex.map_or((digits, 10), |h| (h, 16));
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None; // from_str_radix would take a second sign
    }
    match u64::from_str_radix(digits, radix) {
        Ok(magnitude) if negative => 0i64.checked_sub_unsigned(magnitude).map(Value::from),
        Ok(magnitude) => Some(magnitude.into()),
        Err(_) => size(text).map(Value::from),
    }
}

/// A size as QEMU's command line takes it: `500M`, `1.5G`, powers of 1024. Only whole bytes.
fn size(text: &str) -> Option<u64> {
    let (digits, suffix) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let exponent = "BKMGTPE".find(&suffix.to_ascii_uppercase())?;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    // More digits than 18 would be finer than a byte of the largest unit, or zeros.
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        (plain && text.len() <= 18).then(|| text.parse::<u128>().ok())?
    };
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok().filter(|n| *n <= 18)?);
    let digits = number(whole)? * scale + number(fraction)?;
    let bytes = digits.checked_mul(1 << (10 * exponent))?;
    (bytes % scale == 0).then(|| u64::try_from(bytes / scale).ok())?
}

fn number(text: &str) -> Option<Value> {
    match serde_json::from_str(text) {
        Ok(n @ Value::Number(_)) => Some(n),
        _ => None,
    }
}

fn compound(text: &str) -> Option<Value> {
    match serde_json::from_str(text) {
        Ok(v @ (Value::Object(_) | Value::Array(_))) => Some(v),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::canonical::to_text;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn typed_by_declaration() {
        for (declared, text, value) in [
            ("bool", "on", json!(true)),
            ("bool", "no", json!(false)),
            ("bool", "maybe", json!("maybe")),
            ("uint64_t", "0xffffffffffffffff", json!(u64::MAX)),
            ("int", "-9223372036854775808", json!(i64::MIN)),
            ("int", "-0x10", json!(-16)),
            ("int", "--5", json!("--5")),
            ("int", "+5", json!("+5")),
            ("int", "18446744073709551616", json!("18446744073709551616")),
            ("size", "500M", json!(500u64 << 20)),
            ("int", "2048k", json!(2 << 20)),
            ("uint64", "1.5G", json!(3u64 << 29)),
            ("size", "0.5K", json!(512)),
            ("size", "15E", json!(15u64 << 60)),
            ("size", "7b", json!(7)),
            ("size", "0x1B", json!(0x1b)),
            ("size", "1.5", json!("1.5")),
            ("size", "0.3K", json!("0.3K")),
            ("size", "1.5B", json!("1.5B")),
            ("size", "1X", json!("1X")),
            ("size", "G", json!("G")),
            ("size", ".5G", json!(".5G")),
            ("size", "1.G", json!("1.G")),
            ("size", "0x1G", json!("0x1G")),
            ("size", "-1M", json!("-1M")),
            ("size", "+1M", json!("+1M")),
            ("size", "1e3", json!("1e3")),
            ("size", "1 M", json!("1 M")),
            ("size", "1MiB", json!("1MiB")),
            ("size", "16E", json!("16E")),
            ("size", "99999999999999999999E", json!("99999999999999999999E")),
            (
                "size",
                "1125899906842624.000000000000000000E",
                json!("1125899906842624.000000000000000000E"),
            ),
            ("size", "1ü", json!("1ü")),
            ("string", "1G", json!("1G")),
            ("busnr", "7", json!(7)),
            ("uint32", "", json!("")),
            ("number", "0.5", json!(0.5)),
            ("string", "{}", json!("{}")),
            ("str", "5", json!("5")),
            ("SMPConfiguration", r#"{"cpus":2}"#, json!({"cpus": 2})),
            ("SgxEPC", "[]", json!([])),
            ("OnOffAuto", "on", json!("on")),
            ("OnOffAuto", "{bad", json!("{bad")),
        ] {
            assert_eq!(from_text(declared, text), value, "{declared} {text}");
        }
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        assert_eq!(
            from_text("any", &deep),
            json!(deep),
            "QEMU would lose step over this as JSON"
        );
    }

    #[test]
    fn typed_by_refusal() {
        let wants = |kind: &str| format!("Invalid parameter type for 'p', expected: {kind}");
        for (refusal, text, value) in [
            (wants("boolean"), "yes", Some(json!(true))),
            (wants("string"), "5", Some(json!("5"))),
            (wants("integer"), "5", Some(json!(5))),
            (wants("integer"), "five", None),
            (wants("object"), "{}", Some(json!({}))),
            (wants("array"), "[1]", Some(json!([1]))),
            (wants("memory-backend"), "/x", None),
            ("Parameter 'p' expects uint64".into(), "9", Some(json!(9))),
            ("Parameter 'q' expects uint64".into(), "9", None),
            ("Parameter 'p' does not accept value 'x'".into(), "x", None),
            (
                "Invalid parameter type for 'p.cpus', expected: string".into(),
                "{}",
                None,
            ),
        ] {
            assert_eq!(retyped(&refusal, "p", text), value, "{refusal} {text}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>()
                .prop_filter("JSON has no others", |f| f.is_finite())
                .prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..8)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    /// The refusal by which QEMU names the JSON type of a value.
    fn refusal_for(value: &Value) -> String {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(n) if n.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        format!("Invalid parameter type for 'p', expected: {kind}")
    }

    proptest! {
        /// What `cat` prints can be written back, whatever the declared type says.
        #[test]
        fn text_round_trips(value in any_json()) {
            let text = to_text(&value.to_string()).unwrap();
            prop_assert_eq!(retyped(&refusal_for(&value), "p", &text), Some(value));
        }

        #[test]
        fn declared_types_round_trip(b in any::<bool>(), i in any::<i64>(), u in any::<u64>(), s in any::<String>()) {
            prop_assert_eq!(from_text("bool", &to_text(&json!(b).to_string()).unwrap()), json!(b));
            prop_assert_eq!(from_text("int", &to_text(&json!(i).to_string()).unwrap()), json!(i));
            prop_assert_eq!(from_text("uint64_t", &to_text(&json!(u).to_string()).unwrap()), json!(u));
            prop_assert_eq!(from_text("string", &to_text(&json!(s).to_string()).unwrap()), json!(s));
        }

        /// The text is what a tree of values would print.
        #[test]
        fn text_is_canonical(value in any_json(), space in "[ \n\t]{0,3}") {
            let json = serde_json::to_string_pretty(&value).unwrap() + &space;
            let expected = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            prop_assert_eq!(to_text(&json).unwrap(), expected);
        }

        /// No text and no refusal make this panic.
        #[test]
        fn nothing_panics(declared in ".*", refusal in ".*", text in ".*") {
            let _ = from_text(&declared, &text);
            let _ = retyped(&refusal, "p", &text);
        }
    }
}
