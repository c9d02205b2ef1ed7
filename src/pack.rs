//! Turns market rows into bodies: decode, intern, pack. Owns what outlives a single draft: the interned names.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::{
    decode::{self, Malformed, OutcomeRow},
    model::{
        Body, BodyBuilder, CachedSnapshot, Interner, MarketKey, Micros, SnapshotInput, Source,
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
            + self.sources.allocation_size()
            + self.sources.iter().map(Source::heap_bytes).sum::<usize>()
    }
}

/// Collects the bodies of many snapshots from market rows that come in any order.
#[derive(Debug)]
pub(crate) struct Bodies<'p> {
    packer: &'p mut Packer,
    building: HashMap<i64, BodyBuilder>,
}

impl<'p> Bodies<'p> {
    pub(crate) fn new(packer: &'p mut Packer) -> Bodies<'p> {
        Bodies {
            packer,
            building: HashMap::new(),
        }
    }

    /// Adds a row; says what was wrong with it, if anything. What can be read of it is kept in any case.
    pub(crate) fn push(&mut self, snapshot_id: i64, row: MarketRow<'_>) -> Option<Malformed> {
        let mut outcomes: Vec<OutcomeRow<'_>> = Vec::with_capacity(4);
        let mut problem = decode::outcomes(row.outcomes, &mut outcomes);
        if row.betpawa_market_id.is_none() || row.betpawa_market_name.is_none() {
            problem = problem.or(Some(Malformed::NullMarket));
        }
        let key = MarketKey {
            betpawa_market_id: row.betpawa_market_id.unwrap_or_default(),
            betpawa_market_name: row.betpawa_market_name.unwrap_or_default(),
            line: row.line,
            handicap_type: row.handicap_type,
            handicap_home: row.handicap_home,
            handicap_away: row.handicap_away,
            market_groups: row.market_groups,
        };
        let builder = self.building.entry(snapshot_id).or_default();
        let interner = &mut self.packer.interner;
        let malformed = builder.push(
            interner,
            row.row_id,
            key,
            &outcomes,
            row.unavailable_at,
            problem.is_some(),
        );
        problem.or(malformed.then_some(Malformed::MarketGroups))
    }

    /// Snapshot id -> body; snapshots without a market row are absent.
    pub(crate) fn finish(self) -> HashMap<i64, Arc<Body>> {
        let interner = &mut self.packer.interner;
        self.building
            .into_iter()
            .map(|(id, mut builder)| (id, builder.finish(interner)))
            .collect()
    }

    /// The body of a snapshot that has no markets.
    pub(crate) fn empty(packer: &mut Packer) -> Arc<Body> {
        packer.builder.finish(&mut packer.interner)
    }
}
