use std::time::Duration;

/// Spaces reads where something drives them on for nothing: everything read again and again, or a bell that anybody may
/// ring. Ordinary work is not spaced.
#[derive(Debug, Default)]
pub(crate) struct Spacing {
    /// How long the last read took, if it read everything.
    reload: Option<Duration>,
    /// Whether the one before did, too.
    reloads_in_a_row: bool,
    /// Reads for a bell in a row that found no news.
    empty_notifications: u32,
    /// The same for handles that asked, such as for a transaction that is still under way.
    empty_asks: u32,
    /// How often to look again for what a bell from elsewhere may have rung for.
    looks_left: u32,
}

/// What a read was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driven {
    Notification,
    /// A handle asked.
    Asked,
    Time,
}

/// A few find what the read before has already seen; that is ordinary.
const ORDINARY_EMPTY: u32 = 3;

/// However many ask for nothing: bells are not heard meanwhile, and who asks must not make others wait.
const LONGEST_REST_FOR_ASKS: Duration = Duration::from_millis(16);

/// Looking again after 5, 10, 20, ... ms: for about a third of a second in all.
const LOOKS: u32 = 6;

/// However long a reload takes, the next may begin after this.
const LONGEST_REST: Duration = Duration::from_secs(30);

impl Spacing {
    /// A read for which everything was read, within `duration`.
    pub(crate) fn reloaded(&mut self, duration: Duration) {
        self.reloads_in_a_row = self.reload.is_some();
        self.reload = Some(duration);
        (self.empty_notifications, self.empty_asks) = (0, 0);
    }

    /// Any other read.
    pub(crate) fn read(&mut self, by: Driven, news: bool) {
        self.reload = None;
        self.reloads_in_a_row = false;
        match (by, news) {
            (Driven::Notification, false) => {
                self.empty_notifications = self.empty_notifications.saturating_add(1)
            }
            (Driven::Asked, false) => self.empty_asks = self.empty_asks.saturating_add(1),
            (Driven::Time, _) | (_, true) => (self.empty_notifications, self.empty_asks) = (0, 0),
        }
    }

    /// A bell from elsewhere rings ahead of what it rings for: looks again soon, also after news, for one ring may be for
    /// several changes.
    pub(crate) fn ahead(&mut self, after_bell: bool) {
        self.looks_left = if after_bell {
            LOOKS
        } else {
            self.looks_left.saturating_sub(1)
        };
    }

    /// How soon to look again, if at all before the poll interval.
    pub(crate) fn look_again(&self) -> Option<Duration> {
        let done = LOOKS - self.looks_left;
        (self.looks_left > 0).then(|| Duration::from_millis(5 << done))
    }

    /// How long to rest before the next read: after the second reload in a row as long as it took, and after empty bells
    /// longer each time, up to the poll interval; after empty asks up to 16 ms.
    pub(crate) fn rest(&self, poll_interval: Duration) -> Duration {
        let reload = self
            .reload
            .filter(|_| self.reloads_in_a_row)
            .unwrap_or_default()
            .min(LONGEST_REST);
        let empty = |count: u32, most: Duration| match count.saturating_sub(ORDINARY_EMPTY) {
            0 => Duration::ZERO,
            extra => Duration::from_millis(1 << extra.min(16)).min(most),
        };
        let bells = empty(self.empty_notifications, poll_interval);
        let asks = empty(self.empty_asks, LONGEST_REST_FOR_ASKS.min(poll_interval));
        reload.max(bells).max(asks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_secs(1);

    #[test]
    fn one_reload_is_not_spaced_from_what_follows_but_a_row_of_them_is() {
        let mut spacing = Spacing::default();
        spacing.reloaded(Duration::from_secs(2));
        assert_eq!(spacing.rest(POLL), Duration::ZERO);
        spacing.reloaded(Duration::from_secs(2));
        assert_eq!(spacing.rest(POLL), Duration::from_secs(2));
        spacing.reloaded(Duration::from_secs(300));
        assert_eq!(spacing.rest(POLL), LONGEST_REST);
        spacing.read(Driven::Notification, true);
        assert_eq!(spacing.rest(POLL), Duration::ZERO);
    }

    #[test]
    fn a_bell_ahead_of_its_change_is_followed_by_a_few_looks() {
        let mut spacing = Spacing::default();
        assert_eq!(spacing.look_again(), None);
        spacing.ahead(true);
        let mut looks = Vec::new();
        while let Some(look) = spacing.look_again() {
            looks.push(look.as_millis());
            spacing.ahead(false);
        }
        assert_eq!(looks, [5, 10, 20, 40, 80, 160]);
        assert_eq!(spacing.look_again(), None);
    }

    #[test]
    fn bells_for_nothing_are_answered_ever_more_slowly_up_to_the_poll_interval() {
        let mut spacing = Spacing::default();
        let mut rests = Vec::new();
        for _ in 0..100 {
            spacing.read(Driven::Notification, false);
            rests.push(spacing.rest(POLL));
        }
        assert!(rests.is_sorted());
        assert_eq!((rests[2], rests[99]), (Duration::ZERO, POLL));
        spacing.read(Driven::Notification, true);
        assert_eq!(spacing.rest(POLL), Duration::ZERO);
    }

    /// A client that asked again and again for a transaction to come made bells wait for as long as the poll interval.
    #[test]
    fn asking_for_nothing_makes_nobody_wait_for_long() {
        let mut spacing = Spacing::default();
        for _ in 0..100 {
            spacing.read(Driven::Asked, false);
            assert!(spacing.rest(POLL) <= LONGEST_REST_FOR_ASKS);
        }
        assert_eq!(spacing.rest(POLL), LONGEST_REST_FOR_ASKS);
        // Nor do they hide a flood of bells.
        for _ in 0..100 {
            spacing.read(Driven::Notification, false);
            spacing.read(Driven::Asked, false);
        }
        assert_eq!(spacing.rest(POLL), POLL);
        spacing.read(Driven::Time, false);
        assert_eq!(spacing.rest(POLL), Duration::ZERO);
    }
}
