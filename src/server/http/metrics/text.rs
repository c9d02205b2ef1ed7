//! The text form: families of samples, each family with a help text and a type.
//!
//! The encoder of the crate `prometheus-client` would take more code: a registry of its own metric types, or a
//! collector and a label type for each family. It writes OpenMetrics, which changes the content type that scrapers see.

use std::fmt::{Display, Write};

use oddscache::Timing;

/// The text as it is written. Writing into a `String` does not fail, so results are ignored.
#[derive(Debug)]
pub(super) struct Text(String);

impl Default for Text {
    fn default() -> Text {
        Text(String::with_capacity(32 * 1024))
    }
}

impl Text {
    pub(super) fn finish(self) -> String {
        self.0
    }

    /// Begins a family of ours. All names get the prefix `oddscache_`.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(
            self.0,
            "# HELP oddscache_{name} {help}\n# TYPE oddscache_{name} {kind}"
        );
    }

    /// `labels` as they stand in the text: `a="b"`. No value of ours needs an escape.
    pub(super) fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.0, "oddscache_{name} {value}"),
            labels => writeln!(self.0, "oddscache_{name}{{{labels}}} {value}"),
        };
    }

    pub(super) fn gauge(&mut self, name: &str, value: impl Display, help: &str) {
        self.family(name, "gauge", help);
        self.sample(name, "", value);
    }

    pub(super) fn counter(&mut self, name: &str, value: u64, help: &str) {
        self.family(name, "counter", help);
        self.sample(name, "", value);
    }

    /// The samples of a histogram: three bounds a decade, from `lowest` to `highest`.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        labels: &str,
        counted: &impl Counted,
        (lowest, highest): (f64, f64),
    ) {
        let comma = if labels.is_empty() { "" } else { "," };
        let bucket = format!("{name}_bucket");
        let shown = BOUNDS
            .iter()
            .filter(|bound| (lowest..=highest).contains(*bound));
        for bound in shown {
            let labels = format!("{labels}{comma}le=\"{bound}\"");
            self.sample(&bucket, &labels, counted.up_to(*bound));
        }
        let (count, sum_seconds) = counted.total();
        self.sample(&bucket, &format!("{labels}{comma}le=\"+Inf\""), count);
        self.sample(&format!("{name}_sum"), labels, sum_seconds);
        self.sample(&format!("{name}_count"), labels, count);
    }

    /// A metric of the process. All programs use the same names for these, without a prefix of their own.
    pub(super) fn of_process(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        let _ = writeln!(
            self.0,
            "# HELP process_{name} {help}\n# TYPE process_{name} {kind}\nprocess_{name} {value}"
        );
    }
}

/// Durations that were counted.
pub(super) trait Counted {
    /// How many durations were at most `seconds`, which is one of [`BOUNDS`].
    fn up_to(&self, seconds: f64) -> u64;

    /// The number of durations, and their sum in seconds.
    fn total(&self) -> (u64, f64);
}

impl Counted for Timing {
    fn up_to(&self, seconds: f64) -> u64 {
        Timing::up_to(self, seconds)
    }

    fn total(&self) -> (u64, f64) {
        (self.count, self.sum_seconds)
    }
}

/// Seconds. Each is a bound of [`Timing`], so no count needs to be split.
pub(super) const BOUNDS: [f64; 24] = [
    0.000_001,
    0.000_002_5,
    0.000_005,
    0.000_01,
    0.000_025,
    0.000_05,
    0.000_1,
    0.000_25,
    0.000_5,
    0.001,
    0.002_5,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    25.0,
    50.0,
];
