//! What was measured, and whether that is enough.

use std::time::Duration;

use crate::machine::Count;
use crate::measure::median;

/// One machine's measurements.
pub struct Table {
    pub machine: String,
    /// For the chart.
    pub short: String,
    pub what: String,
    pub rows: Vec<Row>,
    /// What was seen besides.
    pub notes: Vec<String>,
}

/// One kind of work.
pub struct Row {
    pub work: String,
    pub times: Times,
    pub ours: Count,
    /// What the minimal client sent; none where there is nothing for it to do.
    pub minimal: Option<Count>,
    pub limits: Vec<Limit>,
}

/// What is to be reached.
pub struct Limit {
    pub text: String,
    pub met: bool,
    /// For a limit of the ratio: the limit.
    pub ratio: Option<f64>,
}

/// Seconds of alternating runs.
#[derive(Default)]
pub struct Times {
    pub ours: Vec<f64>,
    pub minimal: Vec<f64>,
}

impl Times {
    /// Ours and the minimal client's in turn.
    pub fn alternate(runs: u32, mut ours: impl FnMut() -> Duration, minimal: impl Fn() -> Duration) -> Times {
        let mut times = Times::default();
        for _ in 0..runs {
            times.ours.push(ours().as_secs_f64());
            times.minimal.push(minimal().as_secs_f64());
        }
        times
    }

    /// How many times as long ours takes.
    pub fn ratio(&self) -> f64 {
        median(&self.ours) / median(&self.minimal)
    }

    /// The same for the best run of each, which other work on the machine spoils least.
    pub fn ratio_of_bests(&self) -> f64 {
        let best = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
        best(&self.ours) / best(&self.minimal)
    }

    /// The least and the greatest ratio of two runs that followed each other.
    pub fn range(&self) -> (f64, f64) {
        let ratios = || {
            self.ours
                .iter()
                .zip(&self.minimal)
                .map(|(ours, minimal)| ours / minimal)
        };
        (
            ratios().fold(f64::INFINITY, f64::min),
            ratios().fold(0.0, f64::max),
        )
    }

    pub fn within(&self, most: f64) -> Limit {
        Limit {
            text: format!("≤ {most} ×"),
            met: self.ratio() <= most,
            ratio: Some(most),
        }
    }
}

impl Count {
    pub fn at_most(self, most: usize, text: &str) -> Limit {
        Limit {
            text: text.to_owned(),
            met: self.requests <= most,
            ratio: None,
        }
    }
}
