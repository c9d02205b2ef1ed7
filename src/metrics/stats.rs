use serde::Serialize;

/// What a view holds, as counted when it was published.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// How many events have a snapshot in `odds_snapshots`.
    pub betpawa_events: usize,
    /// How many events have a snapshot in `competitor_odds_snapshots`.
    pub competitor_events: usize,
    /// How many snapshots there are, of both tables.
    pub total_snapshots: usize,
    /// How many markets these snapshots have.
    pub total_markets: usize,
    /// Bytes requested from the allocator for the whole cache: events, odds, interned names, indexes. Leaves out the
    /// memory that only older views still hold, what the allocator adds by rounding, and about 13 kB for the stream of
    /// changes.
    pub memory_bytes: usize,
    /// The same bytes by purpose.
    pub memory: MemoryStats,
    /// How many of the held rows are malformed, for instance because `outcomes` is not a list. The log names them.
    pub malformed_rows: usize,
    /// The last warmup. `None` before the first, and in a cache that a [`Writer`](crate::writer::Writer) feeds.
    pub last_warmup: Option<WarmupStats>,
}

/// The memory of a cache by purpose, in bytes. The sum is [`Stats::memory_bytes`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Events, their snapshots, and the odds of these.
    pub events_bytes: usize,
    /// Interned names of markets, outcomes and sources, the templates made of them, and the buffers for packing.
    pub names_bytes: usize,
    /// The table that finds events by id: the draft's and the published view's list of pages, and the pages that both
    /// share.
    pub table_bytes: usize,
    /// The snapshot indexes, which find the events that show a snapshot.
    pub snapshot_index_bytes: usize,
    /// Events by kickoff, for finding those that have left the window.
    pub kickoffs_bytes: usize,
}

impl MemoryStats {
    /// The sum of all parts.
    pub(crate) fn total(&self) -> usize {
        self.parts().into_iter().map(|(_, bytes)| bytes).sum()
    }

    /// Each part with its name, which is that of the field without `_bytes`.
    pub fn parts(&self) -> [(&'static str, usize); 5] {
        [
            ("events", self.events_bytes),
            ("names", self.names_bytes),
            ("table", self.table_bytes),
            ("snapshot_index", self.snapshot_index_bytes),
            ("kickoffs", self.kickoffs_bytes),
        ]
    }
}

/// What a warmup loaded, and how long that took.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WarmupStats {
    /// How many events the cache held after the warmup.
    pub events: usize,
    /// How many snapshots it held.
    pub snapshots: usize,
    /// How many markets it held.
    pub markets: usize,
    /// [`Stats::memory_bytes`] after the warmup.
    pub memory_bytes: usize,
    /// How long the warmup took, in seconds: from the beginning of its transaction until everything was read and
    /// decoded.
    pub seconds: f64,
}
