//! One QMP connection: requests out, replies matched in order, and its end.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use log::{debug, info};
use parking_lot::Mutex;
use rustix::process::Pid;
use serde_json::value::RawValue;
use socket2::Socket;

use super::error::{Closed, Error};
use super::handshake::{Greeted, Incoming, Peer};
use super::lines::LineReader;
use super::monitor::MonitorOptions;
use super::pending::{Pending, Slot};
use super::reply::Room;
use super::wire::{self, Greeting, Version};
use super::writer::Writer;
use crate::text::printable;

/// The longest request, in bytes, to a peer that takes one at a time. libvirt closes the connection over a
/// string of more than 4 MiB, and its proxy writes some characters three times as long.
const MAX_ALONE: usize = 5 << 18;

/// The first QEMU with `qom-list-get`.
const LIST_GET_SINCE: Version = Version {
    major: 10,
    minor: 1,
    micro: 0,
};

/// A connection to a monitor. Requests may be sent from several threads; QEMU answers them in
/// the order in which they were written, and so a queue is all that is needed to match them.
pub struct Connection {
    /// How many there were before it at the same monitor, to other machines.
    number: u64,
    greeting: Greeting,
    pub(super) timeout: Duration,
    /// The peer takes no request before it has answered the last one; nothing is sent ahead then.
    one_at_a_time: bool,
    /// Whether `qom-list-get` is worth a try.
    list_get: AtomicBool,
    socket: Arc<Socket>,
    /// The process that listens at the address, if it is known.
    listener: Option<Pid>,
    /// It keeps nobody from the address.
    is_own: bool,
    writer: Mutex<Writer>,
    state: Mutex<State>,
    room: Room,
}

struct State {
    /// Requests without a reply, oldest first.
    owed: VecDeque<Arc<Slot>>,
    /// When the last request was sent or answered.
    used: Instant,
    /// Why the connection is closed: what everybody is told.
    closed: Option<Arc<Closed>>,
}

impl Connection {
    /// Begins with a monitor that has greeted; `number` connections were before it. What comes is to be read by
    /// [`super::reader::read_all`].
    ///
    /// # Errors
    /// When the socket failed.
    pub(super) fn new(
        greeted: Greeted,
        options: &MonitorOptions,
        number: u64,
    ) -> io::Result<(Arc<Connection>, LineReader<Incoming>)> {
        let Greeted {
            socket,
            mut lines,
            peer: Peer {
                greeting,
                one_at_a_time,
            },
            listener,
            is_own,
        } = greeted;
        lines.source_mut().lift_deadline()?;
        let connection = Arc::new(Connection {
            number,
            list_get: AtomicBool::new(greeting.version >= LIST_GET_SINCE),
            greeting,
            timeout: options.timeout,
            one_at_a_time: one_at_a_time || !options.pipelining,
            listener,
            is_own,
            writer: Mutex::new(Writer::new(socket.clone())),
            socket,
            state: Mutex::new(State {
                owed: VecDeque::new(),
                used: Instant::now(),
                closed: None,
            }),
            room: Room::new(),
        });
        Ok((connection, lines))
    }

    /// How many connections there were before it at the same monitor, to other machines as far as is known.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What QEMU said of itself.
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// The process that listens at the address, if it is known.
    pub(super) fn listener(&self) -> Option<Pid> {
        self.listener
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed.is_some()
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
        self.one_at_a_time
    }

    /// Sends a request, when it is its turn, and does not wait for its reply, which has to come before the deadline.
    ///
    /// # Errors
    /// [`Error::Stalled`], [`Error::TooLong`] and [`Error::Unsent`]: nothing was sent.
    pub fn send(self: &Arc<Self>, request: &[u8], deadline: Instant) -> Result<Pending, Error> {
        self.send_within(request, deadline, deadline, false)
    }

    /// Sends a request that nobody waits for yet, if that needs no waiting at all.
    pub fn try_send(self: &Arc<Self>, request: &[u8]) -> Option<Pending> {
        let now = Instant::now();
        self.send_within(request, now, now + self.timeout, true).ok()
    }

    /// Sends a request, waiting for its turn until some time; its reply has to come before the deadline.
    fn send_within(
        self: &Arc<Self>,
        request: &[u8],
        until: Instant,
        deadline: Instant,
        ahead: bool,
    ) -> Result<Pending, Error> {
        if self.one_at_a_time && request.len() > MAX_ALONE {
            return Err(Error::TooLong(request.len(), MAX_ALONE));
        }
        // 1. While replies are overdue, requests fail at once. It may be a request that QEMU has not wholly got.
        let ready = self.state.lock().takes_requests();
        if let Err(e) = ready {
            if let Some(mut writer) = self.writer.try_lock() {
                let _ = writer.flush(Instant::now());
            }
            return Err(e);
        }
        // 2. One writes at a time, behind the rest of the request before.
        let mut writer = self.writer.try_lock_until(until).ok_or(Error::Stalled)?;
        if !writer.flush(until).map_err(|e| self.unsent(e))? {
            return Err(Error::Stalled);
        }
        // 3. Where the peer takes one request at a time, the one before is to be answered first.
        let before = self.state.lock().owed.back().cloned();
        if let Some(before) = before.filter(|_| self.one_at_a_time) {
            before.settle(until);
        }
        // 4. The reply's place in the order, before there can be one.
        let shown = log::log_enabled!(log::Level::Debug).then(|| wire::loggable(request));
        let slot = Slot::new(ahead, shown);
        {
            let mut state = self.state.lock();
            state.takes_requests()?;
            if self.one_at_a_time && !state.owed.is_empty() {
                return Err(Error::Stalled);
            }
            state.owed.push_back(slot.clone());
            state.used = Instant::now();
        }
        // 5. The request itself.
        let error = match writer.write(request, until) {
            Ok(0) => Error::Stalled,
            Ok(n) => {
                return Ok(Pending {
                    connection: self.clone(),
                    slot,
                    deadline,
                    cut_off: n < request.len(),
                });
            }
            Err(e) => self.unsent(e),
        };
        let mut state = self.state.lock();
        if state.is_newest(&slot) {
            state.owed.pop_back();
        }
        Err(error)
    }

    /// Sends the rest of a request for whoever waits for its reply: no other request may come
    /// to do it, and QEMU waits too.
    pub(super) fn send_rest(&self, slot: &Arc<Slot>, deadline: Instant) -> Result<(), Error> {
        let Some(mut writer) = self.writer.try_lock_until(deadline) else {
            return Ok(());
        };
        // Whoever sent a later one sent this rest first; the rest of that one is not waited for here.
        let is_newest = self.state.lock().is_newest(slot);
        if is_newest {
            writer.flush(deadline).map_err(|e| Error::Closed(self.why(e)))?;
        }
        Ok(())
    }

    fn unsent(&self, error: io::Error) -> Error {
        Error::Unsent(self.why(error))
    }

    /// Why the connection is closed, if the socket takes nothing more: when it was shut down here, the reason is
    /// known better.
    fn why(&self, error: io::Error) -> Arc<Closed> {
        let known = self.state.lock().closed.clone();
        known.unwrap_or_else(|| Arc::new(error.into()))
    }

    /// Gives a reply to the oldest request that has none; false when there is none.
    pub(super) fn answer(&self, reply: Result<&RawValue, Error>) -> bool {
        let Some(slot) = self.state.lock().owed.front().cloned() else {
            return false;
        };
        let reply = reply.and_then(|json| self.room.take_in(json.get(), slot.ahead));
        {
            let mut state = self.state.lock();
            // A peer may answer a request that it has not read; who sends it may have taken it back meanwhile.
            if state
                .owed
                .front()
                .is_some_and(|oldest| Arc::ptr_eq(oldest, &slot))
            {
                state.owed.pop_front();
            }
            state.used = Instant::now();
        }
        let took = slot.sent.elapsed();
        if let Some(request) = &slot.shown {
            let verdict = match &reply {
                Ok(reply) => format!("{} bytes", reply.json.len()),
                // Its words may repeat the value that was to be set.
                Err(Error::Refused { class, .. }) => printable(class),
                Err(e) => e.to_string(),
            };
            debug!("{request} -> {verdict} in {took:?}");
        }
        if !slot.fill(reply) {
            info!("a late reply came after {took:?} and was dropped");
        }
        true
    }

    /// Ends the connection if nothing was asked for so long; else says when to try again.
    pub(super) fn let_go(&self, idle: Duration) -> Option<Duration> {
        const NEVER: Duration = Duration::from_secs(3600);
        if self.is_own {
            return Some(NEVER);
        }
        let Some(_nobody_writes) = self.writer.try_lock() else {
            return Some(idle);
        };
        let left = {
            let state = self.state.lock();
            match (&state.closed, state.owed.is_empty()) {
                (Some(_), _) => NEVER,
                (None, false) => idle,
                (None, true) => idle.saturating_sub(state.used.elapsed()),
            }
        };
        if left.is_zero() {
            self.close(Closed::Idle);
            return None;
        }
        Some(left)
    }

    /// Ends the connection for everybody, and gives the reason: the first that there was.
    pub(super) fn close(&self, why: Closed) -> Arc<Closed> {
        let mut state = self.state.lock();
        let why = state.closed.get_or_insert_with(|| Arc::new(why)).clone();
        let owed = std::mem::take(&mut state.owed);
        drop(state);
        let _ = self.socket.shutdown(Shutdown::Both);
        for slot in owed {
            slot.fill(Err(Error::Closed(why.clone())));
        }
        why
    }
}

impl State {
    /// Whether a request may be sent now.
    fn takes_requests(&self) -> Result<(), Error> {
        match &self.closed {
            Some(why) => Err(Error::Unsent(why.clone())),
            None if self.owed.iter().any(|slot| slot.is_over()) => Err(Error::Stalled),
            None => Ok(()),
        }
    }

    /// Whether this request has no reply, and no later one was made.
    fn is_newest(&self, slot: &Arc<Slot>) -> bool {
        self.owed.back().is_some_and(|last| Arc::ptr_eq(last, slot))
    }
}

#[cfg(test)]
mod tests;
