//! Keeps one copy of everything that snapshots have in common.
//!
//! # Invariants
//! - I1: Equal kinds, market templates and snapshot templates are one allocation each: equal addresses, equal values.
//! - I2: Snapshot templates hold market templates, market templates hold kinds, and kinds hold groups. Beside the
//!   interner, nothing else holds them.
//! - I3: Which template comes next is a guess. Each user checks it, so a slot that was reused meanwhile does no harm.

use std::{hash::BuildHasher, mem::size_of, sync::Arc};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{
    market::{Groups, MarketKey, MarketKind, MarketTemplate},
    slab::{NONE, Slab, shrink_table},
    template::SnapshotTemplate,
};

/// Owns one `Arc` of every snapshot template and of its parts, so that equal ones are shared. [`Interner::sweep`] frees
/// those that nobody else holds: new teams and players keep coming, so keeping all names would leak memory.
#[derive(Debug)]
pub(crate) struct Interner {
    snapshot_templates: Slab<SnapshotTemplate>,
    market_templates: Slab<MarketTemplate>,
    kinds: HashTable<Arc<MarketKind>>,
    groups: HashTable<Arc<Groups>>,
    build: DefaultHashBuilder,
    /// Bytes that the values in `kinds` and `groups` requested from the allocator.
    pointee_bytes: usize,
    /// The market templates expected at the beginning of a snapshot; see [`Interner::expected`].
    first: [u32; 2],
    /// The market templates made since the last sweep. If a read failed halfway, no snapshot template holds them.
    fresh: Vec<u32>,
    /// How many snapshot templates were made since the last sweep.
    added: usize,
    /// The slot of the snapshot template that the next sweep looks at first.
    cursor: usize,
}

impl Default for Interner {
    fn default() -> Interner {
        Interner {
            snapshot_templates: Slab::default(),
            market_templates: Slab::default(),
            kinds: HashTable::new(),
            groups: HashTable::new(),
            build: DefaultHashBuilder::default(),
            pointee_bytes: 0,
            first: [NONE; 2],
            fresh: Vec::new(),
            added: 0,
            cursor: 0,
        }
    }
}

/// A sweep looks at this many snapshot templates for each one added since the last sweep. In the long run at most one
/// in eight is therefore unused.
const LOOKS_PER_ADDED: usize = 8;
/// A sweep looks at one snapshot template in this many even if none was added, so that 32 sweeps look at all of them.
const ROUND: usize = 32;
/// The most templates that [`ROUND`] makes one sweep look at, so that a publish stays short. If there are more, a round
/// takes more sweeps.
const MOST_LOOKS: usize = 1024;

impl Interner {
    /// The two market templates expected after `previous` ([`NONE`]: at the beginning of a snapshot). The first came
    /// there more than once, the second came there last. Most snapshots list nearly the same markets in the same order,
    /// so comparing with these two finds most templates without a hash lookup.
    pub(crate) fn expected(&self, previous: u32) -> [u32; 2] {
        if previous == NONE {
            self.first
        } else {
            self.market_templates.next(previous)
        }
    }

    fn expect(&mut self, previous: u32, next: [u32; 2]) {
        if previous == NONE {
            self.first = next;
        } else {
            self.market_templates.set_next(previous, next);
        }
    }

    /// Swaps the two templates expected after `previous`, because the second of them came again.
    pub(crate) fn came_again(&mut self, previous: u32) {
        let [first, second] = self.expected(previous);
        self.expect(previous, [second, first]);
    }

    /// The template of a market that came after `previous`. `names` is the text of a [`super::NamesBuffer`].
    pub(crate) fn market_template(
        &mut self,
        previous: u32,
        key: &MarketKey<'_>,
        names: &str,
    ) -> u32 {
        let mut kind = None;
        // Try the two expected templates first. If only the names differ, reuse the kind.
        for (index, slot) in self.expected(previous).into_iter().enumerate() {
            if let Some(market_template) = self.market_templates.get(slot)
                && key.matches(&market_template.kind)
            {
                if *market_template.names == *names {
                    if index == 1 {
                        self.came_again(previous);
                    }
                    return slot;
                }
                kind = Some(Arc::clone(&market_template.kind));
            }
        }
        let kind = kind.unwrap_or_else(|| self.kind(key));
        self.market_template_of_kind(previous, kind, names)
    }

    /// The template of a market that came after `previous`, with the names of the template in `slot`.
    pub(crate) fn market_template_with_names_of(
        &mut self,
        previous: u32,
        key: &MarketKey<'_>,
        slot: u32,
    ) -> Option<u32> {
        let named = Arc::clone(self.market_templates.get(slot)?);
        let kind = self.kind(key);
        Some(self.market_template_of_kind(previous, kind, &named.names))
    }

    fn market_template_of_kind(
        &mut self,
        previous: u32,
        kind: Arc<MarketKind>,
        names: &str,
    ) -> u32 {
        let hash = MarketTemplate::hash_of(&kind, names, &self.build);
        let found = self.market_templates.find(hash, |market_template| {
            Arc::ptr_eq(&market_template.kind, &kind) && *market_template.names == *names
        });
        let slot = found.unwrap_or_else(|| {
            let names = names.into();
            let market_template = MarketTemplate { kind, names };
            let slot = self
                .market_templates
                .insert(hash, market_template, &self.build);
            self.fresh.push(slot);
            slot
        });
        // Remember this template as the last one seen after `previous`. The first guess stays unless its slot is now
        // empty.
        let [first, _] = self.expected(previous);
        let first = self.market_templates.get(first).map_or(slot, |_| first);
        self.expect(previous, [first, slot]);
        slot
    }

    fn kind(&mut self, key: &MarketKey<'_>) -> Arc<MarketKind> {
        let hash = key.hash(&self.build);
        if let Some(kind) = self.kinds.find(hash, |kind| key.matches(kind)) {
            return Arc::clone(kind);
        }
        let kind = Arc::new(key.to_kind(self.group(key.market_groups)));
        self.pointee_bytes += kind.heap_bytes();
        let build = &self.build;
        self.kinds
            .insert_unique(hash, Arc::clone(&kind), |kind| kind.key().hash(build));
        kind
    }

    fn group(&mut self, text: Option<&str>) -> Arc<Groups> {
        let Interner { groups, build, .. } = self;
        let entry = groups.entry(
            build.hash_one(text),
            |groups| groups.text.as_deref() == text,
            |groups| build.hash_one(groups.text.as_deref()),
        );
        let pointee_bytes = &mut self.pointee_bytes;
        let entry = entry.or_insert_with(|| {
            let groups = Groups::new(text);
            *pointee_bytes += groups.heap_bytes();
            Arc::new(groups)
        });
        Arc::clone(entry.get())
    }

    pub(crate) fn market_template_at(&self, slot: u32) -> Option<&Arc<MarketTemplate>> {
        self.market_templates.get(slot)
    }

    /// The snapshot template of these market templates, each given with its number of outcomes.
    pub(super) fn snapshot_template(
        &mut self,
        market_templates: impl ExactSizeIterator<Item = (u32, u32)> + Clone,
    ) -> Arc<SnapshotTemplate> {
        let slots = &self.market_templates;
        // The caller made these slots since the last sweep, so none of them is empty.
        let all =
            market_templates.filter_map(|(slot, outcomes)| Some((slots.get(slot)?, outcomes)));
        Interner::intern(
            &mut self.snapshot_templates,
            &mut self.added,
            &self.build,
            all,
        )
    }

    /// The snapshot template of these market templates of this interner, each given with its number of outcomes.
    #[cfg(feature = "nats")]
    pub(super) fn snapshot_template_of(
        &mut self,
        market_templates: &[(Arc<MarketTemplate>, u32)],
    ) -> Arc<SnapshotTemplate> {
        let all = market_templates.iter();
        let all = all.map(|(market_template, outcomes)| (market_template, *outcomes));
        Interner::intern(
            &mut self.snapshot_templates,
            &mut self.added,
            &self.build,
            all,
        )
    }

    fn intern<'s>(
        snapshot_templates: &mut Slab<SnapshotTemplate>,
        added: &mut usize,
        build: &DefaultHashBuilder,
        all: impl Iterator<Item = (&'s Arc<MarketTemplate>, u32)> + Clone,
    ) -> Arc<SnapshotTemplate> {
        let hash = SnapshotTemplate::hash_of(
            all.clone().map(|(market_template, _)| market_template),
            build,
        );
        let found = snapshot_templates.find(hash, |template| {
            template.lists(all.clone().map(|(market_template, _)| market_template))
        });
        let slot = found.unwrap_or_else(|| {
            *added += 1;
            let template = SnapshotTemplate::new(all);
            snapshot_templates.insert(hash, template, build)
        });
        snapshot_templates.get(slot).cloned().unwrap_or_default()
    }

    /// Looks at a few snapshot templates (see the constants above), and frees those that nobody else holds. Over
    /// several calls it looks at all. Must not be called between [`super::MarketsBuilder::begin`] and its `finish`.
    pub(crate) fn sweep(&mut self) {
        let base = (self.snapshot_templates.slots() / ROUND + 1).clamp(1, MOST_LOOKS);
        let added = std::mem::take(&mut self.added);
        let looks = (base + added * LOOKS_PER_ADDED).min(self.snapshot_templates.slots());
        for _ in 0..looks {
            if self.cursor >= self.snapshot_templates.slots() {
                self.cursor = 0;
            }
            // The cast is exact: slots are numbered with 32 bits.
            if let Some(template) = self
                .snapshot_templates
                .remove_unheld(self.cursor as u32, &self.build)
            {
                template
                    .into_market_templates()
                    .for_each(|market_template| self.let_go(market_template));
            }
            self.cursor += 1;
        }
        // No snapshot template holds the market templates of a read that failed, so this loop frees them.
        for slot in std::mem::take(&mut self.fresh) {
            self.forget(slot);
        }
        let build = &self.build;
        self.snapshot_templates.shrink(build);
        self.market_templates.shrink(build);
        shrink_table(&mut self.kinds, |kind| kind.key().hash(build));
        shrink_table(&mut self.groups, |groups| {
            build.hash_one(groups.text.as_deref())
        });
    }

    /// Releases a snapshot template's hold of a market template.
    fn let_go(&mut self, market_template: Arc<MarketTemplate>) {
        // Two holders are this function and the interner.
        if Arc::strong_count(&market_template) > 2 {
            return;
        }
        let hash =
            MarketTemplate::hash_of(&market_template.kind, &market_template.names, &self.build);
        let slot = self
            .market_templates
            .find(hash, |other| Arc::ptr_eq(other, &market_template));
        drop(market_template);
        if let Some(slot) = slot {
            self.forget(slot);
        }
    }

    /// Frees a market template that nobody else holds, then its kind and its groups if nobody else holds those.
    fn forget(&mut self, slot: u32) {
        let Some(MarketTemplate { kind, .. }) =
            self.market_templates.remove_unheld(slot, &self.build)
        else {
            return;
        };
        // Two holders are this function and the interner's table.
        if Arc::strong_count(&kind) > 2 {
            return;
        }
        let hash = kind.key().hash(&self.build);
        if let Ok(found) = self
            .kinds
            .find_entry(hash, |other| Arc::ptr_eq(other, &kind))
        {
            found.remove();
            self.pointee_bytes -= kind.heap_bytes();
        }
        // Two holders are this kind and the interner's table.
        if Arc::strong_count(&kind.groups) > 2 {
            return;
        }
        let hash = self.build.hash_one(kind.groups.text.as_deref());
        let groups = self
            .groups
            .find_entry(hash, |other| Arc::ptr_eq(other, &kind.groups));
        if let Ok(found) = groups {
            found.remove();
            self.pointee_bytes -= kind.groups.heap_bytes();
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.snapshot_templates.is_empty()
            && self.market_templates.is_empty()
            && self.kinds.is_empty()
            && self.groups.is_empty()
            && self.pointee_bytes == 0
    }

    /// Bytes requested from the allocator by the interner and all that it owns.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.pointee_bytes
            + self.snapshot_templates.heap_bytes()
            + self.market_templates.heap_bytes()
            + self.kinds.allocation_size()
            + self.groups.allocation_size()
            + self.fresh.capacity() * size_of::<u32>()
    }
}
