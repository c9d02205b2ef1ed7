use std::{
    hash::{BuildHasher, Hash, Hasher},
    mem::size_of,
    sync::Arc,
};

use serde_json::Value;

use super::{outcome_names::Names, slab::Slotted};

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
    /// `betpawa_market_id`, `betpawa_market_name`, `handicap_type` and the text of `market_groups`, one after the other.
    text: Box<str>,
    /// Where the first three end.
    ends: [u32; 3],
    has_handicap_type: bool,
    has_groups: bool,
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

    /// The texts, whether or not they are there.
    fn texts(&self) -> [&str; 4] {
        [
            self.betpawa_market_id,
            self.betpawa_market_name,
            self.handicap_type.unwrap_or_default(),
            self.market_groups.unwrap_or_default(),
        ]
    }

    pub(crate) fn matches(&self, kind: &Kind) -> bool {
        let [id, name, handicap_type, groups] = self.texts().map(str::as_bytes);
        let text = kind.text.as_bytes();
        let [id_end, name_end, type_end] = kind.ends.map(|end| end as usize);
        // Where one text ends and the next begins, before the texts: what differs, mostly differs in that.
        id.len() == id_end
            && id_end + name.len() == name_end
            && name_end + handicap_type.len() == type_end
            && type_end + groups.len() == text.len()
            && self.handicap_type.is_some() == kind.has_handicap_type
            && self.market_groups.is_some() == kind.has_groups
            && self.bits() == kind.bits()
            && same_bytes(&text[..id_end], id)
            && same_bytes(&text[id_end..name_end], name)
            && same_bytes(&text[name_end..type_end], handicap_type)
            && same_bytes(&text[type_end..], groups)
    }

    pub(super) fn to_kind(self, groups: Arc<Groups>) -> Kind {
        let texts = self.texts();
        let mut length = 0;
        let ends = [0, 1, 2].map(|index: usize| {
            length += texts[index].len();
            // Beyond four thousand million bytes lies no row: PostgreSQL's limit is 1 GB.
            u32::try_from(length).unwrap_or(u32::MAX)
        });
        Kind {
            text: texts.concat().into(),
            ends,
            has_handicap_type: self.handicap_type.is_some(),
            has_groups: self.market_groups.is_some(),
            line: self.line,
            handicap_home: self.handicap_home,
            handicap_away: self.handicap_away,
            groups,
        }
    }
}

/// What `==` says. Most texts here are so short that calling `memcmp` is most of its cost.
#[inline]
pub(crate) fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    // The first and the last few bytes, which overlap.
    match a.len() {
        0 => true,
        1..4 => {
            a[0] == b[0] && a[a.len() / 2] == b[a.len() / 2] && a[a.len() - 1] == b[a.len() - 1]
        }
        4..8 => a.first_chunk::<4>() == b.first_chunk() && a.last_chunk::<4>() == b.last_chunk(),
        8..=16 => a.first_chunk::<8>() == b.first_chunk() && a.last_chunk::<8>() == b.last_chunk(),
        17..=32 => {
            a.first_chunk::<16>() == b.first_chunk() && a.last_chunk::<16>() == b.last_chunk()
        }
        _ => a == b,
    }
}

impl Kind {
    fn part(&self, start: u32, end: u32) -> &str {
        let part = self.text.get(start as usize..end as usize);
        part.unwrap_or_default()
    }

    pub(super) fn betpawa_market_id(&self) -> &str {
        self.part(0, self.ends[0])
    }

    pub(super) fn betpawa_market_name(&self) -> &str {
        self.part(self.ends[0], self.ends[1])
    }

    pub(super) fn handicap_type(&self) -> Option<&str> {
        let text = self.part(self.ends[1], self.ends[2]);
        self.has_handicap_type.then_some(text)
    }

    fn bits(&self) -> [Option<u64>; 3] {
        [self.line, self.handicap_home, self.handicap_away].map(|number| number.map(f64::to_bits))
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
    pub(super) fn hash_of(kind: &Arc<Kind>, names: &str, build: &impl BuildHasher) -> u64 {
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

impl Slotted for Shape {
    fn hash(&self, build: &impl BuildHasher) -> u64 {
        Shape::hash_of(&self.kind, &self.names, build)
    }

    fn heap_bytes(&self) -> usize {
        ARC_HEADER + size_of::<Shape>() + self.names.len()
    }
}

impl Kind {
    /// Bytes asked of the allocator for one of these in an `Arc`, without what it shares.
    pub(super) fn heap_bytes(&self) -> usize {
        ARC_HEADER + size_of::<Kind>() + self.text.len()
    }
}

impl Groups {
    /// Bytes asked of the allocator for one of these in an `Arc`, without what it shares.
    pub(super) fn heap_bytes(&self) -> usize {
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

#[cfg(test)]
mod tests {
    use super::same_bytes;

    #[test]
    fn the_same_bytes_are_the_same() {
        for length in 0..70 {
            let a = vec![7u8; length];
            assert!(same_bytes(&a, &a.clone()));
            assert!(!same_bytes(&a, &[7; 70]));
            for at in 0..length {
                let mut b = a.clone();
                b[at] = 8;
                assert!(!same_bytes(&a, &b), "{length} {at}");
            }
        }
    }
}
