//! A histogram of latencies. Its size does not depend on the number of values.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Counts latencies in microseconds, exact to two digits.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(Histogram::new(2).expect("two digits"))
    }
}

impl Latencies {
    pub fn add(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(micros);
    }

    pub fn merge(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("it grows");
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The quantile `part`, from 0 to 1.
    pub fn quantile(&self, part: f64) -> Duration {
        Duration::from_micros(self.0.value_at_quantile(part))
    }

    pub fn line(&self) -> String {
        let [p50, p99, p999, most] = [0.5, 0.99, 0.999, 1.0].map(|part| {
            let time = self.quantile(part);
            format!("{:.2}", time.as_secs_f64() * 1e3)
        });
        format!("p50 {p50}  p99 {p99}  p999 {p999}  most {most} ms")
    }
}
