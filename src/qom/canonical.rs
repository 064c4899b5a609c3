//! The text of a value, whatever JSON it came as.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

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

#[cfg(test)]
mod tests {
    use super::*;
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
}
