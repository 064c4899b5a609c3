//! Replies in memory, counted from when they are read until what is made of them is done with.

use std::sync::Arc;

use super::error::Error;
use crate::budget::{Budget, Charge};
use crate::limits::{DECODING_BYTES, DECODING_WAIT, LINE_VALUES, REPLIES_AHEAD_BYTES};

/// The most that one decoded value (an element, a member, a third of a property) takes, beside its text.
const PER_VALUE: usize = 128;
/// Shorter replies are not counted: there are at most as many as requests.
const MIN_COUNTED: usize = 4 << 10;

/// The JSON text of a reply's `return`.
#[derive(Debug)]
pub struct Reply {
    pub json: Box<str>,
    /// To be kept also for what is made of it, until that is dropped.
    pub charge: Option<Charge>,
}

/// The room for the replies of a connection: many callers may ask for large ones at once.
pub(super) struct Room {
    waited_for: Arc<Budget>,
    ahead: Arc<Budget>,
}

impl Room {
    pub fn new() -> Room {
        Room {
            waited_for: Budget::new(DECODING_BYTES),
            ahead: Budget::new(REPLIES_AHEAD_BYTES),
        }
    }

    /// Takes a reply in. One that somebody waits for waits for room; there may be none for one that was asked for
    /// ahead, which is asked for again when somebody needs it.
    ///
    /// # Errors
    /// [`Error::TooMuch`] when there is no room in time; [`Error::Undecodable`] when there is none ahead, or when
    /// it has too many values in any case.
    pub fn take_in(&self, json: &str, ahead: bool) -> Result<Reply, Error> {
        let charge = self.charge(json, ahead)?;
        let json = json.into();
        Ok(Reply { json, charge })
    }

    fn charge(&self, json: &str, ahead: bool) -> Result<Option<Charge>, Error> {
        if json.len() < MIN_COUNTED {
            return Ok(None);
        }
        let values = count_values(json);
        if values > LINE_VALUES {
            let why = format!("{values} values in one line, at most {LINE_VALUES} are taken");
            return Err(Error::Undecodable(why));
        }
        let bytes = 2 * json.len() + PER_VALUE * values;
        let charge = if ahead {
            let charge = self.ahead.charge(bytes);
            charge.ok_or_else(|| Error::Undecodable("a reply too long to be held ahead".into()))?
        } else {
            let charge = self.waited_for.charge_within(bytes, DECODING_WAIT);
            charge.ok_or(Error::TooMuch)?
        };
        Ok(Some(charge))
    }
}

/// How many array elements and object members there are at most.
fn count_values(json: &str) -> usize {
    let (mut values, mut in_string, mut escaped) = (0, false, false);
    for b in json.bytes() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => values += 1,
            _ => {}
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(length: usize) -> String {
        format!("\"{}\"", "x".repeat(length - 2))
    }

    #[test]
    fn values_are_counted() {
        assert_eq!(count_values(r#"{"return": [1, {"a": "[,\",{"}, []]}"#), 6);
    }

    #[test]
    fn room_for_what_is_waited_for() {
        let room = Room::new();
        let short = room.take_in(&text(MIN_COUNTED - 1), false).unwrap();
        assert!(short.charge.is_none());
        let many = ",".repeat(LINE_VALUES + 1);
        assert!(matches!(room.take_in(&many, false), Err(Error::Undecodable(_))));
        let huge = room.take_in(&text(DECODING_BYTES), false).unwrap();
        assert!(room.waited_for.charge(1).is_none());
        drop(huge);
        let _half = room.take_in(&text(DECODING_BYTES / 4), false).unwrap();
        assert!(room.waited_for.charge(DECODING_BYTES / 2 + 1).is_none());
        assert!(room.waited_for.charge(DECODING_BYTES / 2).is_some());
    }

    #[test]
    fn what_nobody_waits_for_takes_no_room_from_others() {
        let room = Room::new();
        let too_long = room.take_in(&text(REPLIES_AHEAD_BYTES / 2 + 1), true);
        assert!(matches!(too_long, Err(Error::Undecodable(_))));
        let ahead = [(); 4].map(|()| room.take_in(&text(REPLIES_AHEAD_BYTES / 8), true).unwrap());
        assert!(room.take_in(&text(MIN_COUNTED), true).is_err());
        assert!(room.take_in(&text(DECODING_BYTES / 2), false).is_ok());
        drop(ahead);
        assert!(room.take_in(&text(MIN_COUNTED), true).is_ok());
    }
}
