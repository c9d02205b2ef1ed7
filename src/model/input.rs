use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    interner::Interner,
    market::MarketKey,
    packed::{BodyBuilder, StagedRow},
    snapshot::CachedSnapshot,
    time::Micros,
};

/// A snapshot to be put into a cache by [`Writer`](crate::writer::Writer); the owned twin of [`CachedSnapshot`], which
/// serialises to what this deserialises from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotInput {
    /// Id of the row, or of whatever the snapshot came from.
    pub snapshot_id: i64,
    /// The event it belongs to.
    pub event_id: i64,
    /// The bookmaker; 0 for a competitor's snapshot.
    pub bookmaker_id: i64,
    /// When the odds were read. UTC; kept to the microsecond.
    pub captured_at: DateTime<Utc>,
    /// When they were last seen unchanged; `captured_at` if `None`.
    #[serde(default)]
    pub last_confirmed_at: Option<DateTime<Utc>>,
    /// In the order in which they are to be listed.
    pub markets: Vec<MarketInput>,
}

/// A market to be put; the owned twin of [`CachedMarket`](crate::model::CachedMarket).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MarketInput {
    /// Which market this is.
    pub betpawa_market_id: String,
    /// Its name.
    pub betpawa_market_name: String,
    /// The line, if it has one.
    #[serde(default)]
    pub line: Option<f64>,
    /// The kind of handicap, if it has one.
    #[serde(default)]
    pub handicap_type: Option<String>,
    /// The home side's handicap.
    #[serde(default)]
    pub handicap_home: Option<f64>,
    /// The away side's handicap.
    #[serde(default)]
    pub handicap_away: Option<f64>,
    /// What one can bet on.
    #[serde(default)]
    pub outcomes: Vec<OutcomeInput>,
    /// The groups it is listed under.
    #[serde(default)]
    pub market_groups: Vec<Value>,
    /// Since when it is no longer offered; `None` while it is. UTC; kept to the microsecond.
    #[serde(default)]
    pub unavailable_at: Option<DateTime<Utc>>,
}

/// An outcome to be put; the owned twin of [`Outcome`](crate::model::Outcome).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutcomeInput {
    /// Its name.
    pub name: String,
    /// Decimal odds, kept bit for bit; `None` for an outcome without.
    pub odds: Option<f64>,
    /// Whether one can bet on it; true if absent.
    #[serde(default = "yes")]
    pub is_active: bool,
    /// All other keys, kept as they are. `name`, `odds` and `is_active` among them are not kept: they have fields.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl OutcomeInput {
    /// One that is active and has no other keys.
    ///
    /// ```
    /// use oddscache::OutcomeInput;
    ///
    /// let outcomes = [OutcomeInput::new("1", 2.1), OutcomeInput::new("2", None)];
    /// assert!(outcomes.iter().all(|outcome| outcome.is_active));
    /// ```
    #[must_use]
    pub fn new(name: impl Into<String>, odds: impl Into<Option<f64>>) -> OutcomeInput {
        OutcomeInput {
            name: name.into(),
            odds: odds.into(),
            is_active: true,
            extra: Map::new(),
        }
    }
}

fn yes() -> bool {
    true
}

impl SnapshotInput {
    pub(crate) fn pack(
        &self,
        interner: &mut Interner,
        builder: &mut BodyBuilder,
    ) -> CachedSnapshot {
        let snapshot = builder.begin();
        for (row_id, market) in (0i64..).zip(&self.markets) {
            builder.names.clear();
            for outcome in &market.outcomes {
                let mut extra = outcome.extra.clone();
                extra.retain(|key, _| !["name", "odds", "is_active"].contains(&&**key));
                let extra = (!extra.is_empty()).then(|| Value::Object(extra).to_string());
                builder.names.push(&outcome.name, extra.as_deref());
                builder.odds.push(outcome.odds, outcome.is_active);
            }
            let groups = (!market.market_groups.is_empty())
                .then(|| Value::from(market.market_groups.clone()).to_string());
            let key = MarketKey {
                betpawa_market_id: &market.betpawa_market_id,
                betpawa_market_name: &market.betpawa_market_name,
                line: market.line,
                handicap_type: market.handicap_type.as_deref(),
                handicap_home: market.handicap_home,
                handicap_away: market.handicap_away,
                market_groups: groups.as_deref(),
            };
            let row = StagedRow {
                snapshot,
                row_id,
                unavailable_at: market.unavailable_at.map(Micros::from_utc),
            };
            let shape = interner.shape(builder.last(snapshot), &key, builder.names.text());
            builder.stage(interner, row, shape, false);
        }
        CachedSnapshot {
            snapshot_id: self.snapshot_id,
            event_id: self.event_id,
            bookmaker_id: self.bookmaker_id,
            captured_at: Micros::from_utc(self.captured_at),
            last_confirmed_at: Micros::from_utc(self.last_confirmed_at.unwrap_or(self.captured_at)),
            body: builder.finish_one(interner),
        }
    }
}
