//! A monitor that may come and go: the connection in force, and finding it again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use log::debug;
use parking_lot::{Condvar, Mutex};

use super::address::Address;
use super::connection::{Connection, Pending};
use super::error::{Closed, ConnectError, Error};
use super::reader::Listener;
use super::wire::{Event, Greeting};

/// What is done when an event comes: in the reader, before any later reply is given out, since
/// QEMU's order tells what an event is about. Must not wait for a reply.
pub type OnEvent = Box<dyn Fn(&Event) + Send + Sync>;

/// What is done before a new connection takes the place of a lost one. Must not wait for a reply.
pub type OnRenewal = Box<dyn Fn() + Send + Sync>;

/// The first and the longest pause between two attempts to reconnect.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long a request waits for the attempt that it set off.
const ACCESS_WAITS: Duration = Duration::from_millis(500);

/// What happens to a connection.
#[derive(Debug)]
pub enum Notice {
    Lost(Arc<Closed>),
    /// Connected again, perhaps to another QEMU.
    Back,
    /// The guest has shut down: QEMU may end.
    Shutdown,
}

/// The monitor at one address, connected or not.
pub struct Monitor {
    inner: Arc<Inner>,
}

struct Inner {
    address: Address,
    timeout: Duration,
    pipelining: bool,
    reconnect: bool,
    sink: Arc<EventSink>,
    current: Mutex<Current>,
    /// Signalled when an attempt to connect begins to be wanted, and when one ended.
    changed: Condvar,
}

struct Current {
    connection: Arc<Connection>,
    /// How many connections there were before it.
    number: u64,
    /// Attempts made since the connection was lost.
    attempts: u64,
    /// When the first request began to wait for the attempt under way.
    waited_for_since: Option<Instant>,
    retry_now: bool,
    ended: bool,
}

/// Hears a connection.
struct EventSink {
    notices: Sender<Notice>,
    on_event: OnceLock<OnEvent>,
    on_renewal: OnceLock<OnRenewal>,
}

impl Listener for EventSink {
    fn event(&self, event: Event) {
        if event.name == "SHUTDOWN" {
            let _ = self.notices.send(Notice::Shutdown);
        }
        if let Some(on_event) = self.on_event.get() {
            on_event(&event);
        }
    }

    fn closed(&self, why: &Arc<Closed>) {
        let _ = self.notices.send(Notice::Lost(why.clone()));
    }
}

impl Monitor {
    /// Connects. `timeout` bounds this and every request; without `pipelining` there is one at a time. `notices` gets what happens to the connection;
    /// with `reconnect`, a lost connection is sought again until [`Monitor::hang_up`].
    ///
    /// # Errors
    /// [`ConnectError`]
    pub fn connect(
        address: Address,
        timeout: Duration,
        pipelining: bool,
        reconnect: bool,
        notices: Sender<Notice>,
    ) -> Result<Monitor, ConnectError> {
        let sink = Arc::new(EventSink {
            notices,
            on_event: OnceLock::new(),
            on_renewal: OnceLock::new(),
        });
        let connection = Arc::new(Connection::open(&address, timeout, pipelining, sink.clone())?);
        let reconnect = reconnect && address.is_repeatable();
        let inner = Arc::new(Inner {
            address,
            timeout,
            pipelining,
            reconnect,
            sink,
            current: Mutex::new(Current {
                connection,
                number: 0,
                attempts: 0,
                waited_for_since: None,
                retry_now: false,
                ended: false,
            }),
            changed: Condvar::new(),
        });
        if reconnect {
            let reconnecting = inner.clone();
            thread::Builder::new()
                .name("qmp-reconnect".into())
                .spawn(move || {
                    if catch_unwind(AssertUnwindSafe(|| reconnecting.reconnect_loop())).is_err() {
                        let broken = Closed::Internal("the thread that reconnects panicked".into());
                        let _ = reconnecting.sink.notices.send(Notice::Lost(Arc::new(broken)));
                    }
                })
                .map_err(|source| ConnectError::Io {
                    address: inner.address.to_string(),
                    source,
                })?;
        }
        Ok(Monitor { inner })
    }

    /// Says what to do when an event comes, once; events that came before are lost.
    pub fn on_event(&self, on_event: OnEvent) {
        let _ = self.inner.sink.on_event.set(on_event);
    }

    /// Says what to do before there is another connection, once: what was learned may not be true of it.
    pub fn on_renewal(&self, on_renewal: OnRenewal) {
        let _ = self.inner.sink.on_renewal.set(on_renewal);
    }

    /// What the QEMU in force said of itself.
    pub fn greeting(&self) -> Greeting {
        self.current().greeting().clone()
    }

    /// The number of the connection in force, if there is one: each one that is made has another.
    pub fn connection_number(&self) -> Option<u64> {
        let current = self.inner.current.lock();
        current.connection.closed().is_none().then_some(current.number)
    }

    /// Sends a request; [`Pending::wait`] gives its reply. One that is about what a connection had is sent
    /// on that one only.
    ///
    /// # Errors
    /// [`Error`]
    pub fn send(&self, request: &[u8], only_on: Option<u64>) -> Result<Pending, Error> {
        let until = Instant::now() + self.inner.timeout;
        loop {
            let (connection, number) = self.connection();
            if only_on.is_some_and(|only| only != number) {
                return Err(Error::Reconnected);
            }
            let was_open = connection.closed().is_none();
            match connection.send(request) {
                // It went while this request waited for its turn.
                Err(Error::Closed(_)) if self.inner.reconnect && was_open && Instant::now() < until => {}
                // What another request's connection was given up for says nothing of this one.
                Err(Error::Closed(why)) if self.inner.reconnect => return Err(Error::Unsent(why)),
                outcome => return outcome,
            }
        }
    }

    /// Sends a request only if QEMU is there and ready to take it.
    pub fn try_send(&self, request: &[u8]) -> Option<Pending> {
        self.current().try_send(request)
    }

    /// Sends a request that nobody waits for yet, if QEMU is ready to take one.
    pub fn send_ahead(&self, request: &[u8]) -> Option<Pending> {
        self.current().send_ahead(request)
    }

    /// The connection in force, or the one that was lost last, for what its QEMU can do.
    pub fn current(&self) -> Arc<Connection> {
        self.inner.current.lock().connection.clone()
    }

    /// How long a request may take.
    pub fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    /// Whether there is no connection now.
    pub fn is_closed(&self) -> bool {
        self.current().closed().is_some()
    }

    /// Whether a lost connection is sought again: wanted, and possible for this address.
    pub fn reconnects(&self) -> bool {
        self.inner.reconnect
    }

    /// Gives the monitor up: whoever waits for a reply gets [`Error::Closed`], and there is no
    /// further attempt to reconnect.
    pub fn hang_up(&self) {
        let mut current = self.inner.current.lock();
        current.ended = true;
        current.connection.hang_up();
        drop(current);
        self.inner.changed.notify_all();
    }

    /// The connection in force. When it is lost, sets off an attempt to reconnect at once and
    /// waits a moment for it, so that the first access after QEMU is back succeeds.
    fn connection(&self) -> (Arc<Connection>, u64) {
        let mut current = self.inner.current.lock();
        if self.inner.reconnect && current.connection.closed().is_some() {
            let attempt = current.attempts;
            current.retry_now = true;
            self.inner.changed.notify_all();
            // Counted from the first that waits: an attempt that hangs holds up nobody after.
            let since = *current.waited_for_since.get_or_insert_with(Instant::now);
            let until = since + ACCESS_WAITS.min(self.inner.timeout);
            while current.attempts == attempt && !current.ended {
                if self.inner.changed.wait_until(&mut current, until).timed_out() {
                    break;
                }
            }
        }
        (current.connection.clone(), current.number)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.hang_up();
    }
}

impl Inner {
    /// The reconnecting thread.
    fn reconnect_loop(&self) {
        let mut pause = BACK_OFF.0;
        loop {
            {
                let mut current = self.current.lock();
                let due = Instant::now() + pause;
                // While connected this only looks now and then, and finds that the connection lasts; an access
                // cuts the pause short.
                while !current.retry_now && !current.ended {
                    if self.changed.wait_until(&mut current, due).timed_out() {
                        break;
                    }
                }
                if current.ended {
                    return;
                }
                if current.connection.closed().is_none() {
                    (current.retry_now, pause) = (false, BACK_OFF.0);
                    continue;
                }
            }
            let attempt = Connection::open(&self.address, self.timeout, self.pipelining, self.sink.clone());
            if attempt.is_ok()
                && let Some(on_renewal) = self.sink.on_renewal.get()
            {
                on_renewal();
            }
            let mut current = self.current.lock();
            current.attempts += 1;
            current.waited_for_since = None;
            current.retry_now = false;
            let back = attempt.is_ok();
            match attempt {
                Ok(connection) => {
                    current.connection = Arc::new(connection);
                    // What was opened on this very machine may still be written to.
                    current.number += u64::from(!self.address.is_same_machine());
                }
                Err(e) => debug!("{e}"),
            }
            // Also after a success: one that greets and then speaks no QMP is not better than none.
            pause = (pause * 2).min(BACK_OFF.1);
            drop(current);
            if back {
                let _ = self.sink.notices.send(Notice::Back);
            }
            self.changed.notify_all();
        }
    }
}
