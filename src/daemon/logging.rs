//! The log: to the terminal in the foreground, to syslog in the background, or to a file. It never waits: a
//! line that cannot be taken is dropped and counted, and the next one that can says how many there were.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use socket2::SockRef;

use crate::limits::{LOG_BURST, LOG_PER_SECOND};

/// A line is cut at this many bytes, so that a pipe takes all of it or nothing.
const MAX_LINE: usize = libc::PIPE_BUF;

static STATE: Mutex<State> = Mutex::new(State::new());

struct Logger(env_logger::Logger);

struct State {
    output: Output,
    /// How many more lines may come at once.
    allowance: f64,
    /// When the last line came.
    last: Option<Instant>,
    /// Lines that came too fast.
    suppressed: u64,
    /// Lines that the output did not take.
    lost: u64,
    /// Of the last line it took only a part.
    cut: bool,
}

enum Output {
    Stderr,
    File(File),
    Syslog(UnixDatagram),
}

/// Starts the log at `level` (`RUST_LOG` overrides it), to stderr.
pub fn start(level: LevelFilter) {
    let mut filter = env_logger::Builder::new();
    filter.filter_level(LevelFilter::Error);
    match std::env::var_os("RUST_LOG") {
        // Beside a level for this module, a bare one would say nothing of it.
        Some(text) if !text.is_empty() => filter.parse_default_env(),
        // fuser calls it an error that the caller of a request was gone when its reply came.
        _ => filter
            .filter_module("fuser", LevelFilter::Off)
            .filter_module("qom_fuse", level),
    };
    let filter = filter.build();
    log::set_max_level(filter.filter());
    if log::set_boxed_logger(Box::new(Logger(filter))).is_ok() {
        // In the background nobody sees stderr.
        std::panic::set_hook(Box::new(|panic| log::error!("internal error: {panic}")));
    }
}

/// Sends the log to the end of a file from now on. A new one is for its owner alone.
///
/// # Errors
/// When the file cannot be opened, or is a pipe that nobody reads.
pub fn to_file(path: &Path) -> io::Result<()> {
    let opened = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = opened.map_err(|e| match e.raw_os_error() {
        Some(libc::ENXIO) => io::Error::new(e.kind(), "nobody reads this pipe"),
        _ => e,
    })?;
    STATE.lock().output = Output::File(file);
    Ok(())
}

/// Sends the log to syslog (and so to the journal) from now on, whenever there is one.
pub fn to_syslog() {
    if let Ok(socket) = UnixDatagram::unbound()
        && socket.set_nonblocking(true).is_ok()
    {
        STATE.lock().output = Output::Syslog(socket);
    }
}

impl State {
    const fn new() -> State {
        State {
            output: Output::Stderr,
            allowance: LOG_BURST,
            last: None,
            suppressed: 0,
            lost: 0,
            cut: false,
        }
    }

    /// Whether one more line may be written now.
    fn allow(&mut self, now: Instant) -> bool {
        let last = self.last.replace(now).unwrap_or(now);
        let since = now.saturating_duration_since(last).as_secs_f64();
        self.allowance = (self.allowance + since * LOG_PER_SECOND).min(LOG_BURST);
        if self.allowance < 1.0 {
            self.suppressed += 1;
            return false;
        }
        self.allowance -= 1.0;
        true
    }

    /// Writes a line, after the number of those that were lost before, or counts it among them.
    fn write(&mut self, level: Level, text: &str) {
        if self.lost > 0 {
            let lost = format!("{} lines were lost: the log did not take them", self.lost);
            if self.put(Level::Warn, &lost).is_ok() {
                self.lost = 0;
            }
        }
        if self.lost > 0 || self.put(level, text).is_err() {
            self.lost += 1;
        }
    }

    /// Writes a line without waiting.
    fn put(&mut self, level: Level, text: &str) -> io::Result<()> {
        let severity = level.as_str().to_ascii_lowercase();
        let start = if self.cut { "\n" } else { "" };
        let (line, taken) = match &mut self.output {
            Output::Syslog(syslog) => return send(syslog, level, text),
            Output::Stderr => {
                let line = line(&format!("{start}qom-fuse: {severity}: {text}"));
                (line.len(), write_stderr(&line)?)
            }
            Output::File(file) => {
                let line = line(&format!("{start}{} {severity}: {text}", seconds()));
                (line.len(), file.write(&line)?)
            }
        };
        self.cut = taken < line;
        match self.cut {
            true => Err(ErrorKind::WriteZero.into()),
            false => Ok(()),
        }
    }
}

/// A text as a line of its own.
fn line(text: &str) -> Vec<u8> {
    let mut end = text.len().min(MAX_LINE - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}\n", &text[..end]).into_bytes()
}

/// Writes to standard error what it takes at once. Others have it too, so it cannot be told not to wait;
/// but a pipe or terminal can be opened once more.
fn write_stderr(line: &[u8]) -> io::Result<usize> {
    const PATH: &str = "/proc/self/fd/2";
    let mut stderr = io::stderr();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    match SockRef::from(&stderr).send_with_flags(line, flags) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTSOCK) => {}
        sent => return sent,
    }
    if !fs::metadata(PATH).is_ok_and(|stderr| stderr.is_file()) {
        let mut again = OpenOptions::new();
        again.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        if let Ok(mut file) = again.open(PATH) {
            return file.write(line);
        }
    }
    // A file never waits. What cannot be opened again somebody else may fill up just now, but no other way is left.
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::ZERO)? {
        0 => Err(ErrorKind::WouldBlock.into()),
        _ => stderr.write(line),
    }
}

/// Sends a line to syslog, by its name each time: it may be started anew.
fn send(socket: &UnixDatagram, level: Level, text: &str) -> io::Result<()> {
    const DAEMON: u32 = 3 << 3;
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let line = format!("<{}>qom-fuse[{}]: {text}", DAEMON | severity, std::process::id());
    socket.send_to(line.as_bytes(), "/dev/log").map(drop)
}

/// Seconds since 1970, with milliseconds.
fn seconds() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:03}", now.as_secs(), now.subsec_millis())
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.0.matches(record) {
            return;
        }
        let text = record.args().to_string(); // not under the lock: what panics here logs too
        let mut state = STATE.lock();
        if matches!(record.level(), Level::Warn | Level::Info) {
            if !state.allow(Instant::now()) {
                return;
            }
            let suppressed = std::mem::take(&mut state.suppressed);
            if suppressed > 0 {
                state.write(Level::Warn, &format!("{suppressed} more lines came too fast"));
            }
        }
        state.write(record.level(), &text);
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_is_cut() {
        let start = Instant::now();
        let mut state = State::new();
        let passed = (0..10_000).filter(|_| state.allow(start)).count();
        assert_eq!(passed, LOG_BURST as usize);
        assert_eq!(state.suppressed, 10_000 - LOG_BURST as u64);
        assert!(state.allow(start + Duration::from_secs(1)));
    }
}
