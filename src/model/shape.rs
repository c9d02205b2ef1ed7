use std::{
    hash::{BuildHasher, Hash, Hasher},
    mem::size_of,
    sync::Arc,
};

use serde_json::Value;

use super::names::Names;

/// Everything of a market but its odds and times; interned, so that equal markets of all snapshots share one.
///
/// Names of players make it one event's own; all that most other markets share with it is apart, in its [`Kind`].
#[derive(Debug)]
pub(crate) struct Shape {
    pub(super) kind: Arc<Kind>,
    /// As [`Names`] reads it.
    pub(super) names: Box<str>,
}

/// What a market is, apart from what one can bet on; interned.
#[derive(Debug)]
pub(crate) struct Kind {
    /// `betpawa_market_id`, `betpawa_market_name` and `handicap_type`, one after the other.
    text: Box<str>,
    id_end: u32,
    name_end: u32,
    has_handicap_type: bool,
    pub(super) line: Option<f64>,
    pub(super) handicap_home: Option<f64>,
    pub(super) handicap_away: Option<f64>,
    pub(super) groups: Arc<Groups>,
}

/// A `market_groups`; interned.
#[derive(Debug)]
pub(crate) struct Groups {
    /// As it came; two spellings of one value are two, which costs memory but is never wrong.
    pub(super) text: Option<Box<str>>,
    pub(super) values: Box<[Value]>,
    pub(super) malformed: bool,
}

/// What a [`Kind`] is looked up by: the same, borrowed from a row.
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

impl MarketKey<'_> {
    pub(super) fn hash(&self, build: &impl BuildHasher) -> u64 {
        let mut state = build.build_hasher();
        self.betpawa_market_id.hash(&mut state);
        self.betpawa_market_name.hash(&mut state);
        self.bits().hash(&mut state);
        self.handicap_type.hash(&mut state);
        self.market_groups.hash(&mut state);
        state.finish()
    }

    /// Numbers compare by their bits, so that a NaN equals itself and -0.0 stays apart from 0.0.
    fn bits(&self) -> [Option<u64>; 3] {
        [self.line, self.handicap_home, self.handicap_away].map(|number| number.map(f64::to_bits))
    }

    pub(crate) fn matches(&self, kind: &Kind) -> bool {
        let other = kind.key();
        self.betpawa_market_id == other.betpawa_market_id
            && self.bits() == other.bits()
            && self.betpawa_market_name == other.betpawa_market_name
            && self.handicap_type == other.handicap_type
            && self.market_groups == other.market_groups
    }

    pub(super) fn to_kind(self, groups: Arc<Groups>) -> Kind {
        let parts = [
            self.betpawa_market_id,
            self.betpawa_market_name,
            self.handicap_type.unwrap_or_default(),
        ];
        // Beyond four thousand million bytes lies no column: PostgreSQL's limit is 1 GB.
        let end = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        Kind {
            text: parts.concat().into(),
            id_end: end(parts[0].len()),
            name_end: end(parts[0].len() + parts[1].len()),
            has_handicap_type: self.handicap_type.is_some(),
            line: self.line,
            handicap_home: self.handicap_home,
            handicap_away: self.handicap_away,
            groups,
        }
    }
}

impl Kind {
    pub(super) fn betpawa_market_id(&self) -> &str {
        self.text.get(..self.id_end as usize).unwrap_or_default()
    }

    pub(super) fn betpawa_market_name(&self) -> &str {
        let name = self.id_end as usize..self.name_end as usize;
        self.text.get(name).unwrap_or_default()
    }

    pub(super) fn handicap_type(&self) -> Option<&str> {
        let text = self.text.get(self.name_end as usize..)?;
        self.has_handicap_type.then_some(text)
    }

    pub(super) fn key(&self) -> MarketKey<'_> {
        MarketKey {
            betpawa_market_id: self.betpawa_market_id(),
            betpawa_market_name: self.betpawa_market_name(),
            line: self.line,
            handicap_type: self.handicap_type(),
            handicap_home: self.handicap_home,
            handicap_away: self.handicap_away,
            market_groups: self.groups.text.as_deref(),
        }
    }
}

impl Shape {
    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    pub(crate) fn names(&self) -> Names<'_> {
        Names::of(&self.names)
    }

    /// By the address of the kind, for equal kinds are one.
    pub(super) fn hash(kind: &Arc<Kind>, names: &str, build: &impl BuildHasher) -> u64 {
        let mut state = build.build_hasher();
        (Arc::as_ptr(kind) as usize).hash(&mut state);
        names.hash(&mut state);
        state.finish()
    }
}

impl Groups {
    pub(super) fn new(text: Option<&str>) -> Groups {
        let values = match text.map(serde_json::from_str::<Value>) {
            None | Some(Ok(Value::Null)) => Ok(Vec::new()),
            Some(Ok(Value::Array(values))) => Ok(values),
            Some(_) => Err(()),
        };
        Groups {
            text: text.map(Into::into),
            malformed: values.is_err(),
            values: values.unwrap_or_default().into_boxed_slice(),
        }
    }
}

/// The two reference counts in front of what an `Arc` points to.
pub(super) const ARC_HEADER: usize = 2 * size_of::<usize>();

/// What the interner counts: bytes asked of the allocator for one of these in an `Arc`, without what it shares.
pub(super) trait HeapBytes {
    fn heap_bytes(&self) -> usize;
}

impl HeapBytes for Shape {
    fn heap_bytes(&self) -> usize {
        ARC_HEADER + size_of::<Shape>() + self.names.len()
    }
}

impl HeapBytes for Kind {
    fn heap_bytes(&self) -> usize {
        ARC_HEADER + size_of::<Kind>() + self.text.len()
    }
}

impl HeapBytes for Groups {
    fn heap_bytes(&self) -> usize {
        ARC_HEADER
            + size_of::<Groups>()
            + self.text.as_deref().map_or(0, str::len)
            + values_heap_bytes(&self.values)
    }
}

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
