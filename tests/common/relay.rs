//! A relay between mount and QEMU, which counts what the mount asks.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use super::server::{Server, Splitter, State};

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
    in_flight: usize,
    most_in_flight: usize,
    delay: Duration,
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
            thread::scope(|scope| {
                scope.spawn(|| {
                    replies(&server, &client, &shared);
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

    /// How many requests without a reply there were at once, at most. It counts lines, so events spoil it.
    pub fn most_in_flight(&self) -> usize {
        self.record.lock().most_in_flight
    }

    /// Forgets all requests and bytes so far.
    pub fn reset(&self) {
        let mut record = self.record.lock();
        record.requests.clear();
        (record.sent, record.received) = (0, 0);
        record.most_in_flight = record.in_flight;
    }

    /// From now on, holds each request back for a while before it is passed on.
    pub fn set_delay(&self, delay: Duration) {
        self.record.lock().delay = delay;
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
            record.in_flight += messages.len();
            record.most_in_flight = record.most_in_flight.max(record.in_flight);
            record.requests.extend(
                messages
                    .iter()
                    .map(|message| String::from_utf8_lossy(message).into_owned()),
            );
            record.delay
        };
        for message in messages {
            if !delay.is_zero() && !state.pause(delay) || server.write_all(&message).is_err() {
                return;
            }
        }
    }
}

fn replies(mut server: &UnixStream, mut client: &UnixStream, record: &Mutex<Record>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = server.read(&mut buffer) {
        let replies = buffer[..length].iter().filter(|byte| **byte == b'\n').count();
        {
            let mut record = record.lock();
            record.received += length as u64;
            record.in_flight = record.in_flight.saturating_sub(replies); // the greeting answers nothing
        }
        if client.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}
