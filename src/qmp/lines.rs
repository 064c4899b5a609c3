//! Lines from a socket, bounded in length.

use std::io::{self, Read};
use std::ops::Range;

use crate::limits::LINE_BYTES;

const CHUNK: usize = 64 << 10;

/// Cuts a byte stream into lines. After a long line the buffer shrinks again.
pub(super) struct LineReader<R> {
    source: R,
    buffer: Vec<u8>,
    /// Bytes before this were given out.
    start: usize,
    /// Bytes before this hold no newline.
    scanned: usize,
    /// Bytes before this were read.
    end: usize,
}

impl<R: Read> LineReader<R> {
    pub(super) fn new(source: R) -> Self {
        LineReader {
            source,
            buffer: vec![0; CHUNK],
            start: 0,
            scanned: 0,
            end: 0,
        }
    }

    pub(super) fn source_mut(&mut self) -> &mut R {
        &mut self.source
    }

    /// The next line without its `\n` or `\r\n`; `None` at the end of the stream.
    ///
    /// # Errors
    /// `InvalidData` for a line over [`LINE_BYTES`], `UnexpectedEof` for a stream that ends
    /// within a line, else what the source says.
    pub(super) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let line = loop {
            if let Some(line) = self.complete() {
                break line;
            }
            if self.end - self.start > LINE_BYTES {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a line over {} MiB", LINE_BYTES >> 20),
                ));
            }
            self.make_room();
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) if self.end == self.start => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        };
        let line = &self.buffer[line];
        Ok(Some(line.strip_suffix(b"\r").unwrap_or(line)))
    }

    fn complete(&mut self) -> Option<Range<usize>> {
        match self.buffer[self.scanned..self.end]
            .iter()
            .position(|b| *b == b'\n')
        {
            Some(at) => {
                let line = self.start..self.scanned + at;
                self.start = line.end + 1;
                self.scanned = self.start;
                Some(line)
            }
            None => {
                self.scanned = self.end;
                None
            }
        }
    }

    /// Moves what is left to the front, and sizes the buffer to it.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.scanned -= self.start;
        self.start = 0;
        if self.end == self.buffer.len() {
            // Room for the longest line and the newline that it may still have.
            self.buffer.resize((self.end * 2).min(LINE_BYTES + CHUNK), 0);
        } else if self.end < CHUNK && self.buffer.len() > CHUNK {
            self.buffer.truncate(CHUNK);
            self.buffer.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives at most `step` bytes at a time.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(self.1).min(buf.len());
            buf[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn lines_of_any_length_in_any_pieces() {
        let long = vec![b'x'; 3 * CHUNK];
        let mut text = b"a\r\n\nbc\n".to_vec();
        text.extend(&long);
        text.extend(b"\nend\n");
        for step in [1, 2, 1000, CHUNK, 1 << 20] {
            let mut lines = LineReader::new(Trickle(&text, step));
            for want in [b"a".as_slice(), b"", b"bc", &long, b"end"] {
                assert_eq!(lines.next().unwrap().unwrap(), want);
            }
            assert!(lines.next().unwrap().is_none());
        }
    }

    #[test]
    fn cut_off_and_too_long() {
        let mut lines = LineReader::new(Trickle(b"abc", 10));
        assert_eq!(lines.next().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let mut lines = LineReader::new(io::repeat(b'x'));
        assert_eq!(lines.next().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
