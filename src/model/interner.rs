use std::{hash::BuildHasher, sync::Arc};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::shape::{ByAddress, MarketKey, OutcomeKey, Shape, Template};

/// Owns one `Arc` of every shape and template, so that equal ones are shared. Forgets those that nobody else holds
/// (see [`Interner::sweep`]): team and player names churn for months.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    shapes: HashTable<Arc<Shape>>,
    templates: HashTable<Arc<Template>>,
    build: DefaultHashBuilder,
    /// Of what the tables point to.
    pointee_bytes: usize,
    /// How many entries the last sweep left.
    swept_len: usize,
}

impl Interner {
    pub(super) fn shape<O: OutcomeKey>(&mut self, key: MarketKey<'_>, outcomes: &[O]) -> ByAddress {
        let Interner {
            shapes,
            build,
            pointee_bytes,
            ..
        } = self;
        let hash = key.hash(outcomes, build);
        let entry = shapes
            .entry(
                hash,
                |shape| key.matches(outcomes, shape),
                |shape| shape.key().hash(&shape.outcomes, build),
            )
            .or_insert_with(|| {
                let shape = key.to_shape(outcomes);
                *pointee_bytes += shape.heap_bytes();
                Arc::new(shape)
            });
        ByAddress(Arc::clone(entry.get()))
    }

    pub(super) fn template(&mut self, shapes: &[ByAddress]) -> Arc<Template> {
        let Interner {
            templates,
            build,
            pointee_bytes,
            ..
        } = self;
        let hash = build.hash_one(shapes);
        let entry = templates
            .entry(
                hash,
                |template| *template.shapes == *shapes,
                |template| build.hash_one(&*template.shapes),
            )
            .or_insert_with(|| {
                let template = Template::new(shapes);
                *pointee_bytes += template.heap_bytes();
                Arc::new(template)
            });
        Arc::clone(entry.get())
    }

    /// Forgets what nobody else holds, once a quarter more is held than the last sweep left: the cost stays proportional
    /// to what was added. Call it when no [`super::BodyBuilder`] is under way.
    pub(crate) fn sweep(&mut self) {
        if self.len() <= self.swept_len + self.swept_len / 4 + 64 {
            return;
        }
        let mut freed = 0;
        // Templates first: they hold the shapes. A count of one cannot rise meanwhile, since only we could clone it (M3).
        self.templates.retain(|template| {
            let keep = Arc::strong_count(template) > 1;
            freed += if keep { 0 } else { template.heap_bytes() };
            keep
        });
        self.shapes.retain(|shape| {
            let keep = Arc::strong_count(shape) > 1;
            freed += if keep { 0 } else { shape.heap_bytes() };
            keep
        });
        self.pointee_bytes -= freed;
        self.swept_len = self.len();
    }

    fn len(&self) -> usize {
        self.shapes.len() + self.templates.len()
    }

    /// Bytes asked of the allocator, all included.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.pointee_bytes + self.shapes.allocation_size() + self.templates.allocation_size()
    }
}
