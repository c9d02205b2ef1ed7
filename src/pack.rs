//! Turns market rows into bodies: decode, intern, pack. Owns what outlives a single draft: the interned names.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::{
    decode::{self, Malformed},
    model::{
        Body, BodyBuilder, CachedSnapshot, Interner, MarketKey, Micros, OddsBuffer, SnapshotInput,
        Source, StagedRow,
    },
};

/// The text columns of a market row are borrowed from the driver's buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MarketRow<'a> {
    pub(crate) row_id: i64,
    pub(crate) betpawa_market_id: Option<&'a str>,
    pub(crate) betpawa_market_name: Option<&'a str>,
    pub(crate) line: Option<f64>,
    pub(crate) handicap_type: Option<&'a str>,
    pub(crate) handicap_home: Option<f64>,
    pub(crate) handicap_away: Option<f64>,
    pub(crate) outcomes: Option<&'a str>,
    pub(crate) market_groups: Option<&'a str>,
    pub(crate) unavailable_at: Option<Micros>,
}

/// Interned names, and buffers that are reused.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    interner: Interner,
    builder: BodyBuilder,
    sources: HashSet<Source>,
}

impl Packer {
    /// The one copy of a source's name.
    pub(crate) fn source(&mut self, name: &str) -> Source {
        if let Some(source) = self.sources.get(name) {
            return source.clone();
        }
        let source = Source::from(name);
        self.sources.insert(source.clone());
        source
    }

    /// Packs a snapshot that did not come as rows.
    pub(crate) fn snapshot(&mut self, input: &SnapshotInput) -> CachedSnapshot {
        input.pack(&mut self.interner, &mut self.builder)
    }

    pub(crate) fn sweep(&mut self) {
        self.interner.sweep();
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.interner.heap_bytes()
            + self.builder.heap_bytes()
            + self.sources.allocation_size()
            + self.sources.iter().map(Source::heap_bytes).sum::<usize>()
    }
}

/// Collects the bodies of many snapshots from market rows that come in any order; fastest where those of a snapshot come
/// one after the other, in the order of their ids.
#[derive(Debug)]
pub(crate) struct Bodies<'p> {
    packer: &'p mut Packer,
    builder: BodyBuilder,
    /// By id, the builder's index of a snapshot.
    snapshots: HashMap<i64, u32>,
    /// That of the last row.
    last: Option<(i64, u32)>,
}

impl<'p> Bodies<'p> {
    pub(crate) fn new(packer: &'p mut Packer) -> Bodies<'p> {
        Bodies {
            packer,
            builder: BodyBuilder::default(),
            snapshots: HashMap::new(),
            last: None,
        }
    }

    fn snapshot(&mut self, id: i64) -> u32 {
        if let Some((last, index)) = self.last
            && last == id
        {
            return index;
        }
        let builder = &mut self.builder;
        let index = *self.snapshots.entry(id).or_insert_with(|| builder.begin());
        self.last = Some((id, index));
        index
    }

    /// Adds a row; says what was wrong with it, if anything. What can be read of it is kept in any case.
    pub(crate) fn push(&mut self, snapshot_id: i64, row: MarketRow<'_>) -> Option<Malformed> {
        let snapshot = self.snapshot(snapshot_id);
        let key = MarketKey {
            betpawa_market_id: row.betpawa_market_id.unwrap_or_default(),
            betpawa_market_name: row.betpawa_market_name.unwrap_or_default(),
            line: row.line,
            handicap_type: row.handicap_type,
            handicap_home: row.handicap_home,
            handicap_away: row.handicap_away,
            market_groups: row.market_groups,
        };
        let Bodies {
            packer: Packer { interner, .. },
            builder,
            ..
        } = self;
        let previous = builder.last(snapshot);
        let expected = expected(interner, previous, &key, row.outcomes, &mut builder.odds);
        let (shape, mut problem) = match expected {
            Some(shape) => (shape, None),
            None => {
                let problem = decode::outcomes(row.outcomes, &mut builder.names, &mut builder.odds);
                let shape = interner.shape(previous, &key, builder.names.text());
                (shape, problem)
            }
        };
        if row.betpawa_market_id.is_none() || row.betpawa_market_name.is_none() {
            problem = problem.or(Some(Malformed::NullMarket));
        }
        let staged = StagedRow {
            snapshot,
            row_id: row.row_id,
            unavailable_at: row.unavailable_at,
        };
        let malformed = builder.stage(interner, staged, shape, problem.is_some());
        problem.or(malformed.then_some(Malformed::MarketGroups))
    }

    /// Snapshot id -> body; snapshots without a market row are absent.
    pub(crate) fn finish(mut self) -> HashMap<i64, Arc<Body>> {
        let bodies = self.builder.finish(&mut self.packer.interner);
        self.snapshots
            .into_iter()
            .filter_map(|(id, index)| Some((id, Arc::clone(bodies.get(index as usize)?))))
            .collect()
    }

    /// The body of a snapshot that has no markets.
    pub(crate) fn empty(packer: &mut Packer) -> Arc<Body> {
        packer.builder.finish_one(&mut packer.interner)
    }
}

/// The shape of a row that is in some way what was expected after `previous`; its odds are added.
fn expected(
    interner: &mut Interner,
    previous: u32,
    key: &MarketKey<'_>,
    outcomes: Option<&str>,
    odds: &mut OddsBuffer,
) -> Option<u32> {
    let places = interner.expected(previous);
    let [first, second] = places.map(|place| interner.shape_at(place));
    let first = first?;
    let mut reads = |shape| decode::expected(outcomes, shape, odds);
    let first_matches = key.matches(first.kind());
    if first_matches && reads(first) {
        return Some(places[0]);
    }
    if let Some(second) = second
        && key.matches(second.kind())
        && reads(second)
    {
        interner.came_again(previous);
        return Some(places[1]);
    }
    // Another line or other groups, but the same outcomes.
    if !first_matches && reads(first) {
        return interner.shape_with_names_of(previous, key, places[0]);
    }
    None
}
