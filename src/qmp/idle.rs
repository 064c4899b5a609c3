//! Letting go of a monitor that nobody uses, and taking it again: a QMP socket serves one client at a time, and others
//! may need it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::debug;
use parking_lot::MutexGuard;
use rustix::process::Pid;

use super::connection::Connection;
use super::error::{Closed, ConnectError, Error};
use super::handshake::Greeted;
use super::monitor::{Current, Monitor, MonitorEvent};
use crate::pidfd::Process;

/// How much longer than its own time a request waits for the words of an attempt that fails at the same moment.
const GRACE: Duration = Duration::from_millis(100);
/// How long a request waits that comes as soon after one that failed: the kernel makes several of one access.
const AGAIN: Duration = Duration::from_millis(500);

/// A monitor that was let go of.
pub(super) struct Away {
    /// The number that the next connection has: that of the last one, unless nobody knows whether it will be to the
    /// same QEMU. A file that is opened meanwhile is about what that one leads to.
    pub number: u64,
    /// Until when a request waits for it.
    wanted_until: Option<Instant>,
    /// When the last attempt to take it back failed, and why.
    failure: Option<(Instant, Arc<ConnectError>)>,
    /// Its process has ended, and it was looked what that means.
    looked: bool,
}

/// The process that listens at the address: QEMU, or (rarely) what gave QEMU its socket.
pub(super) struct Listener {
    pid: Pid,
    process: Process,
}

/// Whether a monitor is that of the QEMU that was let go of.
enum Same {
    Yes,
    No,
    /// Its process is not known: it is in another namespace, or behind TCP.
    Unknown,
}

impl Monitor {
    /// The thread that lets go of the monitor when nothing was asked for so long, and takes it back.
    pub(super) fn idle_loop(self: &Arc<Self>, idle: Duration) {
        let mut listener = None;
        loop {
            // 1. As long as it is used, or is lost.
            let mut current = self.current.lock();
            loop {
                if current.hung_up {
                    return;
                }
                self.note_listener(&mut listener, current.connection.listener());
                let Some(left) = current.connection.let_go(idle) else {
                    break;
                };
                self.changed.wait_for(&mut current, left);
            }
            current.away = Some(Away {
                number: current.connection.number() + u64::from(listener.is_none()),
                wanted_until: None,
                failure: None,
                looked: false,
            });
            drop(current);
            debug!(
                "{}: nothing was asked for {idle:?}; it serves others",
                self.address
            );
            (self.sink)(MonitorEvent::Away);
            // 2. Until it is taken back, or lost.
            while self.wait_until_wanted(listener.as_deref()) {
                // The given one: of this QEMU there is none of our own, or it would be in use.
                let attempt = Greeted::at(&self.address, self.options.timeout);
                let attempt = attempt.map_err(|why| ConnectError::new(&self.address, why));
                self.conclude(listener.as_deref(), attempt);
            }
        }
    }

    /// Remembers who listens, and watches for its end.
    fn note_listener(self: &Arc<Self>, known: &mut Option<Arc<Listener>>, pid: Option<Pid>) {
        if known
            .as_ref()
            .is_some_and(|known| Some(known.pid) == pid && known.lives())
        {
            return;
        }
        let listener = pid.map(Listener::of).filter(Listener::lives);
        *known = listener.map(Arc::new);
        let Some(listener) = known.clone() else {
            return;
        };
        let monitor = Arc::downgrade(self);
        let watch = move || {
            listener.process.wait();
            if let Some(monitor) = monitor.upgrade() {
                // Who has just found it alive waits by now, and is woken.
                drop(monitor.current.lock());
                monitor.changed.notify_all();
            }
        };
        // Without this thread an end is noticed with the next access.
        let _ = thread::Builder::new().name("qmp-process".into()).spawn(watch);
    }

    /// Waits until a request needs the monitor, or its process has ended. False when it is away no longer.
    fn wait_until_wanted(&self, listener: Option<&Listener>) -> bool {
        let mut current = self.current.lock();
        loop {
            let hung_up = current.hung_up;
            let Some(away) = current.away.as_mut().filter(|_| !hung_up) else {
                return false;
            };
            let has_ended = listener.is_some_and(|listener| !listener.lives());
            if has_ended && !std::mem::replace(&mut away.looked, true) {
                return true;
            }
            if away.wanted_until.is_some_and(|until| Instant::now() < until) {
                return true;
            }
            self.changed.wait(&mut current);
        }
    }

    /// What an attempt to take it back means: that it is taken back, stays away, or is lost.
    fn conclude(self: &Arc<Self>, listener: Option<&Listener>, attempt: Result<Greeted, ConnectError>) {
        let lives = listener.is_some_and(Listener::lives);
        let begun = match attempt {
            Ok(greeted) => match same(listener, &greeted) {
                Same::No => None,
                same => Some((greeted, same)),
            },
            Err(why) => {
                debug!("{why}");
                if lives || why.is_held() {
                    if let Some(away) = &mut self.current.lock().away {
                        if !why.is_held() {
                            // Nobody waits for it any more: who comes later tries again.
                            away.wanted_until = None;
                        }
                        away.failure = Some((Instant::now(), Arc::new(why)));
                    }
                    self.changed.notify_all();
                    return;
                }
                None
            }
        };
        let mut current = self.current.lock();
        if current.hung_up {
            return;
        }
        current.away = None;
        let Some((greeted, same)) = begun else {
            drop(current);
            self.lost(Arc::new(Closed::Idle));
            return;
        };
        // A file that was opened for writing before may be about another QEMU.
        let is_unknown = matches!(same, Same::Unknown);
        let number = current.connection.number() + u64::from(is_unknown);
        let begun = Connection::new(greeted, &self.options, number);
        if let Ok((connection, _)) = &begun {
            current.connection = connection.clone();
        }
        drop(current);
        self.changed.notify_all();
        match begun {
            Ok((connection, lines)) => self.renew(connection, lines, is_unknown && self.options.reconnect),
            Err(e) => self.lost(Arc::new(e.into())),
        }
    }

    /// Takes the monitor back if it is away, and waits for that.
    ///
    /// # Errors
    /// [`Error::Away`] when it cannot be had in time.
    pub(super) fn take_back(&self, current: &mut MutexGuard<'_, Current>) -> Result<(), Error> {
        let Some(away) = &mut current.away else {
            return Ok(());
        };
        let just_failed = matches!(away.failure, Some((failed, _)) if failed.elapsed() < GRACE);
        let limit = if just_failed { AGAIN } else { self.options.timeout };
        let began = Instant::now();
        let until = began + limit.min(self.options.timeout);
        away.wanted_until = away.wanted_until.max(Some(until));
        self.changed.notify_all();
        while let Some(away) = &current.away {
            let is_over = |grace| Instant::now() >= until + grace;
            match &away.failure {
                _ if current.hung_up => return Err(Error::Unsent(Arc::new(Closed::Ours))),
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

impl Listener {
    fn of(pid: Pid) -> Listener {
        Listener {
            pid,
            process: Process::of(pid),
        }
    }

    /// Whether it still runs.
    fn lives(&self) -> bool {
        !self.process.has_ended()
    }
}

/// Whether a monitor leads to the QEMU that was let go of.
fn same(before: Option<&Listener>, now: &Greeted) -> Same {
    match (before, now.listener) {
        (Some(before), Some(now)) if before.pid == now && before.lives() => Same::Yes,
        // What gave QEMU its socket has ended, QEMU may have not.
        (Some(before), Some(now)) if before.pid == now => Same::Unknown,
        (Some(_), Some(_)) => Same::No,
        (None, _) | (_, None) => Same::Unknown,
    }
}
