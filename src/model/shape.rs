use std::{
    hash::{BuildHasher, Hash, Hasher},
    mem::size_of,
    sync::Arc,
};

use serde_json::Value;

/// Everything of a market but its odds and times; interned, so that equal markets of all snapshots share one.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(super) betpawa_market_id: Box<str>,
    pub(super) betpawa_market_name: Box<str>,
    pub(super) line: Option<f64>,
    pub(super) handicap_type: Option<Box<str>>,
    pub(super) handicap_home: Option<f64>,
    pub(super) handicap_away: Option<f64>,
    /// `market_groups` as it came; two spellings of one value make two shapes, which costs memory but is never wrong.
    groups_text: Option<Box<str>>,
    pub(super) market_groups: Box<[Value]>,
    pub(super) groups_malformed: bool,
    pub(super) outcomes: Box<[OutcomeShape]>,
}

#[derive(Debug)]
pub(crate) struct OutcomeShape {
    pub(super) name: Box<str>,
    /// The keys beyond `name`, `odds` and `is_active`, as the text of a JSON object.
    pub(super) extra: Option<Box<str>>,
}

/// What a [`Shape`] is looked up by: the same, borrowed from a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MarketKey<'a> {
    pub(crate) betpawa_market_id: &'a str,
    pub(crate) betpawa_market_name: &'a str,
    pub(crate) line: Option<f64>,
    pub(crate) handicap_type: Option<&'a str>,
    pub(crate) handicap_home: Option<f64>,
    pub(crate) handicap_away: Option<f64>,
    /// The text of the JSON value; `None` where the column is null or missing.
    pub(crate) market_groups: Option<&'a str>,
}

/// The part of an outcome that goes into a [`Shape`].
pub(crate) trait OutcomeKey {
    fn name(&self) -> &str;
    fn extra(&self) -> Option<&str>;
}

impl OutcomeKey for OutcomeShape {
    fn name(&self) -> &str {
        &self.name
    }
    fn extra(&self) -> Option<&str> {
        self.extra.as_deref()
    }
}

impl MarketKey<'_> {
    pub(super) fn hash<O: OutcomeKey>(&self, outcomes: &[O], build: &impl BuildHasher) -> u64 {
        let mut state = build.build_hasher();
        self.betpawa_market_id.hash(&mut state);
        self.betpawa_market_name.hash(&mut state);
        self.bits().hash(&mut state);
        self.handicap_type.hash(&mut state);
        self.market_groups.hash(&mut state);
        for outcome in outcomes {
            outcome.name().hash(&mut state);
            outcome.extra().hash(&mut state);
        }
        state.finish()
    }

    /// Numbers compare by their bits, so that a NaN equals itself and -0.0 stays apart from 0.0.
    fn bits(&self) -> [Option<u64>; 3] {
        [self.line, self.handicap_home, self.handicap_away].map(|number| number.map(f64::to_bits))
    }

    pub(super) fn matches<O: OutcomeKey>(&self, outcomes: &[O], shape: &Shape) -> bool {
        let other = shape.key();
        self.betpawa_market_id == other.betpawa_market_id
            && self.bits() == other.bits()
            && self.betpawa_market_name == other.betpawa_market_name
            && self.handicap_type == other.handicap_type
            && self.market_groups == other.market_groups
            && outcomes.len() == shape.outcomes.len()
            && outcomes
                .iter()
                .zip(&shape.outcomes)
                .all(|(a, b)| a.name() == &*b.name && a.extra() == b.extra.as_deref())
    }

    pub(super) fn to_shape<O: OutcomeKey>(self, outcomes: &[O]) -> Shape {
        let groups = match self.market_groups.map(serde_json::from_str::<Value>) {
            None | Some(Ok(Value::Null)) => Ok(Vec::new()),
            Some(Ok(Value::Array(groups))) => Ok(groups),
            Some(_) => Err(()),
        };
        Shape {
            betpawa_market_id: self.betpawa_market_id.into(),
            betpawa_market_name: self.betpawa_market_name.into(),
            line: self.line,
            handicap_type: self.handicap_type.map(Into::into),
            handicap_home: self.handicap_home,
            handicap_away: self.handicap_away,
            groups_text: self.market_groups.map(Into::into),
            groups_malformed: groups.is_err(),
            market_groups: groups.unwrap_or_default().into_boxed_slice(),
            outcomes: outcomes
                .iter()
                .map(|outcome| OutcomeShape {
                    name: outcome.name().into(),
                    extra: outcome.extra().map(Into::into),
                })
                .collect(),
        }
    }
}

impl Shape {
    pub(super) fn key(&self) -> MarketKey<'_> {
        MarketKey {
            betpawa_market_id: &self.betpawa_market_id,
            betpawa_market_name: &self.betpawa_market_name,
            line: self.line,
            handicap_type: self.handicap_type.as_deref(),
            handicap_home: self.handicap_home,
            handicap_away: self.handicap_away,
            market_groups: self.groups_text.as_deref(),
        }
    }

    /// Bytes asked of the allocator for this shape and all it owns.
    pub(super) fn heap_bytes(&self) -> usize {
        let text = |text: &Option<Box<str>>| text.as_deref().map_or(0, str::len);
        ARC_HEADER
            + size_of::<Shape>()
            + self.betpawa_market_id.len()
            + self.betpawa_market_name.len()
            + text(&self.handicap_type)
            + text(&self.groups_text)
            + values_heap_bytes(&self.market_groups)
            + self
                .outcomes
                .iter()
                .map(|outcome| {
                    size_of::<OutcomeShape>() + outcome.name.len() + text(&outcome.extra)
                })
                .sum::<usize>()
    }
}

/// The two reference counts in front of what an `Arc` points to.
pub(super) const ARC_HEADER: usize = 2 * size_of::<usize>();

fn values_heap_bytes(values: &[Value]) -> usize {
    size_of_val(values) + values.iter().map(value_heap_bytes).sum::<usize>()
}

fn value_heap_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.capacity(),
        Value::Array(values) => {
            values.capacity().saturating_sub(values.len()) * size_of::<Value>()
                + values_heap_bytes(values)
        }
        // Groups are strings; an object among them is counted by its entries, without the tree's own nodes.
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| {
                size_of::<(String, Value)>() + key.capacity() + value_heap_bytes(value)
            })
            .sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// The markets of a snapshot, in row id order, and where the odds of each begin; interned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Template {
    pub(super) shapes: Box<[ByAddress]>,
    /// The word where the outcomes of market `i` begin; one more entry than there are markets.
    pub(super) offsets: Box<[u32]>,
}

/// Interned shapes are equal exactly if they are the same allocation.
#[derive(Debug, Clone)]
pub(crate) struct ByAddress(pub(super) Arc<Shape>);

impl PartialEq for ByAddress {
    fn eq(&self, other: &ByAddress) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ByAddress {}

impl Hash for ByAddress {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (Arc::as_ptr(&self.0) as usize).hash(state);
    }
}

impl Template {
    pub(super) fn new(shapes: &[ByAddress]) -> Template {
        let mut offsets = Vec::with_capacity(shapes.len() + 1);
        let mut offset = 0u32;
        offsets.push(offset);
        for shape in shapes {
            // Saturates far above what a row's 1 GB limit lets in.
            offset =
                offset.saturating_add(u32::try_from(shape.0.outcomes.len()).unwrap_or(u32::MAX));
            offsets.push(offset);
        }
        Template {
            shapes: shapes.into(),
            offsets: offsets.into(),
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        ARC_HEADER
            + size_of::<Template>()
            + size_of_val(&*self.shapes)
            + size_of_val(&*self.offsets)
    }
}
