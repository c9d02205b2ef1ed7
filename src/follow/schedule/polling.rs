//! Whether to sleep until the bell rings, or to look without being asked.
//!
//! Transactions that ring commit one at a time in the whole cluster, so nobody should have them ring who would look anyway.
//! Whoever sleeps until it rings says so by an advisory lock (W, [`crate::follow::listener`]), and writers ring only while somebody
//! holds it. Where bells come often, the follower gives W up and reads every few milliseconds instead, as network drivers
//! do with interrupts; once there is nothing to read for a while, it takes W again.
//!
//! | invariant | |
//! |---|---|
//! | W1 | a writer has its transaction id before it looks whether somebody holds W (`log_change()`: log row, then look) |
//! | W2 | X is the id that the server was to hand out next, asked for after W was taken: a transaction that looked too early has a smaller one; each with X or a greater one notifies |
//! | W3 | the follower looks again briskly until a snapshot's `xmin` has reached X: then all who looked too early have ended, and that snapshot shows them. Only then is silence of the bell taken for quiet |
//!
//! W3 has an end ([`BRISK_FOR`]), lest a transaction that stays open for hours keeps us awake: what it commits shows after
//! the poll interval at the latest, as everything does.

use std::time::{Duration, Instant};

/// More than one ring in so much time, on average, are too many.
const OFTEN: Duration = Duration::from_millis(20);

/// Bells that come during a read are one afterwards, so transactions are guessed from log rows: a batch of a scrape writes
/// about so many, a single snapshot with its markets two.
const ROWS_PER_TRANSACTION: usize = 4;

/// More than these leave nothing of the past in the average.
const MOST_AT_ONCE: usize = 50;

/// What an average begins with, and the most that one interval counts in it.
const SELDOM: Duration = Duration::from_millis(100);

/// Weight of the past in the average.
const INERTIA: u32 = 8;

/// Between two reads of one's own accord: as long as the last took, so that reading takes half of the time at most, but
/// within these bounds.
const SHORTEST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_millis(20);

/// After so long without news it is quiet.
const QUIET: Duration = Duration::from_millis(100);

/// W3's end.
const BRISK_FOR: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Asleep between bells; how far apart they are on average.
    Asleep { apart: Duration },
    /// Reads of its own accord and wants no bell; when there was news last.
    Awake { news: Instant },
    /// Wants the bell, but somebody may have looked too early; since when.
    Dozing { since: Instant },
}

/// What a read tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// When it was done.
    pub(crate) now: Instant,
    /// How long it took.
    pub(crate) took: Duration,
    /// How long was slept before it, if a bell ended that.
    pub(crate) rung_after: Option<Duration>,
    /// How many log rows were new.
    pub(crate) rows: usize,
    /// `xmin` of its snapshot.
    pub(crate) xmin: u64,
    /// X, if W is held.
    pub(crate) rings_from: Option<u64>,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Polling {
    mode: Mode,
    took: Duration,
    /// The X for which W3 was kept, or given up.
    settled: Option<u64>,
}

impl Default for Polling {
    fn default() -> Polling {
        Polling {
            mode: Mode::Asleep { apart: SELDOM },
            took: Duration::ZERO,
            settled: None,
        }
    }
}

impl Polling {
    /// After each read.
    pub(crate) fn read(&mut self, seen: Seen) {
        let has_news = seen.rows > 0;
        self.took = seen.took;
        let asleep = Mode::Asleep { apart: SELDOM };
        self.mode = match self.mode {
            Mode::Awake { .. } if has_news => Mode::Awake { news: seen.now },
            awake @ Mode::Awake { news } if seen.now.duration_since(news) < QUIET => awake,
            Mode::Awake { .. } => Mode::Dozing { since: seen.now },
            // Also after the bell was away: whoever wrote meanwhile may have found W free.
            Mode::Asleep { .. } if seen.rings_from.is_some() && seen.rings_from != self.settled => {
                Mode::Dozing { since: seen.now }
            }
            Mode::Asleep { apart } => match seen.rung_after {
                Some(slept) if has_news => {
                    let transactions = seen.rows.div_ceil(ROWS_PER_TRANSACTION).min(MOST_AT_ONCE);
                    let transactions = u32::try_from(transactions).unwrap_or(1);
                    let interval = ((slept + seen.took) / transactions).min(SELDOM);
                    let apart = (0..transactions).fold(apart, |apart, _| {
                        (apart * (INERTIA - 1) + interval) / INERTIA
                    });
                    if apart < OFTEN {
                        Mode::Awake { news: seen.now }
                    } else {
                        Mode::Asleep { apart }
                    }
                }
                _ => Mode::Asleep { apart },
            },
            dozing => dozing,
        };
        if let Mode::Dozing { since } = self.mode {
            let settled = seen.rings_from.is_some_and(|x| seen.xmin >= x);
            if settled || seen.now.duration_since(since) >= BRISK_FOR {
                self.settled = seen.rings_from;
                self.mode = asleep;
            }
        }
    }

    /// Whether writers should ring.
    pub(crate) fn wants_notifications(&self) -> bool {
        !matches!(self.mode, Mode::Awake { .. })
    }

    /// How soon to look, whatever the bell does; `None` to sleep.
    pub(crate) fn look_after(&self) -> Option<Duration> {
        match self.mode {
            Mode::Asleep { .. } => None,
            Mode::Awake { .. } | Mode::Dozing { .. } => Some(self.took.clamp(SHORTEST, LONGEST)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A follower whose clock goes by what is said to have happened.
    struct Follower {
        polling: Polling,
        now: Instant,
        held: Option<u64>,
        xmin: u64,
    }

    impl Follower {
        fn new() -> Follower {
            let mut follower = Follower {
                polling: Polling::default(),
                now: Instant::now(),
                held: Some(100),
                xmin: 100,
            };
            follower.polls(Duration::ZERO, false);
            assert!(follower.sleeps());
            follower
        }

        fn read(&mut self, rung_after: Option<Duration>, took: Duration, rows: usize) {
            self.now += took;
            self.polling.read(Seen {
                now: self.now,
                took,
                rung_after,
                rows,
                xmin: self.xmin,
                rings_from: self.held,
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

        fn sleeps(&self) -> bool {
            self.polling.wants_notifications() && self.polling.look_after().is_none()
        }
    }

    #[test]
    fn few_bells_are_slept_through_until_the_next_and_many_are_not_wanted() {
        for (after, took, rows, often) in [
            (40 * MS, 2 * MS, 2, false),
            (20 * MS, 2 * MS, 2, false),
            (15 * MS, 2 * MS, 2, true),
            (MS, 2 * MS, 2, true),
            // A scrape's batches.
            (10 * MS, 30 * MS, 4, false),
            // Many small ones, each read for as long.
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
    fn a_burst_of_a_few_is_no_flood() {
        let mut follower = Follower::new();
        for _ in 0..10 {
            follower.notified(MS, MS, 1);
        }
        assert!(follower.sleeps());
    }

    #[test]
    fn bells_for_nothing_do_not_count() {
        let mut follower = Follower::new();
        for _ in 0..100 {
            follower.read(Some(MS), MS, 0);
        }
        assert!(follower.sleeps());
    }

    fn awake() -> Follower {
        let mut follower = Follower::new();
        while follower.polling.wants_notifications() {
            follower.notified(MS, MS, 1);
        }
        follower.held = None;
        follower
    }

    #[test]
    fn awake_it_reads_half_of_the_time_at_most_until_there_is_no_news() {
        let mut follower = awake();
        for (took, pause) in [(MS, 5 * MS), (8 * MS, 8 * MS), (200 * MS, 20 * MS)] {
            follower.read(None, took, 1);
            assert_eq!(follower.polling.look_after(), Some(pause));
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
        assert!(!follower.sleeps());
    }

    /// W3.
    #[test]
    fn it_does_not_sleep_before_all_who_looked_too_early_have_ended() {
        let mut follower = awake();
        follower.polls(QUIET, false);
        assert!(!follower.sleeps(), "W is not held yet");
        (follower.held, follower.xmin) = (Some(200), 199);
        for _ in 0..10 {
            follower.polls(5 * MS, true);
            assert!(!follower.sleeps());
        }
        follower.xmin = 200;
        follower.polls(5 * MS, false);
        assert!(follower.sleeps());
    }

    #[test]
    fn a_transaction_that_stays_open_does_not_keep_it_awake() {
        let mut follower = awake();
        follower.polls(QUIET, false);
        (follower.held, follower.xmin) = (Some(200), 150);
        let mut reads = 0;
        while !follower.sleeps() {
            follower.polls(5 * MS, false);
            reads += 1;
        }
        assert!((50..500).contains(&reads), "{reads}");
        follower.polls(QUIET, false);
        assert!(follower.sleeps(), "not for the same X again");
    }

    #[test]
    fn a_bell_that_was_away_is_met_like_a_new_one_and_one_that_stays_away_is_not_waited_for() {
        let mut follower = Follower::new();
        (follower.held, follower.xmin) = (Some(300), 250);
        follower.polls(5 * MS, false);
        assert!(!follower.sleeps());
        follower.held = None;
        for _ in 0..300 {
            follower.polls(5 * MS, false);
        }
        assert!(follower.sleeps());
    }
}
