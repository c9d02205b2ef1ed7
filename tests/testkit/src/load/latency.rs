//! Times counted in classes a sixteenth apart, so that any number of them takes the same room.

use std::time::Duration;

/// Classes for each power of two.
const PARTS: usize = 16;

/// How many took how long; exact to 1/16.
#[derive(Debug, Clone)]
pub struct Latencies {
    /// By microseconds.
    classes: Vec<u64>,
    count: u64,
    longest: Duration,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies {
            classes: vec![0; 64 * PARTS],
            count: 0,
            longest: Duration::ZERO,
        }
    }
}

fn class(micros: u64) -> usize {
    let bits = 63 - (micros | 1).leading_zeros() as usize;
    if bits < 4 {
        return micros as usize;
    }
    let part = (micros >> (bits - 4)) as usize - PARTS;
    (bits - 3) * PARTS + part
}

/// The greatest time of a class, in microseconds.
fn most(class: usize) -> u64 {
    if class < PARTS {
        return class as u64;
    }
    let (bits, part) = (class / PARTS + 3, class % PARTS);
    (((PARTS + part + 1) as u64) << (bits - 4)) - 1
}

impl Latencies {
    pub fn add(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.classes[class(micros)] += 1;
        self.count += 1;
        self.longest = self.longest.max(time);
    }

    pub fn merge(&mut self, other: &Latencies) {
        for (sum, more) in self.classes.iter_mut().zip(&other.classes) {
            *sum += more;
        }
        self.count += other.count;
        self.longest = self.longest.max(other.longest);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// What so large a part of them did not exceed.
    pub fn quantile(&self, part: f64) -> Duration {
        let wanted = (self.count as f64 * part).ceil() as u64;
        let mut sum = 0;
        for (class, count) in self.classes.iter().enumerate() {
            sum += count;
            if sum >= wanted && *count > 0 {
                return Duration::from_micros(most(class)).min(self.longest);
            }
        }
        self.longest
    }

    pub fn line(&self) -> String {
        let text = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|part| text(self.quantile(part)));
        format!(
            "p50 {p50}  p99 {p99}  p999 {p999}  most {} ms",
            text(self.longest)
        )
    }
}

#[test]
fn quantiles_are_exact_to_a_sixteenth() {
    let mut latencies = Latencies::default();
    for micros in 1..=100_000 {
        latencies.add(Duration::from_micros(micros));
    }
    for (part, micros) in [(0.5, 50_000.0), (0.99, 99_000.0), (0.999, 99_900.0)] {
        let found = latencies.quantile(part).as_micros() as f64;
        assert!((micros..=micros * 1.07).contains(&found), "{part}: {found}");
    }
    assert_eq!(latencies.quantile(1.0), Duration::from_micros(100_000));
    for micros in [0, 1, 15, 16, 17, 31, 32, 1000, u64::MAX >> 8] {
        let most = most(class(micros));
        assert!(
            most >= micros && most - micros <= micros / PARTS as u64,
            "{micros}"
        );
    }
}
