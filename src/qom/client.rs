//! Asking QEMU about objects.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::error::{Error, secrets};
use super::path::Path;
use super::requests::Request;
use super::value::{from_text, retyped};
use crate::budget::Charge;
use crate::qmp::{self, Monitor, Pending};

/// What requests a QEMU takes.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    /// It has `qom-list-get`.
    pub list_get: bool,
    /// It is sent one request at a time, and so nothing ahead.
    pub one_at_a_time: bool,
}

/// When a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// In any case, when it is its turn: somebody waits for it.
    Needed,
    /// Only if QEMU is ready to take it: nobody waits for it yet.
    Ahead,
}

/// The object tree of the QEMU behind a monitor.
pub struct Qom {
    monitor: Arc<Monitor>,
}

/// A request that was sent; [`PendingReply::wait`] gives its result.
pub struct PendingReply<T> {
    pending: Pending,
    request: Request<T>,
}

impl Qom {
    pub fn new(monitor: Arc<Monitor>) -> Qom {
        Qom { monitor }
    }

    /// What the QEMU in force can do, as far as is known.
    pub fn features(&self) -> Features {
        let connection = self.monitor.current();
        Features {
            list_get: connection.has_list_get(),
            one_at_a_time: connection.is_one_at_a_time(),
        }
    }

    /// Remembers that this QEMU does not have it after all.
    pub fn lacks_list_get(&self) {
        self.monitor.current().lacks_list_get();
    }

    /// The connection underneath.
    pub fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When it could not be sent.
    pub fn ask<T>(&self, urgency: Urgency, request: Request<T>) -> Result<PendingReply<T>, Error> {
        let sent = match urgency {
            Urgency::Needed => self.monitor.send(&request.bytes, None),
            Urgency::Ahead => self.monitor.try_send(&request.bytes).ok_or(qmp::Error::Stalled),
        };
        PendingReply::new(sent, request)
    }

    /// Sends a request and waits for its result.
    ///
    /// # Errors
    /// What QEMU answered, or why it did not.
    pub fn request<T>(&self, request: Request<T>) -> Result<T, Error> {
        self.ask(Urgency::Needed, request)?.wait()
    }

    /// The same on the connection of this number only.
    ///
    /// # Errors
    /// [`qmp::Error::Reconnected`], and as above.
    pub fn request_on<T>(&self, connection: Option<u64>, request: Request<T>) -> Result<T, Error> {
        PendingReply::new(self.monitor.send(&request.bytes, connection), request)?.wait()
    }

    /// Sets a property to what a text means: by the declared type, and once more as the JSON
    /// type that QEMU asks for when it refuses only that (which it checks before it acts). On the connection
    /// of this number only.
    ///
    /// # Errors
    /// QEMU's verdict on the value that fits best.
    pub fn set_text(
        &self,
        connection: Option<u64>,
        path: &Path,
        property: &str,
        declared: &str,
        text: &str,
    ) -> Result<(), Error> {
        let set = |value: &Value| {
            let answer = self.request_on(connection, Request::set(path, property, value));
            answer.map_err(|e| Error {
                secrets: secrets(text, value),
                ..e
            })
        };
        let value = from_text(declared, text);
        let first = set(&value);
        let Err(Error {
            source: qmp::Error::Refused { desc, .. },
            ..
        }) = &first
        else {
            return first;
        };
        match retyped(desc, property, text) {
            Some(other) if other != value => set(&other),
            _ => first,
        }
    }

    /// Sets a link, to an object or to nothing, on the connection of this number only.
    ///
    /// # Errors
    /// QEMU's verdict.
    pub fn set_link(
        &self,
        connection: Option<u64>,
        path: &Path,
        property: &str,
        target: Option<&Path>,
    ) -> Result<(), Error> {
        let target = target.map_or("", Path::as_str);
        self.request_on(connection, Request::set(path, property, &Value::from(target)))
    }
}

impl<T> PendingReply<T> {
    fn new(sent: Result<Pending, qmp::Error>, request: Request<T>) -> Result<PendingReply<T>, Error> {
        match sent {
            Ok(pending) => Ok(PendingReply { pending, request }),
            Err(source) => Err(Error::new(request.asked, source)),
        }
    }

    /// When the request was sent.
    pub fn sent(&self) -> Instant {
        self.pending.sent()
    }

    /// Whether a result has come, and [`PendingReply::wait`] waits for nothing.
    pub fn is_ready(&self) -> bool {
        self.pending.is_ready()
    }

    /// Waits for the result, at most for the connection's timeout.
    ///
    /// # Errors
    /// What QEMU answered, or why it did not.
    pub fn wait(self) -> Result<T, Error> {
        self.wait_charged().map(|(result, _)| result)
    }

    /// The same for a result of which more is made, which is to be done before the charge is dropped.
    ///
    /// # Errors
    /// What QEMU answered, or why it did not.
    pub fn wait_charged(self) -> Result<(T, Option<Charge>), Error> {
        let result = self.pending.wait().and_then(|reply| {
            let result = (self.request.decode)(&reply.json);
            let result = result.map_err(|e| qmp::Error::Undecodable(e.to_string()))?;
            Ok((result, reply.charge))
        });
        result.map_err(|source| Error::new(self.request.asked, source))
    }
}
