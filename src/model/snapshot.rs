use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeSeq, SerializeStruct},
};
use serde_json::{Map, Value};

use super::{
    digest::{Content, halves},
    market::MarketKind,
    outcome_names::Names,
    packed::PackedMarkets,
    time::Micros,
};

/// The latest snapshot of an event and bookmaker: one row of `odds_snapshots` or `competitor_odds_snapshots` with its
/// markets.
///
/// It never changes and stays readable after the cache has moved on. A clone copies five numbers and counts one
/// reference; it neither locks nor allocates.
#[derive(Debug, Clone)]
pub struct CachedSnapshot {
    pub(crate) snapshot_id: i64,
    pub(crate) event_id: i64,
    pub(crate) bookmaker_id: i64,
    pub(crate) captured_at: Micros,
    pub(crate) last_confirmed_at: Micros,
    pub(crate) packed: Arc<PackedMarkets>,
}

impl CachedSnapshot {
    /// The row's `id`.
    pub fn snapshot_id(&self) -> i64 {
        self.snapshot_id
    }

    /// The event's id in `events`. For a competitor's snapshot: the event that its competitor event is linked to.
    pub fn event_id(&self) -> i64 {
        self.event_id
    }

    /// The row's `bookmaker_id`; 0 for a competitor's snapshot.
    pub fn bookmaker_id(&self) -> i64 {
        self.bookmaker_id
    }

    /// `captured_at`: when these odds were read from the bookmaker. UTC, to the microsecond.
    pub fn captured_at(&self) -> DateTime<Utc> {
        self.captured_at.to_utc()
    }

    /// `last_confirmed_at`: when the bookmaker last showed these same odds; `captured_at` if the row has none. UTC, to
    /// the microsecond.
    pub fn last_confirmed_at(&self) -> DateTime<Utc> {
        self.last_confirmed_at.to_utc()
    }

    /// How many rows of this snapshot were malformed: market rows, and its own row if it has no `captured_at`.
    pub(crate) fn malformed_rows(&self) -> usize {
        self.packed.malformed_rows() + usize::from(self.captured_at == Micros::UNKNOWN)
    }

    /// Adds all that the snapshot shows.
    pub(super) fn write_content(&self, content: &mut Content) {
        let [low, high] = halves(self.packed.digest());
        content.numbers([
            self.snapshot_id.cast_unsigned(),
            self.event_id.cast_unsigned(),
            self.bookmaker_id.cast_unsigned(),
            self.captured_at.0.cast_unsigned(),
            self.last_confirmed_at.0.cast_unsigned(),
            low,
            high,
        ]);
    }

    /// Names the first field in which `other` differs; `None` if the two are equal. Both must use the same interner.
    pub(crate) fn difference(&self, other: &CachedSnapshot) -> Option<&'static str> {
        if self.snapshot_id != other.snapshot_id {
            Some("snapshot_id")
        } else if self.captured_at != other.captured_at {
            Some("captured_at")
        } else if self.last_confirmed_at != other.last_confirmed_at {
            Some("last_confirmed_at")
        } else if (self.event_id, self.bookmaker_id) != (other.event_id, other.bookmaker_id) {
            Some("event_id or bookmaker_id")
        } else {
            (!self.packed.same(&other.packed)).then_some("markets")
        }
    }

    /// The address of the packed markets. No other markets can have it while these are held.
    pub(crate) fn markets_address(&self) -> usize {
        Arc::as_ptr(&self.packed).addr()
    }

    /// This snapshot, sharing the packed markets of `held` if they are equal. Both must use the same interner.
    pub(crate) fn sharing(mut self, held: Option<&CachedSnapshot>) -> CachedSnapshot {
        if let Some(held) = held.filter(|held| self.packed.same(&held.packed)) {
            self.packed = Arc::clone(&held.packed);
        }
        self
    }

    /// Whether both have the same ids and times, and share their markets in memory. Then both show the same. False says
    /// nothing: equal markets may lie in two places. Compares a few numbers.
    pub fn is(&self, other: &CachedSnapshot) -> bool {
        self.snapshot_id == other.snapshot_id
            && self.captured_at == other.captured_at
            && self.last_confirmed_at == other.last_confirmed_at
            && (self.event_id, self.bookmaker_id) == (other.event_id, other.bookmaker_id)
            && self.shares_markets(other)
    }

    /// Whether both share their markets in memory, as two snapshots do between which the bookmaker only confirmed its
    /// odds. Then their markets are equal. False says nothing. Compares one address.
    pub fn shares_markets(&self, other: &CachedSnapshot) -> bool {
        Arc::ptr_eq(&self.packed, &other.packed)
    }

    /// The markets in the order of their row ids. Borrows; allocates nothing. The iterator's `nth` skips markets without
    /// a look at each.
    pub fn markets(&self) -> Markets<'_> {
        Markets {
            packed: &self.packed,
            next: 0,
            next_word: 0,
        }
    }

    /// The first market with this id and line. A `line` of `None` finds a market without a line. To tell markets
    /// apart that differ only in their handicap, go through [`markets`](CachedSnapshot::markets).
    ///
    /// Compares one byte per market, and the whole key only where that byte matches, so it is faster than iterating
    /// over all markets. Allocates nothing.
    pub fn market(&self, betpawa_market_id: &str, line: Option<f64>) -> Option<CachedMarket<'_>> {
        let index = self.packed.template.find(betpawa_market_id, line)?;
        Some(CachedMarket {
            packed: &self.packed,
            index,
            first_word: self.packed.template.outcomes_before(index),
        })
    }
}

impl Serialize for CachedSnapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("CachedSnapshot", 6)?;
        fields.serialize_field("snapshot_id", &self.snapshot_id)?;
        fields.serialize_field("event_id", &self.event_id)?;
        fields.serialize_field("bookmaker_id", &self.bookmaker_id)?;
        fields.serialize_field("captured_at", &self.captured_at())?;
        fields.serialize_field("last_confirmed_at", &self.last_confirmed_at())?;
        fields.serialize_field("markets", &self.markets())?;
        fields.end()
    }
}

/// Iterates over the markets of a snapshot, in the order of their row ids.
#[derive(Debug, Clone)]
#[must_use = "an iterator does nothing until it is consumed"]
pub struct Markets<'a> {
    packed: &'a PackedMarkets,
    next: usize,
    next_word: usize,
}

impl<'a> Iterator for Markets<'a> {
    type Item = CachedMarket<'a>;

    fn next(&mut self) -> Option<CachedMarket<'a>> {
        if self.next >= self.packed.market_count() {
            return None;
        }
        let market = CachedMarket {
            packed: self.packed,
            index: self.next,
            first_word: self.next_word,
        };
        self.next += 1;
        self.next_word += self.packed.template.outcomes(market.index);
        Some(market)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.packed.market_count() - self.next;
        (left, Some(left))
    }

    fn nth(&mut self, skipped: usize) -> Option<CachedMarket<'a>> {
        let count = self.packed.market_count();
        self.next = self.next.saturating_add(skipped).min(count);
        self.next_word = self.packed.template.outcomes_before(self.next);
        self.next()
    }
}

impl ExactSizeIterator for Markets<'_> {}

impl Serialize for Markets<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.clone())
    }
}

/// One row of `market_odds` or `competitor_market_odds`. Borrowed from its snapshot; a copy copies three words.
#[derive(Debug, Clone, Copy)]
pub struct CachedMarket<'a> {
    packed: &'a PackedMarkets,
    index: usize,
    /// The index of its first odds word.
    first_word: usize,
}

impl<'a> CachedMarket<'a> {
    fn kind(&self) -> &'a MarketKind {
        &self.packed.market_template(self.index).kind
    }

    /// `betpawa_market_id`: which market this is, in the platform's own numbering. Competitors' markets have the same
    /// numbering.
    pub fn betpawa_market_id(&self) -> &'a str {
        self.kind().betpawa_market_id()
    }

    /// `betpawa_market_name`.
    pub fn betpawa_market_name(&self) -> &'a str {
        self.kind().betpawa_market_name()
    }

    /// `line`, such as 2.5 in "over/under 2.5"; `None` for a market without a line.
    pub fn line(&self) -> Option<f64> {
        self.kind().line
    }

    /// `handicap_type`; `None` for a market without a handicap.
    pub fn handicap_type(&self) -> Option<&'a str> {
        self.kind().handicap_type()
    }

    /// `handicap_home`: the home side's handicap, in the units of the sport's score; `None` for a market without a
    /// handicap.
    pub fn handicap_home(&self) -> Option<f64> {
        self.kind().handicap_home
    }

    /// `handicap_away`: the away side's handicap, in the units of the sport's score; `None` for a market without a
    /// handicap.
    pub fn handicap_away(&self) -> Option<f64> {
        self.kind().handicap_away
    }

    /// `market_groups`: the groups that the market is listed under, as they stand in the column. Empty if the column is
    /// null, missing or not a list.
    pub fn market_groups(&self) -> &'a [Value] {
        &self.kind().groups.values
    }

    /// `unavailable_at`: since when the bookmaker no longer offers the market. `None` while it does, or if the column
    /// is missing. UTC, to the microsecond.
    pub fn unavailable_at(&self) -> Option<DateTime<Utc>> {
        self.packed.unavailable_at(self.index).map(Micros::to_utc)
    }

    /// `outcomes`, in the order of the column. Borrows; allocates nothing.
    pub fn outcomes(&self) -> Outcomes<'a> {
        let words = self.first_word..self.first_word + self.packed.template.outcomes(self.index);
        Outcomes {
            packed: self.packed,
            names: self.packed.market_template(self.index).names(),
            words: self.packed.odds.get(words).unwrap_or_default(),
        }
    }
}

impl Serialize for CachedMarket<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("CachedMarket", 9)?;
        fields.serialize_field("betpawa_market_id", self.betpawa_market_id())?;
        fields.serialize_field("betpawa_market_name", self.betpawa_market_name())?;
        fields.serialize_field("line", &self.line())?;
        fields.serialize_field("handicap_type", &self.handicap_type())?;
        fields.serialize_field("handicap_home", &self.handicap_home())?;
        fields.serialize_field("handicap_away", &self.handicap_away())?;
        fields.serialize_field("outcomes", &self.outcomes())?;
        fields.serialize_field("market_groups", self.market_groups())?;
        fields.serialize_field("unavailable_at", &self.unavailable_at())?;
        fields.end()
    }
}

/// Iterates over the outcomes of a market, in the order of the column.
#[derive(Debug, Clone)]
#[must_use = "an iterator does nothing until it is consumed"]
pub struct Outcomes<'a> {
    packed: &'a PackedMarkets,
    names: Names<'a>,
    words: &'a [u32],
}

impl<'a> Iterator for Outcomes<'a> {
    type Item = Outcome<'a>;

    fn next(&mut self) -> Option<Outcome<'a>> {
        let (word, rest) = self.words.split_first()?;
        self.words = rest;
        let names = self.names;
        self.names.skip_one();
        let (odds, is_active) = self.packed.unpack(*word);
        Some(Outcome {
            names,
            odds,
            is_active,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.words.len(), Some(self.words.len()))
    }
}

impl ExactSizeIterator for Outcomes<'_> {}

impl Serialize for Outcomes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.len()))?;
        for outcome in self.clone() {
            list.serialize_element(&outcome)?;
        }
        list.end()
    }
}

/// One outcome of a market. Borrowed from its snapshot; a copy copies a few words.
#[derive(Debug, Clone, Copy)]
pub struct Outcome<'a> {
    /// The packed names, from this outcome's own on.
    names: Names<'a>,
    odds: Option<f64>,
    is_active: bool,
}

impl PartialEq for Outcome<'_> {
    fn eq(&self, other: &Outcome<'_>) -> bool {
        self.odds == other.odds
            && self.is_active == other.is_active
            && self.named() == other.named()
    }
}

impl<'a> Outcome<'a> {
    /// Name and extra keys. The fallback is never taken: each outcome has a name.
    fn named(&self) -> (&'a str, Option<&'a str>) {
        let mut names = self.names;
        names.next().unwrap_or_default()
    }

    /// The outcome's name, such as "1", "X" or "Over". Empty if the stored name is not a string; the row then counts as
    /// malformed.
    pub fn name(&self) -> &'a str {
        self.named().0
    }

    /// Decimal odds, bit for bit the number in the column. `None` if that is null, missing or not a number.
    pub fn odds(&self) -> Option<f64> {
        self.odds
    }

    /// Whether bets on this outcome are taken. True if the key is missing or null.
    pub fn is_active(&self) -> bool {
        self.is_active
    }

    /// Whether there are keys other than `name`, `odds` and `is_active`. Parses nothing.
    pub fn has_extra(&self) -> bool {
        self.named().1.is_some()
    }

    /// The keys other than `name`, `odds` and `is_active`. Parses and allocates if there are any.
    pub fn extra(&self) -> Map<String, Value> {
        // The text was written by this crate from an object, so it always parses.
        self.named()
            .1
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default()
    }
}

impl Serialize for Outcome<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let extra = self.extra();
        let mut map = serializer.serialize_map(Some(3 + extra.len()))?;
        map.serialize_entry("name", self.name())?;
        map.serialize_entry("odds", &self.odds)?;
        map.serialize_entry("is_active", &self.is_active)?;
        for (key, value) in &extra {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}
