//! The audit: it reads rows again, in the transaction of an ordinary read, and compares them with the draft. A
//! difference is a change that no trigger saw.
//!
//! Reading everything of every event takes hours at 110,000 events. So the audit makes three passes side by side, each
//! again and again:
//!
//! | pass | what it compares | of which events |
//! |---|---|---|
//! | headers | kickoffs and names, and the ids and times of the latest snapshots | all |
//! | likely | markets | as many as it can in seven cycles, the likeliest first: changed lately, or near their kickoff |
//! | full | everything | all |
//!
//! The likely pass rests while the full one takes less than seven cycles.
//!
//! # Invariants
//! - U1: A full pass compares everything of every event that was in the window or held when the pass began, and that did
//!   not leave since. [`Audit::passes`] says how long the last one took.
//! - U2: Over time the audit takes at most the budgeted share of the time, whether its steps succeed or fail.
//! - U3: A pass over headers compares the kickoff and the names of each such event. It compares the row of each snapshot
//!   that is held. If an event is in the window but not held, or linked to a competitor event of whose source it holds
//!   no snapshot, it reads all headers of the event. And it compares every snapshot whose id is greater than all ids
//!   were when the pass before the last one began. So it misses one thing, which the full pass finds: an older row that
//!   was inserted under its old id, or moved to another event, alone or with its competitor event, while that event
//!   holds another snapshot of that bookmaker or source.
//! - U4: No pass starves. Each that has something to do gets at least its share of the audit's time, and the failures of
//!   one do not stop the others.
//! - U6: A resync reads everything of every event that is in the window or held when it begins, and that does not leave
//!   meanwhile, under snapshots that are not older than the request for it.
//! - U5: What a step compares was read under the snapshot that the draft shows by then. It compares no snapshot that the
//!   draft did not hold when the rows were requested.

use std::{
    fmt,
    ops::Bound,
    time::{Duration, Instant},
};

use crate::{
    metrics::status::{AuditPass, AuditPasses},
    model::{CachedEvent, Micros},
    read::{changed::Newest, rows::Side},
    store::draft::Draft,
};

/// Which of the three passes, or a resync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Headers,
    Likely,
    Full,
    /// See [`Resync`].
    Resync,
}

impl Pass {
    const ALL: [Pass; 3] = [Pass::Headers, Pass::Likely, Pass::Full];

    /// Its share of the audit's time if all three have something to do. The shares add up to 1.
    fn share(self) -> f64 {
        match self {
            Pass::Headers => 0.5,
            Pass::Likely | Pass::Full => 0.25,
            Pass::Resync => 1.0,
        }
    }

    /// A pass has about this many slices. With fewer, each would delay the next read of changes. With more, the fixed
    /// cost of a step would dominate.
    fn slices(self) -> usize {
        match self {
            Pass::Headers => 10,
            Pass::Likely | Pass::Full => 40,
            Pass::Resync => 1,
        }
    }

    /// A step compares no more events than this, so that it delays no change for long.
    fn most_events(self) -> usize {
        match self {
            Pass::Headers => 2_000,
            Pass::Likely | Pass::Full | Pass::Resync => 100,
        }
    }
}

/// Decides when to compare which events. Pure: time comes in as an argument.
#[derive(Debug)]
pub(crate) struct Audit {
    /// How long a pass takes, if the budget allows it.
    cycle: Duration,
    /// The share of time that the audit may take, from 0.0001 to 1.
    budget: f64,
    due: Instant,
    /// One for each of [`Pass::ALL`].
    lanes: [Lane; 3],
    /// The start of the step made last, on the clock of [`Lane::ends`].
    served: f64,
    /// The greatest snapshot ids when the last two passes over headers began; the older first. `None` before the first.
    marks: Option<[Newest; 2]>,
    /// How many steps in a row have failed.
    failures: u32,
}

/// The state of one kind of pass.
#[derive(Debug)]
struct Lane {
    pass: Pass,
    /// It makes no step before this, so that a pass spreads over its time.
    due: Instant,
    /// The time it has taken, divided by its share. Seconds. Of the lanes that are due, the one with the least is next
    /// (U4).
    ends: f64,
    running: Option<Running>,
    /// The most events of one step. Halved by a step that fails, doubled by one that succeeds.
    most: usize,
    /// How long a step took for each event, lately. Seconds.
    cost: Option<f64>,
    /// How long the last pass took.
    last: Option<Duration>,
}

/// A pass that is under way.
#[derive(Debug)]
struct Running {
    began: Instant,
    /// The events, in the order in which they are compared; in a pass over headers and in a full one ascending by id.
    ids: Vec<i64>,
    /// How many of them are done.
    done: usize,
    /// In a pass over headers: snapshots with greater ids are new (U3).
    mark: Newest,
    /// Set in a pass over headers once all slices are done: the table whose new snapshots come next, and the id after
    /// which they begin.
    new: Option<(Side, i64)>,
}

/// What a step reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// The events of a pass, at most so many.
    Begin(Pass, usize),
    /// The headers of some events.
    Headers(Slice),
    /// The snapshots of one table with ids greater than this, ascending.
    New(Side, i64),
    /// The markets of these events.
    Markets(Vec<i64>),
    /// Everything of some events.
    Full(Slice),
    /// The same, and the draft takes over what differs.
    Resync(Slice),
}

impl Step {
    pub(crate) fn pass(&self) -> Pass {
        match self {
            Step::Begin(pass, _) => *pass,
            Step::Headers(_) | Step::New(..) => Pass::Headers,
            Step::Markets(_) => Pass::Likely,
            Step::Full(_) => Pass::Full,
            Step::Resync(_) => Pass::Resync,
        }
    }
}

/// A range of event ids, and the ids in this range that belong to the pass. Held events in the range are compared, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) range: (Bound<i64>, Bound<i64>),
    pub(crate) ids: Vec<i64>,
}

/// What a step found.
#[derive(Debug)]
pub(crate) struct Audited {
    pub(crate) pass: Pass,
    /// How many events it compared.
    pub(crate) count: usize,
    pub(crate) mismatches: Vec<Mismatch>,
    pub(crate) next: Next,
}

/// Where a pass goes on after a step.
#[derive(Debug)]
pub(crate) enum Next {
    /// It began, with these events and greatest snapshot ids.
    Began(Vec<i64>, Newest),
    /// After the slice that the step compared.
    Slice,
    /// After the new snapshot with this id. `None` if there are no more.
    New(Option<i64>),
}

/// The likely pass takes about this many cycles, and is made only if the full one takes longer.
const LIKELY_CYCLES: u32 = 7;

/// How long it takes to compare the markets of an event, in seconds, before that was measured.
const COST: f64 = 0.001;

/// The first pass over headers compares this many of the greatest snapshot ids, because it knows no earlier mark.
const NEW_AT_FIRST: i64 = 50_000;

/// The budget if the configured one is NaN.
const BUDGET: f64 = 0.01;

/// The least and the longest rest of a resync after a step that failed.
const FIRST_REST: Duration = Duration::from_millis(100);
const MOST_REST: Duration = Duration::from_secs(60);

/// The audit never rests for longer, however long a step took.
const LONGEST_REST: Duration = Duration::from_secs(24 * 60 * 60);

impl Lane {
    fn new(pass: Pass, now: Instant) -> Lane {
        Lane {
            pass,
            due: now,
            ends: 0.0,
            running: None,
            most: pass.most_events(),
            cost: None,
            last: None,
        }
    }

    fn step_size(&self, events: usize) -> usize {
        events.div_ceil(self.pass.slices()).clamp(1, self.most)
    }

    /// The next step of the pass that is under way.
    fn step(&self, running: &Running) -> Step {
        let Running { ids, done, new, .. } = running;
        if let Some((side, after)) = new {
            return Step::New(*side, *after);
        }
        let end = ids.len().min(done + self.step_size(ids.len()));
        let listed = ids.get(*done..end).unwrap_or_default().to_vec();
        if self.pass == Pass::Likely {
            return Step::Markets(listed);
        }
        // The ranges of a pass leave no gap: each begins after the last id of the one before, and the first and the
        // last are open. So an event that came into the cache meanwhile is compared, too (U1).
        let bound = |index: usize| ids.get(index.wrapping_sub(1)).copied();
        let after = bound(*done).map_or(Bound::Unbounded, Bound::Excluded);
        let last = bound(end).filter(|_| end < ids.len());
        let slice = Slice {
            range: (after, last.map_or(Bound::Unbounded, Bound::Included)),
            ids: listed,
        };
        match self.pass {
            Pass::Headers => Step::Headers(slice),
            Pass::Resync => Step::Resync(slice),
            _ => Step::Full(slice),
        }
    }

    /// Moves on after a step. Returns whether it ended the pass.
    fn move_on(&mut self, next: &Next, marks: &mut Option<[Newest; 2]>, now: Instant) -> bool {
        let Some(mut running) = self.running.take() else {
            let Next::Began(ids, greatest) = next else {
                return false;
            };
            let mut mark = *greatest;
            if self.pass == Pass::Headers {
                let first = Newest {
                    betpawa: greatest.betpawa.saturating_sub(NEW_AT_FIRST),
                    competitors: greatest.competitors.saturating_sub(NEW_AT_FIRST),
                };
                let [older, newer] = marks.unwrap_or([first; 2]);
                mark = older;
                *marks = Some([newer, *greatest]);
            }
            // A likely pass without events compares nothing, so its next step may be a new beginning.
            if self.pass == Pass::Likely && ids.is_empty() {
                self.last = Some(Duration::ZERO);
                return true;
            }
            self.running = Some(Running {
                began: now,
                ids: ids.clone(),
                done: 0,
                mark,
                new: None,
            });
            return false;
        };
        let is_over = match (running.new, next) {
            (Some((side, _)), Next::New(Some(last))) => {
                running.new = Some((side, *last));
                false
            }
            (Some((Side::Betpawa, _)), _) => {
                running.new = Some((Side::Competitors, running.mark.competitors));
                false
            }
            (Some((Side::Competitors, _)), _) => true,
            (None, _) => {
                running.done += self.step_size(running.ids.len());
                let is_done = running.done >= running.ids.len();
                if is_done && self.pass == Pass::Headers {
                    running.new = Some((Side::Betpawa, running.mark.betpawa));
                }
                is_done && running.new.is_none()
            }
        };
        match is_over {
            true => self.last = Some(now.saturating_duration_since(running.began)),
            false => self.running = Some(running),
        }
        is_over
    }

    /// How long the pass under way will take in all, as far as one can tell by its steps so far. Before these the time
    /// of the last pass.
    fn expected(&self, now: Instant) -> Option<Duration> {
        let running = self.running.as_ref().filter(|running| running.done > 0);
        let Some(running) = running else {
            return self.last;
        };
        let elapsed = now.saturating_duration_since(running.began);
        let (all, done) = (running.ids.len(), running.done.min(running.ids.len()));
        let share = done.max(1) as f64 / all.max(1) as f64;
        Some(Duration::try_from_secs_f64(elapsed.as_secs_f64() / share).unwrap_or(Duration::MAX))
    }
}

impl Audit {
    pub(crate) fn new(cycle: Duration, budget: f64, now: Instant) -> Audit {
        let budget = if budget.is_nan() { BUDGET } else { budget };
        let mut audit = Audit {
            cycle,
            budget: budget.clamp(0.0001, 1.0),
            due: now,
            lanes: Pass::ALL.map(|pass| Lane::new(pass, now)),
            served: 0.0,
            marks: None,
            failures: 0,
        };
        for pass in Pass::ALL {
            audit.spread(pass, now);
        }
        audit
    }

    fn lane(&self, pass: Pass) -> &Lane {
        &self.lanes[pass as usize]
    }

    /// How long until the next step is due.
    pub(crate) fn until_due(&self, now: Instant) -> Duration {
        let lanes = self.lanes.iter().filter(|lane| self.is_wanted(lane, now));
        let lane_due = lanes.map(|lane| lane.due).min().unwrap_or(self.due);
        lane_due.max(self.due).saturating_duration_since(now)
    }

    /// The step that is due, if one is.
    pub(crate) fn due(&self, now: Instant) -> Option<Step> {
        if now < self.due {
            return None;
        }
        let ready = |lane: &&Lane| lane.due <= now && self.is_wanted(lane, now);
        // A lane that had nothing to do for a while has no claim to the time that it left to others.
        let starts = |lane: &Lane| lane.ends.max(self.served);
        let order = |a: &&Lane, b: &&Lane| {
            let (a, b) = ((starts(a), a.ends), (starts(b), b.ends));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
        };
        let lane = self.lanes.iter().filter(ready).min_by(order)?;
        Some(match &lane.running {
            Some(running) => lane.step(running),
            None => Step::Begin(lane.pass, self.most_listed(lane)),
        })
    }

    /// Whether a pass has a reason to go on.
    fn is_wanted(&self, lane: &Lane, now: Instant) -> bool {
        let full = || self.lane(Pass::Full).expected(now);
        lane.pass != Pass::Likely
            || lane.running.is_some()
            || full().is_some_and(|full| full > self.cycle * LIKELY_CYCLES)
    }

    /// How many events the pass may list: all, or as many as a likely pass can compare in its time.
    fn most_listed(&self, lane: &Lane) -> usize {
        if lane.pass != Pass::Likely {
            return usize::MAX;
        }
        // Not all of it: the steps also wait for each other.
        let seconds = 0.8 * self.span(lane.pass).as_secs_f64() * self.budget * lane.pass.share();
        // The cast saturates.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let most = (seconds / lane.cost.unwrap_or(COST).max(1e-6)) as usize;
        most.max(lane.pass.most_events())
    }

    /// The time over which a pass spreads.
    fn span(&self, pass: Pass) -> Duration {
        match pass {
            Pass::Headers | Pass::Full | Pass::Resync => self.cycle,
            Pass::Likely => self.cycle.saturating_mul(LIKELY_CYCLES),
        }
    }

    /// Notes that a step succeeded after `took`. Returns whether it ended a pass.
    pub(crate) fn done(&mut self, audited: &Audited, took: Duration, now: Instant) -> bool {
        let lane = &mut self.lanes[audited.pass as usize];
        if audited.count > 0 {
            let cost = took.as_secs_f64() / audited.count as f64;
            lane.cost = Some(lane.cost.map_or(cost, |before| before * 0.8 + cost * 0.2));
        }
        // The pass moves on by the size that the step had. Only later steps are larger.
        let ended = lane.move_on(&audited.next, &mut self.marks, now);
        lane.most = (lane.most * 2).min(lane.pass.most_events());
        self.failures = 0;
        self.charge(audited.pass, took, now);
        ended
    }

    /// Notes that a step failed after `took`. The next one of its pass will be smaller. Returns how many steps in a row
    /// have failed.
    pub(crate) fn failed(&mut self, pass: Pass, took: Duration, now: Instant) -> u32 {
        let lane = &mut self.lanes[pass as usize];
        lane.most = (lane.most / 2).max(1);
        self.failures = self.failures.saturating_add(1);
        self.charge(pass, took, now);
        self.failures
    }

    /// Notes how long a step took.
    fn charge(&mut self, pass: Pass, took: Duration, now: Instant) {
        let lane = &mut self.lanes[pass as usize];
        self.served = lane.ends.max(self.served);
        lane.ends = self.served + took.as_secs_f64() / pass.share();
        self.spread(pass, now);
        self.rest(took, now);
    }

    /// Sets when a pass makes its next step, so that it spreads over its time.
    fn spread(&mut self, pass: Pass, now: Instant) {
        let span = self.span(pass);
        let lane = &mut self.lanes[pass as usize];
        let slices = match &lane.running {
            Some(Running { ids, .. }) => ids.len().div_ceil(lane.step_size(ids.len())),
            None => pass.slices(),
        };
        // More for the step that lists the events, and for those that look at new snapshots.
        let steps = u32::try_from(slices + 3).unwrap_or(u32::MAX);
        lane.due = now + (span / steps).min(LONGEST_REST);
    }

    /// Rests after the audit was busy for `took` (U2). With a budget of 0.01 it rests for 100 times as long.
    pub(crate) fn rest(&mut self, took: Duration, now: Instant) {
        let rest = took.min(LONGEST_REST).div_f64(self.budget);
        self.due = self.due.max(now + rest.min(LONGEST_REST));
    }

    /// How long the passes took, and will take.
    pub(crate) fn passes(&self, now: Instant) -> AuditPasses {
        let of = |pass| {
            let lane = self.lane(pass);
            AuditPass {
                last_seconds: lane.last.map(|last| last.as_secs_f64()),
                expected_seconds: lane.expected(now).map(|expected| expected.as_secs_f64()),
            }
        };
        AuditPasses {
            headers: of(Pass::Headers),
            likely: of(Pass::Likely),
            full: of(Pass::Full),
        }
    }
}

/// Reads everything again, slice by slice, while the follower goes on following. Each slice is read together with the
/// changes, under one snapshot, and the draft takes it over. So the view is a committed state all the time, if the log
/// has told every change; and at the end, whatever the log has not told by the beginning is there (U6).
#[derive(Debug)]
pub(crate) struct Resync {
    lane: Lane,
    /// How many steps in a row have failed.
    failures: u32,
    /// Somebody asked again meanwhile. What was read before may be older than that, so all of it is read once more.
    again: bool,
}

impl Resync {
    pub(crate) fn new(now: Instant) -> Resync {
        Resync {
            lane: Lane::new(Pass::Resync, now),
            failures: 0,
            again: false,
        }
    }

    pub(crate) fn again(&mut self) {
        self.again = true;
    }

    pub(crate) fn until_due(&self, now: Instant) -> Duration {
        self.lane.due.saturating_duration_since(now)
    }

    /// The step that is due, if one is.
    pub(crate) fn due(&self, now: Instant) -> Option<Step> {
        (self.lane.due <= now).then(|| match &self.lane.running {
            Some(running) => self.lane.step(running),
            None => Step::Begin(Pass::Resync, usize::MAX),
        })
    }

    /// Notes that a step succeeded after `took`. Returns whether all is done.
    pub(crate) fn done(&mut self, audited: &Audited, took: Duration, now: Instant) -> bool {
        self.failures = 0;
        self.lane.most = (self.lane.most * 2).min(self.lane.pass.most_events());
        self.lane.due = now + took;
        let is_over = self.lane.move_on(&audited.next, &mut None, now);
        if is_over && std::mem::take(&mut self.again) {
            return false;
        }
        is_over
    }

    /// Notes that a step failed after `took`. The next one will be smaller, and come later each time. Returns how many
    /// steps in a row have failed.
    pub(crate) fn failed(&mut self, took: Duration, now: Instant) -> u32 {
        self.lane.most = (self.lane.most / 2).max(1);
        let rest = took.max(FIRST_REST) * (1 << self.failures.min(10));
        self.lane.due = now + rest.min(MOST_REST);
        self.failures = self.failures.saturating_add(1);
        self.failures
    }
}

/// The events in which an unseen change is likeliest and matters most, the first of them first: those that changed last,
/// and those that begin next. An event that begins in a day counts like one that changed an hour ago. Walks over all
/// events.
pub(crate) fn likeliest(held: &Draft, now: Micros, most: usize) -> Vec<i64> {
    let rank = |event: &CachedEvent| {
        let newest = event
            .snapshots()
            .map(|snapshot| snapshot.captured_at.0)
            .max();
        let changed = now.0.saturating_sub(newest.unwrap_or_default()).max(0);
        let begins = event
            .kickoff
            .map_or(i64::MAX, |kickoff| kickoff.0.saturating_sub(now.0).max(0));
        changed.min(begins / 24)
    };
    let mut events: Vec<(i64, i64)> = held
        .events()
        .map(|event| (rank(event), event.event_id))
        .collect();
    if most < events.len() {
        events.select_nth_unstable(most);
        events.truncate(most);
    }
    events.sort_unstable();
    events.into_iter().map(|(_, event_id)| event_id).collect()
}

/// An event that differs between cache and database.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) event_id: i64,
    pub(crate) what: String,
}

/// What differs. [`GONE`]: the cache holds an event that is not in the window.
pub(crate) const KICKOFF: &str = "kickoff";
pub(crate) const NAMES: &str = "names";
pub(crate) const GONE: &str = "the cache has it, the database does not";

impl Mismatch {
    pub(crate) fn new(event_id: i64, what: impl Into<String>) -> Mismatch {
        let what = what.into();
        Mismatch { event_id, what }
    }
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
        (Some(_), None) => return Some(GONE.to_owned()),
        (None, None) => return None,
    };
    // Nearly always equal, and cheap to tell. Only a difference is looked at in detail.
    if held.same(read) {
        return None;
    }
    if held.kickoff != read.kickoff {
        return Some(KICKOFF.to_owned());
    }
    if !held.same_names(read) {
        return Some(NAMES.to_owned());
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
    const MS: Duration = Duration::from_millis(1);

    /// An audit of events that never differ, with a clock of its own.
    struct Simulation {
        audit: Audit,
        now: Instant,
        began: Instant,
        window: Vec<i64>,
        greatest: Newest,
        /// The time of each kind of pass, and the steps that succeeded.
        took: [Duration; 3],
        steps: Vec<Step>,
        passes: [usize; 3],
    }

    impl Simulation {
        fn new(budget: f64, events: i64) -> Simulation {
            let now = Instant::now();
            Simulation {
                audit: Audit::new(CYCLE, budget, now),
                now,
                began: now,
                window: (0..events).map(|id| id * 7 - 50).collect(),
                greatest: Newest::default(),
                took: [Duration::ZERO; 3],
                steps: Vec::new(),
                passes: [0; 3],
            }
        }

        /// Waits for the next step, and makes it. `took` says how long that takes, and whether it succeeds.
        fn step(&mut self, took: impl Fn(&Step) -> (Duration, bool)) {
            self.now += self.audit.until_due(self.now);
            let step = self.audit.due(self.now).expect("due");
            let (pass, (took, succeeds)) = (step.pass(), took(&step));
            self.now += took;
            self.took[pass as usize] += took;
            if !succeeds {
                self.audit.failed(pass, took, self.now);
                return;
            }
            let (count, next) = match &step {
                Step::Begin(Pass::Likely, most) => {
                    let ids = self.window.iter().take(*most).copied().collect();
                    (0, Next::Began(ids, Newest::default()))
                }
                Step::Begin(..) => (0, Next::Began(self.window.clone(), self.greatest)),
                Step::New(..) => (0, Next::New(None)),
                Step::Headers(Slice { ids, .. })
                | Step::Full(Slice { ids, .. })
                | Step::Resync(Slice { ids, .. })
                | Step::Markets(ids) => (ids.len(), Next::Slice),
            };
            let audited = Audited {
                pass,
                count,
                mismatches: Vec::new(),
                next,
            };
            self.passes[pass as usize] += usize::from(self.audit.done(&audited, took, self.now));
            self.steps.push(step);
        }

        fn until(
            &mut self,
            took: impl Fn(&Step) -> (Duration, bool),
            is_so: impl Fn(&Simulation) -> bool,
        ) {
            for _ in 0..1_000_000 {
                if is_so(self) {
                    return;
                }
                self.step(&took);
            }
            panic!("never: {:?}", self.passes);
        }

        fn elapsed(&self) -> Duration {
            self.now - self.began
        }

        /// The slices of a pass, in order.
        fn slices(&self, pass: Pass) -> Vec<&Slice> {
            let of_pass = self.steps.iter().filter(|step| step.pass() == pass);
            of_pass
                .filter_map(|step| match step {
                    Step::Headers(slice) | Step::Full(slice) => Some(slice),
                    _ => None,
                })
                .collect()
        }

        /// The ranges of the first pass leave no gap, so it also compares held events outside of the window (U1).
        fn assert_covered(&self, pass: Pass) {
            let slices = self.slices(pass);
            let is_last = |slice: &&Slice| slice.range.1 == Bound::Unbounded;
            let last = slices.iter().position(is_last).expect("a whole pass");
            let slices = &slices[..=last];
            let ids: Vec<i64> = slices.iter().flat_map(|slice| slice.ids.clone()).collect();
            assert_eq!(ids, self.window);
            assert_eq!(slices[0].range.0, Bound::Unbounded);
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

    /// How long steps take at a large scale: 20 ms for a slice of headers, 100 ms for one in full.
    fn large(step: &Step) -> (Duration, bool) {
        let per_event = |ids: &[i64], micros: u64| Duration::from_micros(micros * ids.len() as u64);
        let took = match step {
            Step::Begin(..) | Step::New(..) => Duration::ZERO,
            Step::Headers(slice) => per_event(&slice.ids, 10),
            Step::Full(slice) | Step::Resync(slice) => per_event(&slice.ids, 1_000),
            Step::Markets(ids) => per_event(ids, 350),
        };
        (took + 3 * MS, true)
    }

    #[test]
    fn passes_cover_all_ids_once_and_fit_into_their_cycle() {
        for events in [0, 1, 39, 1_100, 3_999] {
            let mut simulation = Simulation::new(0.01, events);
            let all =
                |simulation: &Simulation| simulation.passes[2] > 0 && simulation.passes[0] > 0;
            simulation.until(|_| (15 * MS, true), all);
            let took = simulation.elapsed();
            assert!(took <= CYCLE + CYCLE / 10, "{events} events: {took:?}");
            simulation.assert_covered(Pass::Headers);
            simulation.assert_covered(Pass::Full);
            // The full pass is quick, so nothing is compared twice.
            assert_eq!(simulation.took[Pass::Likely as usize], Duration::ZERO);
        }
    }

    #[test]
    fn a_step_that_took_long_is_followed_by_a_long_rest() {
        let now = Instant::now();
        let mut audit = Audit::new(CYCLE, 0.01, now);
        audit.failed(Pass::Full, Duration::from_secs(1), now);
        assert_eq!(audit.until_due(now), Duration::from_secs(100));
        audit.rest(Duration::MAX, now);
        assert_eq!(audit.until_due(now), LONGEST_REST);
        // A short step does not shorten a rest.
        audit.rest(Duration::ZERO, now);
        assert_eq!(audit.until_due(now), LONGEST_REST);
    }

    /// U2, also while every third step fails.
    #[test]
    fn the_audit_keeps_its_budget() {
        for (budget, events) in [(0.01, 110_000), (0.3, 11_000), (f64::NAN, 1_100)] {
            let mut simulation = Simulation::new(budget, events);
            let number = std::cell::Cell::new(0);
            let took = |step: &Step| {
                number.set(number.get() + 1);
                (large(step).0, number.get() % 3 > 0)
            };
            simulation.until(took, |_| number.get() == 5_000);
            let took: Duration = simulation.took.iter().sum();
            // The rest of the last step is still to come.
            let last = Duration::from_millis(200);
            let budget = if budget.is_nan() { BUDGET } else { budget };
            let most = simulation.elapsed().mul_f64(budget) + last;
            assert!(took <= most, "{took:?} of {:?}", simulation.elapsed());
        }
    }

    /// U4: at a large scale each of the three has more to do than its share allows.
    #[test]
    fn each_pass_gets_its_share() {
        let mut simulation = Simulation::new(0.01, 110_000);
        simulation.until(large, |simulation| {
            simulation.passes[Pass::Full as usize] > 0
        });
        let all: Duration = simulation.took.iter().sum();
        for pass in Pass::ALL {
            let share = simulation.took[pass as usize].as_secs_f64() / all.as_secs_f64();
            // The likely pass lists what fits into its share, so it rests a little between two passes.
            let least = if pass == Pass::Likely { 0.6 } else { 0.95 };
            assert!(share > pass.share() * least, "{pass:?}: {share}");
            assert!(simulation.passes[pass as usize] > 0, "{pass:?}");
        }
        simulation.assert_covered(Pass::Full);
        // A few minutes for headers, a quarter of an hour for the likeliest markets, hours for everything.
        let passes = simulation.audit.passes(simulation.now);
        let seconds = |pass: AuditPass| pass.last_seconds.expect("a whole pass");
        assert!(
            (120.0..360.0).contains(&seconds(passes.headers)),
            "{passes:?}"
        );
        assert!(
            (600.0..1_000.0).contains(&seconds(passes.likely)),
            "{passes:?}"
        );
        assert!(seconds(passes.full) > 9.0 * 3600.0, "{passes:?}");
    }

    /// U4.
    #[test]
    fn a_pass_whose_steps_all_fail_stops_no_other() {
        for fails in [Pass::Headers, Pass::Full] {
            let mut simulation = Simulation::new(0.01, 11_000);
            let other = match fails {
                Pass::Full => Pass::Headers,
                _ => Pass::Full,
            };
            let took = |step: &Step| (large(step).0, step.pass() != fails);
            simulation.until(took, |simulation| simulation.passes[other as usize] > 1);
            assert_eq!(simulation.passes[fails as usize], 0);
        }
    }

    /// After a failed step the pass skipped events: it moved on by more events than the smaller step had compared.
    #[test]
    fn a_pass_covers_all_ids_also_after_failed_steps() {
        let mut simulation = Simulation::new(1.0, 30_000);
        let number = std::cell::Cell::new(0);
        let took = |_: &Step| {
            number.set(number.get() + 1);
            (MS, number.get() % 7 > 3)
        };
        let all = |simulation: &Simulation| simulation.passes[0] > 0 && simulation.passes[2] > 0;
        simulation.until(took, all);
        simulation.assert_covered(Pass::Headers);
        simulation.assert_covered(Pass::Full);
    }

    /// A step that failed was due again at once.
    #[test]
    fn a_step_that_failed_is_tried_later_and_smaller() {
        let mut now = Instant::now();
        let mut audit = Audit::new(CYCLE, f64::NAN, now);
        let began = Audited {
            pass: Pass::Full,
            count: 0,
            mismatches: Vec::new(),
            next: Next::Began((0..100_000).collect(), Newest::default()),
        };
        audit.done(&began, Duration::ZERO, now);
        let mut sizes = Vec::new();
        for _ in 0..40 {
            now += audit.until_due(now);
            let step = audit.due(now).expect("due");
            if let Step::Full(slice) = &step {
                sizes.push(slice.ids.len());
            }
            audit.failed(step.pass(), Duration::from_secs(2), now);
            assert_eq!(audit.until_due(now), Duration::from_secs(200));
        }
        assert_eq!(sizes[..9], [100, 50, 25, 12, 6, 3, 1, 1, 1]);
    }

    /// U3: a transaction may commit snapshots with smaller ids than those that another one has committed before.
    #[test]
    fn new_snapshots_are_compared_in_two_passes() {
        let mut simulation = Simulation::new(1.0, 100);
        let mut after = Vec::new();
        for pass in 1..=4 {
            simulation.greatest = Newest {
                betpawa: pass * 1_000_000,
                competitors: pass * 2_000_000,
            };
            let passes = usize::try_from(pass).expect("small");
            simulation.until(|_| (MS, true), |simulation| simulation.passes[0] == passes);
            for step in simulation.steps.drain(..) {
                if let Step::New(side, id) = step {
                    after.push((side, id));
                }
            }
        }
        let first = 1_000_000 - NEW_AT_FIRST;
        let own = [first, first, 1_000_000, 2_000_000];
        let others = [2 * 1_000_000 - NEW_AT_FIRST; 2]
            .into_iter()
            .chain([2_000_000, 4_000_000]);
        let expected: Vec<(Side, i64)> = own
            .into_iter()
            .zip(others)
            .flat_map(|(own, other)| [(Side::Betpawa, own), (Side::Competitors, other)])
            .collect();
        assert_eq!(after, expected);
    }

    #[test]
    fn the_estimate_tells_how_long_a_pass_takes() {
        let mut simulation = Simulation::new(0.01, 11_000);
        let full = Pass::Full as usize;
        let estimate = |simulation: &Simulation| {
            let passes = simulation.audit.passes(simulation.now);
            passes.full.expected_seconds
        };
        assert_eq!(estimate(&simulation), None);
        let half = |simulation: &Simulation| {
            let running = simulation.audit.lane(Pass::Full).running.as_ref();
            running.is_some_and(|running| running.done * 2 >= running.ids.len())
        };
        simulation.until(large, half);
        let estimated = estimate(&simulation).expect("an estimate");
        simulation.until(large, |simulation| simulation.passes[full] > 0);
        let passes = simulation.audit.passes(simulation.now);
        let took = passes.full.last_seconds.expect("ended");
        assert!((estimated / took - 1.0).abs() < 0.1, "{estimated} {took}");
    }

    #[test]
    fn the_likeliest_changed_lately_or_begin_soon() {
        const HOUR: i64 = 3_600_000_000;
        let mut draft = Draft::default();
        // Event, hours until its kickoff, hours since its snapshot.
        for (event_id, begins, changed) in [
            (1, 300, 90),
            (2, 12, 90),
            (3, 300, 2),
            (4, 1, 90),
            (5, -1, 90),
        ] {
            let input = crate::model::SnapshotInput {
                snapshot_id: event_id,
                event_id,
                bookmaker_id: 1,
                captured_at: Micros(-changed * HOUR).to_utc(),
                last_confirmed_at: None,
                markets: Vec::new(),
            };
            let snapshot = draft.packer.snapshot(&input);
            let own = crate::model::BetpawaSnapshots::new(vec![snapshot]);
            draft.set(
                event_id,
                Some(Micros(begins * HOUR)),
                own,
                Default::default(),
            );
        }
        assert_eq!(likeliest(&draft, Micros(0), 9), [5, 4, 2, 3, 1]);
        assert_eq!(likeliest(&draft, Micros(0), 3), [5, 4, 2]);
    }
}
