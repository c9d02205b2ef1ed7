//! The figures of a campaign: what it did and what it measured.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use crate::plan::Kind;

#[derive(Debug, Default)]
pub(crate) struct Report(Mutex<Figures>);

#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) seeds: Vec<u64>,
    pub(crate) rounds: u64,
    /// For each kind: how many transactions committed, and how many were refused, rolled back or cut off.
    pub(crate) transactions: BTreeMap<&'static str, (u64, u64)>,
    pub(crate) rows: u64,
    pub(crate) faults: BTreeMap<Kind, FaultFigures>,
    pub(crate) comparisons: u64,
    pub(crate) service_comparisons: u64,
    pub(crate) views: u64,
    pub(crate) distinct_views: u64,
    pub(crate) lookups: u64,
    pub(crate) waited_for: u64,
    pub(crate) held_views: u64,
    /// Views that readers took while the status was degraded.
    pub(crate) degraded_views: u64,
    /// How often the parts of a group were checked one by one, because a view may be a mix of committed states.
    pub(crate) mixed_groups: u64,
    /// Rows written without a log row that showed within the bound of the status.
    pub(crate) unlogged: u64,
    /// Pauses with rows that cannot be read, in which everything else was equal to the oracle.
    pub(crate) poisoned: u64,
    /// The greatest staleness while no fault could stall the follower.
    pub(crate) staleness: Duration,
    /// The greatest age while no fault could stall the follower.
    pub(crate) age: Duration,
    pub(crate) epochs: u64,
    pub(crate) counters: BTreeMap<String, u64>,
    pub(crate) reasons: BTreeMap<String, u64>,
    pub(crate) resident_kb: Vec<u64>,
    /// What subscribers of a relay showed: all publications, and those of the one that showed most.
    pub(crate) shown: u64,
    pub(crate) most_shown: u64,
    /// Forged messages, and how many differences of digests they led to.
    pub(crate) forged: u64,
    pub(crate) found: u64,
    /// The last error for which the embedded follower paused.
    pub(crate) last_error: Option<String>,
}

#[derive(Debug, Default)]
pub(crate) struct FaultFigures {
    pub(crate) count: u64,
    /// The greatest staleness during the fault and until the recovery from it.
    pub(crate) staleness: Duration,
    pub(crate) recovered: u64,
    pub(crate) recovery: Duration,
    pub(crate) longest_recovery: Duration,
}

impl Report {
    pub(crate) fn figures(&self) -> MutexGuard<'_, Figures> {
        self.0.lock().expect("not poisoned")
    }

    pub(crate) fn transaction(&self, kind: &'static str, committed: bool, rows: u64) {
        let mut figures = self.figures();
        let counts = figures.transactions.entry(kind).or_default();
        if committed {
            counts.0 += 1;
        } else {
            counts.1 += 1;
        }
        figures.rows += rows;
    }

    pub(crate) fn inflicted(&self, kind: Kind) {
        self.figures().faults.entry(kind).or_default().count += 1;
    }

    /// Records the staleness and age of a view during the given faults. `calm` says that nothing could stall the
    /// follower.
    pub(crate) fn staleness(&self, faults: &[Kind], calm: bool, behind: Duration, age: Duration) {
        let mut figures = self.figures();
        if calm {
            figures.staleness = figures.staleness.max(behind);
            figures.age = figures.age.max(age);
        }
        for kind in faults {
            let fault = figures.faults.entry(*kind).or_default();
            fault.staleness = fault.staleness.max(behind);
        }
    }

    pub(crate) fn recovery(&self, kind: Kind, took: Duration) {
        let mut figures = self.figures();
        let fault = figures.faults.entry(kind).or_default();
        fault.recovered += 1;
        fault.recovery += took;
        fault.longest_recovery = fault.longest_recovery.max(took);
    }
}

impl Figures {
    pub(crate) fn committed(&self) -> u64 {
        self.transactions.values().map(|counts| counts.0).sum()
    }

    pub(crate) fn faults(&self) -> u64 {
        self.faults.values().map(|fault| fault.count).sum()
    }

    /// Adds the figures of another campaign.
    pub(crate) fn add(&mut self, other: Figures) {
        self.seeds.extend(other.seeds);
        self.rounds += other.rounds;
        for (kind, (committed, refused)) in other.transactions {
            let counts = self.transactions.entry(kind).or_default();
            counts.0 += committed;
            counts.1 += refused;
        }
        self.rows += other.rows;
        for (kind, fault) in other.faults {
            let all = self.faults.entry(kind).or_default();
            all.count += fault.count;
            all.staleness = all.staleness.max(fault.staleness);
            all.recovered += fault.recovered;
            all.recovery += fault.recovery;
            all.longest_recovery = all.longest_recovery.max(fault.longest_recovery);
        }
        self.comparisons += other.comparisons;
        self.service_comparisons += other.service_comparisons;
        self.views += other.views;
        self.distinct_views += other.distinct_views;
        self.lookups += other.lookups;
        self.waited_for += other.waited_for;
        self.held_views += other.held_views;
        self.degraded_views += other.degraded_views;
        self.mixed_groups += other.mixed_groups;
        self.unlogged += other.unlogged;
        self.poisoned += other.poisoned;
        self.staleness = self.staleness.max(other.staleness);
        self.age = self.age.max(other.age);
        self.epochs += other.epochs;
        for (name, count) in other.counters {
            *self.counters.entry(name).or_default() += count;
        }
        for (reason, count) in other.reasons {
            *self.reasons.entry(reason).or_default() += count;
        }
        self.resident_kb.extend(other.resident_kb);
        self.shown += other.shown;
        self.most_shown += other.most_shown;
        self.forged += other.forged;
        self.found += other.found;
    }

    /// The report as text.
    pub(crate) fn text(&self, violations: usize) -> String {
        let mut text = String::new();
        let mut line = |line: String| writeln!(text, "{line}").expect("into a string");
        let seconds = |duration: Duration| format!("{:.2} s", duration.as_secs_f64());
        line(format!("violations: {violations}"));
        line(format!("seeds: {:?}", self.seeds));
        line(format!("rounds, each ended by a pause: {}", self.rounds));
        line(format!(
            "comparisons with the oracle: {} of the embedded cache, {} of the service",
            self.comparisons, self.service_comparisons
        ));
        line(format!(
            "transactions committed: {}; row operations: {}",
            self.committed(),
            self.rows
        ));
        line(format!(
            "views checked: {}, of them different: {}; lookups through the handle: {}; held views checked again: {}; \
             writers who waited for their own write: {}",
            self.views, self.distinct_views, self.lookups, self.held_views, self.waited_for
        ));
        line(format!(
            "while degraded: views checked: {}; groups in which each event was checked alone: {}; rows without a log row that \
             showed within the bound: {}; comparisons that left out rows which cannot be read: {}",
            self.degraded_views, self.mixed_groups, self.unlogged, self.poisoned
        ));
        line(format!(
            "without a fault that may stall: greatest staleness {}, greatest age {}",
            seconds(self.staleness),
            seconds(self.age)
        ));
        line(format!("epochs of the embedded cache: {}", self.epochs));
        line(format!(
            "counters of the embedded cache: {:?}",
            self.counters
        ));
        line(format!(
            "reloads by reason, as far as readers saw them: {:?}",
            self.reasons
        ));
        if let (Some(first), Some(last)) = (self.resident_kb.first(), self.resident_kb.last()) {
            let most = self.resident_kb.iter().max().unwrap_or(last);
            line(format!(
                "resident memory of this process: {first} kB after the first round, {last} kB after the last, {most} kB at the most"
            ));
        }
        text + &self.tables()
    }

    /// The report of a campaign with a relay, as text.
    pub(crate) fn relayed_text(&self, violations: usize) -> String {
        let mut text = String::new();
        let mut line = |line: String| writeln!(text, "{line}").expect("into a string");
        line(format!("violations: {violations}"));
        line(format!("seeds: {:?}", self.seeds));
        line(format!(
            "rounds, each ended by a pause: {}; comparisons of subscribers with the oracle: {}",
            self.rounds, self.comparisons
        ));
        line(format!(
            "publications that subscribers showed: {}, of them by the subscriber that showed most: {}",
            self.shown, self.most_shown
        ));
        line(format!(
            "transactions committed: {}; row operations: {}",
            self.committed(),
            self.rows
        ));
        line(format!(
            "views checked: {}, of them different: {}; lookups through the handle: {}; held views checked again: {}; \
             writers who waited for their own write: {}",
            self.views, self.distinct_views, self.lookups, self.held_views, self.waited_for
        ));
        line(format!(
            "forged messages: {}; differences that digests found: {}",
            self.forged, self.found
        ));
        line(format!(
            "without a fault that may stall: greatest staleness {:.2} s, greatest age {:.2} s",
            self.staleness.as_secs_f64(),
            self.age.as_secs_f64()
        ));
        line(format!("epochs: {}", self.epochs));
        line(format!("counters of all subscribers: {:?}", self.counters));
        text + &self.tables()
    }

    /// The tables of faults and transactions.
    fn tables(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| writeln!(text, "{line}").expect("into a string");
        let seconds = |duration: Duration| format!("{:.2} s", duration.as_secs_f64());
        line(format!(
            "\nfaults: {} of {} kinds",
            self.faults(),
            self.faults.len()
        ));
        line("| fault | times | greatest staleness meanwhile | recovery, mean | longest |\n|---|---|---|---|---|".to_owned());
        for (kind, fault) in &self.faults {
            let mean = fault.recovery / u32::try_from(fault.recovered.max(1)).unwrap_or(u32::MAX);
            line(format!(
                "| {} | {} | {} | {} | {} |",
                kind.name(),
                fault.count,
                seconds(fault.staleness),
                seconds(mean),
                seconds(fault.longest_recovery)
            ));
        }
        line(
            "\n| transactions | committed | refused, rolled back or cut off |\n|---|---|---|"
                .to_owned(),
        );
        for (kind, (committed, refused)) in &self.transactions {
            line(format!("| {kind} | {committed} | {refused} |"));
        }
        text
    }
}
