//! What the servers of the tests share: a unix socket that serves one client after another and ends with its owner.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::proc::wait_until;

/// A server on a unix socket. Dropped, it closes all connections and ends.
pub struct Server {
    path: PathBuf,
    state: Arc<State>,
    listener: UnixListener,
    thread: Option<JoinHandle<()>>,
}

/// What the server's thread shares with its owner.
#[derive(Default)]
pub struct State {
    connections: Mutex<Connections>,
    ended: Condvar,
}

#[derive(Default)]
struct Connections {
    open: Vec<UnixStream>,
    clients: usize,
    ending: bool,
}

impl Server {
    /// Listens at a path, replacing a socket left there, and calls `serve` for each client in turn.
    #[track_caller]
    pub fn start(path: &Path, mut serve: impl FnMut(UnixStream, &State) + Send + 'static) -> Server {
        if let Err(error) = std::fs::remove_file(path) {
            assert!(
                error.kind() == io::ErrorKind::NotFound,
                "remove {}: {error}",
                path.display()
            );
        }
        let listener =
            UnixListener::bind(path).unwrap_or_else(|error| panic!("bind {}: {error}", path.display()));
        let state = Arc::new(State::default());
        let (shared, accepting) = (state.clone(), listener.try_clone().expect("share the listener"));
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let _closing = Closing(&shared); // also when `serve` panics
                shared.connections.lock().clients += 1;
                shared.track(&stream);
                serve(stream, &shared);
            }
        });
        Server {
            path: path.to_owned(),
            state,
            listener,
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many clients have connected so far.
    pub fn clients(&self) -> usize {
        self.state.connections.lock().clients
    }

    /// Closes the connection of the present client.
    pub fn drop_client(&self) {
        self.state.close();
    }
}

impl State {
    /// Makes a connection end with the server, or with its present client.
    pub fn track(&self, stream: &UnixStream) {
        let mut connections = self.connections.lock();
        if connections.ending {
            stream.shutdown(Shutdown::Both).ok(); // fails only if the other side has gone
        }
        connections
            .open
            .push(stream.try_clone().expect("share a connection"));
    }

    /// Sleeps; false, and at once, when the server ends meanwhile.
    pub fn pause(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut connections = self.connections.lock();
        while !connections.ending {
            if self.ended.wait_until(&mut connections, end).timed_out() {
                return !connections.ending;
            }
        }
        false
    }

    fn close(&self) {
        for stream in self.connections.lock().open.drain(..) {
            stream.shutdown(Shutdown::Both).ok(); // fails only if the other side has gone
        }
    }
}

struct Closing<'a>(&'a State);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.connections.lock().ending = true;
        self.state.ended.notify_all();
        // SAFETY: a plain system call on a descriptor of ours; it wakes accept.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        self.state.close();
        let Some(thread) = self.thread.take() else { return };
        if !wait_until(Duration::from_secs(5), || thread.is_finished()) {
            eprintln!("the server at {} does not end", self.path.display());
        } else if thread.join().is_err() && !thread::panicking() {
            panic!("the server at {} panicked", self.path.display());
        }
    }
}

/// Cuts a stream of JSON messages, which come without anything between them, in linear time.
#[derive(Default)]
pub struct Splitter {
    partial: Vec<u8>,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Splitter {
    /// Whether no message has begun that is not complete.
    pub fn is_between(&self) -> bool {
        self.partial.is_empty()
    }

    /// Takes more bytes; returns the messages completed by them, without the white space between messages.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut complete = Vec::new();
        for &byte in bytes {
            if self.partial.is_empty() && byte.is_ascii_whitespace() {
                continue;
            }
            self.partial.push(byte);
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        complete.push(std::mem::take(&mut self.partial));
                    }
                }
                _ => {}
            }
        }
        complete
    }
}
