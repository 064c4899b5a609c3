//! What a descriptor wrote last: tells a new value from the rest of one that its writer cut.

use super::Result;

/// Buffers are cut at multiples of this, in bytes, be there a newline or not.
const BUFFER: usize = 4096;

/// What a write is.
#[derive(Debug)]
pub enum Part {
    /// A value of its own.
    Value,
    /// The newline at the end of the value before, with what became of that.
    Newline(Result<()>),
    /// The rest of a value whose beginning was set.
    Rest,
}

/// The last write on a descriptor.
#[derive(Debug, Default)]
pub struct LastWrite(Option<Last>);

#[derive(Debug)]
struct Last {
    /// The offset at which it would go on. A refused write leaves the descriptor where it was.
    at: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The value had a newline at its end, or was followed by one.
    Ended,
    /// A newline may still come.
    Unended,
    /// The value was cut, or may have been.
    Cut,
    Refused(Result<()>),
}

impl LastWrite {
    /// Says what the next write on the descriptor is. One that appends goes on wherever the kernel puts it.
    pub fn next(&mut self, offset: u64, data: &[u8], appends: bool) -> Part {
        let Some(last) = self.0.as_mut().filter(|last| appends || last.at == offset) else {
            return Part::Value;
        };
        let newline = data == b"\n";
        match &last.state {
            State::Refused(outcome) if newline => Part::Newline(outcome.clone()),
            State::Unended if newline => {
                (last.at, last.state) = (offset.saturating_add(1), State::Ended);
                Part::Newline(Ok(()))
            }
            // An empty line behind a value is more likely the end of a longer one than an empty value.
            State::Ended if newline => Part::Rest,
            State::Ended | State::Refused(_) => Part::Value,
            State::Unended | State::Cut => {
                last.state = State::Cut;
                Part::Rest
            }
        }
    }

    /// Remembers what became of a value.
    pub fn set(&mut self, offset: u64, data: &[u8], outcome: &Result<()>) {
        let state = match (outcome, data.ends_with(b"\n")) {
            (Err(_), _) => State::Refused(outcome.clone()),
            (Ok(()), true) if data.len().is_multiple_of(BUFFER) => State::Cut,
            (Ok(()), true) => State::Ended,
            (Ok(()), false) => State::Unended,
        };
        let written = if outcome.is_ok() { data.len() as u64 } else { 0 };
        let at = offset.saturating_add(written);
        self.0 = Some(Last { at, state });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the writes of one descriptor come to: set (`=`), a newline taken (`+`) or refused (`-`), or
    /// the rest of a value (`!`). Values that begin with `bad` are refused.
    fn writes(append: bool, data: &[&[u8]]) -> String {
        let (mut last, mut offset, mut came) = (LastWrite::default(), 0, String::new());
        for data in data {
            let refused = data.starts_with(b"bad");
            let (mark, taken) = match last.next(offset, data, append) {
                Part::Value => {
                    let outcome = if refused { Err(libc::EINVAL.into()) } else { Ok(()) };
                    last.set(offset, data, &outcome);
                    ('=', !refused)
                }
                Part::Newline(outcome) => (if outcome.is_ok() { '+' } else { '-' }, outcome.is_ok()),
                Part::Rest => ('!', false),
            };
            came.push(mark);
            offset += if taken { data.len() as u64 } else { 0 };
        }
        came
    }

    #[test]
    fn what_goes_on_and_what_begins() {
        let (page, ended) = ([b'x'; BUFFER], [[b'x'; BUFFER - 1].as_slice(), b"\n"].concat());
        for (data, want) in [
            (&[b"hello".as_slice(), b"\n"][..], "=+"),
            (&[b"hello\n", b"again\n"], "=="),
            (&[b"hello", b"\n", b"next", b"\n"], "=+=+"),
            (&[b"hel", b"lo"], "=!"),
            // Refused once, refused again, also as what would have been its end.
            (&[b"hel", b"lo", b"lo", b"\n"], "=!!!"),
            (&[b"h", b"e\n", b"\n"], "=!!"),
            // An empty value is set by a newline only where a value cannot go on.
            (&[b"\n"], "="),
            (&[b"hello\n", b"\n", b"\n"], "=!!"),
            (&[b"hello", b"\n", b"\n"], "=+!"),
            (&[b"hello\n", b"\n", b"next\n"], "=!="),
            (&[b"bad", b"\n", b"\n"], "=--"),
            (&[b"bad\n", b"\n"], "=-"),
            (&[b"bad", b"good", b"\n"], "==+"),
            (&[&page, b"\n"], "=+"),
            (&[&page, &page], "=!"),
            (&[&ended, b"\n"], "=!"),
            (&[&ended, b"rest\n"], "=!"),
        ] {
            assert_eq!(writes(false, data), want, "{data:?}");
            assert_eq!(writes(true, data), want, "appended: {data:?}");
        }
        let mut last = LastWrite::default();
        last.set(0, b"hel", &Ok(()));
        assert!(
            matches!(last.next(0, b"hello", false), Part::Value),
            "from the start again"
        );
    }
}
