//! Quantiles of times.

use std::time::Duration;

/// The quantile `of`, from 0 to 1. Sorts the times.
pub fn quantile(times: &mut [Duration], of: f64) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times
        .get((last as f64 * of).round() as usize)
        .copied()
        .unwrap_or_default()
}

/// The median. Sorts the times.
pub fn median(times: &mut [Duration]) -> Duration {
    quantile(times, 0.5)
}

pub fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
