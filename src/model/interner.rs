//! One copy of everything that snapshots have in common.
//!
//! | invariant | |
//! |---|---|
//! | I1 | equal kinds, shapes and templates are one allocation each, so that addresses stand for them |
//! | I2 | only templates hold shapes, only shapes kinds, only kinds groups; each is let go of with the last that holds it |
//! | I3 | what is expected next is a guess that every user checks; a place that now holds another value does no harm |

use std::{hash::BuildHasher, mem::size_of, sync::Arc};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{
    market::{Groups, Kind, MarketKey, Shape},
    slab::{NONE, Slots, shrink_table},
    template::Template,
};

/// Owns one `Arc` of every template and what it is made of, so that equal ones are shared. Forgets those that nobody else
/// holds (see [`Interner::sweep`]): team and player names churn for months.
#[derive(Debug)]
pub(crate) struct Interner {
    templates: Slots<Template>,
    shapes: Slots<Shape>,
    kinds: HashTable<Arc<Kind>>,
    groups: HashTable<Arc<Groups>>,
    build: DefaultHashBuilder,
    /// Of what `kinds` and `groups` point to.
    pointee_bytes: usize,
    /// The shapes that snapshots begin with; see [`Interner::expected`].
    first: [u32; 2],
    /// Shapes made since the last sweep: some may be in no template, because a read failed between its rows.
    fresh: Vec<u32>,
    /// Templates made since the last sweep.
    added: usize,
    /// The template that the next sweep looks at first.
    cursor: usize,
}

impl Default for Interner {
    fn default() -> Interner {
        Interner {
            templates: Slots::default(),
            shapes: Slots::default(),
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

/// A sweep looks at this many templates for each one that came, so that those that went are an eighth at the most,
const LOOKS_PER_ADDED: usize = 8;
/// and at one in so many where none came, so that all are looked at within as many publishes,
const ROUND: usize = 32;
/// but at no more than this: a publish is to stay short however many are held.
const MOST_LOOKS: usize = 1024;

impl Interner {
    /// What came after the shape `previous` ([`NONE`]: at a snapshot's begin): what did so again and again, then what did
    /// so last. Snapshots list much the same markets in the same order, so that comparing with these finds most shapes
    /// without looking for them.
    pub(crate) fn expected(&self, previous: u32) -> [u32; 2] {
        if previous == NONE {
            self.first
        } else {
            self.shapes.next(previous)
        }
    }

    fn expect(&mut self, previous: u32, next: [u32; 2]) {
        if previous == NONE {
            self.first = next;
        } else {
            self.shapes.set_next(previous, next);
        }
    }

    /// The second of those expected after `previous` has come.
    pub(crate) fn came_again(&mut self, previous: u32) {
        let [first, second] = self.expected(previous);
        self.expect(previous, [second, first]);
    }

    /// The shape of a market that came after `previous`; `names` is the text of a [`super::NamesBuffer`].
    pub(crate) fn shape(&mut self, previous: u32, key: &MarketKey<'_>, names: &str) -> u32 {
        let mut kind = None;
        for (index, place) in self.expected(previous).into_iter().enumerate() {
            if let Some(shape) = self.shapes.get(place)
                && key.matches(&shape.kind)
            {
                if *shape.names == *names {
                    if index == 1 {
                        self.came_again(previous);
                    }
                    return place;
                }
                kind = Some(Arc::clone(&shape.kind));
            }
        }
        let kind = kind.unwrap_or_else(|| self.kind(key));
        self.shape_of_kind(previous, kind, names)
    }

    /// The shape of a market that came after `previous` and has the names of the shape at `place`.
    pub(crate) fn shape_with_names_of(
        &mut self,
        previous: u32,
        key: &MarketKey<'_>,
        place: u32,
    ) -> Option<u32> {
        let named = Arc::clone(self.shapes.get(place)?);
        let kind = self.kind(key);
        Some(self.shape_of_kind(previous, kind, &named.names))
    }

    fn shape_of_kind(&mut self, previous: u32, kind: Arc<Kind>, names: &str) -> u32 {
        let hash = Shape::hash_of(&kind, names, &self.build);
        let found = self.shapes.find(hash, |shape| {
            Arc::ptr_eq(&shape.kind, &kind) && *shape.names == *names
        });
        let place = found.unwrap_or_else(|| {
            let names = names.into();
            let shape = Shape { kind, names };
            let place = self.shapes.insert(hash, shape, &self.build);
            self.fresh.push(place);
            place
        });
        let [first, _] = self.expected(previous);
        let known = self.shapes.get(first).map_or(place, |_| first);
        self.expect(previous, [known, place]);
        place
    }

    fn kind(&mut self, key: &MarketKey<'_>) -> Arc<Kind> {
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

    pub(crate) fn shape_at(&self, place: u32) -> Option<&Arc<Shape>> {
        self.shapes.get(place)
    }

    /// The template of these shapes, each with the number of its outcomes.
    pub(super) fn template(
        &mut self,
        shapes: impl ExactSizeIterator<Item = (u32, u32)> + Clone,
    ) -> Arc<Template> {
        // Whoever made the places holds no sweep between.
        let all = shapes.filter_map(|(place, outcomes)| Some((self.shapes.get(place)?, outcomes)));
        let hash = Template::hash_of(all.clone().map(|(shape, _)| shape), &self.build);
        let found = self.templates.find(hash, |template| {
            template.lists(all.clone().map(|(shape, _)| shape))
        });
        let place = found.unwrap_or_else(|| {
            self.added += 1;
            let template = Template::new(all);
            self.templates.insert(hash, template, &self.build)
        });
        self.templates.get(place).cloned().unwrap_or_default()
    }

    /// Forgets some of what nobody else holds, and in time all of it. Costs a look at a few of the templates (see the
    /// constants above), and what there is to free. Call it when no [`super::BodyBuilder`] is under way.
    pub(crate) fn sweep(&mut self) {
        let base = (self.templates.places() / ROUND + 1).clamp(1, MOST_LOOKS);
        let added = std::mem::take(&mut self.added);
        let looks = (base + added * LOOKS_PER_ADDED).min(self.templates.places());
        for _ in 0..looks {
            if self.cursor >= self.templates.places() {
                self.cursor = 0;
            }
            // Below the number of places, which has 32 bits.
            if let Some(template) = self
                .templates
                .remove_unheld(self.cursor as u32, &self.build)
            {
                template.into_shapes().for_each(|shape| self.let_go(shape));
            }
            self.cursor += 1;
        }
        for place in std::mem::take(&mut self.fresh) {
            self.forget(place);
        }
        let build = &self.build;
        self.templates.shrink(build);
        self.shapes.shrink(build);
        shrink_table(&mut self.kinds, |kind| kind.key().hash(build));
        shrink_table(&mut self.groups, |groups| {
            build.hash_one(groups.text.as_deref())
        });
    }

    /// Drops a template's hold of a shape.
    fn let_go(&mut self, shape: Arc<Shape>) {
        // This one and the interner's own.
        if Arc::strong_count(&shape) > 2 {
            return;
        }
        let hash = Shape::hash_of(&shape.kind, &shape.names, &self.build);
        let place = self.shapes.find(hash, |other| Arc::ptr_eq(other, &shape));
        drop(shape);
        if let Some(place) = place {
            self.forget(place);
        }
    }

    /// Forgets a shape that no template holds, and what it alone held.
    fn forget(&mut self, place: u32) {
        let Some(Shape { kind, .. }) = self.shapes.remove_unheld(place, &self.build) else {
            return;
        };
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
        // The kind's and the interner's own.
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
        self.templates.is_empty()
            && self.shapes.is_empty()
            && self.kinds.is_empty()
            && self.groups.is_empty()
            && self.pointee_bytes == 0
    }

    /// Bytes asked of the allocator, all included.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.pointee_bytes
            + self.templates.heap_bytes()
            + self.shapes.heap_bytes()
            + self.kinds.allocation_size()
            + self.groups.allocation_size()
            + self.fresh.capacity() * size_of::<u32>()
    }
}
