//! Counts durations as they happen.
//!
//! # Invariants
//! - H1: Recording takes no lock and allocates nothing: a search among 81 bounds and two atomic additions.
//! - H2: The bounds never change, so one can subtract the counts of two moments, and add those of two processes.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::Serialize;

/// Ten bounds per decade, each about a quarter above the one before.
const STEPS: [u64; 10] = [100, 125, 160, 200, 250, 315, 400, 500, 630, 800];

/// The upper bounds of the buckets, in nanoseconds: eight decades, from 1 us to 100 s.
const BOUNDS: [u64; 81] = {
    let mut bounds = [0; 81];
    let (mut index, mut scale) = (0, 10);
    while index < bounds.len() {
        bounds[index] = STEPS[index % STEPS.len()] * scale;
        index += 1;
        if index % STEPS.len() == 0 {
            scale *= 10;
        }
    }
    bounds
};

/// Counts durations in fixed buckets from 1 us to 100 s, ten per decade (1, 1.25, 1.6, 2, 2.5, 3.15, 4, 5, 6.3, 8).
///
/// Any number of threads may record at the same time. Recording costs about ten nanoseconds, takes no lock and
/// allocates nothing. A histogram takes 664 bytes and never grows.
#[derive(Debug)]
pub(crate) struct Histogram {
    /// How many durations fell into each bucket. The last bucket is for those above all bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    /// A histogram without counts. Allocates nothing.
    pub(crate) fn new() -> Histogram {
        Histogram {
            counts: array::from_fn(|_| AtomicU64::new(0)),
            nanos: AtomicU64::new(0),
        }
    }

    /// Counts a duration. All durations up to 1 us share a bucket, and so do all above 100 s.
    pub(crate) fn record(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < nanos);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// The counts so far. Allocates the list of the buckets that are not empty.
    pub(crate) fn timing(&self) -> Timing {
        let bounds = BOUNDS.iter().map(|nanos| seconds(*nanos));
        let counts = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        let buckets = bounds.chain([f64::INFINITY]).zip(counts);
        let buckets: Vec<TimingBucket> = buckets
            .filter(|(_, count)| *count > 0)
            .map(|(le_seconds, count)| TimingBucket { le_seconds, count })
            .collect();
        let mut timing = Timing {
            count: buckets.iter().map(|bucket| bucket.count).sum(),
            sum_seconds: seconds(self.nanos.load(Ordering::Relaxed)),
            buckets,
            ..Timing::default()
        };
        timing.p50_seconds = timing.quantile(0.5);
        timing.p99_seconds = timing.quantile(0.99);
        timing
    }
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram::new()
    }
}

#[expect(clippy::cast_precision_loss)]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Durations since the cache was made, counted in fixed buckets from 1 us to 100 s, ten per decade (1, 1.25, 1.6, 2,
/// 2.5, 3.15, 4, 5, 6.3, 8).
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Timing {
    /// How many durations were counted.
    pub count: u64,
    /// Their sum, in seconds.
    pub sum_seconds: f64,
    /// The median, in seconds: the upper bound of its bucket, which is up to a quarter too high between 1 us and 100 s.
    /// `None` if nothing was counted.
    pub p50_seconds: Option<f64>,
    /// The 99th percentile, in seconds, in the same way.
    pub p99_seconds: Option<f64>,
    /// The buckets that are not empty, ascending. For a period, subtract the counts at its beginning from those at its
    /// end.
    pub buckets: Vec<TimingBucket>,
}

/// How many durations fell between two bounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TimingBucket {
    /// The upper bound in seconds, included. Infinite (null in JSON) for durations above 100 s.
    pub le_seconds: f64,
    /// How many durations were above the bound before and not above this one.
    pub count: u64,
}

impl Timing {
    /// How many durations were at most `seconds`. Exact if that is a bound of the histogram, such as 0.001, 0.0025 or
    /// 0.005; otherwise slightly too low.
    pub fn up_to(&self, seconds: f64) -> u64 {
        let fitting = self
            .buckets
            .iter()
            .take_while(|bucket| bucket.le_seconds <= seconds);
        fitting.map(|bucket| bucket.count).sum()
    }

    /// The `share` quantile (0 to 1), in seconds: the upper bound of its bucket, at most 100 s. `None` if nothing was
    /// counted.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        #[expect(clippy::cast_precision_loss)]
        let rank = share * self.count as f64;
        let mut below = 0;
        let found = self.buckets.iter().find(|bucket| {
            below += bucket.count;
            #[expect(clippy::cast_precision_loss)]
            let reached = below as f64 >= rank;
            reached
        });
        let longest = BOUNDS.last().map_or(0.0, |nanos| seconds(*nanos));
        found.map(|bucket| bucket.le_seconds.min(longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_round_and_ascending() {
        assert_eq!((BOUNDS[0], BOUNDS[80]), (1_000, 100_000_000_000));
        assert!(BOUNDS.is_sorted_by(|one, next| one < next));
        // Prometheus shows these bounds, so they must equal the decimal numbers bit for bit.
        for decade in -6..2 {
            for step in ["1", "2.5", "5"] {
                let text = format!("{step}e{decade}");
                let bound: f64 = text.parse().expect("a number");
                assert!(
                    BOUNDS.iter().any(|nanos| seconds(*nanos) == bound),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn each_duration_is_counted_once_in_its_bucket() {
        let histogram = Histogram::new();
        assert_eq!(histogram.timing(), Timing::default());
        for nanos in [0, 1_000, 1_001, 1_250, 99_999_999_999, 100_000_000_001] {
            histogram.record(Duration::from_nanos(nanos));
        }
        let timing = histogram.timing();
        let buckets: Vec<(f64, u64)> = timing
            .buckets
            .iter()
            .map(|bucket| (bucket.le_seconds, bucket.count))
            .collect();
        assert_eq!(
            buckets,
            [(1e-6, 2), (1.25e-6, 2), (100.0, 1), (f64::INFINITY, 1)]
        );
        assert_eq!(
            (timing.count, timing.up_to(1e-6), timing.up_to(99.0)),
            (6, 2, 4)
        );
        assert_eq!(timing.p50_seconds, Some(1.25e-6));
        assert_eq!(timing.p99_seconds, Some(100.0));
        histogram.record(Duration::MAX);
        assert_eq!(histogram.timing().count, 7);
    }

    #[test]
    fn threads_lose_no_counts() {
        let histogram = Histogram::new();
        std::thread::scope(|scope| {
            for thread in 1..=4 {
                let histogram = &histogram;
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        histogram.record(Duration::from_micros(thread));
                    }
                });
            }
        });
        let timing = histogram.timing();
        assert_eq!((timing.count, timing.sum_seconds), (40_000, 0.1));
    }
}
