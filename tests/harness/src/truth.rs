//! A small QMP client of the tests' own, which asks QEMU for the truth. It shares no code with what it checks.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

/// How long QEMU may take to answer.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// QEMU's own words for a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QmpError {
    /// Such as `GenericError`.
    pub class: String,
    /// The text.
    pub desc: String,
}

/// One property, as `qom-list` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prop {
    /// Its name.
    pub name: String,
    /// Its declared type, such as `bool`, `child<bus>` or `link<memory-region>`.
    pub kind: String,
}

impl Prop {
    /// Whether it is a child object.
    pub fn is_child(&self) -> bool {
        self.kind.starts_with("child<")
    }

    /// Whether it is neither: what a file shows.
    pub fn is_value(&self) -> bool {
        !self.is_child() && !self.is_link()
    }

    /// Whether it is a link to an object.
    pub fn is_link(&self) -> bool {
        self.kind.starts_with("link<")
    }
}

/// One object of the tree.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its canonical path.
    pub path: String,
    /// Its properties in QEMU's order.
    pub props: Vec<Prop>,
}

/// A connection to a QMP socket. Methods panic when QEMU does not answer in time.
pub struct Truth(Mutex<Connection>);

struct Connection {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
    events: VecDeque<Value>,
}

impl Truth {
    /// Connects, reads the greeting and leaves the capabilities negotiation.
    pub fn connect(socket: &Path) -> io::Result<Truth> {
        let stream = BufReader::new(UnixStream::connect(socket)?);
        let mut connection = Connection {
            stream,
            line: Vec::new(),
            events: VecDeque::new(),
        };
        let greeting = connection.read(Instant::now() + DEADLINE)?;
        assert!(greeting.get("QMP").is_some(), "not a QMP greeting: {greeting}");
        let truth = Truth(Mutex::new(connection));
        truth
            .try_execute("qmp_capabilities", Value::Null)?
            .expect("leave QMP's capabilities negotiation");
        Ok(truth)
    }

    /// Executes a command; `args` may be null.
    #[track_caller]
    pub fn execute(&self, command: &str, args: Value) -> Result<Value, QmpError> {
        self.try_execute(command, args)
            .unwrap_or_else(|error| panic!("QEMU did not answer {command}: {error}"))
    }

    /// The same; an error of the connection is the outer one.
    pub fn try_execute(&self, command: &str, args: Value) -> io::Result<Result<Value, QmpError>> {
        let mut request = json!({ "execute": command });
        if !args.is_null() {
            request["arguments"] = args;
        }
        let mut connection = self.0.lock();
        connection
            .stream
            .get_mut()
            .write_all(request.to_string().as_bytes())?;
        let end = Instant::now() + DEADLINE;
        loop {
            let mut message = connection.read(end)?;
            if message.get("event").is_some() {
                connection.events.push_back(message);
            } else if let Some(value) = message.get_mut("return") {
                return Ok(Ok(value.take()));
            } else {
                let part = |key: &str| message["error"][key].as_str().unwrap_or_default().to_owned();
                return Ok(Err(QmpError {
                    class: part("class"),
                    desc: part("desc"),
                }));
            }
        }
    }

    /// The properties of an object.
    #[track_caller]
    pub fn list(&self, path: &str) -> Vec<Prop> {
        self.try_list(path)
            .unwrap_or_else(|error| panic!("qom-list {path}: {error:?}"))
    }

    /// The properties of an object that may not exist.
    #[track_caller]
    pub fn try_list(&self, path: &str) -> Result<Vec<Prop>, QmpError> {
        let answer = self.execute("qom-list", json!({ "path": path }))?;
        let entries = answer
            .as_array()
            .unwrap_or_else(|| panic!("qom-list {path}: {answer}"));
        let part = |entry: &Value, key: &str| entry[key].as_str().map(str::to_owned);
        let prop = |entry| {
            Some(Prop {
                name: part(entry, "name")?,
                kind: part(entry, "type")?,
            })
        };
        Ok(entries
            .iter()
            .map(|entry| prop(entry).unwrap_or_else(|| panic!("qom-list {path}: {entry}")))
            .collect())
    }

    /// The value of a property.
    #[track_caller]
    pub fn get(&self, path: &str, prop: &str) -> Result<Value, QmpError> {
        self.execute("qom-get", json!({ "path": path, "property": prop }))
    }

    /// Sets a property.
    #[track_caller]
    pub fn set(&self, path: &str, prop: &str, value: Value) -> Result<(), QmpError> {
        self.execute(
            "qom-set",
            json!({ "path": path, "property": prop, "value": value }),
        )
        .map(|_| ())
    }

    /// Plugs a device in; `args` are those of `device_add`.
    #[track_caller]
    pub fn device_add(&self, args: Value) {
        let result = self.execute("device_add", args.clone());
        result.unwrap_or_else(|error| panic!("device_add {args}: {error:?}"));
    }

    /// Asks for a device to be unplugged; `DEVICE_DELETED` tells when it is gone.
    #[track_caller]
    pub fn device_del(&self, id: &str) {
        let result = self.execute("device_del", json!({ "id": id }));
        result.unwrap_or_else(|error| panic!("device_del {id}: {error:?}"));
    }

    /// Takes the oldest event of that name, waiting for it at most `limit`. Events met on the way are kept.
    #[track_caller]
    pub fn wait_event(&self, name: &str, limit: Duration) -> Value {
        let end = Instant::now() + limit;
        let mut connection = self.0.lock();
        loop {
            let met = connection.events.iter().position(|event| event["event"] == name);
            if let Some(event) = met.and_then(|index| connection.events.remove(index)) {
                return event;
            }
            let message = connection
                .read(end)
                .unwrap_or_else(|error| panic!("waiting for event {name}: {error}"));
            connection.events.push_back(message);
        }
    }

    /// The whole tree, by recursion from the root, each parent before its children.
    ///
    /// A child whose name holds a `/` is left out: no path leads to it.
    #[track_caller]
    pub fn walk(&self) -> Vec<Object> {
        let mut objects = Vec::new();
        let mut paths = vec!["/".to_owned()];
        while let Some(path) = paths.pop() {
            let props = self.list(&path);
            let children = props
                .iter()
                .rev()
                .filter(|prop| prop.is_child() && !prop.name.contains('/'));
            paths.extend(children.map(|child| join(&path, &child.name)));
            objects.push(Object { path, props });
        }
        objects
    }
}

/// The path of something below an object.
pub fn join(path: &str, name: &str) -> String {
    format!("{}/{name}", path.trim_end_matches('/'))
}

impl Connection {
    /// The next message.
    fn read(&mut self, end: Instant) -> io::Result<Value> {
        let left = end.saturating_duration_since(Instant::now());
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        self.stream.read_until(b'\n', &mut self.line)?; // what came before the deadline is kept
        if !self.line.ends_with(b"\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = std::mem::take(&mut self.line);
        serde_json::from_slice(&line)
            .map_err(|error| io::Error::other(format!("{error} in {}", String::from_utf8_lossy(&line))))
    }
}
