//! Letting go of a monitor that nobody uses, and taking it again: a QMP socket serves one client at a time, and others
//! may need it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::debug;
use parking_lot::MutexGuard;

use super::connection::Connection;
use super::error::{Closed, ConnectError, Error};
use super::monitor::{Current, Inner, Notice};
use crate::pidfd::Process;

/// How much longer than its own time a request waits for the words of an attempt that fails at the same moment.
const GRACE: Duration = Duration::from_millis(100);
/// How long a request waits that comes as soon after one that failed: the kernel makes several of one access.
const AGAIN: Duration = Duration::from_millis(500);

/// A monitor that was let go.
pub(super) struct Away {
    /// Until when a request waits for it.
    wanted_until: Option<Instant>,
    /// When the last attempt to take it again failed, and why.
    failure: Option<(Instant, Arc<ConnectError>)>,
    /// It has ended, and it was looked what that means.
    looked: bool,
}

/// The process that listens at a Unix socket: QEMU, or (rarely) what gave QEMU the socket.
pub(super) struct Listener {
    pid: i32,
    process: Process,
}

impl Listener {
    /// Whether it still runs.
    fn lives(&self) -> bool {
        !self.process.ends_within(Duration::ZERO)
    }
}

/// Whether a monitor is that of the same QEMU as before.
enum Same {
    Yes,
    No,
    /// Its process is not known: it is in another namespace, or behind TCP.
    Unknown,
}

impl Inner {
    /// The thread that lets go of the monitor when nothing was asked for so long, and takes it again.
    pub(super) fn idle_loop(self: &Arc<Self>, idle: Duration) {
        loop {
            let mut current = self.current.lock();
            while let Some(left) = current.connection.let_go(idle) {
                if current.ended {
                    return;
                }
                self.changed.wait_for(&mut current, left);
            }
            self.note_listener(&mut current);
            current.away = Some(Away {
                wanted_until: None,
                failure: None,
                looked: false,
            });
            drop(current);
            debug!(
                "{}: nothing was asked for {idle:?}; it serves others",
                self.address
            );
            // What happens from now on is not announced to us.
            self.forget();
            while self.wait_until_wanted() {
                if self.take_again() {
                    break;
                }
            }
        }
    }

    /// Remembers who listens, and watches for its end.
    fn note_listener(self: &Arc<Self>, current: &mut Current) {
        let pid = current.connection.listener();
        if current
            .listener
            .as_ref()
            .is_some_and(|known| Some(known.pid) == pid && known.lives())
        {
            return;
        }
        let listener = pid.map(|pid| Listener {
            pid,
            process: Process::of(pid),
        });
        current.listener = listener.filter(Listener::lives).map(Arc::new);
        let Some(listener) = current.listener.clone() else {
            return;
        };
        let this = Arc::downgrade(self);
        let watch = move || {
            while !listener.process.ends_within(Duration::from_secs(3600)) {}
            if let Some(this) = this.upgrade() {
                drop(this.current.lock());
                this.changed.notify_all();
            }
        };
        // Without it, an end is noticed with the next access.
        let _ = thread::Builder::new().name("qmp-process".into()).spawn(watch);
    }

    /// Waits until a request needs the monitor, or its process has ended. False when it is away no longer.
    fn wait_until_wanted(&self) -> bool {
        let mut current = self.current.lock();
        loop {
            let has_ended = current
                .listener
                .as_ref()
                .is_some_and(|listener| !listener.lives());
            let ended = current.ended;
            let Some(away) = current.away.as_mut().filter(|_| !ended) else {
                return false;
            };
            if has_ended && !std::mem::replace(&mut away.looked, true) {
                return true;
            }
            if away.wanted_until.is_some_and(|until| Instant::now() < until) {
                return true;
            }
            self.changed.wait(&mut current);
        }
    }

    /// Tries to take the monitor again. False when it stays away: another client holds it.
    fn take_again(&self) -> bool {
        let attempt = Connection::open(
            &self.address,
            self.timeout,
            self.pipelining,
            self.choice,
            self.sink.clone(),
        );
        let mut current = self.current.lock();
        let lives = current.listener.as_ref().is_some_and(|listener| listener.lives());
        match attempt {
            Ok(connection) => match same(current.listener.as_deref(), &connection) {
                Same::No => {
                    connection.close(Closed::Idle);
                    self.lost(current);
                }
                same => {
                    // A file that was opened for writing may be about another QEMU.
                    current.number += u64::from(matches!(same, Same::Unknown));
                    current.connection = Arc::new(connection);
                    current.away = None;
                    drop(current);
                }
            },
            Err(e) if lives || e.is_held() => {
                debug!("{e}");
                if let Some(away) = &mut current.away {
                    away.failure = Some((Instant::now(), Arc::new(e)));
                }
                drop(current);
                self.changed.notify_all();
                return false;
            }
            Err(e) => {
                debug!("{e}");
                self.lost(current);
            }
        }
        self.changed.notify_all();
        true
    }

    /// The machine that was let go is not there any more.
    fn lost(&self, mut current: MutexGuard<'_, Current>) {
        current.away = None;
        let why = current.connection.closed();
        drop(current);
        let why = why.unwrap_or_else(|| Arc::new(Closed::Idle));
        let _ = self.sink.notices.send(Notice::Lost(why));
    }

    /// Has the monitor taken again, and waits for that, if it is away.
    ///
    /// # Errors
    /// [`Error::Away`] when it cannot be had in time.
    pub(super) fn want(&self, current: &mut MutexGuard<'_, Current>) -> Result<(), Error> {
        let Some(away) = &mut current.away else {
            return Ok(());
        };
        let just_failed = matches!(away.failure, Some((failed, _)) if failed.elapsed() < GRACE);
        let limit = if just_failed { AGAIN } else { self.timeout };
        let began = Instant::now();
        let until = began + limit.min(self.timeout);
        away.wanted_until = Some(until);
        self.changed.notify_all();
        while let Some(away) = &current.away {
            let is_over = |grace| Instant::now() >= until + grace;
            match &away.failure {
                _ if current.ended => return Err(Error::Closed(Arc::new(Closed::Ours))),
                Some((failed, why)) if *failed > began && (is_over(Duration::ZERO) || !why.is_held()) => {
                    return Err(Error::Away(why.clone()));
                }
                failure if is_over(GRACE) => {
                    let why = failure.as_ref().map(|(_, why)| Error::Away(why.clone()));
                    return Err(why.unwrap_or(Error::Stalled));
                }
                _ => {}
            }
            self.changed.wait_until(current, until + GRACE);
        }
        Ok(())
    }
}

/// Whether a connection leads to the QEMU that was let go.
fn same(before: Option<&Listener>, connection: &Connection) -> Same {
    match (before, connection.listener()) {
        (Some(before), Some(now)) if before.pid == now && before.lives() => Same::Yes,
        // What gave QEMU its socket has ended, QEMU may have not.
        (Some(before), Some(now)) if before.pid == now => Same::Unknown,
        (Some(_), Some(_)) => Same::No,
        (None, _) | (_, None) => Same::Unknown,
    }
}
