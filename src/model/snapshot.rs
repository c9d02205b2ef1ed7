use std::{mem::size_of, sync::Arc};

use chrono::{DateTime, Utc};
use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeSeq, SerializeStruct},
};
use serde_json::{Map, Value};

use super::{
    interner::Interner,
    shape::{ARC_HEADER, ByAddress, MarketKey, OutcomeKey, Shape, Template},
    time::Micros,
};

/// One row of `odds_snapshots` or `competitor_odds_snapshots` with its markets: the latest of its event and bookmaker.
///
/// Immutable. A clone copies five numbers and counts one reference; it stays readable after the cache has moved on.
#[derive(Debug, Clone)]
pub struct CachedSnapshot {
    pub(crate) snapshot_id: i64,
    pub(crate) event_id: i64,
    pub(crate) bookmaker_id: i64,
    pub(crate) captured_at: Micros,
    pub(crate) last_confirmed_at: Micros,
    pub(crate) body: Arc<Body>,
}

/// The markets of a snapshot. Apart from the times, so that a confirmation shares it.
#[derive(Debug)]
pub(crate) struct Body {
    template: Arc<Template>,
    /// One word an outcome, all markets one after the other.
    odds: Box<[u32]>,
    rare: Option<Box<Rare>>,
    malformed_rows: u32,
}

/// What few snapshots have.
#[derive(Debug, Default)]
struct Rare {
    /// Odds that do not fit a word.
    wide_odds: Box<[f64]>,
    /// Market and its `unavailable_at`, by market.
    unavailable_at: Box<[(u32, Micros)]>,
}

impl CachedSnapshot {
    /// `id` of the row.
    pub fn snapshot_id(&self) -> i64 {
        self.snapshot_id
    }

    /// The event in `events`; for a competitor's snapshot the one its competitor event is linked to.
    pub fn event_id(&self) -> i64 {
        self.event_id
    }

    /// `bookmaker_id` of the row; 0 for a competitor's snapshot.
    pub fn bookmaker_id(&self) -> i64 {
        self.bookmaker_id
    }

    /// `captured_at`: when these odds were read from the bookmaker. UTC.
    pub fn captured_at(&self) -> DateTime<Utc> {
        self.captured_at.to_utc()
    }

    /// `last_confirmed_at`: when the bookmaker last showed these same odds; `captured_at` where the row has none. UTC.
    pub fn last_confirmed_at(&self) -> DateTime<Utc> {
        self.last_confirmed_at.to_utc()
    }

    /// How many of the rows it was read from, its own and its markets', did not read as they should.
    pub(crate) fn malformed_rows(&self) -> usize {
        self.body.malformed_rows() + usize::from(self.captured_at == Micros::UNKNOWN)
    }

    /// The first thing in which another one, packed with the same interned names, differs from it; `None` if nothing does.
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
            (!self.body.same(&other.body)).then_some("markets")
        }
    }

    /// Where its markets lie: as long as it is held, no others lie there.
    pub(crate) fn markets_address(&self) -> usize {
        Arc::as_ptr(&self.body).addr()
    }

    /// This one with the markets of `held`, if they are equal; both packed with the same interned names.
    pub(crate) fn sharing(mut self, held: Option<&CachedSnapshot>) -> CachedSnapshot {
        if let Some(held) = held.filter(|held| self.body.same(&held.body)) {
            self.body = Arc::clone(&held.body);
        }
        self
    }

    /// The markets in the order of their row ids. Free: borrows, allocates nothing.
    pub fn markets(&self) -> Markets<'_> {
        Markets {
            body: &self.body,
            next: 0,
        }
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

impl Body {
    pub(crate) fn market_count(&self) -> usize {
        self.template.shapes.len()
    }

    /// How many of the market rows did not read as they should.
    pub(crate) fn malformed_rows(&self) -> usize {
        self.malformed_rows as usize
    }

    /// Whether another body says the same of the same markets. Both must be of one interner, which gives equal markets
    /// one template.
    fn same(&self, other: &Body) -> bool {
        fn unavailable(body: &Body) -> &[(u32, Micros)] {
            let rare = body.rare.as_deref();
            rare.map_or(&[], |rare| &rare.unavailable_at)
        }
        std::ptr::eq(self, other)
            || Arc::ptr_eq(&self.template, &other.template)
                && self.malformed_rows == other.malformed_rows
                && self.odds.len() == other.odds.len()
                && unavailable(self) == unavailable(other)
                && self.odds.iter().zip(&other.odds).all(|(a, b)| {
                    // Where wide odds stand depends on the order in which the rows came.
                    let bits =
                        |(odds, active): (Option<f64>, bool)| (odds.map(f64::to_bits), active);
                    a == b && a & WIDE == 0 || bits(self.unpack(*a)) == bits(other.unpack(*b))
                })
    }

    /// Bytes asked of the allocator for this body alone; its template is the interner's.
    pub(crate) fn heap_bytes(&self) -> usize {
        let rare = |rare: &Rare| {
            size_of::<Rare>() + size_of_val(&*rare.wide_odds) + size_of_val(&*rare.unavailable_at)
        };
        ARC_HEADER
            + size_of::<Body>()
            + size_of_val(&*self.odds)
            + self.rare.as_deref().map_or(0, rare)
    }
}

/// The markets of a snapshot, in the order of their row ids.
#[derive(Debug, Clone)]
pub struct Markets<'a> {
    body: &'a Body,
    next: usize,
}

impl<'a> Iterator for Markets<'a> {
    type Item = CachedMarket<'a>;

    fn next(&mut self) -> Option<CachedMarket<'a>> {
        let market = CachedMarket {
            body: self.body,
            index: self.next,
        };
        (self.next < self.body.market_count()).then(|| self.next += 1)?;
        Some(market)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.body.market_count() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Markets<'_> {}

impl Serialize for Markets<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.clone())
    }
}

/// One row of `market_odds` or `competitor_market_odds`. Borrowed from its snapshot; copying it is free.
#[derive(Debug, Clone, Copy)]
pub struct CachedMarket<'a> {
    body: &'a Body,
    index: usize,
}

impl<'a> CachedMarket<'a> {
    fn shape(&self) -> &'a Shape {
        &self.body.template.shapes[self.index].0
    }

    /// Which market this is, in the platform's own numbering (of competitors' markets too).
    pub fn betpawa_market_id(&self) -> &'a str {
        &self.shape().betpawa_market_id
    }

    /// Its name.
    pub fn betpawa_market_name(&self) -> &'a str {
        &self.shape().betpawa_market_name
    }

    /// The line, such as the 2.5 of "over/under 2.5"; `None` for a market without.
    pub fn line(&self) -> Option<f64> {
        self.shape().line
    }

    /// The kind of handicap; `None` for a market without.
    pub fn handicap_type(&self) -> Option<&'a str> {
        self.shape().handicap_type.as_deref()
    }

    /// The home side's handicap.
    pub fn handicap_home(&self) -> Option<f64> {
        self.shape().handicap_home
    }

    /// The away side's handicap.
    pub fn handicap_away(&self) -> Option<f64> {
        self.shape().handicap_away
    }

    /// The groups it is listed under, as they stand in the column; none where that is null.
    pub fn market_groups(&self) -> &'a [Value] {
        &self.shape().market_groups
    }

    /// Since when the bookmaker no longer offers it; `None` while it does. UTC.
    pub fn unavailable_at(&self) -> Option<DateTime<Utc>> {
        let list = &self.body.rare.as_deref()?.unavailable_at;
        let found = list
            .binary_search_by_key(&self.index, |(market, _)| *market as usize)
            .ok()?;
        Some(list[found].1.to_utc())
    }

    /// The outcomes in the order of the column. Free: borrows, allocates nothing.
    pub fn outcomes(&self) -> Outcomes<'a> {
        let offset = self.body.template.offsets[self.index] as usize;
        Outcomes {
            body: self.body,
            shape: self.shape(),
            offset,
            next: 0,
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

/// The outcomes of a market, in the order of the column.
#[derive(Debug, Clone)]
pub struct Outcomes<'a> {
    body: &'a Body,
    shape: &'a Shape,
    offset: usize,
    next: usize,
}

impl<'a> Iterator for Outcomes<'a> {
    type Item = Outcome<'a>;

    fn next(&mut self) -> Option<Outcome<'a>> {
        let shape = self.shape.outcomes.get(self.next)?;
        let (odds, is_active) = self.body.unpack(self.body.odds[self.offset + self.next]);
        self.next += 1;
        Some(Outcome {
            name: &shape.name,
            odds,
            is_active,
            extra: shape.extra.as_deref(),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.shape.outcomes.len() - self.next;
        (left, Some(left))
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

/// One outcome of a market. Borrowed from its snapshot; copying it is free.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome<'a> {
    name: &'a str,
    odds: Option<f64>,
    is_active: bool,
    extra: Option<&'a str>,
}

impl<'a> Outcome<'a> {
    /// Its name, such as "1", "X" or "Over"; empty where the stored one is no string (the row counts as malformed).
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Decimal odds, bit for bit the number in the column; `None` where that is null, missing or no number.
    pub fn odds(&self) -> Option<f64> {
        self.odds
    }

    /// Whether one can bet on it; true where the key is missing or null.
    pub fn is_active(&self) -> bool {
        self.is_active
    }

    /// The keys beyond `name`, `odds` and `is_active`. Parses and allocates when there are any.
    pub fn extra(&self) -> Map<String, Value> {
        // Written by ourselves as the text of an object; there is no other way in.
        self.extra
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default()
    }
}

impl Serialize for Outcome<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let extra = self.extra();
        let mut map = serializer.serialize_map(Some(3 + extra.len()))?;
        map.serialize_entry("name", self.name)?;
        map.serialize_entry("odds", &self.odds)?;
        map.serialize_entry("is_active", &self.is_active)?;
        for (key, value) in &extra {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

// A word: the top bit says active, the next says that the rest is no number of thousandths but an index into `wide_odds`.
const ACTIVE: u32 = 1 << 31;
const WIDE: u32 = 1 << 30;
const PAYLOAD: u32 = WIDE - 1;
/// The payload of a wide word that stands for "no odds".
const NO_ODDS: u32 = PAYLOAD;

/// Thousandths, if dividing them gives back the very same bits (M2).
fn thousandths(odds: f64) -> Option<u32> {
    let scaled = (odds * 1000.0).round();
    if !(0.0..=f64::from(PAYLOAD)).contains(&scaled) {
        return None;
    }
    // In range, so the cast is exact.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let word = scaled as u32;
    ((f64::from(word) / 1000.0).to_bits() == odds.to_bits()).then_some(word)
}

impl Body {
    fn unpack(&self, word: u32) -> (Option<f64>, bool) {
        let payload = word & PAYLOAD;
        let odds = if word & WIDE == 0 {
            Some(f64::from(payload) / 1000.0)
        } else if payload == NO_ODDS {
            None
        } else {
            self.rare
                .as_deref()
                .and_then(|rare| rare.wide_odds.get(payload as usize).copied())
        };
        (odds, word & ACTIVE != 0)
    }
}

/// One outcome to be packed.
pub(crate) trait OutcomeValue: OutcomeKey {
    fn odds(&self) -> Option<f64>;
    fn is_active(&self) -> bool;
}

/// Packs the markets of one snapshot at a time; keeps its buffers.
#[derive(Debug, Default)]
pub(crate) struct BodyBuilder {
    /// Rows come in any order: each market with its row id and its stretch of `words`.
    markets: Vec<Staged>,
    words: Vec<u32>,
    wide_odds: Vec<f64>,
    malformed_rows: u32,
}

#[derive(Debug)]
struct Staged {
    row_id: i64,
    shape: ByAddress,
    first_word: usize,
    unavailable_at: Option<Micros>,
}

impl BodyBuilder {
    /// Adds one market row. `malformed` says that its outcomes did not read as they should.
    pub(crate) fn push<O: OutcomeValue>(
        &mut self,
        interner: &mut Interner,
        row_id: i64,
        key: MarketKey<'_>,
        outcomes: &[O],
        unavailable_at: Option<Micros>,
        malformed: bool,
    ) -> bool {
        let first_word = self.words.len();
        for outcome in outcomes {
            let payload = match outcome.odds() {
                None => WIDE | NO_ODDS,
                Some(odds) => thousandths(odds).unwrap_or_else(|| {
                    self.wide_odds.push(odds);
                    // A row holds far fewer than 2^30 outcomes: PostgreSQL's limit is 1 GB.
                    WIDE | u32::try_from(self.wide_odds.len() - 1)
                        .unwrap_or(NO_ODDS)
                        .min(NO_ODDS)
                }),
            };
            self.words
                .push(payload | if outcome.is_active() { ACTIVE } else { 0 });
        }
        let shape = interner.shape(key, outcomes);
        let malformed = malformed || shape.0.groups_malformed;
        self.malformed_rows += u32::from(malformed);
        self.markets.push(Staged {
            row_id,
            shape,
            first_word,
            unavailable_at,
        });
        malformed
    }

    /// The body of all rows added since the last call.
    pub(crate) fn finish(&mut self, interner: &mut Interner) -> Arc<Body> {
        let in_order = self.markets.is_sorted_by_key(|market| market.row_id);
        let words: Box<[u32]> = if in_order {
            self.words.as_slice().into()
        } else {
            self.markets.sort_by_key(|market| market.row_id);
            let outcomes = |market: &Staged| {
                market.first_word..market.first_word + market.shape.0.outcomes.len()
            };
            self.markets
                .iter()
                .flat_map(|market| &self.words[outcomes(market)])
                .copied()
                .collect()
        };
        let unavailable_at: Box<[_]> = (0u32..)
            .zip(&self.markets)
            .filter_map(|(index, market)| market.unavailable_at.map(|time| (index, time)))
            .collect();
        let rare = (!self.wide_odds.is_empty() || !unavailable_at.is_empty()).then(|| {
            Box::new(Rare {
                wide_odds: self.wide_odds.as_slice().into(),
                unavailable_at,
            })
        });
        let shapes: Vec<ByAddress> = self.markets.drain(..).map(|market| market.shape).collect();
        self.words.clear();
        self.wide_odds.clear();
        let malformed_rows = std::mem::take(&mut self.malformed_rows);
        Arc::new(Body {
            template: interner.template(&shapes),
            odds: words,
            rare,
            malformed_rows,
        })
    }
}
