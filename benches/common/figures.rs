//! Medians and the like.
#![allow(dead_code, reason = "not every benchmark wants all of it")]

use std::time::Duration;

/// Sorts.
pub(crate) fn quantile(times: &mut [Duration], of: f64) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times
        .get((last as f64 * of).round() as usize)
        .copied()
        .unwrap_or_default()
}

/// Sorts.
pub(crate) fn median(times: &mut [Duration]) -> Duration {
    quantile(times, 0.5)
}

pub(crate) fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
