//! How long something takes, counted as it happens.
//!
//! | invariant | |
//! |---|---|
//! | H1 | recording takes no lock, allocates nothing and waits for nobody: a search among 81 bounds and two additions |
//! | H2 | the bounds never change, so counts taken at two times, or of two processes, can be subtracted and added |

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::Serialize;

/// Ten bounds to a decade, each about a quarter above the one before.
const STEPS: [u64; 10] = [100, 125, 160, 200, 250, 315, 400, 500, 630, 800];

/// Nanoseconds: eight decades, from 1 us to 100 s.
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

/// Counts durations in fixed buckets, from 1 us to 100 s, ten to a decade (1, 1.25, 1.6, 2, 2.5, 3.15, 4, 5, 6.3, 8).
///
/// Any number of threads may record at a time. Recording costs some ten nanoseconds, takes no lock and allocates nothing;
/// the whole weighs 664 bytes and never grows.
#[derive(Debug)]
pub(crate) struct Histogram {
    /// Those up to each bound and above the one before; the last: above all bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    /// One that has counted nothing.
    pub(crate) fn new() -> Histogram {
        Histogram {
            counts: array::from_fn(|_| AtomicU64::new(0)),
            nanos: AtomicU64::new(0),
        }
    }

    /// Counts a duration. Those under 1 us are told apart no further, nor those over 100 s.
    pub(crate) fn record(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < nanos);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What was counted until now. Allocates a list of the buckets that are not empty.
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

/// How long something took, each time since the cache was made: durations counted in fixed buckets, from 1 us to 100 s, ten
/// to a decade (1, 1.25, 1.6, 2, 2.5, 3.15, 4, 5, 6.3, 8).
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Timing {
    /// How many durations.
    pub count: u64,
    /// All of them together, in seconds.
    pub sum_seconds: f64,
    /// Half of them took no longer, in seconds: the upper bound of the bucket it falls in, up to a quarter too high from
    /// 1 us to 100 s. `None` if there were none.
    pub p50_seconds: Option<f64>,
    /// The same for 99 in 100.
    pub p99_seconds: Option<f64>,
    /// The buckets that are not empty, in ascending order. Subtract those of an earlier time to know what was in between.
    pub buckets: Vec<TimingBucket>,
}

/// How many durations fell between two bounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TimingBucket {
    /// They took so many seconds at the most; infinite (in JSON: null) for those over 100 s.
    pub le_seconds: f64,
    /// How many took no longer than that, and longer than the bound before.
    pub count: u64,
}

impl Timing {
    /// How many took `seconds` at the most: exact where that is a bound of the histogram, such as 0.001, 0.0025 and 0.005,
    /// else a little less.
    pub fn up_to(&self, seconds: f64) -> u64 {
        let fitting = self
            .buckets
            .iter()
            .take_while(|bucket| bucket.le_seconds <= seconds);
        fitting.map(|bucket| bucket.count).sum()
    }

    /// Such a `share` of them, from 0 to 1, took no longer than this many seconds: the upper bound of a bucket, the
    /// greatest there is for what took longer than all. `None` if nothing was counted.
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
    fn bounds_are_round_and_ascend() {
        assert_eq!((BOUNDS[0], BOUNDS[80]), (1_000, 100_000_000_000));
        assert!(BOUNDS.is_sorted_by(|one, next| one < next));
        // What Prometheus is shown must be bounds to the last bit.
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
    fn each_duration_is_counted_once_where_it_belongs() {
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
    fn nothing_is_lost_between_threads() {
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
