use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    interner::Interner,
    market::MarketKey,
    names::{EventNames, Tournament},
    packed::{MarketsBuilder, StagedRow},
    snapshot::CachedSnapshot,
    time::Micros,
};

/// A snapshot for [`Writer`](crate::writer::Writer) to put into a cache. It has the fields of [`CachedSnapshot`] and
/// deserialises from the JSON of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotInput {
    /// The snapshot's id, for example that of its row.
    pub snapshot_id: i64,
    /// The event that the snapshot belongs to.
    pub event_id: i64,
    /// The bookmaker. Ignored for a competitor's snapshot, whose bookmaker is always 0.
    pub bookmaker_id: i64,
    /// When the odds were read from the bookmaker. UTC, kept to the microsecond.
    pub captured_at: DateTime<Utc>,
    /// When the bookmaker last showed these same odds; `captured_at` if `None`. UTC, kept to the microsecond.
    #[serde(default)]
    pub last_confirmed_at: Option<DateTime<Utc>>,
    /// The markets, in the order in which readers are to see them.
    pub markets: Vec<MarketInput>,
}

/// The names of an event for [`Writer`](crate::writer::Writer) to put into a cache. It has the fields of
/// [`CachedEvent`](crate::model::CachedEvent) and deserialises from the JSON of one. What is missing there is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamesInput {
    /// What the event is called. Of this and the other texts the first 255 characters are held.
    pub name: Option<String>,
    /// The home side.
    pub home_team: Option<String>,
    /// The away side.
    pub away_team: Option<String>,
    /// The id by which other systems know the event.
    pub sportradar_id: Option<String>,
    /// The tournament that the event belongs to. All events of a tournament show the names that were put last.
    pub tournament: Option<TournamentInput>,
}

/// The tournament of a [`NamesInput`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TournamentInput {
    /// The tournament's id. Tournaments of one id are the same.
    pub id: i64,
    /// What it is called.
    pub name: Option<String>,
    /// Where it takes place.
    pub country: Option<String>,
    /// The name of its sport.
    pub sport: Option<String>,
}

impl NamesInput {
    pub(crate) fn names(&self) -> EventNames {
        let columns = [
            &self.name,
            &self.home_team,
            &self.away_team,
            &self.sportradar_id,
        ];
        EventNames::new(columns.map(Option::as_deref))
    }
}

impl TournamentInput {
    pub(crate) fn tournament(&self) -> Tournament {
        let columns = [&self.name, &self.country, &self.sport];
        Tournament::new(self.id, columns.map(Option::as_deref))
    }
}

/// A market of a [`SnapshotInput`]. It owns what [`CachedMarket`](crate::model::CachedMarket) borrows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MarketInput {
    /// Which market this is, in the platform's own numbering.
    pub betpawa_market_id: String,
    /// The market's name.
    pub betpawa_market_name: String,
    /// The line, such as 2.5 in "over/under 2.5"; `None` for a market without a line.
    #[serde(default)]
    pub line: Option<f64>,
    /// The kind of handicap; `None` for a market without a handicap.
    #[serde(default)]
    pub handicap_type: Option<String>,
    /// The home side's handicap, in the units of the sport's score; `None` for a market without a handicap.
    #[serde(default)]
    pub handicap_home: Option<f64>,
    /// The away side's handicap, in the units of the sport's score; `None` for a market without a handicap.
    #[serde(default)]
    pub handicap_away: Option<f64>,
    /// The outcomes, in order.
    #[serde(default)]
    pub outcomes: Vec<OutcomeInput>,
    /// The groups that the market is listed under.
    #[serde(default)]
    pub market_groups: Vec<Value>,
    /// Since when the bookmaker no longer offers the market; `None` while it does. UTC, kept to the microsecond.
    #[serde(default)]
    pub unavailable_at: Option<DateTime<Utc>>,
}

/// An outcome of a [`MarketInput`]. It owns what [`Outcome`](crate::model::Outcome) borrows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutcomeInput {
    /// The outcome's name.
    pub name: String,
    /// Decimal odds, kept bit for bit; `None` for an outcome without odds.
    pub odds: Option<f64>,
    /// Whether bets on it are taken; true if the JSON does not say.
    #[serde(default = "yes")]
    pub is_active: bool,
    /// All other keys, kept as they are. The keys `name`, `odds` and `is_active` are dropped here, because they have
    /// fields.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl OutcomeInput {
    /// An active outcome without other keys.
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
        builder: &mut MarketsBuilder,
    ) -> CachedSnapshot {
        let snapshot = builder.begin();
        for (row_id, market) in (0i64..).zip(&self.markets) {
            builder.names.clear();
            for outcome in &market.outcomes {
                // The fields hold these three keys. A second value here would make JSON with duplicate keys.
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
            // The list of markets stands in for row ids, so the order given is the order shown.
            let market_template =
                interner.market_template(builder.last(snapshot), &key, builder.names.text());
            builder.stage(interner, row, market_template, false);
        }
        CachedSnapshot {
            snapshot_id: self.snapshot_id,
            event_id: self.event_id,
            bookmaker_id: self.bookmaker_id,
            captured_at: Micros::from_utc(self.captured_at),
            last_confirmed_at: Micros::from_utc(self.last_confirmed_at.unwrap_or(self.captured_at)),
            packed: builder.finish_one(interner),
        }
    }
}
