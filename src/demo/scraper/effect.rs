//! The target of a change, and its effect.

/// What a change did. `rows` is zero if it found no target.
#[derive(Debug, Default, Clone)]
pub(crate) struct Effect {
    /// How many rows and partitions were changed.
    pub(crate) rows: u64,
    /// Snapshots inserted.
    pub(crate) snapshots: u64,
    /// Markets inserted.
    pub(crate) markets: u64,
    /// Snapshots confirmed.
    pub(crate) confirmations: u64,
    /// Snapshots that a scrape found unchanged: to be confirmed.
    pub(crate) unchanged: Vec<i64>,
}

impl Effect {
    /// The effect of a change of this many rows.
    pub(crate) fn rows(rows: u64) -> Effect {
        Effect {
            rows,
            ..Effect::default()
        }
    }

    /// The effects of both changes.
    pub(crate) fn and(mut self, other: Effect) -> Effect {
        self.rows += other.rows;
        self.snapshots += other.snapshots;
        self.markets += other.markets;
        self.confirmations += other.confirmations;
        self.unchanged.extend(other.unchanged);
        self
    }
}

/// The target of a change, as far as the caller chooses it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Target {
    /// Event ids, competitor event ids or snapshot ids. If empty, they are chosen at random.
    pub(crate) ids: Vec<i64>,
    /// The share of a scrape's events whose odds moved.
    pub(crate) changed: f64,
}
