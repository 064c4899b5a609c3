//! Why QEMU would not do something, and what that means.

use serde_json::Value;

use crate::qmp;
use crate::text::printable;

/// A request about an object that failed: what was asked, and what QEMU answered.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{asked}: {}", self.shown())]
pub struct Error {
    /// The request in a few words: `qom-get /machine graphics`.
    pub asked: String,
    pub source: qmp::Error,
    /// The parts of what was to be set, which this error does not show, the longest first.
    pub secrets: Vec<String>,
}

/// A value shorter than this is none, and stays where QEMU repeats it.
const MIN_SECRET: usize = 4;

/// What QEMU may repeat of a value that was to be set: its text, and each string and number in it.
pub(super) fn secrets(text: &str, value: &Value) -> Vec<String> {
    fn add(value: &Value, parts: &mut Vec<String>) {
        match value {
            Value::String(text) => parts.push(text.clone()),
            Value::Number(number) => parts.push(number.to_string()),
            Value::Array(values) => values.iter().for_each(|value| add(value, parts)),
            Value::Object(members) => members.values().for_each(|value| add(value, parts)),
            Value::Null | Value::Bool(_) => {}
        }
    }
    let mut parts = vec![text.to_owned()];
    add(value, &mut parts);
    parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
    parts
}

/// The meaning of an [`Error`], as far as QEMU's words tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No such object, property or link target.
    NotFound,
    NotReadable,
    NotWritable,
    /// It could be set earlier in the object's life, not now.
    TooLate,
    /// This QEMU does not know the command.
    NoCommand,
    /// Any other refusal.
    Refused,
    Timeout,
    /// The request is longer than can be sent.
    TooLong,
    Disconnected,
    /// It is about what an earlier connection had.
    Reconnected,
    Undecodable,
    NoMemory,
}

impl Error {
    pub(super) fn new(asked: String, source: qmp::Error) -> Error {
        Error {
            asked,
            source,
            secrets: Vec::new(),
        }
    }

    /// Classes the error. QEMU gives most of its errors the class `GenericError`, so its words
    /// decide; the texts are those of QEMU 4.2 to 11.1.
    pub fn reason(&self) -> Reason {
        match &self.source {
            qmp::Error::Timeout(_) | qmp::Error::Stalled => Reason::Timeout,
            qmp::Error::Away(why) if why.is_held() => Reason::Timeout,
            qmp::Error::Away(_) => Reason::Disconnected,
            qmp::Error::TooLong(..) => Reason::TooLong,
            // The reply that was waited for may be the very line that is no QMP.
            qmp::Error::Closed(why) if !why.is_orderly() => Reason::Undecodable,
            qmp::Error::Closed(_) | qmp::Error::Unsent(_) => Reason::Disconnected,
            qmp::Error::Reconnected => Reason::Reconnected,
            qmp::Error::Undecodable(_) => Reason::Undecodable,
            qmp::Error::TooMuch => Reason::NoMemory,
            qmp::Error::Refused { class, desc } => match class.as_str() {
                "DeviceNotFound" => Reason::NotFound,
                "CommandNotFound" => Reason::NoCommand,
                _ => by_words(desc),
            },
        }
    }

    fn shown(&self) -> String {
        let qmp::Error::Refused { desc, .. } = &self.source else {
            return self.source.to_string();
        };
        let secrets = self.secrets.iter().filter(|secret| secret.len() >= MIN_SECRET);
        printable(&secrets.fold(desc.clone(), |desc, secret| desc.replace(secret.as_str(), "…")))
    }

    /// True when QEMU answered, and the answer was no.
    pub fn is_refusal(&self) -> bool {
        matches!(self.source, qmp::Error::Refused { .. })
    }

    /// QEMU's own words, if it said any; else what happened.
    pub fn words(&self) -> String {
        match &self.source {
            qmp::Error::Refused { desc, .. } => desc.clone(),
            other => other.to_string(),
        }
    }
}

fn by_words(desc: &str) -> Reason {
    const TOO_LATE: [&str; 8] = [
        "after it was realized",
        "can no longer be",
        "cannot change ",
        "Cannot change ",
        "cannot be changed",
        "can't be changed",
        "Cannot set properties after",
        "cannot be set after",
    ];
    if desc.starts_with("Property '") && desc.ends_with("' not found") {
        Reason::NotFound
    } else if desc.ends_with(" is not readable") {
        Reason::NotReadable
    } else if desc.ends_with(" is not writable") || desc.starts_with("Insufficient permission") {
        // The latter is how QEMU before 5.2 said both.
        Reason::NotWritable
    } else if TOO_LATE.iter().any(|words| desc.contains(words)) {
        Reason::TooLate
    } else {
        Reason::Refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reasons_by_qemus_words() {
        let reason = |class: &str, desc: &str| {
            Error {
                asked: String::new(),
                source: qmp::Error::Refused {
                    class: class.into(),
                    desc: desc.into(),
                },
                secrets: Vec::new(),
            }
            .reason()
        };
        for (desc, want) in [
            ("Property 'pc-q35-7.2-machine.nope' not found", Reason::NotFound),
            ("Property 'T.x' is not readable", Reason::NotReadable),
            ("Property 'T.x' is not writable", Reason::NotWritable),
            (
                "Insufficient permission to perform this operation",
                Reason::NotWritable,
            ),
            (
                "Attempt to set property 'addr' on device 'x' (type 'qemu-xhci') after it was realized",
                Reason::TooLate,
            ),
            ("Property 'chardev' can no longer be set", Reason::TooLate),
            (
                "cannot change property 'share' of memory-backend-ram.",
                Reason::TooLate,
            ),
            ("Parameter 'acpi' does not accept value 'bogus'", Reason::Refused),
            ("No crash occurred", Reason::Refused),
        ] {
            assert_eq!(reason("GenericError", desc), want, "{desc}");
        }
        assert_eq!(
            reason("DeviceNotFound", "Device '/x' not found"),
            Reason::NotFound
        );
        let refused = Error {
            asked: "qom-set /a p".into(),
            source: qmp::Error::Refused {
                class: String::new(),
                desc: "Parameter 'p' does not accept value 's3cr\net', nor inner, nor 12345".into(),
            },
            secrets: secrets("s3cr\net", &json!({ "a": ["inner", 12345, true] })),
        };
        assert_eq!(
            refused.to_string(),
            "qom-set /a p: Parameter 'p' does not accept value '…', nor …, nor …"
        );
        assert!(refused.words().contains("s3cr"));
        assert_eq!(
            reason("CommandNotFound", "The command x has not been found"),
            Reason::NoCommand
        );
    }
}
