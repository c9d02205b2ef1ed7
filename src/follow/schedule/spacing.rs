//! How long to rest between reads that follow each other too fast.

use std::time::Duration;

/// Puts rests between reads that follow each other too fast: reload after reload, or reads for notifications and
/// requests without a change. Any role can send such notifications. A read that finds changes ends the rests.
#[derive(Debug, Default)]
pub(crate) struct Spacing {
    /// How long the last read of everything took.
    reload: Duration,
    /// How many reads in a row read everything.
    reloads_in_a_row: u32,
    /// How many reads in a row were made for a notification and found no change.
    empty_notifications: u32,
    /// The same for requests of handles, for instance for a transaction that is still open.
    empty_requests: u32,
    /// How many more times to read soon, because a notification from another server may have come before its change.
    retries_left: u32,
}

/// What caused a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    Notification,
    /// A handle requested it.
    Request,
    Time,
}

/// How many reads in a row may find nothing before a rest. A few are ordinary: the read before may have seen the
/// change.
const ORDINARY_EMPTY: u32 = 3;

/// The longest rest because of requests. A rest also delays notifications, and one client must not delay all others.
const LONGEST_REST_FOR_REQUESTS: Duration = Duration::from_millis(16);

/// It reads again after 5, 10, 20, ... ms: for about a third of a second in all.
const RETRIES: u32 = 6;

/// The longest rest after a reload, however long the reload took.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// The longest rest after a reload, as a multiple of the time that the reload took.
const MOST_TIMES: u32 = 10;

impl Spacing {
    /// Notes a read of everything, which took `duration`.
    pub(crate) fn reloaded(&mut self, duration: Duration) {
        self.reloads_in_a_row = self.reloads_in_a_row.saturating_add(1);
        self.reload = duration;
        (self.empty_notifications, self.empty_requests) = (0, 0);
    }

    /// How many reads in a row read everything.
    pub(crate) fn reloads_in_a_row(&self) -> u32 {
        self.reloads_in_a_row
    }

    /// Notes a read of changes. `has_news` says whether it found any.
    pub(crate) fn read(&mut self, by: Driver, has_news: bool) {
        self.reloads_in_a_row = 0;
        match (by, has_news) {
            (Driver::Notification, false) => {
                self.empty_notifications = self.empty_notifications.saturating_add(1)
            }
            (Driver::Request, false) => self.empty_requests = self.empty_requests.saturating_add(1),
            (Driver::Time, _) | (_, true) => {
                (self.empty_notifications, self.empty_requests) = (0, 0)
            }
        }
    }

    /// Notes a read of a server other than the one that notifies. After a notification it schedules some retries,
    /// because the change may arrive later. It does so even if the read found changes: one notification may stand for
    /// several.
    pub(crate) fn read_ahead_of_change(&mut self, notified: bool) {
        self.retries_left = if notified {
            RETRIES
        } else {
            self.retries_left.saturating_sub(1)
        };
    }

    /// How soon to read again. `None` if there is no reason to read before the poll interval has passed.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let done = RETRIES - self.retries_left;
        (self.retries_left > 0).then(|| Duration::from_millis(5 << done))
    }

    /// How long to rest before the next read:
    /// - after the second reload in a row: as long as that took, then twice and four times as long, at most ten times
    ///   as long and at most 30 s;
    /// - after notifications without a change: longer each time, up to the poll interval;
    /// - after requests without a change: longer each time, up to 16 ms.
    pub(crate) fn rest(&self, poll_interval: Duration) -> Duration {
        let times = match self.reloads_in_a_row {
            0 | 1 => 0,
            count => (1 << (count - 2).min(16)).min(MOST_TIMES),
        };
        let reload = self.reload.saturating_mul(times).min(LONGEST_REST);
        let empty = |count: u32, most: Duration| match count.saturating_sub(ORDINARY_EMPTY) {
            0 => Duration::ZERO,
            extra => Duration::from_millis(1 << extra.min(16)).min(most),
        };
        let notifications = empty(self.empty_notifications, poll_interval);
        let requests = empty(
            self.empty_requests,
            LONGEST_REST_FOR_REQUESTS.min(poll_interval),
        );
        reload.max(notifications).max(requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_secs(1);

    #[test]
    fn it_rests_after_a_second_reload_in_a_row_but_not_after_one() {
        let mut spacing = Spacing::default();
        spacing.reloaded(Duration::from_secs(2));
        assert_eq!(spacing.rest(POLL), Duration::ZERO);
        spacing.reloaded(Duration::from_secs(2));
        assert_eq!(spacing.rest(POLL), Duration::from_secs(2));
        let mut rests = Vec::new();
        for _ in 0..6 {
            spacing.reloaded(Duration::from_secs(2));
            rests.push(spacing.rest(POLL).as_secs());
        }
        assert_eq!(rests, [4, 8, 16, 20, 20, 20]);
        spacing.reloaded(Duration::from_secs(300));
        assert_eq!(spacing.rest(POLL), LONGEST_REST);
        spacing.read(Driver::Notification, true);
        assert_eq!(spacing.rest(POLL), Duration::ZERO);
    }

    #[test]
    fn a_notification_from_elsewhere_is_followed_by_a_few_retries() {
        let mut spacing = Spacing::default();
        assert_eq!(spacing.retry_after(), None);
        spacing.read_ahead_of_change(true);
        let mut retries = Vec::new();
        while let Some(retry) = spacing.retry_after() {
            retries.push(retry.as_millis());
            spacing.read_ahead_of_change(false);
        }
        assert_eq!(retries, [5, 10, 20, 40, 80, 160]);
        assert_eq!(spacing.retry_after(), None);
    }

    #[test]
    fn rests_after_notifications_without_a_change_grow_up_to_the_poll_interval() {
        let mut spacing = Spacing::default();
        let mut rests = Vec::new();
        for _ in 0..100 {
            spacing.read(Driver::Notification, false);
            rests.push(spacing.rest(POLL));
        }
        assert!(rests.is_sorted());
        assert_eq!((rests[2], rests[99]), (Duration::ZERO, POLL));
        spacing.read(Driver::Notification, true);
        assert_eq!(spacing.rest(POLL), Duration::ZERO);
    }

    /// A client that waited for a transaction still open delayed all notifications by up to the poll interval.
    #[test]
    fn requests_without_a_change_delay_nobody_for_long() {
        let mut spacing = Spacing::default();
        for _ in 0..100 {
            spacing.read(Driver::Request, false);
            assert!(spacing.rest(POLL) <= LONGEST_REST_FOR_REQUESTS);
        }
        assert_eq!(spacing.rest(POLL), LONGEST_REST_FOR_REQUESTS);
        // Requests in between do not hide a flood of notifications.
        for _ in 0..100 {
            spacing.read(Driver::Notification, false);
            spacing.read(Driver::Request, false);
        }
        assert_eq!(spacing.rest(POLL), POLL);
        spacing.read(Driver::Time, false);
        assert_eq!(spacing.rest(POLL), Duration::ZERO);
    }
}
