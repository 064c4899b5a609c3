//! What replies take from when they are read until they are made use of.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use serde_json::value::RawValue;

use super::error::Error;
use super::wire::count_values;
use crate::limits::{DECODING_BYTES, DECODING_WAIT, LINE_VALUES, REPLIES_AHEAD_BYTES, REPLY_AHEAD_BYTES};

/// The most that one decoded value (an element, a member, a third of a property) takes, beside its text.
const PER_VALUE: usize = 128;
/// Shorter lines are not counted: there are at most as many as requests.
const MIN_COUNTED: usize = 4 << 10;

/// Limits what replies take that are under way at once: many callers may ask for large ones.
#[derive(Default)]
pub(super) struct Budget {
    spent: Mutex<Spent>,
    given_back: Condvar,
}

#[derive(Default)]
struct Spent {
    taken: usize,
    ahead: usize,
}

/// A part of the budget, given back when it is dropped.
pub struct Charge {
    budget: Arc<Budget>,
    /// What the reply takes when it is decoded.
    weight: usize,
    /// Its length, while nobody waits for it.
    ahead: Option<usize>,
}

/// The JSON text of a reply's `return`.
pub struct Text {
    raw: Box<RawValue>,
    charge: Option<Charge>,
}

impl Budget {
    /// Charges for a line, waiting until there is room for it.
    ///
    /// # Errors
    /// When there is none in time, or it has too many values in any case.
    pub fn charge(self: &Arc<Budget>, line: &[u8]) -> Result<Option<Charge>, Error> {
        if line.len() < MIN_COUNTED {
            return Ok(None);
        }
        let values = count_values(line);
        if values > LINE_VALUES {
            let why = format!("{values} values in one line, at most {LINE_VALUES} are taken");
            return Err(Error::Undecodable(why));
        }
        let weight = 2 * line.len() + PER_VALUE * values;
        self.take(weight)?;
        Ok(Some(Charge {
            budget: self.clone(),
            weight,
            ahead: None,
        }))
    }

    fn take(&self, weight: usize) -> Result<(), Error> {
        let until = Instant::now() + DECODING_WAIT;
        let mut spent = self.spent.lock();
        while spent.taken > 0 && spent.taken + weight > DECODING_BYTES {
            if self.given_back.wait_until(&mut spent, until).timed_out() {
                return Err(Error::TooMuch);
            }
        }
        spent.taken += weight;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut spent = self.budget.spent.lock();
        match self.ahead {
            Some(length) => spent.ahead -= length,
            None => spent.taken -= self.weight,
        }
        self.budget.given_back.notify_all();
    }
}

impl Text {
    pub(super) fn new(raw: Box<RawValue>, charge: Option<Charge>) -> Text {
        Text { raw, charge }
    }

    /// The text itself.
    pub fn get(&self) -> &str {
        self.raw.get()
    }

    /// What is charged for it: also for what is made of it, until that is dropped.
    pub fn into_charge(self) -> Option<Charge> {
        self.charge
    }

    /// Leaves the room to others, since nobody waits for it yet; false if there is no room for such ones.
    pub(super) fn set_aside(&mut self) -> bool {
        let Some(charge) = &mut self.charge else {
            return true;
        };
        let length = self.raw.get().len();
        let mut spent = charge.budget.spent.lock();
        if length > REPLY_AHEAD_BYTES || spent.ahead + length > REPLIES_AHEAD_BYTES {
            return false;
        }
        spent.ahead += length;
        spent.taken -= charge.weight;
        charge.ahead = Some(length);
        charge.budget.given_back.notify_all();
        true
    }

    /// Whether there is room now to take it up again.
    pub(super) fn has_room(&self) -> bool {
        self.charge.as_ref().is_none_or(|charge| {
            let taken = charge.budget.spent.lock().taken;
            charge.ahead.is_none() || taken == 0 || taken + charge.weight <= DECODING_BYTES
        })
    }

    /// Takes it up again, to be decoded.
    ///
    /// # Errors
    /// When there is no room for it in time.
    pub(super) fn take_up(mut self) -> Result<Text, Error> {
        if let Some(charge) = &mut self.charge
            && let Some(length) = charge.ahead
        {
            charge.budget.take(charge.weight)?;
            charge.budget.spent.lock().ahead -= length;
            charge.ahead = None;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    fn line(length: usize) -> Vec<u8> {
        let mut line = vec![b'x'; length];
        line[0] = b'"';
        line
    }

    #[test]
    fn room_for_some_or_for_one_that_is_too_large() {
        let budget = Arc::new(Budget::default());
        assert!(budget.charge(&line(MIN_COUNTED - 1)).unwrap().is_none());
        let huge = budget.charge(&line(DECODING_BYTES)).unwrap();
        let start = Instant::now();
        let leaving = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(huge);
        });
        let next = budget.charge(&line(MIN_COUNTED)).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(50), "it did not wait");
        leaving.join().unwrap();
        let beside = budget.charge(&line(DECODING_BYTES / 4)).unwrap();
        assert_eq!(budget.spent.lock().taken, 2 * MIN_COUNTED + DECODING_BYTES / 2);
        assert!(matches!(
            budget.charge(&vec![b','; LINE_VALUES + 1]),
            Err(Error::Undecodable(_))
        ));
        drop((next, beside));
        assert_eq!(budget.spent.lock().taken, 0);
    }

    #[test]
    fn what_nobody_waits_for_takes_no_room() {
        let budget = Arc::new(Budget::default());
        let text = |length: usize| {
            let json = line(length - 1).into_iter().chain([b'"']).collect();
            let json: String = String::from_utf8(json).unwrap();
            let charge = budget.charge(json.as_bytes()).unwrap();
            Text::new(RawValue::from_string(json).unwrap(), charge)
        };
        assert!(!text(REPLY_AHEAD_BYTES + 1).set_aside());
        let mut aside: Vec<Text> = (0..REPLIES_AHEAD_BYTES / REPLY_AHEAD_BYTES)
            .map(|_| text(REPLY_AHEAD_BYTES))
            .collect();
        assert!(aside.iter_mut().all(Text::set_aside));
        assert!(!text(MIN_COUNTED).set_aside());
        assert_eq!(budget.spent.lock().taken, 0);
        let up = aside.pop().unwrap().take_up().unwrap();
        let spent = budget.spent.lock();
        assert_eq!(
            (spent.taken, spent.ahead),
            (2 * REPLY_AHEAD_BYTES, REPLIES_AHEAD_BYTES - REPLY_AHEAD_BYTES)
        );
        drop(spent);
        drop((up, aside));
        let spent = budget.spent.lock();
        assert_eq!((spent.taken, spent.ahead), (0, 0));
    }
}
