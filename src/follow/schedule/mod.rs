//! Decides when to read next, and what may end the wait before. Pure: time comes in as an argument.
//!
//! Three parts decide together:
//! - [`spacing`]: how long to rest after several reloads in a row, and after reads that found nothing;
//! - [`polling`]: whether to wait for a notification, or to read every few milliseconds;
//! - the audit, or [`rereads`] while the change feed is not whole: due at their own time.

pub(crate) mod polling;
pub(crate) mod rereads;
pub(crate) mod spacing;

use std::time::{Duration, Instant};

use crate::follow::schedule::{
    polling::Polling,
    spacing::{Driver, Spacing},
};

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    Notification,
    /// A handle requested a read.
    Request,
    Time,
}

impl Woken {
    /// One word, for a span.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Woken::Notification => "notification",
            Woken::Request => "request",
            Woken::Time => "time",
        }
    }
}

/// How to wait for the next read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wake {
    /// First rest for this long. Nothing ends the rest early.
    pub(crate) rest: Duration,
    /// Then wait for this long at most.
    pub(crate) within: Duration,
    /// Whether a notification ends the wait early.
    pub(crate) by_notification: bool,
}

/// What the schedule learns from a read of changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// When the read ended.
    pub(crate) now: Instant,
    /// How long the read took.
    pub(crate) took: Duration,
    /// What ended the wait before it.
    pub(crate) woken: Woken,
    /// How many log rows were new.
    pub(crate) rows: usize,
    /// Whether the log did not name each row that changed, so that the read may have been large.
    pub(crate) is_wide: bool,
    /// `xmin` of the read's snapshot: every transaction with a smaller id had ended.
    pub(crate) xmin: u64,
    /// Every transaction with this id or a greater one notifies. `None` while the listener does not hold the wait lock.
    pub(crate) notifies_from: Option<u64>,
}

/// After a longer time without a read, a notification is no part of a flood.
const FLOOD_WITHIN: Duration = Duration::from_secs(1);

/// The wait is never shorter, however soon the audit is due.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Schedule {
    poll_interval: Duration,
    /// Whether notifications come from another server than the one that is read. They may arrive before their change.
    notified_from_elsewhere: bool,
    spacing: Spacing,
    polling: Polling,
    last_read: Instant,
    /// How long the last wait was, with its rest.
    waited: Duration,
}

impl Schedule {
    pub(crate) fn new(
        poll_interval: Duration,
        notified_from_elsewhere: bool,
        now: Instant,
    ) -> Schedule {
        Schedule {
            poll_interval,
            notified_from_elsewhere,
            spacing: Spacing::default(),
            polling: Polling::default(),
            last_read: now,
            waited: Duration::ZERO,
        }
    }

    /// How to wait for the next read. The audit is due after `audit_due`. The earliest of all reasons to read wins;
    /// without any other reason that is the poll interval.
    pub(crate) fn next(&self, audit_due: Duration) -> Wake {
        let interval = self.poll_interval;
        let rest = self.spacing.rest(interval);
        let retry_after = self.spacing.retry_after().unwrap_or(interval);
        let poll_after = self.polling.poll_after().unwrap_or(interval);
        let audit_due = audit_due.saturating_sub(rest).max(SHORTEST_WAIT);
        Wake {
            rest,
            within: retry_after.min(poll_after).min(audit_due),
            by_notification: self.wants_notifications(),
        }
    }

    /// Whether writers should notify.
    pub(crate) fn wants_notifications(&self) -> bool {
        self.polling.wants_notifications()
    }

    /// Notes how long the wait was, with its rest.
    pub(crate) fn waited(&mut self, waited: Duration) {
        self.waited = waited;
    }

    /// Learns from a read of changes.
    pub(crate) fn read(&mut self, seen: Seen) {
        // Only reads that follow each other quickly can be a flood; after a pause, spacing starts again.
        let paused = seen.now.saturating_duration_since(self.last_read) > FLOOD_WITHIN;
        let by = match seen.woken {
            Woken::Notification if !paused => Driver::Notification,
            Woken::Request if !paused => Driver::Request,
            _ => Driver::Time,
        };
        match seen.is_wide {
            true => self.spacing.reloaded(seen.took),
            false => self.spacing.read(by, seen.rows > 0),
        }
        self.last_read = seen.now;
        // The polling mode depends on how far apart notifications are: that is how long the last wait was.
        let notified = seen.woken == Woken::Notification;
        self.polling.read(polling::Seen {
            now: seen.now,
            took: seen.took,
            notified_after: notified.then_some(self.waited),
            rows: seen.rows,
            xmin: seen.xmin,
            notifies_from: seen.notifies_from,
        });
        // The change may not have reached the server that is read, so this read may have missed it.
        if self.notified_from_elsewhere {
            self.spacing.read_ahead_of_change(notified);
        }
    }

    /// Notes a warmup: what came before on another connection is no reason to rest.
    pub(crate) fn warmed_up(&mut self) {
        self.spacing = Spacing::default();
    }

    /// Notes another connection that goes on from the same cursor. While there was none, nobody held the wait lock: an
    /// overlap that had ended for the same `notifies_from` proves nothing now (W3 of [`polling`]).
    pub(crate) fn reconnected(&mut self, now: Instant) {
        self.warmed_up();
        self.polling.reloaded(now, None);
    }

    /// Notes that everything was read, for whatever reason.
    pub(crate) fn read_everything(&mut self, now: Instant, notifies_from: Option<u64>) {
        self.polling.reloaded(now, notifies_from);
    }

    /// Notes that a read of changes became a read of everything, which took `took`. Returns how many in a row did.
    pub(crate) fn reloaded(&mut self, took: Duration) -> u32 {
        self.spacing.reloaded(took);
        self.spacing.reloads_in_a_row()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const POLL: Duration = Duration::from_secs(1);
    const FAR: Duration = Duration::from_secs(3600);

    /// Each line of the table says what happened before, and how the schedule then waits.
    #[test]
    fn how_it_waits_for_the_next_read() {
        type Before = fn(&mut Schedule, Instant);
        let seen = |now, woken, rows| Seen {
            now,
            took: 2 * MS,
            woken,
            rows,
            is_wide: false,
            xmin: 100,
            notifies_from: Some(100),
        };
        let quiet = Wake {
            rest: Duration::ZERO,
            within: POLL,
            by_notification: true,
        };
        let nothing: Before = |_, _| {};
        let table: [(&str, bool, Before, Duration, Wake); 7] = [
            (
                "at first it waits for a notification",
                false,
                nothing,
                FAR,
                quiet,
            ),
            (
                "the audit is due before the poll interval",
                false,
                nothing,
                300 * MS,
                Wake {
                    within: 300 * MS,
                    ..quiet
                },
            ),
            (
                "the audit is overdue",
                false,
                nothing,
                Duration::ZERO,
                Wake {
                    within: SHORTEST_WAIT,
                    ..quiet
                },
            ),
            (
                "after a second reload in a row it rests as long as that took, and the audit waits",
                false,
                |schedule, _| {
                    schedule.reloaded(POLL);
                    schedule.reloaded(2 * POLL);
                },
                3 * POLL,
                Wake {
                    rest: 2 * POLL,
                    ..quiet
                },
            ),
            (
                "it rests after notifications without a change",
                false,
                |schedule, now| {
                    for _ in 0..13 {
                        schedule.read(Seen {
                            now,
                            took: MS,
                            woken: Woken::Notification,
                            rows: 0,
                            is_wide: false,
                            xmin: 100,
                            notifies_from: None,
                        });
                    }
                },
                FAR,
                Wake {
                    rest: POLL,
                    ..quiet
                },
            ),
            (
                "it polls when there are many small commits",
                false,
                |schedule, now| {
                    for _ in 0..100 {
                        schedule.waited(MS);
                        schedule.read(Seen {
                            now,
                            took: MS,
                            woken: Woken::Notification,
                            rows: 1,
                            is_wide: false,
                            xmin: 100,
                            notifies_from: None,
                        });
                    }
                },
                FAR,
                Wake {
                    within: 5 * MS,
                    by_notification: false,
                    ..quiet
                },
            ),
            (
                "a notification from elsewhere may come before its change",
                true,
                |schedule, now| {
                    schedule.waited(POLL);
                    schedule.read(Seen {
                        now: now + 2 * POLL,
                        took: MS,
                        woken: Woken::Notification,
                        rows: 0,
                        is_wide: false,
                        xmin: 100,
                        notifies_from: None,
                    });
                },
                FAR,
                Wake {
                    within: 5 * MS,
                    ..quiet
                },
            ),
        ];
        for (what, elsewhere, before, audit_due, expected) in table {
            let now = Instant::now();
            let mut schedule = Schedule::new(POLL, elsewhere, now);
            schedule.read(seen(now, Woken::Time, 0));
            before(&mut schedule, now);
            assert_eq!(schedule.next(audit_due), expected, "{what}");
        }
    }
}
