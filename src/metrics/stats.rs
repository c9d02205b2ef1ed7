use serde::Serialize;

/// What a view holds, counted when it was published.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Events with a snapshot in `odds_snapshots`.
    pub betpawa_events: usize,
    /// Events with a snapshot in `competitor_odds_snapshots`.
    pub competitor_events: usize,
    /// Snapshots of both kinds.
    pub total_snapshots: usize,
    /// Markets of all of them.
    pub total_markets: usize,
    /// Bytes asked of the allocator for everything that makes up the cache: events, odds, interned names, indexes.
    /// Without what only older views still hold, the allocator's own rounding, and some 13 kB for the stream of changes.
    pub memory_bytes: usize,
    /// `memory_bytes` by what it is for.
    pub memory: MemoryStats,
    /// Market rows held that did not read as they should, such as `outcomes` that is no list. They are named in the log.
    pub malformed_rows: usize,
    /// The last warmup; `None` before the first, and in a cache that is fed by a [`Writer`](crate::writer::Writer).
    pub last_warmup: Option<WarmupStats>,
}

/// What the memory of a cache is for. Together it is [`Stats::memory_bytes`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Events, their snapshots, and the odds of these.
    pub events_bytes: usize,
    /// Interned names: of markets, outcomes and sources, and the templates made of them; and the buffers for packing.
    pub names_bytes: usize,
    /// The table of events by id: the draft's own list of pages, the published view's, and the pages that they share.
    pub table_bytes: usize,
    /// Which event shows which snapshot.
    pub owners_bytes: usize,
    /// Events by kickoff, for dropping those whose time is over.
    pub kickoffs_bytes: usize,
}

impl MemoryStats {
    /// All of it.
    pub(crate) fn total(&self) -> usize {
        self.parts().into_iter().map(|(_, bytes)| bytes).sum()
    }

    /// Each part by its name, without `_bytes`.
    pub fn parts(&self) -> [(&'static str, usize); 5] {
        [
            ("events", self.events_bytes),
            ("names", self.names_bytes),
            ("table", self.table_bytes),
            ("owners", self.owners_bytes),
            ("kickoffs", self.kickoffs_bytes),
        ]
    }
}

/// What a warmup loaded, and how long it took.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WarmupStats {
    /// Events held after it.
    pub events: usize,
    /// Snapshots held after it.
    pub snapshots: usize,
    /// Markets held after it.
    pub markets: usize,
    /// `memory_bytes` after it.
    pub memory_bytes: usize,
    /// From the beginning of the transaction to the end of reading and decoding.
    pub seconds: f64,
}
