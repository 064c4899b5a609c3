//! A relay between mount and QEMU, which records what the mount asks, and what it asks before it has an answer.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use crate::server::{Server, Splitter, State};

/// A socket that passes everything on to another one. It serves one client at a time, as QEMU does.
pub struct Relay {
    server: Server,
    record: Arc<Mutex<Record>>,
}

#[derive(Default)]
struct Record {
    requests: Vec<String>,
    sent: u64,
    received: u64,
    /// Requests without a reply, oldest first: QEMU answers in order.
    in_flight: VecDeque<String>,
    most_in_flight: usize,
    overlapping: Vec<(String, String)>,
    delay: Duration,
    reply_delay: Duration,
}

impl Record {
    fn asked(&mut self, request: &[u8]) {
        let request = String::from_utf8_lossy(request).into_owned();
        let pairs = self
            .in_flight
            .iter()
            .map(|before| (before.clone(), request.clone()));
        self.overlapping.extend(pairs);
        self.in_flight.push_back(request.clone());
        self.most_in_flight = self.most_in_flight.max(self.in_flight.len());
        self.requests.push(request);
    }
}

impl Relay {
    /// Listens at `relay.sock` in a folder; each client gets a connection of its own to `upstream`.
    #[track_caller]
    pub fn start(dir: &Path, upstream: &Path) -> Relay {
        let record = Arc::new(Mutex::new(Record::default()));
        let (shared, upstream) = (record.clone(), upstream.to_owned());
        let server = Server::start(&dir.join("relay.sock"), move |client, state| {
            let Ok(server) = UnixStream::connect(&upstream) else {
                return;
            };
            state.track(&server);
            shared.lock().in_flight.clear(); // the client before may have left some
            thread::scope(|scope| {
                scope.spawn(|| {
                    replies(&server, &client, &shared, state);
                    client.shutdown(Shutdown::Both).ok(); // fails only if the client has gone
                });
                requests(&client, &server, &shared, state);
                server.shutdown(Shutdown::Both).ok(); // fails only if QEMU has gone
            });
        });
        Relay { server, record }
    }

    /// Where the mount connects.
    pub fn socket(&self) -> &Path {
        self.server.path()
    }

    /// Every request so far, as it was sent, `qmp_capabilities` included.
    pub fn requests(&self) -> Vec<String> {
        self.record.lock().requests.clone()
    }

    /// How many requests so far executed that command.
    pub fn count(&self, command: &str) -> usize {
        let executes = |request: &&String| {
            let request: Value = serde_json::from_str(request).unwrap_or_default();
            request["execute"] == command
        };
        self.record.lock().requests.iter().filter(executes).count()
    }

    /// How many bytes of requests and of replies have passed so far.
    pub fn bytes(&self) -> (u64, u64) {
        let record = self.record.lock();
        (record.sent, record.received)
    }

    /// How many requests without a reply there were at once, at most.
    pub fn most_in_flight(&self) -> usize {
        self.record.lock().most_in_flight
    }

    /// All pairs of requests so far of which the second was sent before the reply to the first was passed on.
    pub fn overlapping(&self) -> Vec<(String, String)> {
        self.record.lock().overlapping.clone()
    }

    /// Forgets all requests and bytes so far.
    pub fn reset(&self) {
        let mut record = self.record.lock();
        record.requests.clear();
        (record.sent, record.received) = (0, 0);
        record.overlapping.clear();
        record.most_in_flight = record.in_flight.len();
    }

    /// From now on, holds each request back for a while before it is passed on.
    pub fn set_delay(&self, delay: Duration) {
        self.record.lock().delay = delay;
    }

    /// From now on, holds each reply and event back for a while, as a slower QEMU would; requests pass meanwhile.
    pub fn set_reply_delay(&self, delay: Duration) {
        self.record.lock().reply_delay = delay;
    }

    /// How many clients have connected so far.
    pub fn clients(&self) -> usize {
        self.server.clients()
    }

    /// Closes the connection of the present client, as if QEMU had gone.
    pub fn drop_client(&self) {
        self.server.drop_client();
    }
}

/// Passes requests on, each when it is complete.
fn requests(mut client: &UnixStream, mut server: &UnixStream, record: &Mutex<Record>, state: &State) {
    let mut splitter = Splitter::default();
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = client.read(&mut buffer) {
        let messages = splitter.push(&buffer[..length]);
        let delay = {
            let mut record = record.lock(); // before anything is passed on: a reply in hand is a request recorded
            record.sent += length as u64;
            messages.iter().for_each(|message| record.asked(message));
            record.delay
        };
        for message in messages {
            if !delay.is_zero() && !state.pause(delay) || server.write_all(&message).is_err() {
                return;
            }
        }
    }
}

/// Passes on what QEMU says, line by line.
fn replies(server: &UnixStream, mut client: &UnixStream, record: &Mutex<Record>, state: &State) {
    let mut server = BufReader::with_capacity(64 * 1024, server);
    let mut line = Vec::new();
    while let Ok(length @ 1..) = server.read_until(b'\n', &mut line) {
        let delay = record.lock().reply_delay;
        if !delay.is_zero() && !state.pause(delay) {
            return;
        }
        {
            let mut record = record.lock(); // before it is passed on: what the client sends then is sent after it
            record.received += length as u64;
            if is_reply(&line) {
                record.in_flight.pop_front();
            }
        }
        if client.write_all(&line).is_err() {
            return;
        }
        line.clear();
    }
}

/// Whether a line answers a request, by its beginning: QEMU begins others with `{"QMP"` and `{"timestamp"`.
fn is_reply(line: &[u8]) -> bool {
    [br#"{"return""#.as_slice(), br#"{"error""#]
        .iter()
        .any(|start| line.starts_with(start))
}
