//! How long it takes until a commit is visible, and where that time goes.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{
    metrics::histogram::{Histogram, Timing},
    model::Micros,
};

/// How long the follower's work took since the cache was made. Reloads are not included; see
/// [`Stats::last_warmup`](crate::metrics::stats::Stats::last_warmup) for the last one. All timings are empty in a cache
/// that a [`Writer`](crate::writer::Writer) feeds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Timings {
    /// From a transaction's commit until readers saw its changes. Counts each transaction that wrote to the change log
    /// and was read from there. Does not count what a reload shows, for instance after an outage; the age covers that.
    ///
    /// The log does not know when a transaction committed. The timing starts at the end of its last logged statement,
    /// or at the beginning of the last read that did not see it yet, whichever is later. Both come before the commit,
    /// so the timing is an upper bound, unless a clock is set back. It includes what the transaction did after that
    /// statement, unless a read came between.
    ///
    /// The two clocks need not agree: the time of the statement is compared with the server's own clock. On a standby
    /// the timing includes the lag behind the primary, and the difference between their two clocks.
    pub commit_to_visible: Timing,
    /// A read of changes, from sending BEGIN to the answer to COMMIT, including decoding. Does not count reads that
    /// only checked for new log rows, nor reads of the audit.
    pub read: Timing,
    /// The part of a read that decodes market rows. Not counted if there were none. Also not counted if rows were
    /// decoded while they arrived: that time is part of `read`. This happens with many changes, and with snapshots that
    /// the read did not expect to need.
    pub decode: Timing,
    /// The part of a read that brings the draft up to date and drops events that have left the window. Not counted if
    /// the log named nothing.
    pub apply: Timing,
    /// Making a state of the draft, collecting the differences, and swapping the state in. Not counted if nothing
    /// differed.
    pub publish: Timing,
}

/// [`Timings`] that are being recorded.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    pub(crate) commit_to_visible: Histogram,
    pub(crate) read: Histogram,
    pub(crate) decode: Histogram,
    pub(crate) apply: Histogram,
    pub(crate) publish: Histogram,
}

impl Timers {
    pub(crate) fn get(&self) -> Timings {
        Timings {
            commit_to_visible: self.commit_to_visible.timing(),
            read: self.read.timing(),
            decode: self.decode.timing(),
            apply: self.apply.timing(),
            publish: self.publish.timing(),
        }
    }

    /// Records how long a read of changes took, and the commits that it made visible. Call it once readers see them.
    pub(crate) fn record(&self, took: Option<&Took>, shown: &Shown) {
        shown.record(&self.commit_to_visible);
        let Some(took) = took else { return };
        self.read.record(took.read);
        if let Some(decode) = took.decode {
            self.decode.record(decode);
        }
        if let Some(apply) = took.apply {
            self.apply.record(apply);
        }
    }
}

/// How long the parts of a read of changes took.
#[derive(Debug)]
pub(crate) struct Took {
    pub(crate) read: Duration,
    /// `None` if there were no market rows.
    pub(crate) decode: Option<Duration>,
    /// `None` if there was nothing to apply.
    pub(crate) apply: Option<Duration>,
}

/// What is known of the commits that a read shows.
#[derive(Debug)]
pub(crate) struct Shown {
    /// When the last logged statement of each transaction ended, by the server's clock.
    pub(crate) logged: Vec<Micros>,
    /// The server's clock, read after `began` and before any other statement.
    pub(crate) server_now: Micros,
    pub(crate) began: Instant,
    /// When the read before this one began, which saw none of these transactions. `None` on a standby: its primary may
    /// have committed them earlier.
    pub(crate) unseen: Option<Instant>,
}

impl Shown {
    fn record(&self, into: &Histogram) {
        if self.logged.is_empty() {
            return;
        }
        let since_began = self.began.elapsed();
        let most = self.unseen.map_or(Duration::MAX, |unseen| unseen.elapsed());
        for logged in &self.logged {
            into.record(since(*logged, self.server_now, since_began).min(most));
        }
    }
}

/// How long ago `logged` was, if the server's clock showed `server_now` a time of `ago` before now. `logged` may be
/// later than `server_now`.
fn since(logged: Micros, server_now: Micros, ago: Duration) -> Duration {
    let before = server_now.0.saturating_sub(logged.0);
    let micros = Duration::from_micros(before.unsigned_abs());
    if before >= 0 {
        ago.saturating_add(micros)
    } else {
        ago.saturating_sub(micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(shown: &Shown) -> Timing {
        let histogram = Histogram::new();
        shown.record(&histogram);
        histogram.timing()
    }

    /// What a read shows that began half a second ago. The read before it began a second earlier.
    fn shown(logged: &[i64], standby: bool) -> Shown {
        let now = Instant::now();
        let ago = |millis| now.checked_sub(Duration::from_millis(millis));
        Shown {
            logged: logged.iter().copied().map(Micros).collect(),
            // Far from the local clock, which must not matter.
            server_now: Micros(5_000_000),
            began: ago(500).expect("an uptime of seconds"),
            unseen: ago(1_500).filter(|_| !standby),
        }
    }

    #[test]
    fn a_commit_is_neither_before_its_statement_nor_before_a_read_that_missed_it() {
        // Written 300 ms before the read; ten minutes before it, by a transaction left open; and while the read waited
        // for locks.
        let timing = recorded(&shown(&[4_700_000, -600_000_000, 5_200_000], false));
        let found: Vec<f64> = timing
            .buckets
            .iter()
            .map(|found| found.le_seconds)
            .collect();
        assert_eq!((timing.count, found), (3, vec![0.315, 1.0, 1.6]));
        assert!(timing.sum_seconds < 0.3 + 0.8 + 1.5 + 0.2, "{timing:?}");
    }

    #[test]
    fn an_older_read_of_a_standby_proves_nothing_about_the_primary() {
        let timing = recorded(&shown(&[-4_900_000, 9_000_000], true));
        let found: Vec<f64> = timing
            .buckets
            .iter()
            .map(|found| found.le_seconds)
            .collect();
        assert_eq!(found, [1e-6, 12.5]);
        assert_eq!(recorded(&shown(&[], true)), Timing::default());
    }
}
