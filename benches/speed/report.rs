//! The measurements as Markdown.

use std::fmt::Write;
use std::fs;

use crate::machine::{Count, processor};
use crate::measure::median;
use crate::results::{Row, Table};

pub struct Report {
    runs: (u32, u32),
    load_before: String,
    tables: Vec<Table>,
}

impl Report {
    pub fn begin(runs: u32, large_runs: u32) -> Report {
        Report {
            runs: (runs, large_runs),
            load_before: load(),
            tables: Vec::new(),
        }
    }

    pub fn add(&mut self, table: Table) {
        println!("{}", table_text(&table)); // at once: the whole takes minutes
        self.tables.push(table);
    }

    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    pub fn all_met(&self) -> bool {
        let mut limits = self
            .tables
            .iter()
            .flat_map(|table| &table.rows)
            .flat_map(|row| &row.limits);
        limits.all(|limit| limit.met)
    }

    pub fn markdown(&self) -> String {
        let (runs, large_runs) = self.runs;
        let processor = processor().unwrap_or_else(|error| error.to_string());
        let mut text = format!(
            "<!-- Written by scripts/bench; see performance.md for what it means. -->\n\
             # Measured speed\n\n\
             By `scripts/bench --runs {runs} --large-runs {large_runs}`, on {processor}, Linux {}; load average {} \
             before, {} after.\n\n\
             The minimal client (`examples/minimal.rs`) sends the shortest requests there are and throws the replies \
             away. Times and ratios are medians of alternating runs; in brackets the least and the greatest ratio \
             of two runs that followed each other, then the ratio of the best runs. Requests and their bytes were counted in runs of their own.\n\n\
             ![How many times as long as the minimal client](bench.svg)\n",
            kernel(),
            self.load_before,
            load(),
        );
        if self.load_before.parse().is_ok_and(|load: f64| load > 1.0) {
            text.push_str(
                "\n**The machine was busy with other work when this run began: requests and bytes are exact all the \
                 same, but the times and ratios say little.**\n",
            );
        }
        for table in &self.tables {
            text.push('\n');
            text.push_str(&table_text(table));
        }
        text
    }
}

fn table_text(table: &Table) -> String {
    let mut text = format!("## {}, {}\n\n", table.machine, table.what);
    text.push_str(
        "| work | qom-fuse | minimal client | ratio | best | requests | request bytes | limit | met |\n",
    );
    text.push_str("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |\n");
    for row in &table.rows {
        text.push_str(&line(row));
    }
    for note in &table.notes {
        write!(text, "\n{note}\n").expect("write to a string");
    }
    text
}

fn line(row: &Row) -> String {
    let two = |number: fn(&Count) -> usize| match &row.minimal {
        Some(minimal) => format!("{} / {}", number(&row.ours), number(minimal)),
        None => number(&row.ours).to_string(),
    };
    let (minimal, ratio, best) = match &row.minimal {
        Some(_) => {
            let (least, most) = row.times.range();
            let ratio = format!("**{:.2}** ({least:.2}–{most:.2})", row.times.ratio());
            let best = format!("{:.2}", row.times.ratio_of_bests());
            (milliseconds(&row.times.minimal), ratio, best)
        }
        None => ("–".into(), "–".into(), "–".into()),
    };
    let (limits, met): (Vec<_>, Vec<_>) = row
        .limits
        .iter()
        .map(|limit| (&*limit.text, if limit.met { "yes" } else { "**no**" }))
        .unzip();
    format!(
        "| {} | {} | {minimal} | {ratio} | {best} | {} | {} | {} | {} |\n",
        row.work,
        milliseconds(&row.times.ours),
        two(|count| count.requests),
        two(|count| count.bytes),
        limits.join("; "),
        met.join("; "),
    )
}

fn milliseconds(seconds: &[f64]) -> String {
    let milliseconds = median(seconds) * 1e3;
    format!("{milliseconds:.*} ms", usize::from(milliseconds < 100.0))
}

/// Of the last minute.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// The kernel's version without what a distribution or a host adds to it.
fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}
