//! What the scraper did, readable while it runs.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{changes::Kind, effect::Effect};

/// What was done so far. All but `transactions`, `failed` and `conflicts` count only what was committed.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    transactions: AtomicU64,
    failed: AtomicU64,
    conflicts: AtomicU64,
    snapshots: AtomicU64,
    markets: AtomicU64,
    confirmations: AtomicU64,
    kinds: [AtomicU64; Kind::RATES.len()],
}

/// [`Counters`] at a moment, as [`Counters::read`] gives it.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    /// Transactions that ended as intended, rolled back ones among them.
    pub(crate) transactions: u64,
    /// Transactions that failed.
    pub(crate) failed: u64,
    /// Those of them that waited too long for a lock, or met a deadlock.
    pub(crate) conflicts: u64,
    /// Snapshots inserted.
    pub(crate) snapshots: u64,
    /// Markets inserted.
    pub(crate) markets: u64,
    /// Snapshots confirmed.
    pub(crate) confirmations: u64,
    /// Transactions by kind, those that found nothing to change left out.
    pub(crate) kinds: Vec<(Kind, u64)>,
}

impl Counters {
    /// What was done up to now.
    pub(crate) fn read(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            transactions: load(&self.transactions),
            failed: load(&self.failed),
            conflicts: load(&self.conflicts),
            snapshots: load(&self.snapshots),
            markets: load(&self.markets),
            confirmations: load(&self.confirmations),
            kinds: Kind::RATES
                .iter()
                .map(|(kind, _)| (*kind, load(&self.kinds[kind.index()])))
                .collect(),
        }
    }

    /// A transaction ended as intended.
    pub(crate) fn add(&self, kind: Kind, done: &Effect) {
        let add = |counter: &AtomicU64, n| counter.fetch_add(n, Ordering::Relaxed);
        add(&self.transactions, 1);
        if done.rows > 0 {
            add(&self.kinds[kind.index()], 1);
        }
        if kind != Kind::RolledBack {
            add(&self.snapshots, done.snapshots);
            add(&self.markets, done.markets);
            add(&self.confirmations, done.confirmations);
        }
    }

    /// A transaction failed.
    pub(crate) fn add_failed(&self, conflict: bool) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.conflicts
            .fetch_add(u64::from(conflict), Ordering::Relaxed);
    }
}
