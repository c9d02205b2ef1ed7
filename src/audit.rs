//! The audit: a few events at a time are read again in full, in the transaction of an ordinary read, and compared with the
//! draft. A difference is a change that no trigger saw.
//!
//! | invariant | |
//! |---|---|
//! | U1 | a pass compares every event of the window, held or not, and every held event, once |
//! | U2 | over time, audits take no more than the budgeted share of it |

use std::{
    fmt,
    ops::Bound,
    time::{Duration, Instant},
};

use crate::{draft::Draft, model::CachedEvent};

/// When to read which events again. Pure: time comes in as an argument.
#[derive(Debug)]
pub(crate) struct Audit {
    cycle: Duration,
    budget: f64,
    /// Events up to this id are done in this pass.
    after: Option<i64>,
    due: Instant,
}

/// The next events, by id: after this one, so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) after: Option<i64>,
    pub(crate) most: usize,
}

/// What reading a slice found.
#[derive(Debug)]
pub(crate) struct Audited {
    pub(crate) events: usize,
    /// The last id of the slice; `None` if it reached the end.
    pub(crate) last: Option<i64>,
    pub(crate) mismatches: Vec<Mismatch>,
}

/// A pass is made in about this many steps: fewer would hold up the reads between them, more would pay for beginning each.
const STEPS: u32 = 40;

/// However many events there are, a step must not hold up a change for long.
const MOST_EVENTS: usize = 100;

impl Audit {
    pub(crate) fn new(cycle: Duration, budget: f64, now: Instant) -> Audit {
        Audit {
            cycle,
            budget: budget.clamp(0.0001, 1.0),
            after: None,
            due: now + cycle / STEPS,
        }
    }

    /// How long until the next step is due.
    pub(crate) fn until_due(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }

    /// The step that is due, if one is; `held`: the number of events.
    pub(crate) fn due(&self, now: Instant, held: usize) -> Option<Slice> {
        (now >= self.due).then(|| Slice {
            after: self.after,
            most: held.div_ceil(STEPS as usize).clamp(1, MOST_EVENTS),
        })
    }

    /// A step was made within `took`. Returns whether it ended a pass.
    pub(crate) fn done(&mut self, audited: &Audited, took: Duration, now: Instant) -> bool {
        self.rest(took, now);
        self.after = audited.last;
        audited.last.is_none()
    }

    /// Time was spent for the audit, which its budget must cover.
    pub(crate) fn rest(&mut self, took: Duration, now: Instant) {
        self.due = now + took.div_f64(self.budget).max(self.cycle / STEPS);
    }
}

/// An event that is not what the database says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) event_id: i64,
    what: String,
}

/// Compares what is held with what was read, for the ids of a slice.
pub(crate) fn compare(
    held: &Draft,
    read: &Draft,
    after: Option<i64>,
    last: Option<i64>,
) -> Vec<Mismatch> {
    let range = (
        after.map_or(Bound::Unbounded, Bound::Excluded),
        last.map_or(Bound::Unbounded, Bound::Included),
    );
    let mut ids: Vec<i64> = held.ids_in(range).chain(read.ids_in(range)).collect();
    ids.sort_unstable();
    ids.dedup();
    let mismatch = |event_id| {
        let (held, read) = (held.event(event_id), read.event(event_id));
        difference(held.map(|event| &**event), read.map(|event| &**event))
            .map(|what| Mismatch { event_id, what })
    };
    ids.into_iter().filter_map(mismatch).collect()
}

/// In words, without any data of a row but ids.
fn difference(held: Option<&CachedEvent>, read: Option<&CachedEvent>) -> Option<String> {
    let (held, read) = match (held, read) {
        (Some(held), Some(read)) => (held, read),
        (None, Some(_)) => return Some("the database has it, the cache does not".to_owned()),
        (Some(_), None) => return Some("the cache has it, the database does not".to_owned()),
        (None, None) => return None,
    };
    if held.same(read) {
        return None;
    }
    if held.kickoff != read.kickoff {
        return Some("kickoff".to_owned());
    }
    let snapshot = |side: &dyn fmt::Display, held: Option<&_>, read: Option<&_>| {
        let (held, read): (
            Option<&crate::CachedSnapshot>,
            Option<&crate::CachedSnapshot>,
        ) = (held, read);
        match (held, read) {
            (Some(held), Some(read)) => held.difference(read).map(|what| {
                format!(
                    "{what} of {side} (snapshot {} held, {} in the database)",
                    held.snapshot_id, read.snapshot_id
                )
            }),
            (Some(held), None) => Some(format!("snapshot {} of {side} is gone", held.snapshot_id)),
            (None, Some(read)) => Some(format!("snapshot {} of {side} is new", read.snapshot_id)),
            (None, None) => None,
        }
    };
    let ids = [held, read];
    let bookmaker = ids
        .iter()
        .flat_map(|event| event.betpawa.iter())
        .find_map(|(id, _)| {
            let side = format!("bookmaker {id} in odds_snapshots");
            snapshot(&side, held.betpawa.get(id), read.betpawa.get(id))
        });
    bookmaker.or_else(|| {
        ids.iter()
            .flat_map(|event| event.competitors.iter())
            .find_map(|(source, _)| {
                let side = format!("{source} in competitor_odds_snapshots");
                let name = source.as_str();
                snapshot(
                    &side,
                    held.competitors.get(name),
                    read.competitors.get(name),
                )
            })
    })
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {}: {}", self.event_id, self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CYCLE: Duration = Duration::from_secs(120);

    fn audited(last: Option<i64>) -> Audited {
        Audited {
            events: 28,
            last,
            mismatches: Vec::new(),
        }
    }

    #[test]
    fn a_pass_fits_into_its_cycle_while_the_budget_allows_it() {
        let mut now = Instant::now();
        let begun = now;
        let mut audit = Audit::new(CYCLE, 0.01, now);
        let mut left: i64 = 1_100;
        loop {
            now += audit.until_due(now);
            let slice = audit.due(now, 1_100).expect("due");
            left -= i64::try_from(slice.most).expect("a few");
            let last = (left > 0).then_some(1_100 - left);
            if audit.done(&audited(last), Duration::from_millis(20), now) {
                break;
            }
            assert_eq!(audit.due(now, 1_100), None);
        }
        assert!(now - begun <= CYCLE, "{:?}", now - begun);
        assert_eq!(audit.after, None);
    }

    #[test]
    fn a_step_that_took_long_is_followed_by_a_long_rest() {
        let now = Instant::now();
        let mut audit = Audit::new(CYCLE, 0.01, now);
        audit.done(&audited(Some(5)), Duration::from_secs(1), now);
        assert_eq!(audit.until_due(now), Duration::from_secs(100));
        let later = now + Duration::from_secs(100);
        let slice = audit.due(later, 1_000_000).expect("due");
        assert_eq!((slice.after, slice.most), (Some(5), MOST_EVENTS));
    }
}
