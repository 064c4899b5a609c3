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

/// The last write on a descriptor, as long as it may go on.
#[derive(Debug, Default)]
pub struct LastWrite(Option<Unended>);

#[derive(Debug)]
struct Unended {
    /// The offset at which it would go on. A refused write leaves the descriptor where it was.
    at: u64,
    outcome: Result<()>,
    /// A lone newline may still end it.
    open: bool,
}

impl LastWrite {
    /// Says what a write is. One that appends goes on wherever the kernel puts it.
    pub fn part(&mut self, offset: u64, data: &[u8], append: bool) -> Part {
        let Some(last) = self.0.as_mut().filter(|last| append || last.at == offset) else {
            return Part::Value;
        };
        match &last.outcome {
            // Kept: the same newline may be tried again.
            Err(_) if data == b"\n" => Part::Newline(last.outcome.clone()),
            Err(_) => Part::Value,
            Ok(()) if data == b"\n" && last.open => {
                self.0 = None;
                Part::Newline(Ok(()))
            }
            Ok(()) => {
                last.open = false;
                Part::Rest
            }
        }
    }

    /// Remembers what became of a value.
    pub fn set(&mut self, offset: u64, data: &[u8], outcome: &Result<()>) {
        let newline = data.ends_with(b"\n");
        let ended = newline && !(outcome.is_ok() && data.len().is_multiple_of(BUFFER));
        let written = if outcome.is_ok() { data.len() as u64 } else { 0 };
        self.0 = (!ended).then(|| Unended {
            at: offset.saturating_add(written),
            outcome: outcome.clone(),
            open: !newline,
        });
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
            let (mark, taken) = match last.part(offset, data, append) {
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
            (&[b"hello\n", b"again\n", b"\n"], "==="),
            (&[b"hello", b"\n", b"next", b"\n"], "=+=+"),
            (&[b"hel", b"lo"], "=!"),
            // Refused once, refused again, also as what would have been its end.
            (&[b"hel", b"lo", b"lo", b"\n"], "=!!!"),
            (&[b"h", b"e\n", b"\n"], "=!!"),
            (&[b"bad", b"\n", b"\n"], "=--"),
            (&[b"bad", b"good", b"\n"], "==+"),
            (&[b"bad\n", b"\n"], "=="),
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
            matches!(last.part(0, b"hello", false), Part::Value),
            "from the start again"
        );
    }
}
