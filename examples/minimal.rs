//! The minimal QMP client, which `scripts/bench` measures qom-fuse against: sends the requests
//! of a file one by one, in their shortest form, and throws the replies away.
//!
//! Usage: minimal SOCKET REQUESTS-FILE (one request per line); prints the seconds it took.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;
use std::{env, fs, io};

/// Reads until the reply to one request is there. Events do not come from a paused machine.
fn skip_reply(socket: &mut UnixStream, buffer: &mut [u8]) -> io::Result<()> {
    loop {
        let n = socket.read(buffer)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if buffer[n - 1] == b'\n' {
            return Ok(());
        }
    }
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().collect();
    let [_, socket, requests] = arguments.as_slice() else {
        return Err(io::Error::other("usage: minimal SOCKET REQUESTS-FILE"));
    };
    let requests = fs::read(requests)?;
    let mut socket = UnixStream::connect(socket)?;
    let mut buffer = vec![0; 1 << 20];
    skip_reply(&mut socket, &mut buffer)?; // the greeting
    socket.write_all(br#"{"execute":"qmp_capabilities"}"#)?;
    skip_reply(&mut socket, &mut buffer)?;
    let start = Instant::now();
    for request in requests.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        socket.write_all(request)?;
        skip_reply(&mut socket, &mut buffer)?;
    }
    println!("{:.6}", start.elapsed().as_secs_f64());
    Ok(())
}
