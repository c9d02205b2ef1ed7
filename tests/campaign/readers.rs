//! Threads that look odds up all the time. They check each view at once, without the database.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use oddscache::{CachedSnapshot, OddsCache, Status, View};
use oddscache_testkit::followed::Shown as Visible;

use crate::{
    ledger::Shown,
    plan::Kind,
    world::{GROUPS, SUM, World, members},
};

/// While no fault can stall the follower, a commit becomes visible within this time, and no view is older.
pub(crate) const BOUND: Duration = Duration::from_secs(8);

/// The line of a snapshot's market. `None` if there is no such market or no line.
fn line(snapshot: Option<&CachedSnapshot>, market_id: &str) -> Option<f64> {
    let mut markets = snapshot?.markets();
    markets
        .find(|market| market.betpawa_market_id() == market_id)?
        .line()
}

/// What a view shows of a group, if it may be a mix of committed states: each event and each side of it for itself.
fn parts(view: &View, group: usize) -> Result<Vec<Shown>, String> {
    let (first, last) = members(group);
    let mut parts = Vec::new();
    for id in first..=last {
        let Some(event) = view.event(id) else {
            parts.push(Shown::Absent);
            continue;
        };
        let (own, theirs) = (event.betpawa(), event.competitors());
        let sides = [own.get(1), theirs.get("sportybet")];
        for generation in sides.into_iter().filter_map(|side| line(side, "gen")) {
            if generation < 0.0 {
                return Err(format!(
                    "event {id} shows a generation that was never committed"
                ));
            }
            parts.push(Shown::Generation(generation as u64));
        }
    }
    Ok(parts)
}

/// The state of a group in a view. Fails if the view does not show one committed state of it.
pub(crate) fn group(view: &View, group: usize) -> Result<Shown, String> {
    let (first, last) = members(group);
    let mut generations = Vec::new();
    let (mut sum, mut absent) = (0.0, 0);
    for id in first..=last {
        let Some(event) = view.event(id) else {
            absent += 1;
            continue;
        };
        let (own, theirs) = (event.betpawa(), event.competitors());
        generations.push(line(own.get(1), "gen"));
        generations.push(line(theirs.get("sportybet"), "gen"));
        for amount in [
            line(own.get(2), "amount"),
            line(theirs.get("bet9ja"), "amount"),
        ] {
            sum += amount.ok_or_else(|| format!("event {id} of group {group} lacks an amount"))?;
        }
    }
    let generation = match (generations.first(), absent) {
        (None, _) => return Ok(Shown::Absent),
        (Some(Some(generation)), 0) => *generation,
        _ => {
            return Err(format!(
                "group {group}: {absent} events are missing, the others show {generations:?}"
            ));
        }
    };
    if generations.iter().any(|other| *other != Some(generation)) {
        return Err(format!("group {group} shows {generations:?}"));
    }
    if sum != SUM as f64 {
        return Err(format!(
            "the amounts of group {group} sum up to {sum} instead of {SUM}"
        ));
    }
    if generation < 0.0 {
        return Err(format!(
            "group {group} shows a generation that was never committed"
        ));
    }
    Ok(Shown::Generation(generation as u64))
}

/// A hash of everything that can be read in a view.
fn digest(view: &View) -> u64 {
    let mut hasher = DefaultHasher::new();
    for id in view.event_ids() {
        let event = view.event(id).map(serde_json::to_string);
        format!("{event:?}").hash(&mut hasher);
    }
    view.epoch().hash(&mut hasher);
    hasher.finish()
}

/// Starts a reader that checks views until the campaign ends. `alone` says that all readers look at one cache: then the
/// first that sees a recovery from a fault notes it.
pub(crate) fn spawn(
    world: &Arc<World>,
    cache: &OddsCache,
    mismatches: &Arc<AtomicU64>,
    seed: u64,
    alone: bool,
) -> thread::JoinHandle<()> {
    let mut reader = Reader {
        world: Arc::clone(world),
        cache: cache.clone(),
        mismatches: Arc::clone(mismatches),
        rng: Rng::with_seed(seed),
        alone,
        last: None,
        generations: [0; GROUPS],
        held: Vec::new(),
        reason: None,
        looked: Instant::now(),
    };
    thread::spawn(move || {
        while !reader.world.is_over() {
            if let Err((check, what)) = reader.look() {
                reader.world.violate(check, what);
            }
            thread::sleep(Duration::from_millis(3));
        }
    })
}

struct Reader {
    world: Arc<World>,
    cache: OddsCache,
    /// How many differences may be found, because the campaign made them.
    mismatches: Arc<AtomicU64>,
    rng: Rng,
    alone: bool,
    last: Option<Last>,
    /// The greatest generation seen of each group within the epoch.
    generations: [u64; GROUPS],
    held: Vec<(View, u64)>,
    reason: Option<String>,
    looked: Instant,
}

struct Last {
    epoch: u64,
    cut: Arc<oddscache::Cut>,
}

type Wrong = (&'static str, String);

impl Reader {
    fn look(&mut self) -> Result<(), Wrong> {
        // If this thread did not run for a while, its view is old for that reason. Do not blame the cache.
        let awake = self.looked.elapsed() < Duration::from_millis(500);
        self.looked = Instant::now();
        // Before the view: the other reader may see the recovery from a fault while this one looks at an older view.
        let faults = self.world.active.now();
        let mixed = faults.contains(&Kind::TriggerStates);
        let status = self.cache.status();
        let view = self.cache.view();
        let asked = Instant::now();
        let age = view.age();
        // The view was proven current at this moment or later.
        let proven = asked.checked_sub(age);
        let fresh = self.forward(&view)?;
        let mut behind = Duration::ZERO;
        for number in 0..GROUPS {
            if mixed {
                let lacks = self.mixed(&view, number, proven)?;
                behind = behind.max(lacks);
                continue;
            }
            let shown = group(&view, number).map_err(|what| ("one committed state", what))?;
            let lacks = self.world.ledger.judge(number, shown, proven);
            let lacks = lacks.map_err(|what| ("age never understated", what))?;
            behind = behind.max(lacks.unwrap_or_default());
            if let Shown::Generation(generation) = shown {
                if generation < self.generations[number] {
                    let what = format!(
                        "group {number} went back from generation {} to {generation} within epoch {}",
                        self.generations[number],
                        view.epoch()
                    );
                    return Err(("forward only", what));
                }
                self.generations[number] = generation;
            }
        }
        if let Some(proven) = proven.filter(|_| self.alone) {
            for (kind, took) in self.world.active.recover(proven) {
                self.world.report.recovery(kind, took);
            }
        }
        if awake {
            // While the feed is not whole, the bound of the status holds instead: see below.
            let is_whole = !matches!(status, Status::Degraded { bound: Some(_), .. });
            let calm = is_whole && !faults.iter().any(|kind| kind.may_stall());
            self.world.report.staleness(&faults, calm, behind, age);
            if calm && behind.max(age) > BOUND {
                let what = format!("behind by {behind:?}, {age:?} old, but no fault explains it");
                return Err(("bounded staleness", what));
            }
        }
        if let Status::Degraded { bound, .. } = &status {
            self.world.report.figures().degraded_views += 1;
            let calm = !faults
                .iter()
                .any(|kind| kind.is_rough() || *kind == Kind::CancelReads);
            let most = bound.unwrap_or_default() + BOUND;
            if awake && calm && behind.max(age) > most {
                let what = format!("behind by {behind:?}, {age:?} old: {status}");
                return Err(("degraded within its bound", what));
            }
        }
        {
            let mut figures = self.world.report.figures();
            figures.views += 1;
            figures.distinct_views += u64::from(fresh);
        }
        let counters = self.cache.counters();
        let mismatches = counters.audit_mismatches + counters.relay_mismatches;
        if mismatches > self.mismatches.load(Ordering::Relaxed) {
            let what = format!("the audit or a digest found {mismatches} differences");
            return Err(("nothing missed", what));
        }
        self.lookups(&view)?;
        self.hold(view)?;
        self.announced();
        Ok(())
    }

    /// Checks a group in a view that may be a mix: while triggers are missing, it may lack changes of some events. It
    /// may lack none that was committed before the moment at which it claims to be current.
    fn mixed(
        &mut self,
        view: &View,
        number: usize,
        proven: Option<Instant>,
    ) -> Result<Duration, Wrong> {
        let parts = parts(view, number).map_err(|what| ("one committed state", what))?;
        let mut behind = Duration::ZERO;
        for shown in &parts {
            let lacks = self.world.ledger.judge(number, *shown, proven);
            let lacks = lacks.map_err(|what| ("age never understated", what))?;
            behind = behind.max(lacks.unwrap_or_default());
        }
        let oldest = parts.iter().filter_map(|shown| match shown {
            Shown::Generation(generation) => Some(*generation),
            Shown::Absent => None,
        });
        if let Some(oldest) = oldest.min() {
            if oldest < self.generations[number] {
                let what = format!(
                    "group {number} went back from generation {} to {oldest} within an epoch",
                    self.generations[number]
                );
                return Err(("forward only", what));
            }
            self.generations[number] = oldest;
        }
        self.world.report.figures().mixed_groups += 1;
        Ok(behind)
    }

    /// Fails if the epoch went back, or if the cut went back within an epoch. Returns whether the cut is a new one.
    fn forward(&mut self, view: &View) -> Result<bool, Wrong> {
        let (epoch, cut) = (view.epoch(), view.cut());
        let wrong = |what: String| Err(("forward only", what));
        let mut fresh = true;
        match &self.last {
            Some(last) if epoch < last.epoch => {
                return wrong(format!("epoch {epoch} after {}", last.epoch));
            }
            Some(last) if epoch == last.epoch => {
                fresh = cut.snapshot != last.cut.snapshot;
                let (now, before) = (
                    Visible::parse(&cut.snapshot),
                    Visible::parse(&last.cut.snapshot),
                );
                let forward = match (now, before) {
                    (Some(now), Some(before)) => now.includes(&before),
                    (_, before) => before.is_none(),
                };
                if !forward
                    || cut.as_of < last.cut.as_of
                    || cut.window_start < last.cut.window_start
                {
                    return wrong(format!("{cut:?} after {:?} within epoch {epoch}", last.cut));
                }
            }
            _ => self.generations = [0; GROUPS],
        }
        self.last = Some(Last { epoch, cut });
        Ok(fresh)
    }

    /// Looks odds up through the handle. Fails if they are older than the view before, or newer than the view after.
    fn lookups(&mut self, before: &View) -> Result<(), Wrong> {
        let number = self.rng.usize(..GROUPS);
        let (first, last) = members(number);
        let event = self.rng.i64(first..=last);
        let found = if self.rng.bool() {
            let found = self.cache.get_betpawa_snapshot(event);
            found.map(|found| line(found.get(1), "gen"))
        } else {
            let found = self.cache.get_competitor_snapshot(event);
            found.map(|found| line(found.get("sportybet"), "gen"))
        };
        let after = self.cache.view();
        self.world.report.figures().lookups += 1;
        let ends = (group(before, number), group(&after, number));
        let (Ok(Shown::Generation(earliest)), Ok(Shown::Generation(latest))) = ends else {
            return Ok(());
        };
        let Some(Some(found)) = found else {
            // The group may have been outside the window in between.
            return Ok(());
        };
        let between = earliest as f64 <= found && found <= latest as f64;
        if !between && before.epoch() == after.epoch() {
            let what = format!(
                "event {event}: generation {found} through the handle, {earliest} in the view before, {latest} after"
            );
            return Err(("lookups agree with a view", what));
        }
        Ok(())
    }

    /// Holds some views for a while. Fails if a held view changed.
    fn hold(&mut self, view: View) -> Result<(), Wrong> {
        if self.rng.u8(..25) == 0 {
            let digest = digest(&view);
            self.held.push((view, digest));
            if self.held.len() > 30 {
                let place = self.rng.usize(..self.held.len());
                self.held.swap_remove(place);
            }
        }
        if self.rng.u8(..25) == 0 && !self.held.is_empty() {
            let (view, before) = &self.held[self.rng.usize(..self.held.len())];
            self.world.report.figures().held_views += 1;
            if digest(view) != *before {
                return Err(("views never change", format!("{view:?} changed")));
            }
        }
        Ok(())
    }

    /// Counts each reload that the status names.
    fn announced(&mut self) {
        let reason = match self.cache.status() {
            Status::Resyncing { detail, .. } => Some(detail),
            Status::Disconnected { error, .. } => {
                self.world.report.figures().last_error = Some(error.to_string());
                None
            }
            _ => None,
        };
        if reason != self.reason {
            if let Some(reason) = &reason {
                let mut figures = self.world.report.figures();
                *figures.reasons.entry(reason.clone()).or_default() += 1;
            }
            self.reason = reason;
        }
    }
}
