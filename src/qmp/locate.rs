//! Machines whose monitor has to be found first.

use std::fmt;
use std::io;
use std::ptr;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::address::Address;

/// Finds a machine, for each connection anew. It is shown as the user named it.
pub trait Locate: fmt::Debug + fmt::Display + Send + Sync {
    /// Connects to it.
    ///
    /// # Errors
    /// Why there is no such machine, or no way to it.
    fn connect(&self, deadline: Instant) -> io::Result<Socket>;

    /// How long connecting may take where a request may take `timeout`.
    fn limit(&self, timeout: Duration) -> Duration;

    /// Where its own monitor is, as it was found last. None when it is lent out.
    fn found_at(&self) -> Option<Address>;

    /// Whether the last connection leads to the very process of the one before it.
    fn is_same_machine(&self) -> bool;
}

impl PartialEq for dyn Locate {
    fn eq(&self, other: &dyn Locate) -> bool {
        ptr::addr_eq(self, other)
    }
}

impl Eq for dyn Locate {}
