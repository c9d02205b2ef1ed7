//! The audit: it reads a few events again in full, in the transaction of an ordinary read, and compares them with the
//! draft. A difference is a change that no trigger saw.
//!
//! A pass has one step that lists the events in the window, and then steps that each compare a slice of them.
//!
//! # Invariants
//! - U1: A pass compares every event that was in the window when the pass began, held or not, and every event that is
//!   held.
//! - U2: Over time the audit takes at most the budgeted share of the time, whether its steps succeed or fail.

use std::{
    fmt,
    ops::Bound,
    time::{Duration, Instant},
};

use crate::{model::CachedEvent, store::draft::Draft};

/// Decides when to compare which events. Pure: time comes in as an argument.
#[derive(Debug)]
pub(crate) struct Audit {
    /// How long a pass takes, if the budget allows it.
    cycle: Duration,
    /// The share of time that the audit may take, from 0.0001 to 1.
    budget: f64,
    due: Instant,
    /// The ids of the events in the window, ascending, and how many of them are done. `None` between two passes.
    pass: Option<(Vec<i64>, usize)>,
    /// The most events of one step. Halved by a step that fails, doubled by one that succeeds.
    most: usize,
    /// How many steps in a row have failed.
    failures: u32,
}

/// What a step reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// The ids of all events in the window. This begins a pass.
    Window,
    Slice(Slice),
}

/// A range of event ids, and the ids in this range that are in the window. Held events in the range are compared, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) range: (Bound<i64>, Bound<i64>),
    pub(crate) ids: Vec<i64>,
}

/// What a step found.
#[derive(Debug)]
pub(crate) enum Audited {
    Window(Vec<i64>),
    Events {
        count: usize,
        mismatches: Vec<Mismatch>,
    },
}

/// A pass has about this many steps. With fewer, each step would delay the next read of changes. With more, the fixed
/// cost of a step would dominate.
const STEPS: usize = 40;

/// A step compares no more events than this, so that it delays no change for long.
const MOST_EVENTS: usize = 100;

/// The budget if the configured one is NaN.
const BUDGET: f64 = 0.01;

/// The audit never rests for longer, however long a step took.
const LONGEST_REST: Duration = Duration::from_secs(24 * 60 * 60);

impl Audit {
    pub(crate) fn new(cycle: Duration, budget: f64, now: Instant) -> Audit {
        let budget = if budget.is_nan() { BUDGET } else { budget };
        let mut audit = Audit {
            cycle,
            budget: budget.clamp(0.0001, 1.0),
            due: now,
            pass: None,
            most: MOST_EVENTS,
            failures: 0,
        };
        audit.rest(Duration::ZERO, now);
        audit
    }

    /// How long until the next step is due.
    pub(crate) fn until_due(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }

    /// The step that is due, if one is.
    pub(crate) fn due(&self, now: Instant) -> Option<Step> {
        if now < self.due {
            return None;
        }
        let Some((window, done)) = &self.pass else {
            return Some(Step::Window);
        };
        // The ranges of a pass leave no gap: each begins after the last id of the one before, and the first and the
        // last are open. So a held event is compared even if it is not in the window (U1).
        let end = window.len().min(done + self.step_size(window));
        let bound = |index: usize| window.get(index.wrapping_sub(1)).copied();
        let after = bound(*done).map_or(Bound::Unbounded, Bound::Excluded);
        let last = bound(end).filter(|_| end < window.len());
        Some(Step::Slice(Slice {
            range: (after, last.map_or(Bound::Unbounded, Bound::Included)),
            ids: window.get(*done..end).unwrap_or_default().to_vec(),
        }))
    }

    fn step_size(&self, window: &[i64]) -> usize {
        window.len().div_ceil(STEPS).clamp(1, self.most)
    }

    /// Notes that the step that was due succeeded after `took`. Returns whether it ended a pass.
    pub(crate) fn done(&mut self, audited: &Audited, took: Duration, now: Instant) -> bool {
        self.rest(took, now);
        // The pass moves on by the size that the step had. Only later steps are larger.
        let ended = self.move_on(audited);
        self.failures = 0;
        self.most = (self.most * 2).min(MOST_EVENTS);
        ended
    }

    fn move_on(&mut self, audited: &Audited) -> bool {
        if let Audited::Window(window) = audited {
            self.pass = Some((window.clone(), 0));
            return false;
        }
        let Some((window, done)) = self.pass.take() else {
            return false;
        };
        let done = done + self.step_size(&window);
        let ended = done >= window.len();
        self.pass = (!ended).then_some((window, done));
        ended
    }

    /// Notes that the step that was due failed after `took`. The next one will be smaller. Returns how many steps in a
    /// row have failed.
    pub(crate) fn failed(&mut self, took: Duration, now: Instant) -> u32 {
        self.rest(took, now);
        self.most = (self.most / 2).max(1);
        self.failures = self.failures.saturating_add(1);
        self.failures
    }

    /// Sets when the next step is due, after the audit was busy for `took` (U2). With a budget of 0.01 it rests for 100
    /// times as long. It also rests long enough to spread a pass over the whole cycle.
    pub(crate) fn rest(&mut self, took: Duration, now: Instant) {
        let rest = took.min(LONGEST_REST).div_f64(self.budget);
        // One more for the step that lists the window.
        let interval = self.cycle / (STEPS as u32 + 1);
        self.due = now + rest.max(interval).min(LONGEST_REST);
    }
}

/// An event that differs between cache and database.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) event_id: i64,
    pub(crate) what: String,
}

/// Compares the given events of the cache with those read from the database.
pub(crate) fn compare(held: &Draft, read: &Draft, ids: &[i64]) -> Vec<Mismatch> {
    let mismatch = |event_id| {
        let (held, read) = (held.event(event_id), read.event(event_id));
        difference(held.map(|event| &**event), read.map(|event| &**event))
            .map(|what| Mismatch { event_id, what })
    };
    ids.iter().copied().filter_map(mismatch).collect()
}

/// Names the first difference, in words that contain no data of a row but ids.
fn difference(held: Option<&CachedEvent>, read: Option<&CachedEvent>) -> Option<String> {
    let (held, read) = match (held, read) {
        (Some(held), Some(read)) => (held, read),
        (None, Some(_)) => return Some("the database has it, the cache does not".to_owned()),
        (Some(_), None) => return Some("the cache has it, the database does not".to_owned()),
        (None, None) => return None,
    };
    // Nearly always equal, and cheap to tell. Only a difference is looked at in detail.
    if held.same(read) {
        return None;
    }
    if held.kickoff != read.kickoff {
        return Some("kickoff".to_owned());
    }
    let snapshot = |side: &dyn fmt::Display, held: Option<&_>, read: Option<&_>| {
        let (held, read): (
            Option<&crate::model::CachedSnapshot>,
            Option<&crate::model::CachedSnapshot>,
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
    // Collect the keys of both events: only one of them may have a snapshot for a key.
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

    fn events(count: usize) -> Audited {
        Audited::Events {
            count,
            mismatches: Vec::new(),
        }
    }

    /// Makes all steps of a pass over a window. Returns how long the pass took, and its slices.
    fn pass(audit: &mut Audit, window: &[i64], took: Duration) -> (Duration, Vec<Slice>) {
        let mut now = Instant::now();
        let (start, mut slices) = (now, Vec::new());
        loop {
            now += audit.until_due(now);
            let audited = match audit.due(now).expect("due") {
                Step::Window => Audited::Window(window.to_vec()),
                Step::Slice(slice) => {
                    slices.push(slice.clone());
                    events(slice.ids.len())
                }
            };
            if audit.done(&audited, took, now) {
                return (now - start, slices);
            }
            assert_eq!(audit.due(now), None);
        }
    }

    #[test]
    fn a_pass_covers_all_ids_once_and_fits_into_its_cycle() {
        for events in [0, 1, 39, 1_100, 3_999] {
            let window: Vec<i64> = (0..events).map(|id| id * 7 - 50).collect();
            let mut audit = Audit::new(CYCLE, 0.01, Instant::now());
            let (took, slices) = pass(&mut audit, &window, Duration::from_millis(20));
            assert!(took <= CYCLE, "{events} events: {took:?}");
            let ids: Vec<i64> = slices.iter().flat_map(|slice| slice.ids.clone()).collect();
            assert_eq!(ids, window);
            // The ranges leave no gap, so the pass also compares held events outside of the window.
            assert_eq!(slices[0].range.0, Bound::Unbounded);
            assert_eq!(slices[slices.len() - 1].range.1, Bound::Unbounded);
            for pair in slices.windows(2) {
                let (Bound::Included(end), Bound::Excluded(start)) =
                    (pair[0].range.1, pair[1].range.0)
                else {
                    panic!("{pair:?}");
                };
                assert_eq!(end, start);
            }
        }
    }

    #[test]
    fn a_step_that_took_long_is_followed_by_a_long_rest() {
        let now = Instant::now();
        let mut audit = Audit::new(CYCLE, 0.01, now);
        audit.done(&Audited::Window(vec![1, 2]), Duration::from_secs(1), now);
        assert_eq!(audit.until_due(now), Duration::from_secs(100));
        audit.rest(Duration::MAX, now);
        assert_eq!(audit.until_due(now), LONGEST_REST);
    }

    /// A step that failed was due again at once.
    #[test]
    fn a_step_that_failed_is_tried_later_and_smaller() {
        let mut now = Instant::now();
        let mut audit = Audit::new(CYCLE, f64::NAN, now);
        let window: Vec<i64> = (0..100_000).collect();
        audit.done(&Audited::Window(window), Duration::ZERO, now);
        let mut sizes = Vec::new();
        for _ in 0..9 {
            now += audit.until_due(now);
            let Some(Step::Slice(slice)) = audit.due(now) else {
                panic!("no slice is due");
            };
            sizes.push(slice.ids.len());
            audit.failed(Duration::from_secs(2), now);
            assert_eq!(audit.until_due(now), Duration::from_secs(200));
        }
        assert_eq!(sizes, [100, 50, 25, 12, 6, 3, 1, 1, 1]);
    }

    /// After a failed step the pass skipped events: it moved on by more events than the smaller step had compared.
    #[test]
    fn a_pass_covers_all_ids_also_after_failed_steps() {
        let mut now = Instant::now();
        let mut audit = Audit::new(CYCLE, 1.0, now);
        let window: Vec<i64> = (0..100_000).collect();
        audit.done(&Audited::Window(window.clone()), Duration::ZERO, now);
        for _ in 0..5 {
            now += audit.until_due(now);
            audit.failed(Duration::ZERO, now);
        }
        let (_, slices) = pass(&mut audit, &window, Duration::ZERO);
        let ids: Vec<i64> = slices.iter().flat_map(|slice| slice.ids.clone()).collect();
        assert_eq!(ids, window);
    }
}
