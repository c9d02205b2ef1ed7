//! Whether to read everything again because of what the audit found.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{metrics::status::Fault, read::audit::Mismatch};

/// What follows from the mismatches of an audit's step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Read everything again.
    Repair,
    /// The last read of everything did not repair these events: they differ again. Log that, and read everything again.
    RepairInVain,
    /// It is too early to read everything for these events again.
    Wait,
}

/// The events for which everything was read again. If they differ again, reading everything does not repair them, and
/// the pauses between such reads grow.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    /// What the audit found, by event.
    repaired: BTreeMap<i64, String>,
    /// How many reads of everything did not repair these events.
    in_vain: u32,
    /// Not before then is everything read again for them.
    next: Option<Instant>,
    /// Whether a step of the current pass found a mismatch.
    is_found: bool,
}

const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// The most events that the status names.
const MOST_NAMED: usize = 8;

impl Repairs {
    /// Decides what to do about these mismatches.
    pub(crate) fn found(&mut self, mismatches: &[Mismatch], now: Instant) -> Verdict {
        self.is_found = true;
        let is_known = |mismatch: &Mismatch| self.repaired.contains_key(&mismatch.event_id);
        let again = mismatches.iter().all(is_known);
        if again && self.next.is_some_and(|next| now < next) {
            return Verdict::Wait;
        }
        let new = mismatches
            .iter()
            .map(|mismatch| (mismatch.event_id, mismatch.to_string()));
        self.repaired.extend(new);
        if !again {
            self.next = None;
            return Verdict::Repair;
        }
        let pause = FIRST_PAUSE
            .saturating_mul(1 << self.in_vain.min(16))
            .min(LONGEST_PAUSE);
        self.in_vain = self.in_vain.saturating_add(1);
        self.next = Some(now + pause);
        Verdict::RepairInVain
    }

    /// Notes the end of a pass. If it found no mismatch, the events are repaired.
    pub(crate) fn pass_ended(&mut self) {
        if !std::mem::take(&mut self.is_found) {
            *self = Repairs::default();
        }
    }

    /// The events that reading everything does not repair.
    pub(crate) fn faults(&self) -> impl Iterator<Item = Fault> {
        let disputed = self.repaired.values().filter(|_| self.in_vain > 0);
        disputed.take(MOST_NAMED).map(|what| Fault {
            what: format!("after reading everything again, the audit still finds: {what}"),
            repair: "please report it".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repair_in_vain_is_repeated_ever_more_seldom() {
        let mismatch = |event_id| Mismatch {
            event_id,
            what: "kickoff".to_owned(),
        };
        let (mut repairs, mut now) = (Repairs::default(), Instant::now());
        assert_eq!(repairs.found(&[mismatch(1)], now), Verdict::Repair);
        assert_eq!(repairs.faults().count(), 0);
        let mut pauses = Vec::new();
        let mut last = now;
        // The audit finds it every second.
        for _ in 0..3_000 {
            match repairs.found(&[mismatch(1)], now) {
                Verdict::RepairInVain => {
                    pauses.push((now - last).as_secs());
                    last = now;
                }
                verdict => assert_eq!(verdict, Verdict::Wait),
            }
            repairs.pass_ended();
            now += Duration::from_secs(1);
        }
        assert_eq!(pauses, [0, 60, 120, 240, 480, 960]);
        assert_eq!(repairs.faults().count(), 1);
        // Another event is repaired at once.
        assert_eq!(
            repairs.found(&[mismatch(1), mismatch(2)], now),
            Verdict::Repair
        );
        repairs.pass_ended();
        // A pass that finds nothing ends it.
        repairs.pass_ended();
        assert_eq!(repairs.faults().count(), 0);
        assert_eq!(repairs.found(&[mismatch(1)], now), Verdict::Repair);
    }
}
