//! The writing side of a connection.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

/// The writing side of the socket. Nothing here takes longer than the deadline allows.
pub(super) struct Writer {
    socket: Arc<Socket>,
    /// The end of a request of which QEMU's socket took only the beginning.
    tail: Vec<u8>,
}

impl Writer {
    pub fn new(socket: Arc<Socket>) -> Writer {
        Writer {
            socket,
            tail: Vec::new(),
        }
    }

    /// Writes what is left of an earlier request; true when nothing is.
    ///
    /// # Errors
    /// When the socket failed, or the peer ended.
    pub fn flush(&mut self, deadline: Instant) -> io::Result<bool> {
        if !self.tail.is_empty() {
            let n = self.put(&self.tail, deadline)?;
            self.tail.drain(..n);
        }
        Ok(self.tail.is_empty())
    }

    /// Writes as much of a request as the socket takes before the deadline, and says how much. The
    /// rest of one that it took a part of is kept: it must come before anything else.
    ///
    /// # Errors
    /// When the socket failed, or the peer ended.
    pub fn write(&mut self, request: &[u8], deadline: Instant) -> io::Result<usize> {
        let n = self.put(request, deadline)?;
        if n > 0 {
            self.tail.extend(&request[n..]);
        }
        Ok(n)
    }

    fn put(&self, bytes: &[u8], deadline: Instant) -> io::Result<usize> {
        // The timeout of a send that waits would begin anew with each piece that the kernel cuts.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let mut done = 0;
        while done < bytes.len() {
            match self.socket.send_with_flags(&bytes[done..], flags) {
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.wait_for_room(left);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Waits until the socket takes something or has failed, which the next send tells.
    fn wait_for_room(&self, left: Duration) {
        // poll counts whole milliseconds, and would not wait at all for the last part of one.
        let left = left.saturating_add(Duration::from_millis(1));
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut socket = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
        let _ = poll(&mut socket, timeout);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::thread;

    const LARGE: usize = 1_000_000;

    fn pair() -> (Writer, UnixStream) {
        let (ours, peer) = UnixStream::pair().unwrap();
        (Writer::new(Arc::new(OwnedFd::from(ours).into())), peer)
    }

    /// Reads as much as came, `step` bytes after each pause, until the end.
    fn read_slowly(mut peer: UnixStream, step: usize, pause: Duration) -> usize {
        let (mut buffer, mut total) = (vec![0; step], 0);
        loop {
            thread::sleep(pause);
            match peer.read(&mut buffer).unwrap() {
                0 => return total,
                n => total += n,
            }
        }
    }

    #[test]
    fn a_peer_that_reads_now_and_then_does_not_put_the_deadline_off() {
        let (mut writer, peer) = pair();
        let timeout = Duration::from_millis(300);
        let reader = thread::spawn(move || read_slowly(peer, 36 << 10, Duration::from_millis(200)));
        let start = Instant::now();
        let n = writer.write(&vec![b'x'; LARGE], start + timeout).unwrap();
        let took = start.elapsed();
        assert!(n < LARGE, "all was written in {took:?}");
        assert!(took >= timeout && took < 5 * timeout, "{took:?}");
        assert!(!writer.flush(start + timeout).unwrap());
        drop(writer);
        assert_eq!(reader.join().unwrap(), n, "what was written is what came");
    }

    #[test]
    fn the_rest_comes_before_anything_else() {
        let (mut writer, mut peer) = pair();
        let now = Instant::now();
        let large: Vec<u8> = (0..LARGE).map(|i| (i % 251) as u8).collect();
        let n = writer.write(&large, now).unwrap();
        assert!(n > 0 && n < LARGE, "{n}");
        assert!(!writer.flush(now).unwrap(), "nobody reads");
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).map(|_| all).unwrap()
        });
        let deadline = now + Duration::from_secs(30);
        assert!(writer.flush(deadline).unwrap());
        assert_eq!(writer.write(b"next", deadline).unwrap(), 4);
        drop(writer);
        assert!(reader.join().unwrap() == [&large[..], b"next"].concat());
    }

    #[test]
    fn the_end_of_the_peer_is_noticed_while_waiting() {
        let (mut writer, peer) = pair();
        let start = Instant::now();
        let ending = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(peer);
        });
        let deadline = start + Duration::from_secs(60);
        assert!(writer.write(&vec![b'x'; LARGE], deadline).is_err());
        assert!(start.elapsed() < Duration::from_secs(30));
        ending.join().unwrap();
    }
}
