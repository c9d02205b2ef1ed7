//! How long it takes until a commit is visible, and where that time goes.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{
    metrics::histogram::{Histogram, Timing},
    model::Micros,
};

/// How long the follower's work took, since the cache was made. Reads of everything (warmups) are not in it: what they took
/// is in [`Stats::last_warmup`](crate::metrics::stats::Stats::last_warmup). All are empty in a cache that is fed by a
/// [`Writer`](crate::writer::Writer).
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Timings {
    /// From a transaction's commit until readers saw what it wrote; one for each transaction that wrote to the change log and
    /// was read from there. What a reload shows (after an outage, say) is not counted, however long it took: for that there
    /// is the age.
    ///
    /// The log does not know when a transaction committed. It is taken to have done so when its last logged statement
    /// ended, or when the last read that did not see it yet began, whichever was later: never after the commit, so this is
    /// an upper bound, as long as neither clock is put back. It contains what else the transaction did after that statement, as far as no read came between. The
    /// two clocks need not agree, for the time of the statement is compared with the server's own clock in the
    /// transaction that read it. From a standby, it contains how far that was behind its primary, and how far the clocks
    /// of the two differ.
    pub commit_to_visible: Timing,
    /// A read of changes: its transaction, from BEGIN sent to COMMIT answered, with the decoding in between. Neither those
    /// that only asked whether anything was written at all, nor those of the audit.
    pub read: Timing,
    /// Of such a read, turning rows of markets into what is held. Not counted where there were none, or where they were taken as
    /// they came, which is in `read`: of many changes, and of snapshots that were not known to be needed beforehand.
    pub decode: Timing,
    /// Of such a read, bringing the next state to what was read, and dropping what has left the window. Not counted where
    /// the log named nothing.
    pub apply: Timing,
    /// Making a state from that, telling what differs, and swapping it in. Not counted where nothing differed.
    pub publish: Timing,
}

/// [`Timings`] as they are taken.
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

    /// What a read of changes took, and what it shows, once that is visible.
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

/// What the parts of a read of changes took.
#[derive(Debug)]
pub(crate) struct Took {
    pub(crate) read: Duration,
    /// If there were market rows.
    pub(crate) decode: Option<Duration>,
    /// If anything was to be applied.
    pub(crate) apply: Option<Duration>,
}

/// What is known of the commits that a read shows.
#[derive(Debug)]
pub(crate) struct Shown {
    /// When the last logged statement of each of the transactions ended, by the server's clock.
    pub(crate) logged: Vec<Micros>,
    /// The server's clock after `began`, and before anything else was asked of it.
    pub(crate) server_now: Micros,
    pub(crate) began: Instant,
    /// When the last read began, which saw none of the transactions. `None` from a standby: they may have committed earlier.
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

/// How long ago something was logged, if the server's clock was at `server_now` so long ago. A statement may have ended
/// after that.
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

    /// As if the read had begun half a second ago, and the one before it a second before that.
    fn shown(logged: &[i64], standby: bool) -> Shown {
        let now = Instant::now();
        let ago = |millis| now.checked_sub(Duration::from_millis(millis));
        Shown {
            logged: logged.iter().copied().map(Micros).collect(),
            // Whatever our own clock says.
            server_now: Micros(5_000_000),
            began: ago(500).expect("an uptime of seconds"),
            unseen: ago(1_500).filter(|_| !standby),
        }
    }

    #[test]
    fn a_commit_is_no_earlier_than_its_statement_nor_than_the_read_that_did_not_see_it() {
        // Written 300 ms before the read; ten minutes before it, in a transaction left open; and while it waited for locks.
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
    fn on_a_standby_an_older_read_proves_nothing_of_the_primary() {
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
