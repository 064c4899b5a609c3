//! How fast the program is beside a client that does the least that QEMU lets anyone do: what
//! `scripts/bench` runs. It starts its QEMUs itself, and writes a table and a chart.

mod chart;
mod machine;
mod measure;
mod report;
mod results;
mod rows;

use std::path::PathBuf;
use std::process::ExitCode;
use std::{fs, io};

use clap::Parser;

use harness::Which;
use report::Report;
use rows::{Effort, large, small};

/// Measures qom-fuse against a minimal QMP client, on an old QEMU and a new one.
#[derive(Parser)]
#[command(name = "scripts/bench")]
struct Options {
    /// Runs of each kind; the medians are shown
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Runs of each kind on the large machine
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    large_runs: u32,
    /// The folder that bench.md and bench.svg are written to
    #[arg(long, default_value = "docs")]
    dir: PathBuf,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> io::Result<ExitCode> {
    if let Some(mut work) = measure::child_work() {
        return work();
    }
    let options = Options::parse();
    let effort = |runs| Effort { runs };
    let mut report = Report::begin(options.runs, options.large_runs);
    report.add(small(Which::Old, &effort(options.runs)));
    report.add(small(Which::New, &effort(options.runs)));
    report.add(large(&effort(options.large_runs)));
    let text = report.markdown();
    println!("\n{text}");
    fs::create_dir_all(&options.dir)?;
    fs::write(options.dir.join("bench.md"), text)?;
    chart::draw(&options.dir.join("bench.svg"), report.tables()).map_err(io::Error::other)?;
    println!("written to bench.md and bench.svg in {}", options.dir.display());
    Ok(if report.all_met() {
        ExitCode::SUCCESS
    } else {
        eprintln!("not every limit was met: see the last column");
        ExitCode::FAILURE
    })
}
