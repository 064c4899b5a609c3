//! A monitor that may come and go: the connection in force, and finding it again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::debug;
use parking_lot::{Condvar, Mutex};

use super::address::Address;
use super::connection::Connection;
use super::error::{Closed, ConnectError, Error};
use super::handshake::Incoming;
use super::lines::LineReader;
use super::pending::Pending;
use super::reader::read_all;
use super::wire::{Event, Greeting};

/// The first and the longest pause between two attempts to reconnect.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long a request waits for the attempt that it set off.
const ACCESS_WAITS: Duration = Duration::from_millis(500);

/// What happens at a monitor.
#[derive(Debug)]
pub enum MonitorEvent {
    /// QEMU announces something.
    Announced(Event),
    /// The connection is lost.
    Lost(Arc<Closed>),
    /// Connected again, perhaps to another QEMU.
    Back(Greeting),
}

/// Hears what happens, in its order: before any later reply is given out, since that order tells what an event
/// is about, and what a reply of another QEMU's is. Must not wait for a reply.
pub type EventSink = Box<dyn Fn(MonitorEvent) + Send + Sync>;

/// The monitor at one address, connected or not, until [`Monitor::hang_up`].
pub struct Monitor {
    address: Address,
    timeout: Duration,
    pipelining: bool,
    reconnect: bool,
    sink: EventSink,
    current: Mutex<Current>,
    /// Signalled when the connection is lost, when an attempt to connect is wanted, and when one ended.
    changed: Condvar,
}

struct Current {
    connection: Arc<Connection>,
    /// Since when a request waits for the next attempt to connect.
    wanted_since: Option<Instant>,
    hung_up: bool,
}

impl Monitor {
    /// Connects. `timeout` bounds this and every request; without `pipelining` there is one at a time. `sink` hears
    /// what happens; with `reconnect`, a lost connection is sought again.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub fn connect(
        address: Address,
        timeout: Duration,
        pipelining: bool,
        reconnect: bool,
        sink: EventSink,
    ) -> Result<Arc<Monitor>, ConnectError> {
        let failed = |why| ConnectError::new(&address, why);
        let (connection, lines) = Connection::open(&address, timeout, pipelining, None).map_err(failed)?;
        let monitor = Arc::new(Monitor {
            reconnect: reconnect && address.is_repeatable(),
            address: address.clone(),
            timeout,
            pipelining,
            sink,
            current: Mutex::new(Current {
                connection: connection.clone(),
                wanted_since: None,
                hung_up: false,
            }),
            changed: Condvar::new(),
        });
        monitor
            .start_reader(connection, lines)
            .and_then(|()| monitor.start_reconnecting())
            .map_err(|e| {
                monitor.hang_up();
                failed(e.into())
            })?;
        Ok(monitor)
    }

    /// The number of the connection in force, if there is one: each that may lead to another machine has another.
    pub fn connection_number(&self) -> Option<u64> {
        let current = self.current();
        (!current.is_closed()).then(|| current.number())
    }

    /// Sends a request; [`Pending::wait`] gives its reply. One that is about what a connection had is sent
    /// on that one only.
    ///
    /// # Errors
    /// [`Error`]
    pub fn send(&self, request: &[u8], only_on: Option<u64>) -> Result<Pending, Error> {
        let until = Instant::now() + self.timeout;
        loop {
            let connection = self.connection();
            if only_on.is_some_and(|only| only != connection.number()) {
                return Err(Error::Reconnected);
            }
            let was_open = !connection.is_closed();
            match connection.send(request) {
                // It went while this request waited for its turn.
                Err(Error::Unsent(_)) if self.reconnect && was_open && Instant::now() < until => {}
                outcome => return outcome,
            }
        }
    }

    /// Sends a request that nobody waits for yet, if QEMU is there and ready to take it.
    pub fn try_send(&self, request: &[u8]) -> Option<Pending> {
        self.current().try_send(request)
    }

    /// The connection in force, or the one that was lost last, for what its QEMU can do.
    pub fn current(&self) -> Arc<Connection> {
        self.current.lock().connection.clone()
    }

    /// How long a request may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether a lost connection is sought again: wanted, and possible for this address.
    pub fn reconnects(&self) -> bool {
        self.reconnect
    }

    /// Gives the connection in force up, since its QEMU has ended, or may have. Another one is sought if that is wanted.
    pub fn disconnect(&self) {
        self.current().close(Closed::Eof);
    }

    /// Gives the monitor up: whoever waits for a reply gets [`Error::Closed`], and there is no
    /// further attempt to reconnect.
    pub fn hang_up(&self) {
        let mut current = self.current.lock();
        current.hung_up = true;
        current.connection.close(Closed::Ours);
        drop(current);
        self.changed.notify_all();
    }

    /// The connection in force. When it is lost, sets off an attempt to reconnect at once and
    /// waits a moment for it, so that the first access after QEMU is back succeeds.
    fn connection(&self) -> Arc<Connection> {
        let mut current = self.current.lock();
        if self.reconnect && current.connection.is_closed() {
            // Counted from the first that waits: an attempt that hangs holds up nobody after.
            let since = *current.wanted_since.get_or_insert_with(Instant::now);
            self.changed.notify_all();
            let under_way = |current: &mut Current| current.wanted_since == Some(since) && !current.hung_up;
            let until = since + ACCESS_WAITS.min(self.timeout);
            self.changed.wait_while_until(&mut current, under_way, until);
        }
        current.connection.clone()
    }

    /// Starts the thread that reads a connection.
    fn start_reader(
        self: &Arc<Self>,
        connection: Arc<Connection>,
        lines: LineReader<Incoming>,
    ) -> io::Result<()> {
        let monitor = self.clone();
        let read = move || {
            let announce = |event| (monitor.sink)(MonitorEvent::Announced(event));
            monitor.lost(read_all(&connection, lines, announce));
        };
        let reader = thread::Builder::new().name("qmp-reader".into());
        reader.spawn(read).map(drop)
    }

    fn lost(&self, why: Arc<Closed>) {
        // Who has just found the connection open waits by now, and is woken.
        drop(self.current.lock());
        self.changed.notify_all();
        (self.sink)(MonitorEvent::Lost(why));
    }

    /// Starts the thread that reconnects, if that is wanted.
    fn start_reconnecting(self: &Arc<Self>) -> io::Result<()> {
        if !self.reconnect {
            return Ok(());
        }
        let monitor = self.clone();
        let reconnect = move || {
            if catch_unwind(AssertUnwindSafe(|| monitor.reconnect_loop())).is_err() {
                let broken = Closed::Internal("the thread that reconnects panicked".into());
                (monitor.sink)(MonitorEvent::Lost(Arc::new(broken)));
            }
        };
        let reconnecting = thread::Builder::new().name("qmp-reconnect".into());
        reconnecting.spawn(reconnect).map(drop)
    }

    fn reconnect_loop(self: &Arc<Self>) {
        let mut pause = BACK_OFF.0;
        loop {
            // 1. A pause, which an access cuts short.
            let mut current = self.current.lock();
            let idle = |current: &mut Current| current.wanted_since.is_none() && !current.hung_up;
            self.changed.wait_while_for(&mut current, idle, pause);
            if current.hung_up {
                return;
            }
            // 2. Nothing, for as long as there is a connection.
            if !current.connection.is_closed() {
                pause = BACK_OFF.0;
                let lasts = |current: &mut Current| !current.connection.is_closed();
                self.changed.wait_while(&mut current, lasts);
                continue;
            }
            let number = current.connection.number();
            drop(current);
            // 3. An attempt.
            let attempt = Connection::open(&self.address, self.timeout, self.pipelining, Some(number));
            // Also after a success: one that greets and then speaks no QMP is no better than none.
            pause = (pause * 2).min(BACK_OFF.1);
            // 4. What came of it, for those that wait.
            let mut current = self.current.lock();
            current.wanted_since = None;
            match attempt {
                Ok(_) if current.hung_up => return,
                Ok((connection, lines)) => {
                    current.connection = connection.clone();
                    drop(current);
                    self.changed.notify_all();
                    self.renew(connection, lines);
                }
                Err(why) => {
                    drop(current);
                    self.changed.notify_all();
                    debug!("{}", ConnectError::new(&self.address, why));
                }
            }
        }
    }

    /// Begins with a new connection: no reply of it is given out before everybody knows that it is new.
    fn renew(self: &Arc<Self>, connection: Arc<Connection>, lines: LineReader<Incoming>) {
        (self.sink)(MonitorEvent::Back(connection.greeting().clone()));
        if let Err(e) = self.start_reader(connection.clone(), lines) {
            self.lost(connection.close(e.into()));
        }
    }
}
