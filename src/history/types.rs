//! What a history is asked for, and what it has.

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};

use crate::model::{CachedSnapshot, Source};

/// Which snapshots of which market to read.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HistoryQuery {
    /// `events.id`, held by the cache or not.
    pub event_id: i64,
    /// `betpawa_market_id`.
    pub betpawa_market_id: String,
    /// Only this line, such as 2.5; `None` for all lines.
    pub line: Option<f64>,
    /// Only this bookmaker of `odds_snapshots`; `None` for all.
    pub bookmaker_id: Option<i64>,
    /// `betpawa` for `odds_snapshots`, or the source of a competitor; `None` for all.
    pub source: Option<String>,
    /// Only snapshots captured at or after this time, and of each bookmaker and source the last one before it, whose
    /// prices held at that time; `None` for no limit.
    pub from: Option<DateTime<Utc>>,
    /// Only snapshots captured before this time; `None` for no limit.
    pub to: Option<DateTime<Utc>>,
    /// So many snapshots, the latest ones; more if others were captured at the same time as the earliest of them.
    pub limit: usize,
}

/// The source that stands for the snapshots of `odds_snapshots`.
pub(super) const OWN: &str = "betpawa";

impl HistoryQuery {
    /// All bookmakers, competitors and lines at all times, up to 1,000 snapshots.
    pub fn new(event_id: i64, betpawa_market_id: impl Into<String>) -> HistoryQuery {
        HistoryQuery {
            event_id,
            betpawa_market_id: betpawa_market_id.into(),
            line: None,
            bookmaker_id: None,
            source: None,
            from: None,
            to: None,
            limit: 1_000,
        }
    }

    /// Whether it wants snapshots of `odds_snapshots`.
    pub(super) fn wants_own(&self) -> bool {
        self.source.as_ref().is_none_or(|source| source == OWN)
    }

    /// Whether it wants snapshots of `competitor_odds_snapshots`.
    pub(super) fn wants_competitors(&self) -> bool {
        let is_theirs = |source: &String| source != OWN && !source.contains('\0');
        self.bookmaker_id.is_none() && self.source.as_ref().is_none_or(is_theirs)
    }
}

/// The history of a market.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct MarketHistory {
    /// The database's clock when it was read, UTC. It shows what that server had by then. A standby has it later than
    /// its primary.
    pub as_of: DateTime<Utc>,
    /// The snapshots of the event in the order of `captured_at`, then of their ids. A snapshot has all rows of the
    /// market that it was asked for. It has none if the bookmaker did not offer the market then.
    pub snapshots: Vec<PastSnapshot>,
    /// If there may be older snapshots: ask again with this as `to`.
    pub next_to: Option<DateTime<Utc>>,
}

/// A snapshot of the past, with the rows of one market.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PastSnapshot {
    /// `betpawa` for `odds_snapshots`, else the competitor's source.
    #[serde(serialize_with = "as_text")]
    pub source: Source,
    /// The snapshot.
    pub snapshot: CachedSnapshot,
}

fn as_text<S: Serializer>(source: &Source, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(source.as_str())
}
