//! Looking out for the kernel's next request before sleeping on it.
//!
//! A thread that sleeps on `/dev/fuse` is woken on a processor that has gone idle, which takes several
//! times as long as an answer from memory does. So while such answers follow each other closely, one
//! thread, the watcher, looks for the next request for a moment before it sleeps (as
//! `net.core.busy_read` does for sockets), and lets whoever else wants its processor go first. The other
//! threads stand aside meanwhile: for each request the kernel wakes one that sleeps on the device, be
//! it needed or not.

use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, ThreadId, available_parallelism};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex, MutexGuard};

/// So many answers from memory in a row promise another request.
const PROMISING: u32 = 8;
/// How long the watcher looks: longer than a program thinks between two calls.
const PATIENCE: Duration = Duration::from_micros(100);
/// A watcher that has not looked out for so long is held up: another one takes its place.
const HELD_UP: Duration = Duration::from_millis(1);
/// How long the others stand aside at most: then they look whether the watcher is held up.
const ASIDE: Duration = Duration::from_millis(50);

/// Which of the threads that take requests from the kernel looks out for the next one.
pub struct Watch {
    device: OwnedFd,
    /// With one processor, looking out would only keep the program from asking.
    worthwhile: bool,
    state: Mutex<State>,
    given_up: Condvar,
}

/// What a thread does until the next request.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    /// Sleeps on the device.
    Sleeper,
    /// Sleeps beside it, while another one watches.
    Aside,
    Watcher,
}

#[derive(Default)]
struct State {
    /// Requests answered from memory since the last that was not, or that the watcher missed.
    streak: u32,
    watcher: Option<ThreadId>,
    /// When the watcher looked out last.
    looked: Option<Instant>,
}

impl Watch {
    /// A watch over the connection to the kernel.
    pub fn new(device: OwnedFd) -> Watch {
        Watch {
            device,
            worthwhile: available_parallelism().is_ok_and(|processors| processors.get() > 1),
            state: Mutex::default(),
            given_up: Condvar::new(),
        }
    }

    /// To be called when a request was answered from memory, by the thread that did it. Returns when the
    /// thread should go and take the next one.
    pub fn look_out(&self) {
        let me = thread::current().id();
        match self.role_of(me) {
            Role::Sleeper => {}
            Role::Aside => {
                let mut state = self.state.lock();
                if state.watcher.is_some() {
                    self.given_up.wait_for(&mut state, ASIDE);
                }
            }
            Role::Watcher if self.comes_soon() => {}
            Role::Watcher => self.turn_away(),
        }
    }

    fn role_of(&self, thread: ThreadId) -> Role {
        let mut state = self.state.lock();
        state.streak = state.streak.saturating_add(1);
        if !self.worthwhile || state.streak < PROMISING {
            self.give_up(state, thread);
            Role::Sleeper
        } else if state.watcher.is_some_and(|watcher| watcher != thread)
            && state.looked.is_some_and(|looked| looked.elapsed() < HELD_UP)
        {
            Role::Aside
        } else {
            (state.watcher, state.looked) = (Some(thread), Some(Instant::now()));
            Role::Watcher
        }
    }

    /// To be called by a thread before it does what may take long: it cannot look out meanwhile. Whoever
    /// stands aside goes back to the device.
    pub fn turn_away(&self) {
        let mut state = self.state.lock();
        state.streak = 0;
        self.give_up(state, thread::current().id());
    }

    fn give_up(&self, mut state: MutexGuard<'_, State>, thread: ThreadId) {
        if state.watcher == Some(thread) {
            state.watcher = None;
            drop(state);
            self.given_up.notify_all();
        }
    }

    /// Whether there is a request, or the end of all requests, before patience ends.
    fn comes_soon(&self) -> bool {
        let until = Instant::now() + PATIENCE;
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

    fn pair() -> (Arc<Watch>, UnixStream) {
        let (device, kernel) = UnixStream::pair().unwrap();
        let mut watch = Watch::new(device.into());
        watch.worthwhile = true;
        (Arc::new(watch), kernel)
    }

    fn watcher(watch: &Watch) -> Option<ThreadId> {
        watch.state.lock().watcher
    }

    #[test]
    fn who_answers_much_watches_until_nothing_comes() {
        let (watch, mut kernel) = pair();
        kernel.write_all(b"a request").unwrap();
        for _ in 1..PROMISING {
            watch.look_out();
            assert_eq!(watcher(&watch), None);
        }
        watch.look_out();
        assert_eq!(watcher(&watch), Some(thread::current().id()));

        let (quiet, _kernel) = pair();
        for _ in 0..PROMISING {
            quiet.look_out();
        }
        assert_eq!(watcher(&quiet), None);
        assert_eq!(quiet.state.lock().streak, 0);
    }

    #[test]
    fn the_end_is_seen_at_once() {
        let (watch, kernel) = pair();
        drop(kernel);
        assert!(watch.comes_soon());
    }

    #[test]
    fn others_stand_aside_while_one_watches() {
        let (watch, _kernel) = pair();
        let me = thread::current().id();
        let other = thread::spawn(|| thread::current().id()).join().unwrap();
        for _ in 1..PROMISING {
            assert_eq!(watch.role_of(me), Role::Sleeper);
        }
        assert_eq!(watch.role_of(me), Role::Watcher);
        let here = |watch: &Watch| watch.state.lock().looked = Some(Instant::now() + ASIDE);
        here(&watch); // whatever this machine does meanwhile
        assert_eq!(watch.role_of(other), Role::Aside);
        assert_eq!(watch.role_of(me), Role::Watcher);
        // Who waits for QEMU leaves the place to the next one.
        watch.turn_away();
        for _ in 1..PROMISING {
            assert_eq!(watch.role_of(other), Role::Sleeper);
        }
        assert_eq!(watch.role_of(other), Role::Watcher);
        here(&watch);
        assert_eq!(watch.role_of(me), Role::Aside);
        // Whoever waits for QEMU, it is not known how soon the next request comes.
        watch.turn_away();
        assert_eq!(watcher(&watch), Some(other), "this one still watches");
        assert_eq!(watch.role_of(other), Role::Sleeper);
        assert_eq!(watcher(&watch), None);
    }

    #[test]
    fn a_watcher_that_is_held_up_loses_its_place() {
        let (watch, _kernel) = pair();
        let me = thread::current().id();
        let other = thread::spawn(|| thread::current().id()).join().unwrap();
        (0..PROMISING).for_each(|_| _ = watch.role_of(me));
        watch.state.lock().looked = Instant::now().checked_sub(HELD_UP);
        assert_eq!(watch.role_of(other), Role::Watcher);
        assert_eq!(watcher(&watch), Some(other));
    }
}
