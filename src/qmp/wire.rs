//! QMP on the wire: one JSON document per line each way.

use std::borrow::Cow;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::compound::Compound;
use super::error::Error;
use crate::limits::WORDS_BYTES;
use crate::text::printable;

/// What the monitor says of its QEMU: when a client connects, and on `query-version`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Greeting {
    #[serde(rename = "qemu")]
    pub version: Version,
    /// The distribution's name of the build, often empty.
    #[serde(default)]
    pub package: String,
}

/// The version of a QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub micro: u32,
}

impl Greeting {
    /// Whether libvirt's `virt-qemu-qmp-proxy` says it: no build of QEMU has just its version for a name.
    pub(super) fn is_libvirts(&self) -> bool {
        self.package == format!("qemu-{}", self.version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl fmt::Display for Greeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QEMU {}", self.version)?;
        if !self.package.is_empty() {
            write!(f, " ({})", printable(&self.package))?;
        }
        Ok(())
    }
}

/// Something QEMU announces unasked.
#[derive(Debug, Clone)]
pub struct Event {
    pub name: String,
    /// The object that it is about, if it names one.
    pub path: Option<String>,
}

impl Event {
    /// The path of the device that was unplugged, if it says that.
    pub fn deleted_device(&self) -> Option<&str> {
        let path = self.path.as_deref();
        path.filter(|_| self.name == "DEVICE_DELETED")
    }
}

/// One line from a monitor.
#[derive(Debug)]
pub enum Message<'a> {
    Greeting(Greeting),
    /// The answer to the oldest request that has none.
    Reply(Result<&'a RawValue, Error>),
    Event(Event),
    /// An event whose content cannot be decoded. Nothing waits for it.
    BadEvent(String),
    /// Neither greeting, reply nor event.
    Garbage(String),
}

impl Message<'_> {
    /// What it is, in a few words.
    pub(super) fn kind(&self) -> String {
        match self {
            Message::Greeting(_) => "a greeting".into(),
            Message::Reply(_) => "a reply".into(),
            Message::Event(_) | Message::BadEvent(_) => "an event".into(),
            Message::Garbage(what) => what.clone(),
        }
    }
}

/// The shortest text of a request: QEMU reads its monitor byte by byte, so no id, no blanks
/// and no newline.
pub fn request(command: &str, arguments: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    struct Request<'a, A> {
        execute: &'a str,
        arguments: &'a A,
    }
    // Strings, numbers and maps with string keys always serialize.
    serde_json::to_vec(&Request {
        execute: command,
        arguments,
    })
    .unwrap_or_default()
}

/// The same for a command without arguments.
pub fn command(name: &str) -> Vec<u8> {
    format!(r#"{{"execute":"{name}"}}"#).into_bytes()
}

/// A request as the log shows it: without the values in it, which may be secrets.
pub(super) fn loggable(request: &[u8]) -> String {
    const SHOWN: [&str; 4] = ["path", "paths", "property", "typename"];
    #[derive(Deserialize)]
    struct Request {
        execute: String,
        #[serde(default)]
        arguments: serde_json::Map<String, Value>,
    }
    let Ok(Request {
        execute,
        mut arguments,
    }) = serde_json::from_slice(request)
    else {
        return String::new();
    };
    for (name, argument) in &mut arguments {
        if !SHOWN.contains(&name.as_str()) {
            *argument = "…".into();
        }
    }
    printable(&format!("{execute} {}", Value::Object(arguments)))
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "return", borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(rename = "QMP", borrow, default)]
    greeting: Option<&'a RawValue>,
}

/// Keeps `null` apart from an absent member: `{"return": null}` is a reply.
fn present<'de, D: Deserializer<'de>>(d: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(d).map(Some)
}

/// Reads one line (without its newline). Never fails: what cannot be read is classed by what
/// it was meant to be, so that one bad reply costs one request and not the connection.
pub fn decode(line: &[u8]) -> Message<'_> {
    let parsed = std::str::from_utf8(line)
        .map_err(serde_json::Error::custom)
        .and_then(serde_json::from_str::<Line<'_>>);
    let line_value = match parsed {
        Ok(v) => v,
        Err(e) => return classify(line, &e.to_string()),
    };
    if let Some(greeting) = line_value.greeting {
        return match parse_greeting(greeting) {
            Ok(g) => Message::Greeting(g),
            Err(e) => Message::Garbage(format!("greeting: {e}")),
        };
    }
    match (line_value.result, line_value.error, line_value.event) {
        (Some(v), None, None) => Message::Reply(Ok(v)),
        (None, Some(e), None) => Message::Reply(Err(parse_error(e))),
        (None, None, Some(name)) => Message::Event(Event {
            name: name.into_owned(),
            path: line_value.data.and_then(parse_path),
        }),
        _ => Message::Garbage(excerpt(line)),
    }
}

/// Reads an object of a few words.
pub(super) fn words<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> serde_json::Result<T> {
    if raw.get().len() > WORDS_BYTES {
        return Err(serde_json::Error::custom("too long"));
    }
    let Compound(object) = serde_json::from_str(raw.get())?;
    Ok(object)
}

fn parse_path(data: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Data {
        path: String,
    }
    words::<Data>(data).ok().map(|data| data.path)
}

fn parse_greeting(raw: &RawValue) -> serde_json::Result<Greeting> {
    #[derive(Deserialize)]
    struct Qmp {
        version: Greeting,
    }
    words::<Qmp>(raw).map(|qmp| qmp.version)
}

fn parse_error(raw: &RawValue) -> Error {
    #[derive(Deserialize)]
    struct Refused {
        class: String,
        desc: String,
    }
    match words(raw) {
        Ok(Refused { class, desc }) => Error::Refused { class, desc },
        Err(e) => Error::Undecodable(format!("error reply: {e}")),
    }
}

/// What a line that is not valid JSON was meant to be, judged by its first key: QEMU starts
/// replies with `return` or `error` and events with `timestamp`.
fn classify(line: &[u8], why: &str) -> Message<'static> {
    let text = line.trim_ascii_start();
    let key = text
        .strip_prefix(b"{")
        .map(<[u8]>::trim_ascii_start)
        .and_then(|t| t.strip_prefix(b"\""))
        .and_then(|t| t.split(|b| *b == b'"').next());
    // A line that breaks off is a peer that broke off, whatever it began to say.
    let complete = text.trim_ascii_end().ends_with(b"}");
    match key {
        Some(b"return" | b"error") if complete => Message::Reply(Err(Error::Undecodable(why.into()))),
        Some(b"timestamp" | b"event" | b"data") if complete => Message::BadEvent(why.into()),
        _ => Message::Garbage(format!("{why}: {}", excerpt(line))),
    }
}

fn excerpt(line: &[u8]) -> String {
    const MAX_EXCERPT: usize = 80;
    let cut = &line[..line.len().min(MAX_EXCERPT)];
    let dots = if line.len() > MAX_EXCERPT { "…" } else { "" };
    format!("{}{dots}", String::from_utf8_lossy(cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(line: &str) -> Result<String, Error> {
        match decode(line.as_bytes()) {
            Message::Reply(r) => r.map(|v| v.get().to_owned()),
            other => panic!("not a reply: {other:?}"),
        }
    }

    #[test]
    fn request_is_shortest() {
        let args = serde_json::json!({"path": "/machine"});
        assert_eq!(
            request("qom-list", &args),
            br#"{"execute":"qom-list","arguments":{"path":"/machine"}}"#
        );
    }

    #[test]
    fn no_value_is_logged() {
        let args =
            serde_json::json!({"path": "/a", "property": "p", "value": {"path": "secret"}, "id": "secret"});
        let shown = loggable(&request("qom-set", &args));
        assert_eq!(
            shown,
            r#"qom-set {"id":"…","path":"/a","property":"p","value":"…"}"#
        );
        assert_eq!(loggable(&command("query-name")), "query-name {}");
    }

    #[test]
    fn replies() {
        assert_eq!(reply(r#"{"return": {"a": 1}}"#).unwrap(), r#"{"a": 1}"#);
        assert_eq!(reply(r#"{"return": null}"#).unwrap(), "null");
        let e = reply(r#"{"error": {"class": "DeviceNotFound", "desc": "Device '/x' not found"}}"#);
        assert!(
            matches!(e, Err(Error::Refused { class, desc }) if class == "DeviceNotFound" && desc == "Device '/x' not found")
        );
    }

    #[test]
    fn bad_reply_is_still_a_reply() {
        for line in [
            r#"{"return": "\q"}"#,
            r#"{"return": [1,}"#,
            r#"{"error": 5}"#,
            r#"{"error": {"class": 1}}"#,
            r#"{"return": 1, "return": 2}"#,
        ] {
            assert!(matches!(reply(line), Err(Error::Undecodable(_))), "{line}");
        }
        let bytes = b"{\"return\": \"\xff\"}";
        assert!(matches!(
            decode(bytes),
            Message::Reply(Err(Error::Undecodable(_)))
        ));
    }

    #[test]
    fn deep_nesting_does_not_overflow() {
        let deep = format!(r#"{{"return": {}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        // Taken as raw text here; the layer above refuses to decode it.
        assert!(reply(&deep).is_ok());
    }

    #[test]
    fn events_and_garbage() {
        let e =
            decode(br#"{"timestamp": {"seconds": 1}, "event": "DEVICE_DELETED", "data": {"path": "/x"}}"#);
        assert!(
            matches!(e, Message::Event(e) if e.name == "DEVICE_DELETED" && e.path.as_deref() == Some("/x"))
        );
        for odd in [r#""#, r#","data": 5"#, r#","data": {"path": 5}"#] {
            let line = format!(r#"{{"event": "STOP"{odd}}}"#);
            let e = decode(line.as_bytes());
            assert!(matches!(e, Message::Event(e) if e.path.is_none()), "{line}");
        }
        let bad = decode(br#"{"timestamp": {"seconds": 1}, "event": "X", "data": "\q"}"#);
        assert!(matches!(bad, Message::BadEvent(_)));
        for line in [
            "",
            "hello",
            "{}",
            "[]",
            "42",
            r#"{"return"#,
            r#"{"return": 1, "event": "X"}"#,
        ] {
            assert!(matches!(decode(line.as_bytes()), Message::Garbage(_)), "{line}");
        }
    }

    #[test]
    fn greeting() {
        let line = br#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#;
        match decode(line) {
            Message::Greeting(g) => {
                assert_eq!(g.to_string(), "QEMU 7.2.22 (Debian)");
                assert!(!g.is_libvirts());
            }
            other => panic!("{other:?}"),
        }
        let proxys = br#"{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "qemu-7.2.22"}, "capabilities": ["oob"]}}"#;
        assert!(matches!(decode(proxys), Message::Greeting(g) if g.is_libvirts()));
        assert!(matches!(decode(br#"{"QMP": 1}"#), Message::Garbage(_)));
    }
}
