use std::{mem::size_of, sync::Arc};

use super::{
    digest::{Content, halves},
    interner::Interner,
    market::{ARC_HEADER, MarketTemplate},
    odds::{OddsBuffer, unpack},
    outcome_names::NamesBuffer,
    slab::NONE,
    template::SnapshotTemplate,
    time::Micros,
};

/// The packed markets of a snapshot. They hold no confirmation time, so a snapshot that was only confirmed shares them
/// with the one before.
#[derive(Debug)]
pub(crate) struct PackedMarkets {
    pub(super) template: Arc<SnapshotTemplate>,
    /// One word per outcome, market after market.
    pub(super) odds: Box<[u32]>,
    pub(super) rare: Option<Box<Rare>>,
    malformed_rows: u32,
    digest: u128,
}

/// The parts that few snapshots have.
#[derive(Debug)]
pub(super) struct Rare {
    /// Odds that do not fit a word, in the order of the words.
    pub(super) wide_odds: Box<[f64]>,
    /// Pairs of market index and its `unavailable_at`, ordered by index.
    pub(super) unavailable_at: Box<[(u32, Micros)]>,
}

impl PackedMarkets {
    /// The only constructor. `content` is a buffer to compute the digest in.
    pub(super) fn new(
        template: Arc<SnapshotTemplate>,
        odds: Box<[u32]>,
        rare: Option<Box<Rare>>,
        malformed_rows: u32,
        content: &mut Content,
    ) -> Arc<PackedMarkets> {
        let (wide_odds, unavailable_at): (&[f64], &[(u32, Micros)]) = match &rare {
            Some(rare) => (&rare.wide_odds, &rare.unavailable_at),
            None => (&[], &[]),
        };
        content.clear();
        let [low, high] = halves(template.digest());
        content.numbers([
            low,
            high,
            u64::from(malformed_rows),
            odds.len() as u64,
            wide_odds.len() as u64,
        ]);
        content.words(&odds);
        for odds in wide_odds {
            content.numbers([odds.to_bits()]);
        }
        // The end of the content ends this list.
        for (market, Micros(time)) in unavailable_at {
            content.numbers([u64::from(*market), time.cast_unsigned()]);
        }
        let digest = content.digest();
        Arc::new(PackedMarkets {
            template,
            odds,
            rare,
            malformed_rows,
            digest,
        })
    }

    /// The digest of all that a reader sees of the markets. Equal in every process.
    pub(super) fn digest(&self) -> u128 {
        self.digest
    }

    pub(crate) fn market_count(&self) -> usize {
        self.template.len()
    }

    /// How many of the market rows were malformed.
    pub(crate) fn malformed_rows(&self) -> usize {
        self.malformed_rows as usize
    }

    pub(super) fn market_template(&self, market: usize) -> &MarketTemplate {
        &self.template.market_templates()[market]
    }

    /// The odds in a word, and whether the outcome is active.
    pub(super) fn unpack(&self, word: u32) -> (Option<f64>, bool) {
        unpack(word, self.wide_odds())
    }

    pub(super) fn wide_odds(&self) -> &[f64] {
        self.rare.as_deref().map_or(&[], |rare| &rare.wide_odds)
    }

    pub(super) fn unavailable(&self) -> &[(u32, Micros)] {
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

    /// Whether both hold the same markets with the same odds. Both must use the same interner, which gives equal
    /// markets one template.
    pub(crate) fn same(&self, other: &PackedMarkets) -> bool {
        fn bits(packed: &PackedMarkets) -> impl Iterator<Item = u64> {
            packed.wide_odds().iter().map(|odds| odds.to_bits())
        }
        std::ptr::eq(self, other)
            || Arc::ptr_eq(&self.template, &other.template)
                && self.malformed_rows == other.malformed_rows
                && self.odds == other.odds
                && self.unavailable() == other.unavailable()
                // Compares bits, not numbers, so that a NaN equals itself.
                && bits(self).eq(bits(other))
    }

    /// Bytes requested from the allocator, without the template, which the interner owns.
    pub(crate) fn heap_bytes(&self) -> usize {
        let rare = |rare: &Rare| {
            size_of::<Rare>() + size_of_val(&*rare.wide_odds) + size_of_val(&*rare.unavailable_at)
        };
        ARC_HEADER
            + size_of::<PackedMarkets>()
            + size_of_val(&*self.odds)
            + self.rare.as_deref().map_or(0, rare)
    }
}

/// Packs the markets of many snapshots at once. Their rows may come in any order. The buffers are reused.
#[derive(Debug, Default)]
pub(crate) struct MarketsBuilder {
    markets: Vec<StagedMarket>,
    /// The odds of all staged markets. The caller adds those of the next market before [`MarketsBuilder::stage`].
    pub(crate) odds: OddsBuffer,
    /// The names of the market that the caller is reading.
    pub(crate) names: NamesBuffer,
    snapshots: Vec<StagedSnapshot>,
    /// Whether some row came too early: readers see a later one before it.
    out_of_order: bool,
    /// How many odds words belong to staged markets.
    words_staged: usize,
    content: Content,
}

/// A market row without its template and odds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StagedRow {
    /// The index that [`MarketsBuilder::begin`] returned.
    pub(crate) snapshot: u32,
    pub(crate) row_id: i64,
    pub(crate) unavailable_at: Option<Micros>,
}

#[derive(Debug)]
struct StagedMarket {
    /// The index of its snapshot.
    snapshot: u32,
    /// The interner's slot of its market template.
    market_template: u32,
    row_id: i64,
    /// Where its odds words begin.
    first_word: usize,
    words: u32,
    unavailable_at: Option<Micros>,
}

#[derive(Debug)]
struct StagedSnapshot {
    /// The slot of the market template of its latest row.
    last: u32,
    malformed_rows: u32,
}

impl MarketsBuilder {
    /// Begins a snapshot and returns its index. Indices count from 0 after each `finish`.
    pub(crate) fn begin(&mut self) -> u32 {
        self.snapshots.push(StagedSnapshot {
            last: NONE,
            malformed_rows: 0,
        });
        // Memory ends long before 2^32 snapshots.
        u32::try_from(self.snapshots.len() - 1).unwrap_or(u32::MAX)
    }

    /// The slot of the market template of a snapshot's latest row, for [`Interner::expected`]; [`NONE`] before its
    /// first row.
    pub(crate) fn last(&self, snapshot: u32) -> u32 {
        self.snapshots
            .get(snapshot as usize)
            .map_or(NONE, |snapshot| snapshot.last)
    }

    /// Adds a market row whose template is in slot `market_template`. Its odds are those added since the last call.
    /// Returns whether the row counts as malformed: if `malformed` is set or its groups are malformed.
    pub(crate) fn stage(
        &mut self,
        interner: &Interner,
        row: StagedRow,
        market_template: u32,
        malformed: bool,
    ) -> bool {
        let StagedRow {
            snapshot,
            row_id,
            unavailable_at,
        } = row;
        let groups_malformed = || {
            let market_template = interner.market_template_at(market_template);
            market_template.is_some_and(|market_template| market_template.kind.groups.malformed)
        };
        let malformed = malformed || groups_malformed();
        if let Some(staged) = self.snapshots.get_mut(snapshot as usize) {
            staged.last = market_template;
            staged.malformed_rows += u32::from(malformed);
            // Sorting is skipped as long as rows come ordered by snapshot and row id.
        }
        self.out_of_order |= self
            .markets
            .last()
            .is_some_and(|last| (last.snapshot, last.row_id) > (snapshot, row_id));
        let first_word = std::mem::replace(&mut self.words_staged, self.odds.words.len());
        self.markets.push(StagedMarket {
            snapshot,
            market_template,
            row_id,
            first_word,
            // The number fits 32 bits: PostgreSQL limits a row to 1 GB.
            words: u32::try_from(self.words_staged - first_word).unwrap_or(u32::MAX),
            unavailable_at,
        });
        malformed
    }

    /// The packed markets of the only snapshot staged since the last `finish`.
    pub(crate) fn finish_one(&mut self, interner: &mut Interner) -> Arc<PackedMarkets> {
        self.sort();
        let malformed_rows = self.snapshots.first().map_or(0, |one| one.malformed_rows);
        let mut content = std::mem::take(&mut self.content);
        let packed = self.packed(interner, &self.markets, malformed_rows, &mut content);
        self.content = content;
        self.clear();
        packed
    }

    fn sort(&mut self) {
        if self.out_of_order {
            self.markets
                .sort_by_key(|market| (market.snapshot, market.row_id));
        }
    }

    /// The packed markets of all snapshots staged since the last `finish`, by index.
    pub(crate) fn finish(&mut self, interner: &mut Interner) -> Vec<Arc<PackedMarkets>> {
        self.sort();
        let mut packed_markets = Vec::with_capacity(self.snapshots.len());
        let mut content = std::mem::take(&mut self.content);
        // After the sort each snapshot's markets are neighbours: take them off the front, snapshot by snapshot.
        let mut rest = self.markets.as_slice();
        for (index, staged) in (0..).zip(&self.snapshots) {
            let others = rest.iter().position(|market| market.snapshot != index);
            let (own, after) = rest.split_at(others.unwrap_or(rest.len()));
            rest = after;
            packed_markets.push(self.packed(interner, own, staged.malformed_rows, &mut content));
        }
        self.content = content;
        self.clear();
        packed_markets
    }

    fn packed(
        &self,
        interner: &mut Interner,
        markets: &[StagedMarket],
        malformed_rows: u32,
        content: &mut Content,
    ) -> Arc<PackedMarkets> {
        let words = |market: &StagedMarket| {
            let words = market.first_word..market.first_word + market.words as usize;
            self.odds.words.get(words).unwrap_or_default()
        };
        // In row order the words of all markets are already adjacent: one copy instead of one for each market.
        let mut odds: Box<[u32]> = match markets {
            [first, .., last] if !self.out_of_order => {
                let all = first.first_word..last.first_word + last.words as usize;
                self.odds.words.get(all).unwrap_or_default().into()
            }
            markets => markets.iter().flat_map(words).copied().collect(),
        };
        // The words still point into the shared list of wide odds. Give this snapshot a list of its own.
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
        let market_templates = markets
            .iter()
            .map(|market| (market.market_template, market.words));
        let template = interner.snapshot_template(market_templates);
        PackedMarkets::new(template, odds, rare, malformed_rows, content)
    }

    fn clear(&mut self) {
        self.markets.clear();
        self.odds.clear();
        self.names.clear();
        self.snapshots.clear();
        self.out_of_order = false;
        self.words_staged = 0;
    }

    /// Bytes that the buffers requested from the allocator.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.markets.capacity() * size_of::<StagedMarket>()
            + self.odds.heap_bytes()
            + self.names.heap_bytes()
            + self.snapshots.capacity() * size_of::<StagedSnapshot>()
            + self.content.heap_bytes()
    }
}
