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
    /// Market rows held that did not read as they should, such as `outcomes` that is no list. They are named in the log.
    pub malformed_rows: usize,
    /// The last warmup; `None` before the first, and in a cache that is fed by a [`Writer`](crate::Writer).
    pub last_warmup: Option<WarmupStats>,
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
