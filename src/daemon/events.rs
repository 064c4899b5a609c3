//! What happens while a mount lives. The main thread hears of it from all others.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;

use crate::qmp::{Closed, Greeting};

/// What happened.
pub(super) enum Event {
    Signal(i32),
    /// The kernel closed the connection: somebody unmounted it.
    Unmounted(io::Result<()>),
    MonitorLost(Arc<Closed>),
    /// Connected again, perhaps to another QEMU.
    MonitorBack(Greeting),
    /// The guest has shut down: QEMU may end.
    GuestShutDown,
    /// A part of qom-fuse itself broke, in the thread of this name.
    Broken(&'static str),
}

/// Starts a thread that the mount cannot do without: if it panics, the mount ends.
///
/// # Errors
/// When it cannot be started.
pub(super) fn spawn(
    name: &'static str,
    events: &Sender<Event>,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let events = events.clone();
    let contained = move || {
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            let _ = events.send(Event::Broken(name));
        }
    };
    thread::Builder::new()
        .name(name.into())
        .spawn(contained)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn a_thread_that_breaks_ends_the_mount() {
        let (sender, events) = channel();
        spawn("test", &sender, || panic!("for a test")).unwrap();
        assert!(matches!(
            events.recv_timeout(Duration::from_secs(10)),
            Ok(Event::Broken("test"))
        ));
    }
}
