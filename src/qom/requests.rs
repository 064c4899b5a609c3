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

/// A list of properties.
type Properties<'a> = Compound<Vec<Compound<RawProperty<'a>>>>;

fn check_count(properties: usize) -> serde_json::Result<()> {
    if properties <= OBJECT_PROPERTIES {
        return Ok(());
    }
    Err(serde_json::Error::custom(format_args!(
        "{properties} properties in one object, at most {OBJECT_PROPERTIES} are taken"
    )))
}

impl Request<Vec<Property>> {
    /// The properties of an object.
    pub fn list(path: &Path) -> Self {
        Request {
            bytes: qmp::request("qom-list", &json!({ "path": path.as_str() })),
            asked: format!("qom-list {path}"),
            decode: |text| {
                let Compound(raw): Properties<'_> = serde_json::from_str(text)?;
                check_count(raw.len())?;
                Ok(raw.into_iter().map(|p| p.0.into()).collect())
            },
        }
    }
}

impl Request<String> {
    /// The value of a property, as text.
    pub fn get(path: &Path, property: &str) -> Self {
        Request {
            bytes: qmp::request("qom-get", &json!({ "path": path.as_str(), "property": property })),
            asked: format!("qom-get {path} {property}"),
            decode: to_text,
        }
    }
}

impl Request<()> {
    /// Sets a property.
    pub fn set(path: &Path, property: &str, value: &Value) -> Self {
        Request {
            bytes: qmp::request(
                "qom-set",
                &json!({ "path": path.as_str(), "property": property, "value": value }),
            ),
            asked: format!("qom-set {path} {property}"),
            decode: |_| Ok(()),
        }
    }
}

impl Request<Vec<Vec<Valued>>> {
    /// The properties of several objects with their values (QEMU 10.1 and later). One bad path
    /// fails the whole request.
    pub fn list_get(paths: &[Path]) -> Self {
        let names: Vec<&str> = paths.iter().map(Path::as_str).collect();
        Request {
            bytes: qmp::request("qom-list-get", &json!({ "paths": names })),
            asked: format!("qom-list-get {}", names.join(" ")),
            decode: decode_list_get,
        }
    }
}

fn decode_list_get(text: &str) -> serde_json::Result<Vec<Vec<Valued>>> {
    #[derive(Deserialize)]
    struct Object<'a> {
        #[serde(borrow)]
        properties: Properties<'a>,
    }
    let Compound(objects): Compound<Vec<Compound<Object<'_>>>> = serde_json::from_str(text)?;
    check_count(objects.iter().map(|o| o.0.properties.0.len()).sum())?;
    let valued = |Compound(p): Compound<RawProperty<'_>>| Valued {
        text: p.value.map(|raw| value_text(&p.name, raw)),
        property: p.into(),
    };
    let of_object = |o: Compound<Object<'_>>| o.0.properties.0.into_iter().map(valued).collect();
    Ok(objects.into_iter().map(of_object).collect())
}

/// One value of many: a bad one must not spoil the others.
fn value_text(name: &str, raw: &RawValue) -> Result<String, Error> {
    to_text(raw.get()).map_err(|e| Error {
        asked: format!("qom-list-get {name}"),
        source: qmp::Error::Undecodable(e.to_string()),
        secrets: Vec::new(),
    })
}

fn is_short(text: &str) -> bool {
    text.len() <= ATTRIBUTE_BYTES
}

impl Request<HashMap<String, Description>> {
    /// Descriptions and defaults of a type's properties, by name.
    pub fn describe(type_name: &str) -> Self {
        #[derive(Deserialize)]
        struct Info<'a> {
            name: String,
            description: Option<String>,
            #[serde(rename = "default-value", borrow)]
            default: Option<&'a RawValue>,
        }
        Request {
            bytes: qmp::request("qom-list-properties", &json!({ "typename": type_name })),
            asked: format!("qom-list-properties {type_name}"),
            decode: |text| {
                let Compound(infos): Compound<Vec<Compound<Info<'_>>>> = serde_json::from_str(text)?;
                check_count(infos.len())?;
                let entry = |Compound(info): Compound<Info<'_>>| {
                    let default = info.default.map(|raw| to_text(raw.get())).transpose()?;
                    let description = Description {
                        description: info.description.filter(|text| is_short(text)),
                        default: default.filter(|text| is_short(text)),
                    };
                    Ok((info.name, description))
                };
                infos.into_iter().map(entry).collect()
            },
        }
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

fn text_member(text: &str, name: &str) -> serde_json::Result<Option<String>> {
    let Compound(object): Compound<HashMap<Cow<'_, str>, &RawValue>> = serde_json::from_str(text)?;
    let member = object
        .get(name)
        .map(|raw| serde_json::from_str::<String>(raw.get()));
    Ok(member.and_then(Result::ok).filter(|text| is_short(text)))
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
