//! Decides whether to wait for notifications or to read every few milliseconds.
//!
//! A transaction that notifies takes a lock of the whole cluster while it commits, so notifying transactions commit one
//! at a time. Writers should therefore notify only if a follower waits for it. A waiting follower holds the wait lock,
//! an advisory lock (see [`crate::follow::listener`]). Writers look for that lock, and notify only if somebody holds
//! it.
//!
//! When notifications come often, the follower releases the lock and polls, as network drivers do with interrupts. When
//! there was nothing to read for a while, it takes the lock again.
//!
//! While the lock is being taken, a writer may look too early, find no lock, and commit without a notification. These
//! invariants make sure that the follower still sees its change:
//!
//! # Invariants
//! - W1: A writer has its transaction id before it looks for the wait lock: `log_change()` first inserts the log row.
//! - W2: After it has taken the lock, the listener asks which transaction id the server will assign next
//!   (`notifies_from`). A transaction that looked too early has a smaller id. Each one with this id or a greater one
//!   notifies.
//! - W3: The follower goes on polling until `xmin` of a snapshot has reached `notifies_from`. By then every transaction
//!   that looked too early has ended, and that snapshot shows it. Only then may the follower wait for notifications.
//!
//! W3 is given up after [`OVERLAP_FOR`]. Otherwise a transaction that stays open for hours would keep the follower
//! polling. What such a transaction commits is visible after the poll interval at the latest.

use std::time::{Duration, Instant};

/// If transactions are less than this apart on average, notifications come too often.
const OFTEN: Duration = Duration::from_millis(20);

/// Several notifications that come during a read look like one. So the number of transactions is estimated from the log
/// rows: a batch of a scrape writes about this many, a single snapshot with its markets two.
const ROWS_PER_TRANSACTION: usize = 4;

/// The most transactions that one read counts for. By then nothing of the past is left in the average.
const MOST_AT_ONCE: usize = 50;

/// The average interval at the beginning, and the longest that one interval counts for.
const SELDOM: Duration = Duration::from_millis(100);

/// The average gives the past a weight of 7/8, and the newest interval 1/8.
const AVERAGE_OVER: u32 = 8;

/// The pause between two polls is as long as the last read took, so that reading takes at most half of the time. These
/// are its bounds.
const SHORTEST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_millis(20);

/// After this time without changes the follower waits for notifications again.
const QUIET: Duration = Duration::from_millis(100);

/// The longest time for which W3 keeps the follower polling.
const OVERLAP_FOR: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Waits for notifications. `apart` is how far apart transactions are on average.
    Notified { apart: Duration },
    /// Polls, and writers need not notify. `news` is when a poll last found changes.
    Polling { news: Instant },
    /// Writers should notify again, but some may have looked for the lock too early. So it still polls, since `since`
    /// (W3).
    Overlap { since: Instant },
}

/// What this module learns from a read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// When the read ended.
    pub(crate) now: Instant,
    /// How long the read took.
    pub(crate) took: Duration,
    /// How long the wait before it was, if a notification ended that wait.
    pub(crate) notified_after: Option<Duration>,
    /// How many log rows were new.
    pub(crate) rows: usize,
    /// `xmin` of the read's snapshot: every transaction with a smaller id had ended.
    pub(crate) xmin: u64,
    /// See W2. `None` while the listener does not hold the wait lock.
    pub(crate) notifies_from: Option<u64>,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Polling {
    mode: Mode,
    /// How long the last read took.
    took: Duration,
    /// The `notifies_from` for which the overlap has ended.
    settled: Option<u64>,
}

impl Default for Polling {
    fn default() -> Polling {
        Polling {
            mode: Mode::Notified { apart: SELDOM },
            took: Duration::ZERO,
            settled: None,
        }
    }
}

impl Polling {
    /// Learns from a read, and changes the mode.
    pub(crate) fn read(&mut self, seen: Seen) {
        let has_news = seen.rows > 0;
        self.took = seen.took;
        self.mode = match self.mode {
            Mode::Polling { .. } if has_news => Mode::Polling { news: seen.now },
            polling @ Mode::Polling { news } if seen.now.duration_since(news) < QUIET => polling,
            Mode::Polling { .. } => Mode::Overlap { since: seen.now },
            // The listener has taken the lock anew, for instance after it lost its connection. Writers may have looked
            // for the lock in between.
            Mode::Notified { .. }
                if seen.notifies_from.is_some() && seen.notifies_from != self.settled =>
            {
                Mode::Overlap { since: seen.now }
            }
            Mode::Notified { apart } => match seen.notified_after {
                // Only notifications with changes count: any role can send others, and polling would not avoid those.
                Some(waited) if has_news => {
                    // A running average over transactions, not over reads: one read may stand for many transactions.
                    let transactions = seen.rows.div_ceil(ROWS_PER_TRANSACTION).min(MOST_AT_ONCE);
                    let transactions = u32::try_from(transactions).unwrap_or(1);
                    let interval = ((waited + seen.took) / transactions).min(SELDOM);
                    let apart = (0..transactions).fold(apart, |apart, _| {
                        (apart * (AVERAGE_OVER - 1) + interval) / AVERAGE_OVER
                    });
                    if apart < OFTEN {
                        Mode::Polling { news: seen.now }
                    } else {
                        Mode::Notified { apart }
                    }
                }
                _ => Mode::Notified { apart },
            },
            overlap @ Mode::Overlap { .. } => overlap,
        };
        // Checked at once: the read that begins the overlap may already be the one that ends it.
        if let Mode::Overlap { since } = self.mode {
            let settled = seen.notifies_from.is_some_and(|from| seen.xmin >= from);
            if settled || seen.now.duration_since(since) >= OVERLAP_FOR {
                self.settled = seen.notifies_from;
                self.mode = Mode::Notified { apart: SELDOM };
            }
        }
    }

    /// Notes that everything was read. That read may be the one for which the listener woke the follower after it took
    /// the lock, so an overlap begins in any case (W3). After a crash the server assigns ids again, so an equal
    /// `notifies_from` may belong to another lock.
    pub(crate) fn reloaded(&mut self, now: Instant, notifies_from: Option<u64>) {
        self.settled = None;
        if matches!(self.mode, Mode::Notified { .. }) && notifies_from.is_some() {
            self.mode = Mode::Overlap { since: now };
        }
    }

    /// Whether writers should notify.
    pub(crate) fn wants_notifications(&self) -> bool {
        !matches!(self.mode, Mode::Polling { .. })
    }

    /// How soon to read without a notification. `None` to wait for one.
    pub(crate) fn poll_after(&self) -> Option<Duration> {
        match self.mode {
            Mode::Notified { .. } => None,
            Mode::Polling { .. } | Mode::Overlap { .. } => Some(self.took.clamp(SHORTEST, LONGEST)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A follower with a clock of its own, which each step moves on.
    struct Follower {
        polling: Polling,
        now: Instant,
        notifies_from: Option<u64>,
        xmin: u64,
    }

    impl Follower {
        fn new() -> Follower {
            let mut follower = Follower {
                polling: Polling::default(),
                now: Instant::now(),
                notifies_from: Some(100),
                xmin: 100,
            };
            follower.polls(Duration::ZERO, false);
            assert!(follower.waits_for_notifications());
            follower
        }

        fn read(&mut self, notified_after: Option<Duration>, took: Duration, rows: usize) {
            self.now += took;
            self.polling.read(Seen {
                now: self.now,
                took,
                notified_after,
                rows,
                xmin: self.xmin,
                notifies_from: self.notifies_from,
            });
        }

        fn notified(&mut self, after: Duration, took: Duration, rows: usize) {
            self.now += after;
            self.read(Some(after), took, rows);
        }

        fn polls(&mut self, after: Duration, news: bool) {
            self.now += after;
            self.read(None, 2 * MS, usize::from(news));
        }

        fn waits_for_notifications(&self) -> bool {
            self.polling.wants_notifications() && self.polling.poll_after().is_none()
        }
    }

    #[test]
    fn it_waits_for_few_notifications_and_polls_instead_of_many() {
        for (after, took, rows, often) in [
            (40 * MS, 2 * MS, 2, false),
            (20 * MS, 2 * MS, 2, false),
            (15 * MS, 2 * MS, 2, true),
            (MS, 2 * MS, 2, true),
            // The batches of a scrape.
            (10 * MS, 30 * MS, 4, false),
            // Many small transactions, several of them in each read.
            (MS, 30 * MS, 20, true),
        ] {
            let mut follower = Follower::new();
            for _ in 0..100 {
                if follower.polling.wants_notifications() {
                    follower.notified(after, took, rows);
                }
            }
            assert_eq!(
                follower.polling.wants_notifications(),
                !often,
                "{after:?} {took:?} {rows}"
            );
        }
    }

    #[test]
    fn a_short_burst_of_notifications_does_not_make_it_poll() {
        let mut follower = Follower::new();
        for _ in 0..10 {
            follower.notified(MS, MS, 1);
        }
        assert!(follower.waits_for_notifications());
    }

    #[test]
    fn notifications_without_a_change_do_not_make_it_poll() {
        let mut follower = Follower::new();
        for _ in 0..100 {
            follower.read(Some(MS), MS, 0);
        }
        assert!(follower.waits_for_notifications());
    }

    /// A follower that polls.
    fn polling() -> Follower {
        let mut follower = Follower::new();
        while follower.polling.wants_notifications() {
            follower.notified(MS, MS, 1);
        }
        follower.notifies_from = None;
        follower
    }

    #[test]
    fn polling_takes_at_most_half_of_the_time_and_ends_without_changes() {
        let mut follower = polling();
        for (took, pause) in [(MS, 5 * MS), (8 * MS, 8 * MS), (200 * MS, 20 * MS)] {
            follower.read(None, took, 1);
            assert_eq!(follower.polling.poll_after(), Some(pause));
        }
        for _ in 0..100 {
            follower.polls(30 * MS, false);
            follower.polls(30 * MS, false);
            follower.polls(30 * MS, true);
        }
        assert!(!follower.polling.wants_notifications());
        for _ in 0..4 {
            follower.polls(30 * MS, false);
        }
        assert!(follower.polling.wants_notifications());
        assert!(!follower.waits_for_notifications());
    }

    /// W3.
    #[test]
    fn it_polls_until_all_transactions_have_ended_that_looked_too_early() {
        let mut follower = polling();
        follower.polls(QUIET, false);
        assert!(
            !follower.waits_for_notifications(),
            "the lock is not held yet"
        );
        (follower.notifies_from, follower.xmin) = (Some(200), 199);
        for _ in 0..10 {
            follower.polls(5 * MS, true);
            assert!(!follower.waits_for_notifications());
        }
        follower.xmin = 200;
        follower.polls(5 * MS, false);
        assert!(follower.waits_for_notifications());
    }

    #[test]
    fn a_transaction_that_stays_open_does_not_keep_it_polling() {
        let mut follower = polling();
        follower.polls(QUIET, false);
        (follower.notifies_from, follower.xmin) = (Some(200), 150);
        let mut reads = 0;
        while !follower.waits_for_notifications() {
            follower.polls(5 * MS, false);
            reads += 1;
        }
        assert!((50..500).contains(&reads), "{reads}");
        follower.polls(QUIET, false);
        assert!(
            follower.waits_for_notifications(),
            "no second overlap for the same id"
        );
    }

    /// The read for which the lock woke the follower once became a read of everything, and no overlap began.
    #[test]
    fn a_read_of_everything_begins_an_overlap() {
        let mut follower = Follower::new();
        follower.polling.reloaded(follower.now, None);
        assert!(follower.waits_for_notifications(), "nothing holds the lock");
        // After a crash another lock has the same id.
        follower.polling.reloaded(follower.now, Some(100));
        follower.xmin = 99;
        follower.polls(5 * MS, false);
        assert!(!follower.waits_for_notifications());
        follower.xmin = 100;
        follower.polls(5 * MS, false);
        assert!(follower.waits_for_notifications());
    }

    #[test]
    fn a_listener_that_reconnects_begins_an_overlap_and_one_that_stays_away_does_not_prolong_it() {
        let mut follower = Follower::new();
        (follower.notifies_from, follower.xmin) = (Some(300), 250);
        follower.polls(5 * MS, false);
        assert!(!follower.waits_for_notifications());
        follower.notifies_from = None;
        for _ in 0..300 {
            follower.polls(5 * MS, false);
        }
        assert!(follower.waits_for_notifications());
    }
}
