//! When to read everything again while the change feed is not whole, that is, does not log every change.

use std::time::{Duration, Instant};

/// When everything is due to be read again, within a budget, because some changes are not logged. Off while the feed is
/// whole.
#[derive(Debug, Default)]
pub(crate) struct Rereads(Option<Due>);

#[derive(Debug)]
struct Due {
    at: Instant,
    bound: Duration,
}

/// Reading everything again takes at most this fraction of the time: one part in `BUDGET`.
const BUDGET: u32 = 20;

/// The shortest rest between two reads. Without it, a small database would be read all the time.
const SHORTEST_REST: Duration = Duration::from_secs(1);

impl Rereads {
    /// Notes the end of a read of everything, which took `took` on `connections` connections. `is_whole` says whether
    /// the feed logs every change.
    pub(crate) fn ended(
        &mut self,
        is_whole: bool,
        took: Duration,
        connections: usize,
        now: Instant,
    ) {
        // All connections together must keep the budget.
        let connections = u32::try_from(connections.max(1)).unwrap_or(u32::MAX);
        let took = took.min(LONGEST_REST);
        let rest = took
            .saturating_mul((BUDGET - 1).saturating_mul(connections))
            .clamp(SHORTEST_REST, LONGEST_REST);
        self.0 = (!is_whole).then(|| Due {
            at: now + rest,
            // A change right after this read's snapshot shows when the next read ends: after the time since the
            // snapshot, the rest, and the next read. The next read may take twice as long as this one.
            bound: rest + took.saturating_mul(3),
        });
    }

    /// Whether it is on.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether it is time to read everything again.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.0.as_ref().is_some_and(|due| due.at <= now)
    }

    /// How long until everything is due to be read again. `None` while it is off.
    pub(crate) fn until_due(&self, now: Instant) -> Option<Duration> {
        self.0
            .as_ref()
            .map(|due| due.at.saturating_duration_since(now))
    }

    /// The estimate, from the last read, of how late a change shows that is not logged. `None` while it is off.
    pub(crate) fn bound(&self) -> Option<Duration> {
        self.0.as_ref().map(|due| due.bound)
    }
}

/// The longest rest. If it cuts a rest short (after a read of more than three minutes), reads exceed the budget.
const LONGEST_REST: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_its_budget_and_ends_when_the_feed_is_whole() {
        let now = Instant::now();
        let mut rereads = Rereads::default();
        assert!(!rereads.is_on() && !rereads.is_due(now) && rereads.bound().is_none());
        let took = Duration::from_millis(500);
        rereads.ended(false, took, 1, now);
        assert_eq!(rereads.until_due(now), Some(took * 19));
        assert_eq!(rereads.bound(), Some(took * 22));
        assert!(!rereads.is_due(now) && rereads.is_due(now + took * 19));
        rereads.ended(false, took, 2, now);
        assert_eq!(rereads.until_due(now), Some(took * 38));
        rereads.ended(false, Duration::ZERO, 1, now);
        assert_eq!(rereads.until_due(now), Some(SHORTEST_REST));
        rereads.ended(false, Duration::MAX, usize::MAX, now);
        rereads.ended(true, took, 1, now);
        assert!(!rereads.is_on());
    }
}
