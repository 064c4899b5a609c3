//! Polling for the kernel's next request before sleeping on it.
//!
//! A thread that sleeps on `/dev/fuse` is woken on a processor that has gone idle, which takes several
//! times as long as an answer from memory does. So while such answers follow each other closely, one
//! thread polls for the next request for a moment before it sleeps (as `net.core.busy_read` does for
//! sockets), and lets whoever else wants its processor go first. The other threads are parked meanwhile:
//! for each request the kernel wakes one that sleeps on the device, be it needed or not.

use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, ThreadId, available_parallelism};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex, MutexGuard};

/// Polling begins after this many answers from memory in a row.
const MIN_STREAK: u32 = 8;
/// How long to poll for one request: longer than a program thinks between two calls.
const SPIN: Duration = Duration::from_micros(100);
/// A poller that has not polled for so long is held up: another thread takes its place.
const HELD_UP: Duration = Duration::from_millis(1);
/// How long a thread is parked at most: then it checks whether the poller is held up.
const MAX_PARKED: Duration = Duration::from_millis(50);

/// Which of the threads that take requests from the kernel polls for the next one.
pub struct BusyPoll {
    device: OwnedFd,
    /// With one processor, polling would only keep the program from asking.
    worthwhile: bool,
    state: Mutex<State>,
    stopped: Condvar,
}

/// What a thread does until the next request.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    /// Sleeps on the device.
    Sleeper,
    /// Sleeps beside it, while another one polls.
    Parked,
    Poller,
}

#[derive(Default)]
struct State {
    /// Requests answered from memory since the last that was not, or that the poller missed.
    streak: u32,
    poller: Option<ThreadId>,
    /// When the poller polled last.
    polled: Option<Instant>,
}

impl BusyPoll {
    /// `device` is the connection to the kernel.
    pub fn new(device: OwnedFd) -> BusyPoll {
        BusyPoll {
            device,
            worthwhile: available_parallelism().is_ok_and(|processors| processors.get() > 1),
            state: Mutex::default(),
            stopped: Condvar::new(),
        }
    }

    /// To be called when a request was answered from memory, by the thread that did it. Returns when the
    /// thread should go and take the next one.
    pub fn poll_next(&self) {
        match self.role_of(thread::current().id()) {
            Role::Sleeper => {}
            Role::Parked => {
                let mut state = self.state.lock();
                if state.poller.is_some() {
                    self.stopped.wait_for(&mut state, MAX_PARKED);
                }
            }
            Role::Poller if self.comes_soon() => {}
            Role::Poller => self.stop(),
        }
    }

    fn role_of(&self, thread: ThreadId) -> Role {
        let mut state = self.state.lock();
        state.streak = state.streak.saturating_add(1);
        if !self.worthwhile || state.streak < MIN_STREAK {
            self.give_up(state, thread);
            Role::Sleeper
        } else if state.poller.is_some_and(|poller| poller != thread)
            && state.polled.is_some_and(|polled| polled.elapsed() < HELD_UP)
        {
            Role::Parked
        } else {
            (state.poller, state.polled) = (Some(thread), Some(Instant::now()));
            Role::Poller
        }
    }

    /// To be called by a thread before it does what may take long: it cannot poll meanwhile. Parked
    /// threads go back to the device.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        state.streak = 0;
        self.give_up(state, thread::current().id());
    }

    fn give_up(&self, mut state: MutexGuard<'_, State>, thread: ThreadId) {
        if state.poller == Some(thread) {
            state.poller = None;
            drop(state);
            self.stopped.notify_all();
        }
    }

    /// Whether there is a request, or the end of all requests, within [`SPIN`].
    fn comes_soon(&self) -> bool {
        let until = Instant::now() + SPIN;
        loop {
            let mut device = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
            if poll(&mut device, PollTimeout::ZERO) != Ok(0) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            // Whoever else wants this processor has it: QEMU, or the very program that is waited for.
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    fn pair() -> (Arc<BusyPoll>, UnixStream) {
        let (device, kernel) = UnixStream::pair().unwrap();
        let mut busy = BusyPoll::new(device.into());
        busy.worthwhile = true;
        (Arc::new(busy), kernel)
    }

    fn poller(busy: &BusyPoll) -> Option<ThreadId> {
        busy.state.lock().poller
    }

    #[test]
    fn who_answers_much_polls_until_nothing_comes() {
        let (busy, mut kernel) = pair();
        kernel.write_all(b"a request").unwrap();
        for _ in 1..MIN_STREAK {
            busy.poll_next();
            assert_eq!(poller(&busy), None);
        }
        busy.poll_next();
        assert_eq!(poller(&busy), Some(thread::current().id()));

        let (quiet, _kernel) = pair();
        for _ in 0..MIN_STREAK {
            quiet.poll_next();
        }
        assert_eq!(poller(&quiet), None);
        assert_eq!(quiet.state.lock().streak, 0);
    }

    #[test]
    fn the_end_is_seen_at_once() {
        let (busy, kernel) = pair();
        drop(kernel);
        assert!(busy.comes_soon());
    }

    #[test]
    fn others_are_parked_while_one_polls() {
        let (busy, _kernel) = pair();
        let me = thread::current().id();
        let other = thread::spawn(|| thread::current().id()).join().unwrap();
        for _ in 1..MIN_STREAK {
            assert_eq!(busy.role_of(me), Role::Sleeper);
        }
        assert_eq!(busy.role_of(me), Role::Poller);
        let here = |busy: &BusyPoll| busy.state.lock().polled = Some(Instant::now() + MAX_PARKED);
        here(&busy); // whatever this machine does meanwhile
        assert_eq!(busy.role_of(other), Role::Parked);
        assert_eq!(busy.role_of(me), Role::Poller);
        // Who waits for QEMU leaves the place to the next one.
        busy.stop();
        for _ in 1..MIN_STREAK {
            assert_eq!(busy.role_of(other), Role::Sleeper);
        }
        assert_eq!(busy.role_of(other), Role::Poller);
        here(&busy);
        assert_eq!(busy.role_of(me), Role::Parked);
        // Whoever waits for QEMU, it is not known how soon the next request comes.
        busy.stop();
        assert_eq!(poller(&busy), Some(other), "this one still polls");
        assert_eq!(busy.role_of(other), Role::Sleeper);
        assert_eq!(poller(&busy), None);
    }

    #[test]
    fn a_poller_that_is_held_up_loses_its_place() {
        let (busy, _kernel) = pair();
        let me = thread::current().id();
        let other = thread::spawn(|| thread::current().id()).join().unwrap();
        (0..MIN_STREAK).for_each(|_| _ = busy.role_of(me));
        busy.state.lock().polled = Instant::now().checked_sub(HELD_UP);
        assert_eq!(busy.role_of(other), Role::Poller);
        assert_eq!(poller(&busy), Some(other));
    }
}
