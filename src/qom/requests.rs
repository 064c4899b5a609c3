//! The requests that this project sends, each with how its reply is read.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde::de::Error as _;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::canonical::to_text;
use super::error::Error;
use super::path::Path;
use super::property::{Description, Property, Valued};
use crate::limits::{ATTRIBUTE_BYTES, OBJECT_PROPERTIES};
use crate::qmp;
use crate::qmp::compound::Compound;

/// A request whose reply decodes to a `T`.
pub struct Request<T> {
    pub(super) bytes: Vec<u8>,
    /// For messages: the request in a few words.
    pub(super) asked: String,
    /// Reads the JSON text of a reply.
    pub decode: fn(&str) -> serde_json::Result<T>,
}

impl<T> Request<T> {
    /// A command about something.
    fn new(command: &str, about: &str, arguments: &Value, decode: fn(&str) -> serde_json::Result<T>) -> Self {
        Request {
            bytes: qmp::request(command, arguments),
            asked: format!("{command} {about}"),
            decode,
        }
    }
}

impl Request<Vec<Property>> {
    /// The properties of an object.
    pub fn list(path: &Path) -> Self {
        let arguments = json!({ "path": path.as_str() });
        Request::new("qom-list", path.as_str(), &arguments, |text| {
            Ok(decode_list::<RawProperty<'_>>(text)?
                .map(Property::from)
                .collect())
        })
    }
}

impl Request<String> {
    /// The value of a property, as text.
    pub fn get(path: &Path, property: &str) -> Self {
        let arguments = json!({ "path": path.as_str(), "property": property });
        Request::new("qom-get", &format!("{path} {property}"), &arguments, to_text)
    }
}

impl Request<()> {
    /// Sets a property.
    pub fn set(path: &Path, property: &str, value: &Value) -> Self {
        let arguments = json!({ "path": path.as_str(), "property": property, "value": value });
        Request::new("qom-set", &format!("{path} {property}"), &arguments, |_| Ok(()))
    }
}

impl Request<Vec<Vec<Valued>>> {
    /// The properties of several objects with their values (QEMU 10.1 and later). One bad path
    /// fails the whole request.
    pub fn list_get(paths: &[Path]) -> Self {
        let names: Vec<&str> = paths.iter().map(Path::as_str).collect();
        let arguments = json!({ "paths": names });
        Request::new("qom-list-get", &names.join(" "), &arguments, decode_list_get)
    }
}

impl Request<HashMap<String, Description>> {
    /// Descriptions and defaults of a type's properties, by name.
    pub fn describe(type_name: &str) -> Self {
        let arguments = json!({ "typename": type_name });
        Request::new("qom-list-properties", type_name, &arguments, decode_descriptions)
    }
}

impl Request<Option<String>> {
    /// The machine's name, if the user gave it one.
    pub fn machine_name() -> Self {
        Request {
            bytes: qmp::command("query-name"),
            asked: "query-name".into(),
            decode: |text| text_member(text, "name"),
        }
    }

    /// The machine's UUID, if the user gave it one; all zero means none.
    pub fn machine_uuid() -> Self {
        Request {
            bytes: qmp::command("query-uuid"),
            asked: "query-uuid".into(),
            decode: |text| {
                let uuid = text_member(text, "UUID")?;
                Ok(uuid.filter(|uuid| uuid.chars().any(|c| !matches!(c, '0' | '-'))))
            },
        }
    }
}

#[derive(Deserialize)]
struct RawProperty<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    declared: Cow<'a, str>,
    #[serde(borrow, default)]
    value: Option<&'a RawValue>,
}

impl From<RawProperty<'_>> for Property {
    fn from(raw: RawProperty<'_>) -> Property {
        Property {
            name: raw.name.into(),
            declared: raw.declared.into(),
        }
    }
}

/// A list of objects.
type List<T> = Compound<Vec<Compound<T>>>;

/// What is told of each property of an object.
fn decode_list<'a, T: Deserialize<'a>>(text: &'a str) -> serde_json::Result<impl Iterator<Item = T>> {
    let Compound(properties): List<T> = serde_json::from_str(text)?;
    check_count(properties.len())?;
    Ok(properties.into_iter().map(|Compound(property)| property))
}

fn check_count(properties: usize) -> serde_json::Result<()> {
    if properties <= OBJECT_PROPERTIES {
        return Ok(());
    }
    Err(serde_json::Error::custom(format_args!(
        "{properties} properties in one object, at most {OBJECT_PROPERTIES} are taken"
    )))
}

fn decode_list_get(text: &str) -> serde_json::Result<Vec<Vec<Valued>>> {
    #[derive(Deserialize)]
    struct Object<'a> {
        #[serde(borrow)]
        properties: List<RawProperty<'a>>,
    }
    let objects: Vec<Object<'_>> = decode_list(text)?.collect();
    check_count(objects.iter().map(|object| object.properties.0.len()).sum())?;
    // A bad value of many must not spoil the others.
    let value = |name: &str, raw: &RawValue| {
        let undecodable = |e: serde_json::Error| qmp::Error::Undecodable(e.to_string());
        let text = to_text(raw.get()).map_err(undecodable);
        text.map_err(|e| Error::new(format!("qom-list-get {name}"), e))
    };
    let valued = |Compound(property): Compound<RawProperty<'_>>| Valued {
        text: property.value.map(|raw| value(&property.name, raw)),
        property: property.into(),
    };
    let of_object = |object: Object<'_>| object.properties.0.into_iter().map(valued).collect();
    Ok(objects.into_iter().map(of_object).collect())
}

fn decode_descriptions(text: &str) -> serde_json::Result<HashMap<String, Description>> {
    #[derive(Deserialize)]
    struct Info<'a> {
        name: String,
        description: Option<String>,
        #[serde(rename = "default-value", borrow)]
        default: Option<&'a RawValue>,
    }
    let entry = |info: Info<'_>| {
        let default = info.default.map(|raw| to_text(raw.get())).transpose()?;
        let description = Description {
            description: info.description.filter(|text| is_short(text)),
            default: default.filter(|text| is_short(text)),
        };
        Ok((info.name, description))
    };
    decode_list(text)?.map(entry).collect()
}

fn text_member(text: &str, name: &str) -> serde_json::Result<Option<String>> {
    let Compound(object): Compound<HashMap<Cow<'_, str>, &RawValue>> = serde_json::from_str(text)?;
    let member = object
        .get(name)
        .map(|raw| serde_json::from_str::<String>(raw.get()));
    Ok(member.and_then(Result::ok).filter(|text| is_short(text)))
}

fn is_short(text: &str) -> bool {
    text.len() <= ATTRIBUTE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_get_keeps_good_values_beside_bad_ones() {
        let text = r#"[{"properties": [
            {"name": "a", "type": "string", "value": "x"},
            {"name": "b", "type": "int"},
            {"name": "n", "type": "any", "value": null},
            {"name": "c", "type": "int", "value": 1e999}]}]"#;
        let objects = decode_list_get(text).unwrap();
        let texts: Vec<_> = objects[0]
            .iter()
            .map(|v| v.text.as_ref().map(|t| t.as_ref().ok().cloned()))
            .collect();
        assert_eq!(texts[0], Some(Some("x".into())));
        assert_eq!(texts[1], None);
        assert_eq!(texts[3], Some(None));
    }

    #[test]
    fn wrong_shapes_are_errors() {
        let list = Request::list(&Path::root());
        for text in [
            "{}",
            "5",
            "[1]",
            r#"[{"name": 1, "type": "x"}]"#,
            r#"[{"name": "x"}]"#,
            "null",
        ] {
            assert!((list.decode)(text).is_err(), "{text}");
        }
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert!((Request::get(&Path::root(), "x").decode)(&deep).is_err());
    }
}
