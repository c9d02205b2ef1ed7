use std::{
    hash::{BuildHasher, Hash, Hasher},
    mem::size_of,
    sync::Arc,
};

use super::{
    market::{ARC_HEADER, Shape},
    slab::Slotted,
};

/// The markets of a snapshot, in row id order, and how many outcomes each has; interned.
///
/// Rarely two snapshots held at a time share one (each bookmaker leaves out other markets), so that every byte here is
/// one of each market. So there is no list of where the outcomes begin, which whoever goes through the markets knows.
#[derive(Debug)]
pub(crate) struct Template {
    shapes: Box<[Arc<Shape>]>,
    /// [`tag`] of each market, to find one by; then the number of outcomes of each.
    tags_and_counts: Box<[u8]>,
    /// All numbers of outcomes, if one is too great for a byte.
    wide_counts: Option<Box<[u32]>>,
}

impl Template {
    /// `shapes`: with the number of the outcomes of each.
    pub(super) fn new<'s>(shapes: impl Iterator<Item = (&'s Arc<Shape>, u32)> + Clone) -> Template {
        let tags = shapes.clone().map(|(shape, _)| {
            let kind = shape.kind();
            tag(kind.betpawa_market_id(), kind.line)
        });
        let counts = shapes.clone().map(|(_, outcomes)| outcomes);
        let narrow = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
        let wide = counts.clone().any(|count| count > u32::from(u8::MAX));
        Template {
            tags_and_counts: tags.chain(counts.clone().map(narrow)).collect(),
            wide_counts: wide.then(|| counts.collect()),
            shapes: shapes.map(|(shape, _)| Arc::clone(shape)).collect(),
        }
    }

    /// How many markets.
    pub(super) fn len(&self) -> usize {
        self.shapes.len()
    }

    pub(super) fn shapes(&self) -> &[Arc<Shape>] {
        &self.shapes
    }

    /// How many outcomes a market has.
    pub(super) fn outcomes(&self, market: usize) -> usize {
        match &self.wide_counts {
            None => usize::from(self.tags_and_counts[self.len() + market]),
            Some(counts) => counts[market] as usize,
        }
    }

    /// How many outcomes the markets before this one have together.
    pub(super) fn outcomes_before(&self, market: usize) -> usize {
        match &self.wide_counts {
            None => {
                let counts = &self.tags_and_counts[self.len()..][..market];
                // Sums that cannot overflow, many at once.
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

    /// The first market with this id and line.
    pub(super) fn find(&self, betpawa_market_id: &str, line: Option<f64>) -> Option<usize> {
        let wanted = tag(betpawa_market_id, line);
        let mut start = 0;
        for tags in self.tags_and_counts[..self.len()].chunks(STRIDE) {
            // Without an early end, so that the machine compares a whole stride at once.
            if tags.iter().fold(false, |any, tag| any | (*tag == wanted)) {
                for (market, tag) in (start..).zip(tags) {
                    if *tag == wanted {
                        let kind = &self.shapes[market].kind;
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

    /// Equal shapes are the same allocation, so that their addresses stand for them.
    pub(super) fn hash_of<'s>(
        shapes: impl Iterator<Item = &'s Arc<Shape>>,
        build: &impl BuildHasher,
    ) -> u64 {
        let mut state = build.build_hasher();
        for shape in shapes {
            (Arc::as_ptr(shape) as usize).hash(&mut state);
        }
        state.finish()
    }

    pub(super) fn lists<'s>(&self, mut shapes: impl Iterator<Item = &'s Arc<Shape>>) -> bool {
        let same = |shape| shapes.next().is_some_and(|other| Arc::ptr_eq(shape, other));
        self.shapes.iter().all(same) && shapes.next().is_none()
    }

    /// What it holds, to be let go of.
    pub(super) fn into_shapes(self) -> impl Iterator<Item = Arc<Shape>> {
        self.shapes.into_iter()
    }
}

impl Default for Template {
    fn default() -> Template {
        Template::new(std::iter::empty())
    }
}

const STRIDE: usize = 16;

/// Eight bits that tell most markets of a snapshot apart. Lines that are equal numbers have equal ones (0.0 and -0.0).
fn tag(betpawa_market_id: &str, line: Option<f64>) -> u8 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = line.map_or(1, |line| (line + 0.0).to_bits() | 2);
    for part in betpawa_market_id.as_bytes().chunks(8) {
        let mut bytes = [0; 8];
        bytes[..part.len()].copy_from_slice(part);
        hash = (hash.rotate_left(23) ^ u64::from_le_bytes(bytes)).wrapping_mul(MULTIPLIER);
        hash ^= hash >> 32;
    }
    (hash.wrapping_mul(MULTIPLIER) >> 56) as u8
}

impl Slotted for Template {
    fn hash(&self, build: &impl BuildHasher) -> u64 {
        Template::hash_of(self.shapes.iter(), build)
    }

    fn heap_bytes(&self) -> usize {
        ARC_HEADER
            + size_of::<Template>()
            + size_of_val(&*self.shapes)
            + size_of_val(&*self.tags_and_counts)
            + self.wide_counts.as_deref().map_or(0, size_of_val)
    }
}
