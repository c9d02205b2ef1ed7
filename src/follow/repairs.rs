//! Whether to read everything again because of what the audit found.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{metrics::status::Fault, model::CachedEvent, read::audit::Mismatch};

/// An event as the cache holds it. `None` if it holds none.
type Held = Option<Arc<CachedEvent>>;

/// Repairs what the audit finds by reading everything again. If that changes nothing in an event, it is in vain: the two
/// ways of reading disagree. Then it is done ever more seldom for such events.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    /// What differed before the repair that is under way, and what the cache held then.
    under_way: Vec<(i64, String, Held)>,
    /// The events whose repair was in vain, and what differed.
    in_vain: BTreeMap<i64, String>,
    /// How often a repair was in vain.
    times: u32,
    next: Option<Instant>,
    /// The events that the steps of the current pass found to differ.
    found: BTreeSet<i64>,
}

const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// The most events that the status names.
const MOST_NAMED: usize = 8;

impl Repairs {
    /// Takes what a step of the audit found. Returns whether to read everything again now.
    pub(crate) fn found(
        &mut self,
        mismatches: &[Mismatch],
        held: impl Fn(i64) -> Held,
        now: Instant,
    ) -> bool {
        self.found
            .extend(mismatches.iter().map(|mismatch| mismatch.event_id));
        let mut ids = mismatches.iter().map(|mismatch| mismatch.event_id);
        let is_known = ids.all(|id| self.in_vain.contains_key(&id));
        if is_known && self.next.is_some_and(|next| now < next) {
            return false;
        }
        let before = |mismatch: &Mismatch| {
            let id = mismatch.event_id;
            (id, mismatch.to_string(), held(id))
        };
        self.under_way = mismatches.iter().map(before).collect();
        true
    }

    /// Takes the state after everything was read again. Returns how many events that did not change.
    pub(crate) fn repaired(&mut self, held: impl Fn(i64) -> Held, now: Instant) -> usize {
        let mut in_vain = 0;
        for (id, what, before) in std::mem::take(&mut self.under_way) {
            let is_same = match (before, held(id)) {
                (Some(before), Some(after)) => before.same(&after),
                (None, None) => true,
                _ => false,
            };
            match is_same {
                true => drop(self.in_vain.insert(id, what)),
                false => drop(self.in_vain.remove(&id)),
            }
            in_vain += usize::from(is_same);
        }
        if in_vain > 0 {
            let pause = FIRST_PAUSE.saturating_mul(1 << self.times.min(16));
            self.times = self.times.saturating_add(1);
            self.next = Some(now + pause.min(LONGEST_PAUSE));
        }
        in_vain
    }

    /// Notes the end of a pass. What it did not find no longer differs.
    pub(crate) fn pass_ended(&mut self) {
        let found = std::mem::take(&mut self.found);
        self.in_vain.retain(|id, _| found.contains(id));
        if self.in_vain.is_empty() {
            (self.times, self.next) = (0, None);
        }
    }

    /// The events whose repair was in vain.
    pub(crate) fn faults(&self) -> impl Iterator<Item = Fault> {
        let named = self.in_vain.values().take(MOST_NAMED);
        named.map(|what| Fault {
            what: format!("although everything was read again, the audit finds: {what}"),
            repair: "please report it".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mismatch(event_id: i64) -> Mismatch {
        let what = "kickoff".to_owned();
        Mismatch { event_id, what }
    }

    fn event(kickoff: i64) -> Held {
        Some(Arc::new(CachedEvent::new(
            1,
            Some(crate::model::Micros(kickoff)),
            Default::default(),
            Default::default(),
        )))
    }

    #[test]
    fn a_repair_in_vain_is_repeated_ever_more_seldom() {
        let (mut repairs, mut now) = (Repairs::default(), Instant::now());
        let (mut pauses, mut last) = (Vec::new(), now);
        // Each pass takes a second and finds it.
        for _ in 0..2_000 {
            if repairs.found(&[mismatch(1)], |_| event(1), now) {
                pauses.push((now - last).as_secs());
                last = now;
                assert_eq!(repairs.repaired(|_| event(1), now), 1);
            }
            repairs.pass_ended();
            assert_eq!(repairs.faults().count(), 1);
            now += Duration::from_secs(1);
        }
        assert_eq!(pauses, [0, 60, 120, 240, 480, 960]);
        // Another event is repaired at once.
        assert!(repairs.found(&[mismatch(1), mismatch(2)], |_| event(1), now));
        repairs.repaired(|_| event(2), now);
        // A pass that finds nothing ends it.
        repairs.pass_ended();
        repairs.pass_ended();
        assert_eq!(repairs.faults().count(), 0);
    }

    /// The triggers of a foreign partition see nothing, so an event may differ again after each repair.
    #[test]
    fn what_changes_again_is_repaired_again() {
        let (mut repairs, now) = (Repairs::default(), Instant::now());
        for round in 0..100 {
            assert!(repairs.found(&[mismatch(1)], |_| event(round), now));
            assert_eq!(repairs.repaired(|_| event(round + 1), now), 0);
            assert_eq!(repairs.faults().count(), 0);
        }
    }
}
