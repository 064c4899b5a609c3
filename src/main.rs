//! `qom-fuse`: see the library for what it does.

use std::process::ExitCode;

use qom_fuse::cli::{self, UsageError};
use qom_fuse::{logging, mount};

fn main() -> ExitCode {
    let config = match cli::parse(std::env::args_os(), |name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(UsageError::Clap(e)) => {
            let _ = e.print();
            return ExitCode::from(u8::from(e.use_stderr()));
        }
        Err(e) => return fail(&e),
    };
    logging::start(config.log_level);
    match mount::run(config) {
        Ok(status) => ExitCode::from(status),
        Err(e) => fail(&e),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("qom-fuse: {error}");
    ExitCode::FAILURE
}
