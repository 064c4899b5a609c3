//! Values and their text, both ways.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A value as a file shows it, without the newline that ends it: strings as they are,
/// objects and arrays as JSON on one line with sorted keys.
///
/// # Errors
/// When the text is no JSON, a number in it is out of range, or it nests deeper than 127 levels.
pub fn to_text(json: &str) -> serde_json::Result<String> {
    if json.trim_ascii_start().starts_with('"') {
        return serde_json::from_str(json);
    }
    let mut text = Vec::new();
    let mut source = serde_json::Deserializer::from_str(json);
    Canonical(&mut text).deserialize(&mut source)?;
    source.end()?;
    String::from_utf8(text).map_err(serde_json::Error::custom)
}

/// Writes a value as it is read: a tree of values would take many times its text.
struct Canonical<'t>(&'t mut Vec<u8>);

impl Canonical<'_> {
    fn write<E: Error>(self, value: &(impl Serialize + ?Sized)) -> Result<(), E> {
        serde_json::to_writer(self.0, value).map_err(E::custom)
    }
}

impl<'de> DeserializeSeed<'de> for Canonical<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Canonical<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.write(&())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.write(&value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.write(&value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.write(&value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.write(&value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.write(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        self.0.push(b'[');
        while elements.next_element_seed(Canonical(self.0))?.is_some() {
            self.0.push(b',');
        }
        close(self.0, b']');
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        #[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
        struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

        self.0.push(b'{');
        let start = self.0.len();
        // With where each is. A line is too short for more than a u32.
        let mut members: Vec<(Key<'de>, [u32; 2])> = Vec::new();
        let mut at = 0;
        while let Some(key) = object.next_key::<Key<'de>>()? {
            Canonical(self.0).write(&*key.0)?;
            self.0.push(b':');
            object.next_value_seed(Canonical(self.0))?;
            self.0.push(b',');
            let end = u32::try_from(self.0.len() - start).map_err(A::Error::custom)?;
            members.push((key, [at, end]));
            at = end;
        }
        if !members.is_sorted_by(|a, b| a.0 < b.0) {
            let unsorted = self.0.split_off(start);
            members.sort_unstable();
            for (i, (key, [from, to])) in members.iter().enumerate() {
                // Of several with one name the last counts.
                if members.get(i + 1).is_none_or(|next| next.0 != *key) {
                    self.0.extend(&unsorted[*from as usize..*to as usize]);
                }
            }
        }
        close(self.0, b'}');
        Ok(())
    }
}

/// Ends a list, in place of the comma behind its last member if it has one.
fn close(text: &mut Vec<u8>, with: u8) {
    text.pop_if(|last| *last == b',');
    text.push(with);
}

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
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn texts() {
        for (value, text) in [
            (json!("a \"b\"\n"), "a \"b\"\n"),
            (json!(true), "true"),
            (json!(u64::MAX), "18446744073709551615"),
            (json!(i64::MIN), "-9223372036854775808"),
            (json!(0.1), "0.1"),
            (json!(null), "null"),
            (
                json!({"b": [1, {"z": 0, "a": "ü"}], "a": {}}),
                r#"{"a":{},"b":[1,{"a":"ü","z":0}]}"#,
            ),
            (json!([]), "[]"),
        ] {
            assert_eq!(to_text(&value.to_string()).unwrap(), text);
        }
    }

    #[test]
    fn texts_of_odd_json() {
        for (json, text) in [
            (
                r#" {"b":1, "a":{"d":[],"c":[{}]}, "b":{"x":2}, "":0} "#,
                r#"{"":0,"a":{"c":[{}],"d":[]},"b":{"x":2}}"#,
            ),
            (
                r#"{"\u0062":1,"a":2,"\"":3,"\n":4}"#,
                r#"{"\n":4,"\"":3,"a":2,"b":1}"#,
            ),
            (
                r#"{"$serde_json::private::RawValue":"[1"}"#,
                r#"{"$serde_json::private::RawValue":"[1"}"#,
            ),
            ("1e2", "100.0"),
            ("-0", "-0.0"),
            ("18446744073709551616", "1.8446744073709552e+19"),
            (r#"["a/\u00e4\u001b"]"#, r#"["a/ä\u001b"]"#),
        ] {
            assert_eq!(to_text(json).unwrap(), text, "{json}");
        }
        for json in ["", "1e999", "[1,]", "{1:2}", "1 2", "\"a\" b", r#"["\q"]"#] {
            assert!(to_text(json).is_err(), "{json}");
        }
    }

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
