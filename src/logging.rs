//! The log: to the terminal in the foreground, to syslog in the background, or to a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use syslog::{Facility, Formatter3164};

/// Lines from warnings on down to info that may come at once, and per second after that: a
/// peer can provoke as many as it likes.
const BURST: f64 = 200.0;
const PER_SECOND: f64 = 20.0;

static LOGGER: OnceLock<Logger> = OnceLock::new();

struct Logger {
    filter: env_logger::Logger,
    state: Mutex<State>,
}

struct State {
    output: Output,
    allowance: f64,
    last: Instant,
    suppressed: u64,
}

enum Output {
    Stderr,
    File(File),
    Syslog(Box<syslog::Logger<syslog::LoggerBackend, Formatter3164>>),
    Nowhere,
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
    let most = filter.filter();
    let logger = LOGGER.get_or_init(|| Logger {
        filter,
        state: Mutex::new(State {
            output: Output::Stderr,
            allowance: BURST,
            last: Instant::now(),
            suppressed: 0,
        }),
    });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(most);
        // In the background nobody sees stderr.
        std::panic::set_hook(Box::new(|panic| log::error!("internal error: {panic}")));
    }
}

/// Sends the log to the end of a file from now on.
///
/// # Errors
/// When the file cannot be opened.
pub fn to_file(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    set(Output::File(file));
    Ok(())
}

/// Sends the log to syslog (and so to the journal) from now on, or nowhere where there is none.
pub fn to_syslog() {
    let formatter = Formatter3164 {
        facility: Facility::LOG_DAEMON,
        hostname: None,
        process: "qom-fuse".into(),
        pid: std::process::id(),
    };
    set(match syslog::unix(formatter) {
        Ok(logger) => Output::Syslog(Box::new(logger)),
        Err(_) => Output::Nowhere,
    });
}

/// True when the log goes to the terminal.
pub fn is_to_stderr() -> bool {
    LOGGER
        .get()
        .is_some_and(|logger| matches!(logger.state.lock().output, Output::Stderr))
}

fn set(output: Output) {
    if let Some(logger) = LOGGER.get() {
        logger.state.lock().output = output;
    }
}

impl State {
    /// Whether one more line may be written now.
    fn allow(&mut self, now: Instant) -> bool {
        let since: Duration = now.saturating_duration_since(self.last);
        self.last = now;
        self.allowance = (self.allowance + since.as_secs_f64() * PER_SECOND).min(BURST);
        if self.allowance < 1.0 {
            self.suppressed += 1;
            return false;
        }
        self.allowance -= 1.0;
        true
    }

    fn write(&mut self, level: Level, text: &str) {
        let severity = level.as_str().to_ascii_lowercase();
        // A log that cannot be written is no reason to stop.
        let _ = match &mut self.output {
            Output::Nowhere => Ok(()),
            Output::Stderr => writeln!(io::stderr(), "qom-fuse: {severity}: {text}"),
            Output::File(file) => {
                let now = humantime();
                writeln!(file, "{now} {severity}: {text}")
            }
            Output::Syslog(logger) => {
                let sent = match level {
                    Level::Error => logger.err(text),
                    Level::Warn => logger.warning(text),
                    Level::Info => logger.info(text),
                    Level::Debug | Level::Trace => logger.debug(text),
                };
                sent.map_err(io::Error::other)
            }
        };
    }
}

/// Seconds since 1970, with milliseconds.
fn humantime() -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    format!("{}.{:03}", now.as_secs(), now.subsec_millis())
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.filter.matches(record) {
            return;
        }
        let mut state = self.state.lock();
        if matches!(record.level(), Level::Warn | Level::Info) {
            if !state.allow(Instant::now()) {
                return;
            }
            let suppressed = std::mem::take(&mut state.suppressed);
            if suppressed > 0 {
                state.write(Level::Warn, &format!("{suppressed} more lines came too fast"));
            }
        }
        state.write(record.level(), &record.args().to_string());
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut() {
        let start = Instant::now();
        let mut state = State {
            output: Output::Nowhere,
            allowance: BURST,
            last: start,
            suppressed: 0,
        };
        let passed = (0..10_000).filter(|_| state.allow(start)).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(state.suppressed, 10_000 - BURST as u64);
        assert!(state.allow(start + Duration::from_secs(1)));
    }
}
