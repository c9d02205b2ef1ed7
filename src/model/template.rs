use std::{
    hash::{BuildHasher, Hash, Hasher},
    mem::size_of,
    sync::Arc,
};

use super::{
    digest::Content,
    market::{ARC_HEADER, MarketTemplate},
    slab::Slotted,
};

/// The list of a snapshot's markets, ordered by row id, with the number of outcomes of each. Interned.
///
/// Two snapshots that are held at the same time rarely share a template, because each bookmaker leaves out other
/// markets. Every byte here is therefore paid once per market. That is why there is no list of where each market's odds
/// begin: a reader that goes through the markets adds up the counts.
#[derive(Debug)]
pub(crate) struct SnapshotTemplate {
    market_templates: Box<[Arc<MarketTemplate>]>,
    /// First the [`tag`] of each market, for [`SnapshotTemplate::find`]; then the number of outcomes of each market.
    tags_and_counts: Box<[u8]>,
    /// The numbers of outcomes of all markets, if one of them does not fit a byte.
    wide_counts: Option<Box<[u32]>>,
    digest: u128,
}

impl SnapshotTemplate {
    /// Takes each market's template and its number of outcomes, in row id order.
    pub(super) fn new<'s>(
        market_templates: impl Iterator<Item = (&'s Arc<MarketTemplate>, u32)> + Clone,
    ) -> SnapshotTemplate {
        let tags = market_templates.clone().map(|(market_template, _)| {
            let kind = market_template.kind();
            tag(kind.betpawa_market_id(), kind.line)
        });
        let counts = market_templates.clone().map(|(_, outcomes)| outcomes);
        let narrow = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
        let mut content = Content::default();
        for (market_template, outcomes) in market_templates.clone() {
            market_template.write_content(&mut content);
            content.word(outcomes);
        }
        let wide = counts.clone().any(|count| count > u32::from(u8::MAX));
        SnapshotTemplate {
            tags_and_counts: tags.chain(counts.clone().map(narrow)).collect(),
            wide_counts: wide.then(|| counts.collect()),
            digest: content.digest(),
            market_templates: market_templates
                .map(|(market_template, _)| Arc::clone(market_template))
                .collect(),
        }
    }

    /// The digest of what a reader sees of the markets, except odds and times. Equal in every process.
    pub(super) fn digest(&self) -> u128 {
        self.digest
    }

    /// How many markets there are.
    pub(super) fn len(&self) -> usize {
        self.market_templates.len()
    }

    pub(super) fn market_templates(&self) -> &[Arc<MarketTemplate>] {
        &self.market_templates
    }

    /// How many outcomes a market has.
    pub(super) fn outcomes(&self, market: usize) -> usize {
        match &self.wide_counts {
            None => usize::from(self.tags_and_counts[self.len() + market]),
            Some(counts) => counts[market] as usize,
        }
    }

    /// How many outcomes the markets before this one have in total: where its odds begin.
    pub(super) fn outcomes_before(&self, market: usize) -> usize {
        match &self.wide_counts {
            None => {
                let counts = &self.tags_and_counts[self.len()..][..market];
                // A chunk of 128 bytes adds up to at most 128 * 255, which fits 16 bits. Narrow sums let the CPU add
                // many counts at once.
                let parts = counts.chunks(128);
                parts
                    .map(|part| {
                        let sum = part.iter().map(|count| u16::from(*count)).sum::<u16>();
                        usize::from(sum)
                    })
                    .sum()
            }
            Some(counts) => counts[..market].iter().map(|count| *count as usize).sum(),
        }
    }

    /// The index of the first market with this id and line.
    pub(super) fn find(&self, betpawa_market_id: &str, line: Option<f64>) -> Option<usize> {
        let wanted = tag(betpawa_market_id, line);
        let mut start = 0;
        for tags in self.tags_and_counts[..self.len()].chunks(STRIDE) {
            // No early exit from this fold: the compiler then compares the whole chunk with vector instructions.
            if tags.iter().fold(false, |any, tag| any | (*tag == wanted)) {
                // A tag has 8 bits, so another market may have the same one. Compare the values themselves.
                for (market, tag) in (start..).zip(tags) {
                    if *tag == wanted {
                        let kind = &self.market_templates[market].kind;
                        if kind.line == line && kind.betpawa_market_id() == betpawa_market_id {
                            return Some(market);
                        }
                    }
                }
            }
            start += STRIDE;
        }
        None
    }

    /// Hashes addresses: equal market templates are one allocation (I1).
    pub(super) fn hash_of<'s>(
        market_templates: impl Iterator<Item = &'s Arc<MarketTemplate>>,
        build: &impl BuildHasher,
    ) -> u64 {
        let mut state = build.build_hasher();
        for market_template in market_templates {
            (Arc::as_ptr(market_template) as usize).hash(&mut state);
        }
        state.finish()
    }

    /// Whether the template lists exactly these market templates, in this order.
    pub(super) fn lists<'s>(
        &self,
        mut market_templates: impl Iterator<Item = &'s Arc<MarketTemplate>>,
    ) -> bool {
        let same = |market_template| {
            market_templates
                .next()
                .is_some_and(|other| Arc::ptr_eq(market_template, other))
        };
        self.market_templates.iter().all(same) && market_templates.next().is_none()
    }

    /// The market templates it holds, so that the interner can release them.
    pub(super) fn into_market_templates(self) -> impl Iterator<Item = Arc<MarketTemplate>> {
        self.market_templates.into_iter()
    }
}

impl Default for SnapshotTemplate {
    fn default() -> SnapshotTemplate {
        SnapshotTemplate::new(std::iter::empty())
    }
}

const STRIDE: usize = 16;

/// A hash of 8 bits that tells most markets of a snapshot apart. Lines that are equal as numbers have
/// equal tags, 0.0 and -0.0 included.
fn tag(betpawa_market_id: &str, line: Option<f64>) -> u8 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    // Adding 0.0 turns -0.0 into 0.0. The `| 2` keeps every line apart from 1, which stands for no line.
    let mut hash = line.map_or(1, |line| (line + 0.0).to_bits() | 2);
    for part in betpawa_market_id.as_bytes().chunks(8) {
        let mut bytes = [0; 8];
        bytes[..part.len()].copy_from_slice(part);
        hash = (hash.rotate_left(23) ^ u64::from_le_bytes(bytes)).wrapping_mul(MULTIPLIER);
        hash ^= hash >> 32;
    }
    (hash.wrapping_mul(MULTIPLIER) >> 56) as u8
}

impl Slotted for SnapshotTemplate {
    fn hash(&self, build: &impl BuildHasher) -> u64 {
        SnapshotTemplate::hash_of(self.market_templates.iter(), build)
    }

    fn heap_bytes(&self) -> usize {
        ARC_HEADER
            + size_of::<SnapshotTemplate>()
            + size_of_val(&*self.market_templates)
            + size_of_val(&*self.tags_and_counts)
            + self.wide_counts.as_deref().map_or(0, size_of_val)
    }
}
