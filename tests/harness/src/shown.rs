//! What a mount is to show, worked out anew from docs/semantics.md: this must not be the code that it checks.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::child::Errno;
use crate::truth::{Object, QmpError, Truth};

/// What QEMU says of one property, as a file is to show it.
pub type Shown = Result<Vec<u8>, Errno>;

/// A value as text: strings raw, objects and lists as one line of sorted JSON, without the newline.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => one_line(other),
    }
}

fn one_line(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(one_line).collect::<Vec<_>>().join(",")),
        Value::Object(members) => {
            let sorted: BTreeMap<&String, &Value> = members.iter().collect();
            let member = |(key, value): (&&String, &&Value)| {
                format!("{}:{}", Value::from(key.as_str()), one_line(value))
            };
            format!("{{{}}}", sorted.iter().map(member).collect::<Vec<_>>().join(","))
        }
        Value::Number(number) if number.is_u64() => number.as_u64().unwrap_or_default().to_string(),
        Value::Number(number) if number.is_i64() => number.as_i64().unwrap_or_default().to_string(),
        other => other.to_string(),
    }
}

/// What reading a property is to give: QEMU's value or the errno for its refusal.
#[track_caller]
pub fn truth_of(truth: &Truth, path: &str, name: &str) -> Shown {
    match truth.get(path, name) {
        Ok(value) => Ok(format!("{}\n", text(&value)).into_bytes()),
        Err(QmpError { class, .. }) if class == "DeviceNotFound" => Err(libc::ENOENT),
        Err(QmpError { desc, .. }) if desc.ends_with("not found") => Err(libc::ENOENT),
        Err(QmpError { desc, .. }) if desc.ends_with("is not readable") => Err(libc::EACCES),
        Err(_) => Err(libc::EIO),
    }
}

/// The plain properties of all objects: object and name.
pub fn values(objects: &[Object]) -> Vec<(&str, &str)> {
    let mut values = Vec::new();
    for Object { path, props } in objects {
        let plain = props.iter().filter(|prop| prop.is_value());
        values.extend(plain.map(|prop| (path.as_str(), prop.name.as_str())));
    }
    values
}

/// The text of a link: `..` for every component of the link's own object, then the target from the root.
pub fn link_text(path: &str, name: &str, target: &str) -> String {
    if target.is_empty() {
        return format!("unset:[{name}]");
    }
    let up = path.split('/').filter(|part| !part.is_empty()).map(|_| "..");
    up.chain(target.split('/').filter(|part| !part.is_empty()))
        .collect::<Vec<_>>()
        .join("/")
}
