//! The types of the service's JSON, as owned values.
//!
//! A later version of the service may add keys. They are ignored, except those of an [`Outcome`], which are kept.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// An event with the latest snapshot of each bookmaker and competitor, as `/v1/events` has it. Mirrors a row of
/// `events`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// `events.id`
    pub event_id: i64,
    /// When it begins, UTC.
    pub kickoff: Option<DateTime<Utc>>,
    /// What it is called; `None` if the service does not know. So are the other names.
    #[serde(default)]
    pub name: Option<String>,
    /// The home side.
    #[serde(default)]
    pub home_team: Option<String>,
    /// The away side.
    #[serde(default)]
    pub away_team: Option<String>,
    /// The id by which other systems know the event.
    #[serde(default)]
    pub sportradar_id: Option<String>,
    /// The tournament that it belongs to.
    #[serde(default)]
    pub tournament: Option<Tournament>,
    /// The names of those bookmakers that have a snapshot here, by `bookmaker_id`.
    #[serde(default)]
    pub bookmakers: BTreeMap<i64, Bookmaker>,
    /// Snapshots of `odds_snapshots` by `bookmaker_id`.
    pub betpawa: BTreeMap<i64, Snapshot>,
    /// Snapshots of `competitor_odds_snapshots` by `competitor_events.source`.
    pub competitors: BTreeMap<String, Snapshot>,
}

/// The tournament of an event. A name is `None` if the service does not know it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Tournament {
    /// `events.tournament_id`
    pub id: i64,
    /// What it is called.
    pub name: Option<String>,
    /// Where it takes place.
    pub country: Option<String>,
    /// The name of its sport.
    pub sport: Option<String>,
}

/// The names of a bookmaker: a row of `bookmakers`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Bookmaker {
    /// Its short name.
    pub slug: Option<String>,
    /// Its name.
    pub name: Option<String>,
}

/// The latest snapshot of an event and a bookmaker: a row of `odds_snapshots` or `competitor_odds_snapshots`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The `id` of the row.
    pub snapshot_id: i64,
    /// `events.id`
    pub event_id: i64,
    /// 0 for a competitor.
    pub bookmaker_id: i64,
    /// When these odds were read from the bookmaker, UTC.
    pub captured_at: DateTime<Utc>,
    /// When the bookmaker last showed these same odds, UTC.
    pub last_confirmed_at: DateTime<Utc>,
    /// In the order of the ids of their rows.
    pub markets: Vec<Market>,
}

/// The history of a market.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct History {
    /// The database's clock when it was read, UTC. It shows what that server had by then.
    pub as_of: DateTime<Utc>,
    /// The snapshots of the event in the order of `captured_at`, then of their ids.
    pub snapshots: Vec<PastSnapshot>,
    /// If there may be older snapshots: ask again with this in [`Query::to`](super::Query::to).
    pub next_to: Option<DateTime<Utc>>,
}

/// A snapshot of the past.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct PastSnapshot {
    /// `betpawa` for `odds_snapshots`, else the competitor's source.
    pub source: String,
    /// With those of its markets that were asked for. It has none if the bookmaker did not offer the market then.
    pub snapshot: Snapshot,
}

/// A row of `market_odds` or `competitor_market_odds`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Market {
    /// Which market this is, in the platform's own numbering.
    pub betpawa_market_id: String,
    /// Its name.
    pub betpawa_market_name: String,
    /// Such as the 2.5 of over/under 2.5.
    pub line: Option<f64>,
    /// The kind of handicap, if it is a handicap.
    pub handicap_type: Option<String>,
    /// The handicap of the home team.
    pub handicap_home: Option<f64>,
    /// The handicap of the away team.
    pub handicap_away: Option<f64>,
    /// The elements of the column `outcomes`.
    pub outcomes: Vec<Outcome>,
    /// The column `market_groups`.
    pub market_groups: Vec<Value>,
    /// Since when the bookmaker no longer offers it, UTC; `None` while it does.
    pub unavailable_at: Option<DateTime<Utc>>,
}

/// One outcome of a market: an element of the column `outcomes`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
#[non_exhaustive]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// Decimal odds, bit for bit as the row has them; `None` if it has none.
    pub odds: Option<f64>,
    /// Whether one can bet on it.
    pub is_active: bool,
    /// The other keys of the stored outcome.
    pub extra: Map<String, Value>,
}

// Not by `flatten`, which cannot read numbers if the program enables `serde_json/arbitrary_precision`.
impl TryFrom<Map<String, Value>> for Outcome {
    type Error = String;

    fn try_from(mut keys: Map<String, Value>) -> Result<Outcome, String> {
        let mut take = |key: &str| keys.remove(key).ok_or(format!("an outcome has no {key}"));
        let (name, odds, is_active) = (take("name")?, take("odds")?, take("is_active")?);
        let Value::String(name) = name else {
            return Err("the name of an outcome is no text".to_owned());
        };
        Ok(Outcome {
            name,
            odds: match odds {
                Value::Null => None,
                odds => Some(
                    odds.as_f64()
                        .ok_or("the odds of an outcome are no number")?,
                ),
            },
            is_active: is_active
                .as_bool()
                .ok_or("is_active is neither true nor false")?,
            extra: keys,
        })
    }
}

impl From<Outcome> for Map<String, Value> {
    fn from(outcome: Outcome) -> Map<String, Value> {
        let mut keys = outcome.extra;
        keys.insert("name".to_owned(), outcome.name.into());
        keys.insert("odds".to_owned(), outcome.odds.into());
        keys.insert("is_active".to_owned(), outcome.is_active.into());
        keys
    }
}

/// An event as the event list has it: with a few markets of every snapshot.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct ListedEvent {
    /// `events.id`
    pub event_id: i64,
    /// When it begins, UTC.
    pub kickoff: Option<DateTime<Utc>>,
    /// What it is called; `None` if the service does not know. So are the other names.
    #[serde(default)]
    pub name: Option<String>,
    /// The home side.
    #[serde(default)]
    pub home_team: Option<String>,
    /// The away side.
    #[serde(default)]
    pub away_team: Option<String>,
    /// The id by which other systems know the event.
    #[serde(default)]
    pub sportradar_id: Option<String>,
    /// The tournament that it belongs to.
    #[serde(default)]
    pub tournament: Option<Tournament>,
    /// What each bookmaker and competitor offers.
    pub odds: Vec<Offer>,
}

/// What one bookmaker offers, in the event list.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Offer {
    /// `betpawa` for `odds_snapshots`, else the competitor's source.
    pub bookmaker: String,
    /// 0 for a competitor.
    pub bookmaker_id: i64,
    /// The short name of the bookmaker; `None` if the service does not know it.
    #[serde(default)]
    pub bookmaker_slug: Option<String>,
    /// The name of the bookmaker; `None` if the service does not know it.
    #[serde(default)]
    pub bookmaker_name: Option<String>,
    /// When the bookmaker last showed these odds, UTC.
    pub last_confirmed_at: DateTime<Utc>,
    /// Those of the service's `--inline-markets` that the snapshot has.
    pub markets: Vec<ListedMarket>,
}

/// A market in the event list.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct ListedMarket {
    /// Which market this is, in the platform's own numbering.
    pub betpawa_market_id: String,
    /// Its name.
    pub betpawa_market_name: String,
    /// Such as the 2.5 of over/under 2.5.
    pub line: Option<f64>,
    /// The bookmaker's share in per cent, `(sum(1 / odds) - 1) * 100`; `None` if an outcome has no odds above 0.
    pub margin: Option<f64>,
    /// Its outcomes.
    pub outcomes: Vec<ListedOutcome>,
    /// Whether the bookmaker offers it.
    pub available: bool,
    /// Since when the bookmaker no longer offers it, UTC; `None` while it does.
    pub unavailable_since: Option<DateTime<Utc>>,
}

/// One outcome of a market in the event list.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct ListedOutcome {
    /// Its name.
    pub name: String,
    /// Decimal odds; `None` if the row has none.
    pub odds: Option<f64>,
    /// Whether one can bet on it.
    pub is_active: bool,
}

/// What one publication of the service changed: the events that differ from the state before.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Change {
    /// The database's clock at this state, UTC.
    pub as_of: DateTime<Utc>,
    /// Grows when the state was replaced rather than moved forward.
    pub epoch: u64,
    /// Events whose snapshots in `odds_snapshots` differ, also those that are no longer held.
    pub betpawa: Vec<i64>,
    /// The same for `competitor_odds_snapshots`, by source.
    pub competitors: BTreeMap<String, Vec<i64>>,
    /// Events whose kickoff moved.
    pub kickoffs: Vec<i64>,
    /// Events whose names, or those of their tournament or bookmakers, differ.
    #[serde(default)]
    pub names: Vec<i64>,
    /// If the odds were requested: the entries of the event list for those events that are held, of the newest view.
    #[serde(default)]
    pub odds: Vec<ListedEvent>,
}

impl Change {
    /// All events that differ, each once. Allocates the set.
    pub fn event_ids(&self) -> BTreeSet<i64> {
        let competitors = self.competitors.values().flatten();
        let all = self.betpawa.iter().chain(&self.kickoffs).chain(&self.names);
        all.chain(competitors).copied().collect()
    }
}
