//! `qom-fuse`: see the library for what it does.

use std::io::Write;
use std::process::ExitCode;

use qom_fuse::cli::{self, Task, UsageError};
use qom_fuse::daemon::machine::discover::{self, Table};
use qom_fuse::daemon::{self, logging, memory};

fn main() -> ExitCode {
    memory::use_one_heap();
    let config = match cli::parse(std::env::args_os(), |name| std::env::var(name).ok()) {
        Ok(Task::Mount(config)) => *config,
        Ok(Task::List) => {
            let written = writeln!(std::io::stdout(), "{}", Table(&discover::machines()));
            return ExitCode::from(u8::from(written.is_err()));
        }
        Err(UsageError::Clap(e)) => {
            let _ = e.print();
            return ExitCode::from(u8::from(e.use_stderr()));
        }
        Err(e @ UsageError::NoSocket) => {
            eprintln!("qom-fuse: {e}\n{}", suggestion(&discover::machines()));
            return ExitCode::FAILURE;
        }
        Err(e) => {
            eprintln!("qom-fuse: {e}");
            return ExitCode::FAILURE;
        }
    };
    logging::start(config.log_level);
    match daemon::run(config) {
        Ok(status) => ExitCode::from(status),
        // QEMU has spoken for itself.
        Err(daemon::Error::Ended(status)) => ExitCode::from(status),
        Err(e) => {
            eprintln!("qom-fuse: {e}");
            ExitCode::from(e.status())
        }
    }
}

/// The machines that there are, and the command for the first of them.
fn suggestion(machines: &[discover::Machine]) -> String {
    let table = Table(machines).to_string();
    match discover::suggested(machines) {
        Some(address) => format!("{table}\nTry: qom-fuse {address} MOUNTPOINT"),
        None => table,
    }
}
