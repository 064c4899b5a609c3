//! A scripted QMP server, which does what a good QEMU never does.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::proc::wait_until;
use crate::server::{Server, Splitter, State};

/// What QEMU says first: the last one without `qom-list-get`, which nobody tries with it.
pub const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}"#;

/// The same of the first one that has it.
pub const GREETING_NEW: &str = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 10}, "package": ""}, "capabilities": []}}"#;

/// The same of libvirt's `virt-qemu-qmp-proxy`: the version is that of the host's QEMU, and the domain has another.
pub const GREETING_PROXY: &str = r#"{"QMP": {"version": {"qemu": {"major": 10, "minor": 1, "micro": 3}, "package": "qemu-10.1.3"}, "capabilities": ["oob"]}}"#;

/// What to do with a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// Reply with a value.
    Return(Value),
    /// Reply with a value in JSON, or in something like it, which is sent as it is.
    ReturnRaw(String),
    /// Reply with an error: its class and its text.
    Error(String, String),
    /// Send bytes instead of a reply; they want a newline at their end.
    Raw(Vec<u8>),
    /// Send nothing.
    Silence,
    /// Close the connection.
    Close,
    /// Wait, while all later requests wait too, then act.
    Delay(Duration, Box<Action>),
    /// Act several times.
    Many(Vec<Action>),
}

impl Action {
    /// Reply with an error.
    pub fn error(class: &str, desc: impl Into<String>) -> Action {
        Action::Error(class.to_owned(), desc.into())
    }

    /// Send an event, then act.
    pub fn after_event(event: &Value, action: Action) -> Action {
        Action::Many(vec![Action::Raw(format!("{event}\r\n").into_bytes()), action])
    }
}

/// A QMP server on a unix socket that answers as a function says. It serves one client after another.
pub struct Scripted {
    server: Server,
    shared: Arc<Shared>,
    _dir: Option<TempDir>, // after the server, which listens in it
}

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<(String, Value)>>,
    one_at_a_time: bool,
    faults: Mutex<Vec<String>>,
    client: Mutex<Option<UnixStream>>, // locked while a message is sent
}

impl Scripted {
    /// Starts one in a folder of its own. `handler` gets the command and its arguments; the greeting and
    /// `qmp_capabilities` are answered without it.
    #[track_caller]
    pub fn start(handler: impl FnMut(&str, &Value) -> Action + Send + 'static) -> Scripted {
        Scripted::start_as(GREETING, handler)
    }

    /// The same with a greeting, by which the mount knows what to expect.
    #[track_caller]
    pub fn start_as(
        greeting: &str,
        handler: impl FnMut(&str, &Value) -> Action + Send + 'static,
    ) -> Scripted {
        let dir = tempfile::tempdir().expect("make a folder for the scripted server");
        let mut scripted = Scripted::greet_at(&dir.path().join("script.sock"), greeting, handler);
        scripted._dir = Some(dir);
        scripted
    }

    /// Starts one at a path.
    #[track_caller]
    pub fn start_at(path: &Path, handler: impl FnMut(&str, &Value) -> Action + Send + 'static) -> Scripted {
        Scripted::greet_at(path, GREETING, handler)
    }

    #[track_caller]
    fn greet_at(
        path: &Path,
        greeting: &str,
        mut handler: impl FnMut(&str, &Value) -> Action + Send + 'static,
    ) -> Scripted {
        let greeting = format!("{greeting}\r\n").into_bytes();
        Scripted::start_raw(path, greeting, move |command, args| match command {
            "qmp_capabilities" => Action::Return(json!({})),
            _ => handler(command, args),
        })
    }

    /// Starts one that sends these bytes as its greeting and leaves `qmp_capabilities` to the handler too.
    #[track_caller]
    pub fn start_raw(
        path: &Path,
        greeting: Vec<u8>,
        handler: impl FnMut(&str, &Value) -> Action + Send + 'static,
    ) -> Scripted {
        Scripted::start_shared(path, greeting, Shared::default(), handler)
    }

    /// The same for one that does as `virt-qemu-qmp-proxy`: it reads 1,024 bytes at a time and takes all that it has
    /// for one JSON document, and so understands nothing any more once a request came before the last was answered.
    #[track_caller]
    pub fn start_one_at_a_time(
        path: &Path,
        greeting: Vec<u8>,
        handler: impl FnMut(&str, &Value) -> Action + Send + 'static,
    ) -> Scripted {
        let shared = Shared {
            one_at_a_time: true,
            ..Shared::default()
        };
        Scripted::start_shared(path, greeting, shared, handler)
    }

    #[track_caller]
    fn start_shared(
        path: &Path,
        greeting: Vec<u8>,
        shared: Shared,
        mut handler: impl FnMut(&str, &Value) -> Action + Send + 'static,
    ) -> Scripted {
        let shared = Arc::new(shared);
        let serving = shared.clone();
        let server = Server::start(path, move |stream, state| {
            serving.serve(stream, &greeting, state, &mut handler);
            *serving.client.lock() = None;
        });
        Scripted {
            server,
            shared,
            _dir: None,
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        self.server.path()
    }

    /// Every request so far, its command and its arguments, without `qmp_capabilities`.
    pub fn requests(&self) -> Vec<(String, Value)> {
        self.shared.requests.lock().clone()
    }

    /// How many requests so far executed that command.
    pub fn count(&self, command: &str) -> usize {
        self.shared
            .requests
            .lock()
            .iter()
            .filter(|(executed, _)| executed == command)
            .count()
    }

    /// Forgets all requests so far.
    pub fn reset(&self) {
        self.shared.requests.lock().clear();
    }

    /// What came to a server that takes one request at a time before it had answered the last one.
    pub fn faults(&self) -> Vec<String> {
        self.shared.faults.lock().clone()
    }

    /// How many clients have connected so far.
    pub fn clients(&self) -> usize {
        self.server.clients()
    }

    /// Sends bytes to the present client, such as an event; waits a moment for a client.
    #[track_caller]
    pub fn send_raw(&self, bytes: &[u8]) {
        let sent = wait_until(Duration::from_secs(5), || self.shared.send(bytes));
        assert!(sent, "the scripted server has no client to send to");
    }

    /// Closes the connection of the present client.
    pub fn drop_client(&self) {
        self.server.drop_client();
    }
}

impl Shared {
    fn serve(
        &self,
        mut stream: UnixStream,
        greeting: &[u8],
        state: &State,
        handler: &mut dyn FnMut(&str, &Value) -> Action,
    ) {
        let mut client = self.client.lock();
        *client = Some(stream.try_clone().expect("share the client's connection"));
        let greeted = stream.write_all(greeting);
        drop(client);
        if greeted.is_err() {
            return;
        }
        let mut splitter = Splitter::default();
        let mut buffer = vec![0; if self.one_at_a_time { 1024 } else { 64 * 1024 }];
        let mut owed = false;
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            let messages = splitter.push(&buffer[..length]);
            if owed || (!messages.is_empty() && (messages.len() > 1 || !splitter.is_between())) {
                self.fault(&buffer[..length]);
            }
            if !self.faults.lock().is_empty() {
                continue; // it never parses again
            }
            for message in messages {
                let request: Value = serde_json::from_slice(&message).unwrap_or_default();
                let action = match request["execute"].as_str() {
                    Some(command) => {
                        if command != "qmp_capabilities" {
                            self.requests
                                .lock()
                                .push((command.to_owned(), request["arguments"].clone()));
                        }
                        handler(command, &request["arguments"])
                    }
                    None => {
                        let text = String::from_utf8_lossy(&message).into_owned();
                        self.requests
                            .lock()
                            .push(("<not a request>".to_owned(), text.into()));
                        Action::error("GenericError", "JSON parse error, expecting value")
                    }
                };
                owed = self.one_at_a_time && matches!(action, Action::Silence);
                if !self.act(action, request.get("id"), state) {
                    stream.shutdown(Shutdown::Both).ok(); // fails only if the client has gone
                    return;
                }
            }
        }
    }

    /// False when the connection is to be closed.
    fn act(&self, action: Action, id: Option<&Value>, state: &State) -> bool {
        if self.one_at_a_time && !matches!(action, Action::Delay(..)) {
            self.expect_nothing();
        }
        let tag = id.map(|id| format!(r#", "id": {id}"#)).unwrap_or_default();
        let reply = |key: &str, body: &str| self.send(format!("{{\"{key}\": {body}{tag}}}\r\n").as_bytes());
        match action {
            Action::Return(value) => reply("return", &value.to_string()),
            Action::ReturnRaw(text) => reply("return", &text),
            Action::Error(class, desc) => {
                reply("error", &json!({ "class": class, "desc": desc }).to_string())
            }
            Action::Raw(bytes) => self.send(&bytes),
            Action::Silence => true,
            Action::Close => false,
            Action::Delay(time, action) => state.pause(time) && self.act(*action, id, state),
            Action::Many(actions) => actions.into_iter().all(|action| self.act(action, id, state)),
        }
    }

    fn fault(&self, bytes: &[u8]) {
        if self.one_at_a_time {
            self.faults
                .lock()
                .push(String::from_utf8_lossy(bytes).into_owned());
        }
    }

    /// Before a reply: nothing may have come since the request.
    fn expect_nothing(&self) {
        let client = self.client.lock();
        let Some(stream) = client.as_ref() else { return };
        let mut early = [0; 256];
        let (buffer, flags) = (early.as_mut_ptr().cast(), libc::MSG_PEEK | libc::MSG_DONTWAIT);
        // SAFETY: the buffer is valid for its length.
        let length = unsafe { libc::recv(stream.as_raw_fd(), buffer, early.len(), flags) };
        if let Ok(length @ 1..) = usize::try_from(length) {
            self.fault(&early[..length]);
        }
    }

    fn send(&self, bytes: &[u8]) -> bool {
        let client = self.client.lock();
        client
            .as_ref()
            .is_some_and(|mut stream| stream.write_all(bytes).is_ok())
    }
}
