//! Mounts the QEMU Object Model (QOM) of a running machine as a filesystem, over QMP.
//!
//! The layers, each of which knows only the one below it: `daemon` (the life of a mount), `fuse` (the kernel's
//! requests), `fs` (the filesystem without FUSE), `qom` (objects, properties, values) and `qmp` (one monitor
//! connection). They are private, so that the compiler finds what nobody uses.

mod budget;
mod cli;
mod daemon;
mod fs;
mod fuse;
mod limits;
mod pidfd;
mod process;
mod qmp;
mod qom;
mod text;

use std::io::Write;
use std::process::ExitCode;

pub use cli::command;
use cli::{Task, UsageError};
use daemon::logging;
use daemon::machine::discover::{Machine, machines};
use daemon::machine::list::{Table, suggested};

/// Does what the command line says; returns the exit status of the process.
pub fn main() -> ExitCode {
    process::use_one_heap();
    let config = match cli::parse(std::env::args_os(), |name| std::env::var(name).ok()) {
        Ok(Task::Mount(config)) => *config,
        Ok(Task::List) => {
            let written = writeln!(std::io::stdout(), "{}", Table(&machines()));
            return ExitCode::from(u8::from(written.is_err()));
        }
        Err(UsageError::Clap(e)) => {
            let _ = e.print();
            return ExitCode::from(u8::from(e.use_stderr()));
        }
        Err(e @ UsageError::NoSocket) => {
            eprintln!("qom-fuse: {e}\n{}", suggestion(&machines()));
            return ExitCode::FAILURE;
        }
        Err(e) => {
            eprintln!("qom-fuse: {e}");
            return ExitCode::FAILURE;
        }
    };
    logging::start(config.log_level);
    let status = daemon::run(config).unwrap_or_else(|daemon::Error { message, status }| {
        if let Some(message) = message {
            eprintln!("qom-fuse: {message}");
        }
        status
    });
    ExitCode::from(status)
}

/// The machines that there are, and the command for the first of them.
fn suggestion(machines: &[Machine]) -> String {
    let table = Table(machines).to_string();
    match suggested(machines) {
        Some(address) => format!("{table}\nTry: qom-fuse {address} MOUNTPOINT"),
        None => table,
    }
}

/// What reads the words of others, for `fuzz/`.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    pub use crate::fs::dir::names::{file_name, file_names};
    pub use crate::fs::link::text::link_text;
    pub use crate::qmp::wire::{Message, decode};
    pub use crate::qom::canonical::to_text;
    pub use crate::qom::value::{from_text, retyped};
    pub use crate::qom::{Path, Request};
    pub use crate::text::{escaped, printable};
}
