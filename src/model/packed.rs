use std::{mem::size_of, sync::Arc};

use super::{
    interner::Interner,
    market::{ARC_HEADER, Shape},
    odds::{OddsBuffer, unpack},
    outcome_names::NamesBuffer,
    slab::NONE,
    template::Template,
    time::Micros,
};

/// The markets of a snapshot. Apart from the times, so that a confirmation shares it.
#[derive(Debug)]
pub(crate) struct Body {
    pub(super) template: Arc<Template>,
    /// One word an outcome, all markets one after the other.
    pub(super) odds: Box<[u32]>,
    rare: Option<Box<Rare>>,
    malformed_rows: u32,
}

/// What few snapshots have.
#[derive(Debug)]
struct Rare {
    /// Odds that do not fit a word.
    wide_odds: Box<[f64]>,
    /// Market and its `unavailable_at`, by market.
    unavailable_at: Box<[(u32, Micros)]>,
}

impl Body {
    pub(crate) fn market_count(&self) -> usize {
        self.template.len()
    }

    /// How many of the market rows did not read as they should.
    pub(crate) fn malformed_rows(&self) -> usize {
        self.malformed_rows as usize
    }

    pub(super) fn shape(&self, market: usize) -> &Shape {
        &self.template.shapes()[market]
    }

    /// The odds of a word, and whether the outcome is active.
    pub(super) fn unpack(&self, word: u32) -> (Option<f64>, bool) {
        unpack(word, self.wide_odds())
    }

    fn wide_odds(&self) -> &[f64] {
        self.rare.as_deref().map_or(&[], |rare| &rare.wide_odds)
    }

    fn unavailable(&self) -> &[(u32, Micros)] {
        self.rare
            .as_deref()
            .map_or(&[], |rare| &rare.unavailable_at)
    }

    pub(super) fn unavailable_at(&self, market: usize) -> Option<Micros> {
        let list = self.unavailable();
        let found = list
            .binary_search_by_key(&market, |(market, _)| *market as usize)
            .ok()?;
        Some(list[found].1)
    }

    /// Whether another body says the same of the same markets. Both must be of one interner, which gives equal markets
    /// one template.
    pub(super) fn same(&self, other: &Body) -> bool {
        fn bits(body: &Body) -> impl Iterator<Item = u64> {
            body.wide_odds().iter().map(|odds| odds.to_bits())
        }
        std::ptr::eq(self, other)
            || Arc::ptr_eq(&self.template, &other.template)
                && self.malformed_rows == other.malformed_rows
                && self.odds == other.odds
                && self.unavailable() == other.unavailable()
                // Not as numbers: a NaN equals itself.
                && bits(self).eq(bits(other))
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

/// Packs the markets of many snapshots at a time, whose rows come in any order; keeps its buffers.
#[derive(Debug, Default)]
pub(crate) struct BodyBuilder {
    markets: Vec<Staged>,
    /// The odds of all markets, and what is added to them before [`BodyBuilder::stage`].
    pub(crate) odds: OddsBuffer,
    /// The names of the market that is being read.
    pub(crate) names: NamesBuffer,
    snapshots: Vec<Begun>,
    /// Rows came in another order than they are to be listed in.
    out_of_order: bool,
    /// How many of the words are of markets that are staged.
    words_staged: usize,
}

/// A row's place among the others, and what it has beside its shape and odds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StagedRow {
    /// As [`BodyBuilder::begin`] counts.
    pub(crate) snapshot: u32,
    pub(crate) row_id: i64,
    pub(crate) unavailable_at: Option<Micros>,
}

#[derive(Debug)]
struct Staged {
    /// Index of its snapshot.
    snapshot: u32,
    /// Place of its shape.
    shape: u32,
    row_id: i64,
    /// Its stretch of the words.
    first_word: usize,
    words: u32,
    unavailable_at: Option<Micros>,
}

#[derive(Debug)]
struct Begun {
    /// The shape of the row that came last.
    last: u32,
    malformed_rows: u32,
}

impl BodyBuilder {
    /// Begins a snapshot; returns its index, which counts from 0.
    pub(crate) fn begin(&mut self) -> u32 {
        self.snapshots.push(Begun {
            last: NONE,
            malformed_rows: 0,
        });
        // There is not the memory for 2^32.
        u32::try_from(self.snapshots.len() - 1).unwrap_or(u32::MAX)
    }

    /// The place of the shape that the last row of a snapshot has, for [`Interner::expected`].
    pub(crate) fn last(&self, snapshot: u32) -> u32 {
        self.snapshots
            .get(snapshot as usize)
            .map_or(NONE, |snapshot| snapshot.last)
    }

    /// Adds a market row of the shape at this place; its odds are those added since the last call. Says whether the row
    /// is malformed, as it is if `malformed` or if its groups are.
    pub(crate) fn stage(
        &mut self,
        interner: &Interner,
        row: StagedRow,
        shape: u32,
        malformed: bool,
    ) -> bool {
        let StagedRow {
            snapshot,
            row_id,
            unavailable_at,
        } = row;
        let groups_malformed = || {
            let shape = interner.shape_at(shape);
            shape.is_some_and(|shape| shape.kind.groups.malformed)
        };
        let malformed = malformed || groups_malformed();
        if let Some(begun) = self.snapshots.get_mut(snapshot as usize) {
            begun.last = shape;
            begun.malformed_rows += u32::from(malformed);
        }
        self.out_of_order |= self
            .markets
            .last()
            .is_some_and(|last| (last.snapshot, last.row_id) > (snapshot, row_id));
        let first_word = std::mem::replace(&mut self.words_staged, self.odds.words.len());
        self.markets.push(Staged {
            snapshot,
            shape,
            row_id,
            first_word,
            // A row holds far fewer than 2^32 outcomes: PostgreSQL's limit is 1 GB.
            words: u32::try_from(self.words_staged - first_word).unwrap_or(u32::MAX),
            unavailable_at,
        });
        malformed
    }

    /// The body of the one snapshot begun since the last call.
    pub(crate) fn finish_one(&mut self, interner: &mut Interner) -> Arc<Body> {
        self.sort();
        let malformed_rows = self.snapshots.first().map_or(0, |one| one.malformed_rows);
        let body = self.body(interner, &self.markets, malformed_rows);
        self.clear();
        body
    }

    fn sort(&mut self) {
        if self.out_of_order {
            self.markets
                .sort_by_key(|market| (market.snapshot, market.row_id));
        }
    }

    /// The bodies of the snapshots begun since the last call, by index.
    pub(crate) fn finish(&mut self, interner: &mut Interner) -> Vec<Arc<Body>> {
        self.sort();
        let mut bodies = Vec::with_capacity(self.snapshots.len());
        let mut rest = self.markets.as_slice();
        for (index, begun) in (0..).zip(&self.snapshots) {
            let others = rest.iter().position(|market| market.snapshot != index);
            let (own, after) = rest.split_at(others.unwrap_or(rest.len()));
            rest = after;
            bodies.push(self.body(interner, own, begun.malformed_rows));
        }
        self.clear();
        bodies
    }

    fn body(&self, interner: &mut Interner, markets: &[Staged], malformed_rows: u32) -> Arc<Body> {
        let words = |market: &Staged| {
            let words = market.first_word..market.first_word + market.words as usize;
            self.odds.words.get(words).unwrap_or_default()
        };
        let mut odds: Box<[u32]> = match markets {
            [first, .., last] if !self.out_of_order => {
                let all = first.first_word..last.first_word + last.words as usize;
                self.odds.words.get(all).unwrap_or_default().into()
            }
            markets => markets.iter().flat_map(words).copied().collect(),
        };
        let wide_odds = self.odds.own_wide(&mut odds);
        let unavailable_at: Box<[_]> = (0u32..)
            .zip(markets)
            .filter_map(|(index, market)| market.unavailable_at.map(|time| (index, time)))
            .collect();
        let rare = (!wide_odds.is_empty() || !unavailable_at.is_empty()).then(|| {
            Box::new(Rare {
                wide_odds: wide_odds.into(),
                unavailable_at,
            })
        });
        let shapes = markets.iter().map(|market| (market.shape, market.words));
        Arc::new(Body {
            template: interner.template(shapes),
            odds,
            rare,
            malformed_rows,
        })
    }

    fn clear(&mut self) {
        self.markets.clear();
        self.odds.clear();
        self.names.clear();
        self.snapshots.clear();
        self.out_of_order = false;
        self.words_staged = 0;
    }

    /// Bytes asked of the allocator for the buffers.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.markets.capacity() * size_of::<Staged>()
            + self.odds.heap_bytes()
            + self.names.heap_bytes()
            + self.snapshots.capacity() * size_of::<Begun>()
    }
}
