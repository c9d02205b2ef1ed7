//! When to look next, and what may end the wait. Pure: time comes in as an argument.
//!
//! Three things have a say: [`spacing`] (how long to rest after reads for nothing), [`polling`] (whether to sleep until a
//! notification comes, or to read every few milliseconds), and the audit, which is due at its own time.

pub(crate) mod polling;
pub(crate) mod spacing;

use std::time::{Duration, Instant};

use crate::follow::schedule::{
    polling::Polling,
    spacing::{Driven, Spacing},
};

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    Notification,
    /// A handle asked.
    Asked,
    Time,
}

impl Woken {
    /// One word, for a span.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Woken::Notification => "notification",
            Woken::Asked => "asked",
            Woken::Time => "time",
        }
    }
}

/// How to wait for the next read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wake {
    /// First rest for this long, whatever comes.
    pub(crate) rest: Duration,
    /// Then look after this long at the latest.
    pub(crate) within: Duration,
    /// Whether a notification ends the wait.
    pub(crate) by_notification: bool,
}

/// What a read of changes tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// When it was done.
    pub(crate) now: Instant,
    /// How long it took.
    pub(crate) took: Duration,
    /// What it was made for.
    pub(crate) woken: Woken,
    /// How many log rows were new.
    pub(crate) rows: usize,
    /// `xmin` of its snapshot.
    pub(crate) xmin: u64,
    /// The transaction id from which on all writers notify, if they do.
    pub(crate) rings_from: Option<u64>,
}

/// Notifications that come further apart than this are no flood, whatever they are for.
const UNHURRIED: Duration = Duration::from_secs(1);

/// However soon the audit is due.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Schedule {
    poll_interval: Duration,
    /// Notifications come from another server than is read, and may be ahead of it.
    notified_from_elsewhere: bool,
    spacing: Spacing,
    polling: Polling,
    last_read: Instant,
    /// How long the last wait was.
    slept: Duration,
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
            slept: Duration::ZERO,
        }
    }

    /// How to wait for the next read, where the audit is due after `audit_due`.
    pub(crate) fn next(&self, audit_due: Duration) -> Wake {
        let interval = self.poll_interval;
        let rest = self.spacing.rest(interval);
        let look_again = self.spacing.look_again().unwrap_or(interval);
        let look_after = self.polling.look_after().unwrap_or(interval);
        let audit_due = audit_due.saturating_sub(rest).max(SHORTEST_WAIT);
        Wake {
            rest,
            within: look_again.min(look_after).min(audit_due),
            by_notification: self.wants_notifications(),
        }
    }

    /// Whether writers should notify.
    pub(crate) fn wants_notifications(&self) -> bool {
        self.polling.wants_notifications()
    }

    /// How long the wait was.
    pub(crate) fn slept(&mut self, slept: Duration) {
        self.slept = slept;
    }

    /// After each read of changes.
    pub(crate) fn read(&mut self, seen: Seen) {
        // After a rest, a notification for nothing is no flood of them.
        let rested = seen.now.saturating_duration_since(self.last_read) > UNHURRIED;
        let by = match seen.woken {
            Woken::Notification if !rested => Driven::Notification,
            Woken::Asked if !rested => Driven::Asked,
            _ => Driven::Time,
        };
        self.spacing.read(by, seen.rows > 0);
        self.last_read = seen.now;
        let notified = seen.woken == Woken::Notification;
        self.polling.read(polling::Seen {
            now: seen.now,
            took: seen.took,
            rung_after: notified.then_some(self.slept),
            rows: seen.rows,
            xmin: seen.xmin,
            rings_from: seen.rings_from,
        });
        if self.notified_from_elsewhere {
            self.spacing.ahead(notified);
        }
    }

    /// After a read of changes that became one of everything.
    pub(crate) fn reloaded(&mut self, took: Duration) {
        self.spacing.reloaded(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const POLL: Duration = Duration::from_secs(1);
    const FAR: Duration = Duration::from_secs(3600);

    /// What happened before each question, and the answer.
    #[test]
    fn the_next_look() {
        type Before = fn(&mut Schedule, Instant);
        let seen = |now, woken, rows| Seen {
            now,
            took: 2 * MS,
            woken,
            rows,
            xmin: 100,
            rings_from: Some(100),
        };
        let quiet = Wake {
            rest: Duration::ZERO,
            within: POLL,
            by_notification: true,
        };
        let nothing: Before = |_, _| {};
        let table: [(&str, bool, Before, Duration, Wake); 7] = [
            (
                "at first it sleeps until it is notified",
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
                "a second reload in a row rests as long as it took, and the audit waits meanwhile",
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
                "notifications for nothing make it rest",
                false,
                |schedule, now| {
                    for _ in 0..13 {
                        schedule.read(Seen {
                            now,
                            took: MS,
                            woken: Woken::Notification,
                            rows: 0,
                            xmin: 100,
                            rings_from: None,
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
                "many small commits are read without notifications",
                false,
                |schedule, now| {
                    for _ in 0..100 {
                        schedule.slept(MS);
                        schedule.read(Seen {
                            now,
                            took: MS,
                            woken: Woken::Notification,
                            rows: 1,
                            xmin: 100,
                            rings_from: None,
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
                "a notification from elsewhere may be ahead of what is read",
                true,
                |schedule, now| {
                    schedule.slept(POLL);
                    schedule.read(Seen {
                        now: now + 2 * POLL,
                        took: MS,
                        woken: Woken::Notification,
                        rows: 0,
                        xmin: 100,
                        rings_from: None,
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
