//! A monitor that may come and go: the connection in force, and finding it again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{Level, log};
use parking_lot::{Condvar, Mutex};

use super::address::Address;
use super::connection::Connection;
use super::error::{Closed, ConnectError, Error, NotConnected};
use super::handshake::Incoming;
use super::idle::Away;
use super::lines::LineReader;
use super::own::{self, MonitorChoice};
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
    /// The monitor is let go of, for others, until the next request: nothing is announced meanwhile.
    Away,
}

/// Hears what happens, in its order: before any later reply is given out, since that order tells what an event
/// is about, and what a reply of another QEMU's is. Must not wait for a reply.
pub type EventSink = Box<dyn Fn(MonitorEvent) + Send + Sync>;

/// How a monitor is used.
#[derive(Debug, Clone, Copy)]
pub struct MonitorOptions {
    /// For connecting, and for each request.
    pub timeout: Duration,
    /// Without it there is one request at a time.
    pub pipelining: bool,
    /// Whether a lost connection is sought again.
    pub reconnect: bool,
    pub choice: MonitorChoice,
    /// After how long the given monitor is let go of when nothing is asked, if at all.
    pub idle: Option<Duration>,
}

/// The monitor at one address, connected or not, until [`Monitor::hang_up`].
pub struct Monitor {
    pub(super) address: Address,
    pub(super) options: MonitorOptions,
    pub(super) sink: EventSink,
    pub(super) current: Mutex<Current>,
    /// Signalled when the connection is lost, when an attempt to connect is wanted, and when one ended.
    pub(super) changed: Condvar,
}

pub(super) struct Current {
    pub connection: Arc<Connection>,
    /// The monitor was let go of, for others.
    pub away: Option<Away>,
    /// Since when a request waits for the next attempt to connect.
    wanted_since: Option<Instant>,
    pub hung_up: bool,
}

impl Current {
    /// Whether the connection ended, and not because it was let go of.
    fn is_lost(&self) -> bool {
        self.away.is_none() && self.connection.is_closed()
    }
}

impl Monitor {
    /// Connects. `sink` hears what happens.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub fn connect(
        address: Address,
        mut options: MonitorOptions,
        sink: EventSink,
    ) -> Result<Arc<Monitor>, ConnectError> {
        let failed = |why| ConnectError::new(&address, why);
        options.reconnect &= address.is_repeatable();
        let greeted = own::open(&address, &options).map_err(failed)?;
        let (connection, lines) = Connection::new(greeted, &options, 0).map_err(|e| failed(e.into()))?;
        let monitor = Arc::new(Monitor {
            address: address.clone(),
            options,
            sink,
            current: Mutex::new(Current {
                connection: connection.clone(),
                away: None,
                wanted_since: None,
                hung_up: false,
            }),
            changed: Condvar::new(),
        });
        monitor
            .start_reader(connection, lines)
            .and_then(|()| match options.reconnect {
                true => monitor.start_thread("qmp-reconnect", |monitor| monitor.reconnect_loop()),
                false => Ok(()),
            })
            .and_then(|()| match options.idle {
                Some(idle) => monitor.start_thread("qmp-idle", move |monitor| monitor.idle_loop(idle)),
                None => Ok(()),
            })
            .map_err(|e| {
                monitor.hang_up();
                failed(e.into())
            })?;
        Ok(monitor)
    }

    /// The number of the connection in force, if there is one: each that may lead to another machine has another.
    pub fn connection_number(&self) -> Option<u64> {
        let current = self.current.lock();
        let next = current.away.as_ref().map(|away| away.number);
        (!current.is_lost()).then(|| next.unwrap_or(current.connection.number()))
    }

    /// Sends a request; [`Pending::wait`] gives its reply. One that is about what a connection had is sent
    /// on that one only.
    ///
    /// # Errors
    /// [`Error`]
    pub fn send(&self, request: &[u8], only_on: Option<u64>) -> Result<Pending, Error> {
        let mut until = None;
        loop {
            let connection = self.connection()?;
            // The wait for a monitor that was let go of has a time of its own.
            let until = *until.get_or_insert_with(|| Instant::now() + self.options.timeout);
            if only_on.is_some_and(|only| only != connection.number()) {
                return Err(Error::Reconnected);
            }
            let was_open = !connection.is_closed();
            match connection.send(request, until) {
                // It was let go of just now.
                Err(Error::Unsent(why)) if matches!(*why, Closed::Idle) && !self.is_in_force(&connection) => {
                }
                // It went while this request waited for its turn.
                Err(Error::Unsent(_)) if self.reconnects() && was_open && Instant::now() < until => {}
                sent => return sent,
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
        self.options.timeout
    }

    /// Whether requests go to this connection now.
    fn is_in_force(&self, connection: &Arc<Connection>) -> bool {
        let current = self.current.lock();
        current.away.is_none() && Arc::ptr_eq(&current.connection, connection)
    }

    /// Whether a lost connection is sought again: wanted, and possible for this address.
    pub fn reconnects(&self) -> bool {
        self.options.reconnect
    }

    /// Gives the connection in force up, since its QEMU has ended, or may have. Another one is sought if that is
    /// wanted.
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
    fn connection(&self) -> Result<Arc<Connection>, Error> {
        let mut current = self.current.lock();
        self.take_back(&mut current)?;
        if self.options.reconnect && current.is_lost() {
            // Counted from the first that waits: an attempt that hangs holds up nobody after.
            let since = *current.wanted_since.get_or_insert_with(Instant::now);
            self.changed.notify_all();
            let under_way = |current: &mut Current| current.wanted_since == Some(since) && !current.hung_up;
            let until = since + ACCESS_WAITS.min(self.options.timeout);
            self.changed.wait_while_until(&mut current, under_way, until);
        }
        Ok(current.connection.clone())
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
            let why = read_all(&connection, lines, announce);
            if !matches!(*why, Closed::Idle) {
                monitor.lost(why);
            }
        };
        let reader = thread::Builder::new().name("qmp-reader".into());
        reader.spawn(read).map(drop)
    }

    pub(super) fn lost(&self, why: Arc<Closed>) {
        // Who has just found the connection open waits by now, and is woken.
        drop(self.current.lock());
        self.changed.notify_all();
        (self.sink)(MonitorEvent::Lost(why));
    }

    /// Starts a thread that looks after the connection.
    fn start_thread(
        self: &Arc<Self>,
        name: &'static str,
        body: impl FnOnce(&Arc<Monitor>) + Send + 'static,
    ) -> io::Result<()> {
        let monitor = self.clone();
        let contained = move || {
            if catch_unwind(AssertUnwindSafe(|| body(&monitor))).is_err() {
                let broken = Closed::Internal(format!("the thread {name} panicked"));
                (monitor.sink)(MonitorEvent::Lost(Arc::new(broken)));
            }
        };
        thread::Builder::new()
            .name(name.into())
            .spawn(contained)
            .map(drop)
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
            if !current.is_lost() {
                pause = BACK_OFF.0;
                let lasts = |current: &mut Current| !current.is_lost() && !current.hung_up;
                self.changed.wait_while(&mut current, lasts);
                continue;
            }
            let number = current.connection.number();
            drop(current);
            // 3. An attempt.
            let attempt = own::open(&self.address, &self.options).and_then(|greeted| {
                // What was opened on this very machine may still be written to.
                let number = number + u64::from(!self.address.is_same_machine());
                Ok(Connection::new(greeted, &self.options, number)?)
            });
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
                    self.renew(connection, lines, true);
                }
                Err(why) => {
                    drop(current);
                    self.changed.notify_all();
                    let asked_for = matches!(why, NotConnected::NoOwnMonitor(_));
                    let level = if asked_for { Level::Warn } else { Level::Debug };
                    log!(level, "{}", ConnectError::new(&self.address, why));
                }
            }
        }
    }

    /// Begins with a new connection, perhaps to another QEMU: no reply of it is given out before everybody knows.
    pub(super) fn renew(
        self: &Arc<Self>,
        connection: Arc<Connection>,
        lines: LineReader<Incoming>,
        may_be_another: bool,
    ) {
        if may_be_another {
            (self.sink)(MonitorEvent::Back(connection.greeting().clone()));
        }
        if let Err(e) = self.start_reader(connection.clone(), lines) {
            self.lost(connection.close(e.into()));
        }
    }
}
