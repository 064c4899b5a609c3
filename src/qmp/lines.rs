//! Lines from a socket, bounded in length.

use std::io::{self, BufRead, BufReader, Read};

use crate::limits::LINE_BYTES;

const CHUNK: usize = 64 << 10;

/// Cuts a byte stream into lines. After a long line the buffer shrinks again.
pub(super) struct LineReader<R> {
    source: BufReader<R>,
    line: Vec<u8>,
}

impl<R: Read> LineReader<R> {
    pub(super) fn new(source: R) -> Self {
        LineReader {
            source: BufReader::with_capacity(CHUNK, source),
            line: Vec::new(),
        }
    }

    pub(super) fn source_mut(&mut self) -> &mut R {
        self.source.get_mut()
    }

    /// The next line without its `\n` or `\r\n`; `None` at the end of the stream.
    ///
    /// # Errors
    /// `InvalidData` for a line over [`LINE_BYTES`], `UnexpectedEof` for a stream that ends
    /// within a line, else what the source says.
    pub(super) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        self.line.shrink_to(CHUNK);
        let mut bounded = (&mut self.source).take(LINE_BYTES as u64 + 1);
        if bounded.read_until(b'\n', &mut self.line)? == 0 {
            return Ok(None);
        }
        match self.line.strip_suffix(b"\n") {
            Some(line) => Ok(Some(line.strip_suffix(b"\r").unwrap_or(line))),
            None if self.line.len() > LINE_BYTES => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a line over {} MiB", LINE_BYTES >> 20),
            )),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
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
