//! Packed markets in parts, for the relay: read on one side, checked and put together again on the other.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    CachedSnapshot, MarketKey, MarketTemplate, Micros, Names, NamesBuffer, PackedMarkets,
    digest::Content, interner::Interner, market::MarketKind, odds::wide_odds_in, packed::Rare,
    slab::NONE, template::SnapshotTemplate,
};

impl MarketKind {
    /// All that the kind consists of.
    pub(crate) fn parts(&self) -> MarketKey<'_> {
        self.key()
    }
}

impl MarketTemplate {
    pub(crate) fn kind_shared(&self) -> &Arc<MarketKind> {
        &self.kind
    }

    /// The packed names of the outcomes.
    pub(crate) fn names_text(&self) -> &str {
        &self.names
    }
}

impl SnapshotTemplate {
    /// The market templates, each with its number of outcomes.
    pub(crate) fn markets(&self) -> impl ExactSizeIterator<Item = (&Arc<MarketTemplate>, u32)> {
        let all = self.market_templates().iter().enumerate();
        // A template holds the counts in 32 bits.
        all.map(|(market, template)| (template, self.outcomes(market) as u32))
    }
}

/// What [`PackedMarkets`] hold beside their template.
#[derive(Debug, Default, Clone)]
pub(crate) struct PackedParts {
    pub(crate) odds: Vec<u32>,
    pub(crate) wide_odds: Vec<f64>,
    pub(crate) unavailable_at: Vec<(u32, Micros)>,
    pub(crate) malformed_rows: u32,
}

impl CachedSnapshot {
    /// Whether both show the same markets with the same odds. Both must use the same interner.
    pub(crate) fn same_markets(&self, other: &CachedSnapshot) -> bool {
        self.packed.same(&other.packed)
    }
}

impl PackedMarkets {
    pub(crate) fn template(&self) -> &Arc<SnapshotTemplate> {
        &self.template
    }

    pub(crate) fn odds_words(&self) -> &[u32] {
        &self.odds
    }

    pub(crate) fn wide(&self) -> &[f64] {
        self.wide_odds()
    }

    pub(crate) fn unavailable_times(&self) -> &[(u32, Micros)] {
        self.unavailable()
    }

    /// Puts packed markets together. Says what is wrong if the parts do not fit each other.
    pub(crate) fn from_parts(
        template: Arc<SnapshotTemplate>,
        parts: PackedParts,
        content: &mut Content,
    ) -> Result<Arc<PackedMarkets>, &'static str> {
        let outcomes = template.markets().map(|(_, outcomes)| outcomes as usize);
        if outcomes.sum::<usize>() != parts.odds.len() {
            return Err("the number of odds is not that of the outcomes");
        }
        if wide_odds_in(&parts.odds) != Some(parts.wide_odds.len()) {
            return Err("the odds do not name the wide odds in their order");
        }
        let mut after = None;
        for (market, _) in &parts.unavailable_at {
            if after.is_some_and(|after| *market <= after) || *market as usize >= template.len() {
                return Err("the unavailable markets are not in order");
            }
            after = Some(*market);
        }
        let rare = (!parts.wide_odds.is_empty() || !parts.unavailable_at.is_empty()).then(|| {
            Box::new(Rare {
                wide_odds: parts.wide_odds.into(),
                unavailable_at: parts.unavailable_at.into(),
            })
        });
        let odds = parts.odds.into();
        let malformed_rows = parts.malformed_rows;
        Ok(PackedMarkets::new(
            template,
            odds,
            rare,
            malformed_rows,
            content,
        ))
    }
}

impl Interner {
    /// The shared market template of this key and these packed names. The names must be well formed.
    pub(crate) fn relayed_market(
        &mut self,
        key: &MarketKey<'_>,
        names: &str,
    ) -> Option<Arc<MarketTemplate>> {
        let slot = self.market_template(NONE, key, names);
        self.market_template_at(slot).cloned()
    }

    /// The shared snapshot template of these market templates, each with its number of outcomes.
    pub(crate) fn relayed_template(
        &mut self,
        markets: &[(Arc<MarketTemplate>, u32)],
    ) -> Arc<SnapshotTemplate> {
        self.snapshot_template_of(markets)
    }
}

/// How many outcomes a text of packed names has; `None` unless [`NamesBuffer`] could have written it.
pub(crate) fn outcomes_in(text: &str) -> Option<u32> {
    let mut again = NamesBuffer::default();
    let mut outcomes = 0u32;
    for (name, extra) in Names::of(text) {
        if let Some(extra) = extra {
            let keys: Map<String, Value> = serde_json::from_str(extra).ok()?;
            let a_field = |key: &str| ["name", "odds", "is_active"].contains(&key);
            if keys.is_empty() || keys.keys().any(|key| a_field(key)) {
                return None;
            }
        }
        again.push(name, extra);
        outcomes = outcomes.checked_add(1)?;
    }
    // Each list of names has one text, so this also checks the lengths and the mark at the end.
    (again.text() == text).then_some(outcomes)
}

/// How many wide odds these words name; `None` unless each names its own, in their order.
pub(crate) fn wide_odds(words: &[u32]) -> Option<usize> {
    wide_odds_in(words)
}
