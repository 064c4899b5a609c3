//! One QMP connection: requests out, replies matched in order, events, and its end.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, info};
use parking_lot::{Condvar, Mutex, MutexGuard};
use socket2::Socket;

use super::address::Address;
use super::error::{Closed, ConnectError, Error};
use super::handshake::{Incoming, Peer, handshake};
use super::lines::LineReader;
use super::outgoing::Outgoing;
use super::reader::{Listener, read_all};
use super::slot::{Reply, Slot};
use super::wire::{self, Greeting};
use crate::text::printable;

/// The longest request, in bytes, to a peer that takes one at a time. libvirt closes the connection over a
/// string of more than 4 MiB, and its proxy writes some characters three times as long.
const MAX_ALONE: usize = 5 << 18;

/// A connection to a monitor. Requests may be sent from several threads; QEMU answers them in
/// the order in which they were written, and so a queue is all that is needed to match them.
pub struct Connection {
    shared: Arc<Shared>,
    greeting: Greeting,
    /// Whether `qom-list-get` is worth a try.
    list_get: AtomicBool,
}

/// The first QEMU with `qom-list-get`.
const LIST_GET_SINCE: (u32, u32, u32) = (10, 1, 0);

/// What those who wait and the reader share.
struct Shared {
    socket: Arc<Socket>,
    writer: Mutex<Outgoing>,
    state: Mutex<State>,
    timeout: Duration,
    /// The peer takes no request before it has answered the last one; nothing is sent ahead then.
    one_at_a_time: bool,
    /// Signalled when a reply has come or is overdue, and at the end.
    turn: Condvar,
}

#[derive(Default)]
struct State {
    /// Requests without a reply, oldest first.
    owed: VecDeque<Arc<Slot>>,
    /// How many of them nobody waits for any more because their time ran out.
    overdue: usize,
    closed: Option<Arc<Closed>>,
}

/// A request that was sent. Dropping it gives the reply up, not its place in the order.
pub struct Pending {
    slot: Arc<Slot>,
    /// When its time is over, which began when it was to be sent.
    deadline: Instant,
    /// QEMU's socket took only the beginning at first.
    cut_off: bool,
    shared: Arc<Shared>,
}

impl Connection {
    /// Connects, reads the greeting and leaves capability negotiation mode, all within
    /// `timeout`, which also bounds each request later. Without `pipelining`, or if the peer is one that
    /// takes no more, there is one request at a time.
    ///
    /// # Errors
    /// [`ConnectError`], which tells a monitor held by another client from one that is absent
    /// and from a socket that is none.
    pub(super) fn open(
        address: &Address,
        timeout: Duration,
        pipelining: bool,
        listener: Arc<dyn Listener>,
    ) -> Result<Connection, ConnectError> {
        let deadline = Instant::now() + address.limit(timeout);
        let name = address.to_string();
        let socket = address.connect(deadline).map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut if !matches!(address, Address::Tcp { .. }) => ConnectError::Crowded {
                address: name.clone(),
                after: timeout,
            },
            _ => ConnectError::Io {
                address: name.clone(),
                source: e,
            },
        })?;
        let socket = Arc::new(socket);
        let mut lines = LineReader::new(Incoming {
            socket: socket.clone(),
            deadline: Some(deadline),
        });
        let Peer {
            greeting,
            one_at_a_time,
        } = handshake(&socket, &mut lines, &name, timeout)?;
        lines.source_mut().deadline = None;
        socket.set_read_timeout(None).map_err(|source| ConnectError::Io {
            address: name,
            source,
        })?;
        let shared = Arc::new(Shared {
            writer: Mutex::new(Outgoing::new(socket.clone())),
            socket,
            state: Mutex::default(),
            timeout,
            one_at_a_time: one_at_a_time || !pipelining,
            turn: Condvar::new(),
        });
        let connection = Connection {
            shared: shared.clone(),
            list_get: AtomicBool::new(greeting.version >= LIST_GET_SINCE),
            greeting,
        };
        thread::Builder::new()
            .name("qmp-reader".into())
            .spawn(move || {
                let why = read_all(lines, |reply| shared.answer(reply), &*listener);
                listener.closed(&shared.close(why));
            })
            .map_err(|source| ConnectError::Io {
                address: address.to_string(),
                source,
            })?;
        Ok(connection)
    }

    /// What QEMU said of itself.
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// Why the connection ended, if it did.
    pub fn closed(&self) -> Option<Arc<Closed>> {
        self.shared.state.lock().closed.clone()
    }

    /// Ends the connection; whoever waits for a reply gets [`Error::Closed`].
    pub fn hang_up(&self) {
        self.shared.close(Closed::Ours);
    }

    /// Whether this QEMU has `qom-list-get`, as far as is known.
    pub fn has_list_get(&self) -> bool {
        self.list_get.load(Ordering::Relaxed)
    }

    /// Remembers that this QEMU does not have it after all.
    pub fn lacks_list_get(&self) {
        self.list_get.store(false, Ordering::Relaxed);
    }

    /// Whether there is one request at a time.
    pub fn is_one_at_a_time(&self) -> bool {
        self.shared.one_at_a_time
    }

    /// Sends a request, when it is its turn, and does not wait for its reply.
    ///
    /// # Errors
    /// [`Error::Stalled`], [`Error::TooLong`] and [`Error::Closed`] when nothing was sent.
    pub fn send(&self, request: &[u8]) -> Result<Pending, Error> {
        self.shared.send(request, self.shared.timeout)
    }

    /// Sends a request only if that needs no waiting at all.
    pub fn try_send(&self, request: &[u8]) -> Option<Pending> {
        self.shared.send(request, Duration::ZERO).ok()
    }

    /// The same for one that nobody waits for yet: it must not keep others from their turn.
    pub fn send_ahead(&self, request: &[u8]) -> Option<Pending> {
        if self.shared.one_at_a_time {
            return None;
        }
        self.try_send(request)
    }
}

impl Drop for Connection {
    /// Ends the reader thread too.
    fn drop(&mut self) {
        self.hang_up();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.greeting)
    }
}

impl Pending {
    /// When the request was sent.
    pub fn sent(&self) -> Instant {
        self.slot.sent
    }

    /// Whether a result has come: no error, after which more may have to be asked.
    pub fn is_ready(&self) -> bool {
        self.slot.has_result()
    }

    /// Waits for the reply until the timeout, counted from when the request was to be sent.
    ///
    /// # Errors
    /// What QEMU answered, or [`Error::Timeout`], or [`Error::Closed`].
    pub fn wait(self) -> Reply {
        let shared = &self.shared;
        if self.cut_off && !self.slot.has_result() {
            shared.complete(&self.slot, self.deadline)?;
        }
        let overdue = || {
            shared.state.lock().overdue += 1;
            shared.turn.notify_all();
        };
        let reply = self.slot.take(self.deadline, overdue);
        reply.unwrap_or(Err(Error::Timeout(shared.timeout)))
    }
}

impl State {
    /// Whether this request has no reply, and no later one was made.
    fn is_newest(&self, slot: &Arc<Slot>) -> bool {
        self.owed.back().is_some_and(|last| Arc::ptr_eq(last, slot))
    }
}

impl Shared {
    fn send(self: &Arc<Self>, request: &[u8], patience: Duration) -> Result<Pending, Error> {
        let now = Instant::now();
        let deadline = now + patience;
        if self.one_at_a_time && request.len() > MAX_ALONE {
            return Err(Error::TooLong(request.len(), MAX_ALONE));
        }
        self.check()?;
        let Some(mut writer) = self.writer.try_lock_until(deadline) else {
            return Err(Error::Stalled);
        };
        if !writer.flush(deadline).map_err(|e| self.lost(e))? {
            return Err(Error::Stalled);
        }
        let text = log::log_enabled!(log::Level::Debug).then(|| wire::loggable(request));
        let slot = {
            let mut state = self.state.lock();
            self.wait_for_turn(&mut state, deadline)?;
            let slot = Slot::new(patience.is_zero(), text);
            state.owed.push_back(slot.clone());
            slot
        };
        let cut_off = match writer.write(request, deadline) {
            Ok(0) => {
                self.take_back(&slot);
                return Err(Error::Stalled);
            }
            Ok(n) => n < request.len(),
            Err(e) => {
                self.take_back(&slot);
                return Err(self.lost(e));
            }
        };
        Ok(Pending {
            slot,
            deadline: now + self.timeout,
            cut_off,
            shared: self.clone(),
        })
    }

    /// Waits until the next request may be written. The caller holds the writer, so it is the first in turn.
    fn wait_for_turn(&self, state: &mut MutexGuard<'_, State>, deadline: Instant) -> Result<(), Error> {
        loop {
            if let Some(why) = &state.closed {
                return Err(Error::Closed(why.clone()));
            }
            if !self.one_at_a_time || state.owed.is_empty() {
                return Ok(());
            }
            if state.overdue > 0 || self.turn.wait_until(state, deadline).timed_out() {
                return Err(Error::Stalled);
            }
        }
    }

    /// Whether a request may be sent now.
    fn check(&self) -> Result<(), Error> {
        let state = self.state.lock();
        if let Some(why) = &state.closed {
            return Err(Error::Closed(why.clone()));
        }
        let stalled = state.overdue > 0;
        drop(state);
        if !stalled {
            return Ok(());
        }
        // The overdue reply may be to a request that QEMU has not wholly got yet.
        if let Some(mut writer) = self.writer.try_lock() {
            writer.flush(Instant::now()).map_err(|e| self.lost(e))?;
        }
        Err(Error::Stalled)
    }

    /// Sends the rest of a request for whoever waits for its reply: no other request may come
    /// to do it, and QEMU waits too.
    fn complete(&self, slot: &Arc<Slot>, deadline: Instant) -> Result<(), Error> {
        let Some(mut writer) = self.writer.try_lock_until(deadline) else {
            return Ok(());
        };
        // Whoever sent a later one sent this rest first; the rest of that one is not waited for here.
        if self.state.lock().is_newest(slot) {
            writer.flush(deadline).map_err(|e| self.lost(e))?;
        }
        Ok(())
    }

    /// What a socket that takes nothing more means for a request.
    fn lost(&self, error: io::Error) -> Error {
        // When it was shut down here, the reason is known better.
        let known = self.state.lock().closed.clone();
        Error::Closed(known.unwrap_or_else(|| Arc::new(error.into())))
    }

    /// Takes a request out of the order that was not sent. The caller holds the writer, so it
    /// is the newest.
    fn take_back(&self, slot: &Arc<Slot>) {
        let mut state = self.state.lock();
        if state.is_newest(slot) {
            state.owed.pop_back();
        }
    }

    /// Gives a reply to the oldest request that has none; false when there is none.
    fn answer(&self, reply: Reply) -> bool {
        let Some(slot) = self.state.lock().owed.pop_front() else {
            return false;
        };
        self.turn.notify_all();
        if let Some(text) = &slot.text {
            let verdict = match &reply {
                Ok(v) => format!("{} bytes", v.get().len()),
                // Its words may repeat the value that was to be set.
                Err(Error::Refused { class, .. }) => printable(class),
                Err(e) => e.to_string(),
            };
            debug!("{text} -> {verdict} in {:?}", slot.sent.elapsed());
        }
        if slot.fill(reply) {
            info!(
                "a late reply came after {:?} and was dropped",
                slot.sent.elapsed()
            );
            self.state.lock().overdue -= 1;
        }
        true
    }

    /// Ends the connection for everybody, and says why it ended: for the first reason given.
    fn close(&self, why: Closed) -> Arc<Closed> {
        let (why, owed) = {
            let mut state = self.state.lock();
            let why = state.closed.get_or_insert_with(|| Arc::new(why)).clone();
            (why, std::mem::take(&mut state.owed))
        };
        self.turn.notify_all();
        let _ = self.socket.shutdown(Shutdown::Both);
        for slot in owed {
            slot.fill(Err(Error::Closed(why.clone())));
        }
        why
    }
}

#[cfg(test)]
mod tests;
