use std::{
    hash::{BuildHasher, Hash, Hasher},
    mem::size_of,
    sync::Arc,
};

use serde_json::Value;

use super::{
    digest::{Content, halves},
    outcome_names::Names,
    slab::Slotted,
};

/// A market without its odds and times. Interned: equal markets of all snapshots share one template.
///
/// The names of outcomes are often those of players, and then belong to one event. Everything else is in the
/// [`MarketKind`], which markets of many events share.
#[derive(Debug)]
pub(crate) struct MarketTemplate {
    pub(super) kind: Arc<MarketKind>,
    /// The names of the outcomes, packed as [`Names`] reads them.
    pub(super) names: Box<str>,
}

/// A market without its outcomes: ids, name, line, handicap and groups. Interned.
#[derive(Debug)]
pub(crate) struct MarketKind {
    /// `betpawa_market_id`, `betpawa_market_name`, `handicap_type` and the text of `market_groups`, joined without
    /// separators.
    text: Box<str>,
    /// Where each of the first three texts ends in `text`, in bytes.
    ends: [u32; 3],
    has_handicap_type: bool,
    has_groups: bool,
    pub(super) line: Option<f64>,
    pub(super) handicap_home: Option<f64>,
    pub(super) handicap_away: Option<f64>,
    pub(super) groups: Arc<Groups>,
    /// The digest of all of these.
    digest: u128,
}

/// One value of `market_groups`. Interned.
#[derive(Debug)]
pub(crate) struct Groups {
    /// The column's text. Two spellings of one value are two entries, which costs some memory and is never wrong.
    pub(super) text: Option<Box<str>>,
    pub(super) values: Box<[Value]>,
    pub(super) malformed: bool,
}

/// The key that a [`MarketKind`] is looked up by: the same values, borrowed from a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MarketKey<'a> {
    pub(crate) betpawa_market_id: &'a str,
    pub(crate) betpawa_market_name: &'a str,
    pub(crate) line: Option<f64>,
    pub(crate) handicap_type: Option<&'a str>,
    pub(crate) handicap_home: Option<f64>,
    pub(crate) handicap_away: Option<f64>,
    /// The text of the JSON value; `None` if the column is null or missing.
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

    /// Numbers compare by their bits: a NaN equals itself, and -0.0 differs from 0.0.
    fn bits(&self) -> [Option<u64>; 3] {
        [self.line, self.handicap_home, self.handicap_away].map(|number| number.map(f64::to_bits))
    }

    /// The four texts; a missing one is empty.
    fn texts(&self) -> [&str; 4] {
        [
            self.betpawa_market_id,
            self.betpawa_market_name,
            self.handicap_type.unwrap_or_default(),
            self.market_groups.unwrap_or_default(),
        ]
    }

    pub(crate) fn matches(&self, kind: &MarketKind) -> bool {
        let [id, name, handicap_type, groups] = self.texts().map(str::as_bytes);
        let text = kind.text.as_bytes();
        let [id_end, name_end, type_end] = kind.ends.map(|end| end as usize);
        // Lengths and flags first: they are cheap to compare, and unequal markets mostly differ in them.
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

    pub(super) fn to_kind(self, groups: Arc<Groups>) -> MarketKind {
        let texts = self.texts();
        let mut length = 0;
        let ends = [0, 1, 2].map(|index: usize| {
            length += texts[index].len();
            // The lengths fit 32 bits: PostgreSQL limits a row to 1 GB.
            u32::try_from(length).unwrap_or(u32::MAX)
        });
        let mut content = Content::default();
        content.text(Some(self.betpawa_market_id));
        content.text(Some(self.betpawa_market_name));
        content.text(self.handicap_type);
        content.text(self.market_groups);
        for bits in self.bits() {
            content.optional(bits);
        }
        MarketKind {
            text: texts.concat().into(),
            ends,
            has_handicap_type: self.handicap_type.is_some(),
            has_groups: self.market_groups.is_some(),
            line: self.line,
            handicap_home: self.handicap_home,
            handicap_away: self.handicap_away,
            groups,
            digest: content.digest(),
        }
    }
}

/// The same as `==`. Most texts here are so short that a call of `memcmp` would cost more than the comparison.
#[inline]
pub(crate) fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    // Compares the first and the last bytes of both. The two parts overlap, so together they cover every length of
    // their range.
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

impl MarketKind {
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

impl MarketTemplate {
    pub(crate) fn kind(&self) -> &MarketKind {
        &self.kind
    }

    pub(crate) fn names(&self) -> Names<'_> {
        Names::of(&self.names)
    }

    /// Adds what a reader sees of the market, except its odds and times.
    pub(super) fn write_content(&self, content: &mut Content) {
        content.numbers(halves(self.kind.digest));
        content.text(Some(&self.names));
    }

    /// Hashes the address of the kind: equal kinds are one allocation (I1).
    pub(super) fn hash_of(kind: &Arc<MarketKind>, names: &str, build: &impl BuildHasher) -> u64 {
        let mut state = build.build_hasher();
        (Arc::as_ptr(kind) as usize).hash(&mut state);
        names.hash(&mut state);
        state.finish()
    }
}

impl Groups {
    /// The groups of a column's text. A text that is no JSON list counts as malformed and yields no groups.
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

/// The size of the two reference counts that stand before the value of an `Arc`.
pub(super) const ARC_HEADER: usize = 2 * size_of::<usize>();

impl Slotted for MarketTemplate {
    fn hash(&self, build: &impl BuildHasher) -> u64 {
        MarketTemplate::hash_of(&self.kind, &self.names, build)
    }

    fn heap_bytes(&self) -> usize {
        ARC_HEADER + size_of::<MarketTemplate>() + self.names.len()
    }
}

impl MarketKind {
    /// Bytes that one kind in an `Arc` requested from the allocator, without the groups that it shares.
    pub(super) fn heap_bytes(&self) -> usize {
        ARC_HEADER + size_of::<MarketKind>() + self.text.len()
    }
}

impl Groups {
    /// Bytes that one value in an `Arc` requested from the allocator.
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
        // Groups are strings. An object among them is rare: its entries are counted, the nodes of its tree are not.
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
    fn same_bytes_agrees_with_equality() {
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
