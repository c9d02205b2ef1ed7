//! Turns market rows into bodies: decode, intern, pack. Owns what outlives a single draft: the interned names.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::{
    decode::{self, Malformed},
    model::{
        Body, BodyBuilder, CachedSnapshot, Interner, MarketKey, Micros, OddsBuffer, SnapshotInput,
        Source, StagedRow,
    },
};

/// The text columns of a market row are borrowed from the driver's buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MarketRow<'a> {
    pub(crate) row_id: i64,
    pub(crate) betpawa_market_id: Option<&'a str>,
    pub(crate) betpawa_market_name: Option<&'a str>,
    pub(crate) line: Option<f64>,
    pub(crate) handicap_type: Option<&'a str>,
    pub(crate) handicap_home: Option<f64>,
    pub(crate) handicap_away: Option<f64>,
    pub(crate) outcomes: Option<&'a str>,
    pub(crate) market_groups: Option<&'a str>,
    pub(crate) unavailable_at: Option<Micros>,
}

/// Interned names, and buffers that are reused.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    interner: Interner,
    builder: BodyBuilder,
    sources: HashSet<Source>,
}

impl Packer {
    /// The one copy of a source's name.
    pub(crate) fn source(&mut self, name: &str) -> Source {
        if let Some(source) = self.sources.get(name) {
            return source.clone();
        }
        let source = Source::from(name);
        self.sources.insert(source.clone());
        source
    }

    /// Packs a snapshot that did not come as rows.
    pub(crate) fn snapshot(&mut self, input: &SnapshotInput) -> CachedSnapshot {
        input.pack(&mut self.interner, &mut self.builder)
    }

    pub(crate) fn sweep(&mut self) {
        self.interner.sweep();
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.interner.heap_bytes()
            + self.builder.heap_bytes()
            + self.sources.allocation_size()
            + self.sources.iter().map(Source::heap_bytes).sum::<usize>()
    }
}

/// Collects the bodies of many snapshots from market rows that come in any order; fastest where those of a snapshot come
/// one after the other, in the order of their ids.
#[derive(Debug)]
pub(crate) struct Bodies<'p> {
    packer: &'p mut Packer,
    builder: BodyBuilder,
    /// By id, the builder's index of a snapshot.
    snapshots: HashMap<i64, u32>,
    /// That of the last row.
    last: Option<(i64, u32)>,
}

impl<'p> Bodies<'p> {
    pub(crate) fn new(packer: &'p mut Packer) -> Bodies<'p> {
        Bodies {
            packer,
            builder: BodyBuilder::default(),
            snapshots: HashMap::new(),
            last: None,
        }
    }

    fn snapshot(&mut self, id: i64) -> u32 {
        if let Some((last, index)) = self.last
            && last == id
        {
            return index;
        }
        let builder = &mut self.builder;
        let index = *self.snapshots.entry(id).or_insert_with(|| builder.begin());
        self.last = Some((id, index));
        index
    }

    /// Adds a row; says what was wrong with it, if anything. What can be read of it is kept in any case.
    pub(crate) fn push(&mut self, snapshot_id: i64, row: MarketRow<'_>) -> Option<Malformed> {
        let snapshot = self.snapshot(snapshot_id);
        let key = MarketKey {
            betpawa_market_id: row.betpawa_market_id.unwrap_or_default(),
            betpawa_market_name: row.betpawa_market_name.unwrap_or_default(),
            line: row.line,
            handicap_type: row.handicap_type,
            handicap_home: row.handicap_home,
            handicap_away: row.handicap_away,
            market_groups: row.market_groups,
        };
        let Bodies {
            packer: Packer { interner, .. },
            builder,
            ..
        } = self;
        let previous = builder.last(snapshot);
        let expected = expected(interner, previous, &key, row.outcomes, &mut builder.odds);
        let (shape, mut problem) = match expected {
            Some(shape) => (shape, None),
            None => {
                let problem = decode::outcomes(row.outcomes, &mut builder.names, &mut builder.odds);
                let shape = interner.shape(previous, &key, builder.names.text());
                (shape, problem)
            }
        };
        if row.betpawa_market_id.is_none() || row.betpawa_market_name.is_none() {
            problem = problem.or(Some(Malformed::NullMarket));
        }
        let staged = StagedRow {
            snapshot,
            row_id: row.row_id,
            unavailable_at: row.unavailable_at,
        };
        let malformed = builder.stage(interner, staged, shape, problem.is_some());
        problem.or(malformed.then_some(Malformed::MarketGroups))
    }

    /// Snapshot id -> body; snapshots without a market row are absent.
    pub(crate) fn finish(mut self) -> HashMap<i64, Arc<Body>> {
        let bodies = self.builder.finish(&mut self.packer.interner);
        self.snapshots
            .into_iter()
            .filter_map(|(id, index)| Some((id, Arc::clone(bodies.get(index as usize)?))))
            .collect()
    }

    /// The body of a snapshot that has no markets.
    pub(crate) fn empty(packer: &mut Packer) -> Arc<Body> {
        packer.builder.finish_one(&mut packer.interner)
    }
}

/// The shape of a row that is in some way what was expected after `previous`; its odds are added.
fn expected(
    interner: &mut Interner,
    previous: u32,
    key: &MarketKey<'_>,
    outcomes: Option<&str>,
    odds: &mut OddsBuffer,
) -> Option<u32> {
    let places = interner.expected(previous);
    let [first, second] = places.map(|place| interner.shape_at(place));
    let first = first?;
    let mut reads = |shape| decode::expected(outcomes, shape, odds);
    let first_matches = key.matches(first.kind());
    if first_matches && reads(first) {
        return Some(places[0]);
    }
    if let Some(second) = second
        && key.matches(second.kind())
        && reads(second)
    {
        interner.came_again(previous);
        return Some(places[1]);
    }
    // Another line or other groups, but the same outcomes.
    if !first_matches && reads(first) {
        return interner.shape_with_names_of(previous, key, places[0]);
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*, sample::select};

    use super::*;
    use crate::model::CachedMarket;

    /// The columns of a row that is not of nowhere.
    #[derive(Debug, Clone)]
    struct Owned {
        snapshot: i64,
        row_id: i64,
        id: &'static str,
        name: &'static str,
        line: Option<f64>,
        handicap_type: Option<&'static str>,
        groups: Option<&'static str>,
        outcomes: Option<String>,
        unavailable_at: Option<i64>,
    }

    impl Owned {
        fn row(&self) -> MarketRow<'_> {
            MarketRow {
                row_id: self.row_id,
                betpawa_market_id: Some(self.id),
                betpawa_market_name: Some(self.name),
                line: self.line,
                handicap_type: self.handicap_type,
                handicap_home: None,
                handicap_away: self.line,
                outcomes: self.outcomes.as_deref(),
                market_groups: self.groups,
                unavailable_at: self.unavailable_at.map(Micros),
            }
        }
    }

    fn owned() -> impl Strategy<Value = Owned> {
        let outcome = (
            select(vec!["1", "X", "A. Mensah", "\\u0041", "\\\""]),
            select(vec!["1.85", "2", "3.00001", "null", "1e1", "\"x\""]),
            any::<bool>(),
            select(vec!["", "", "", ", \"more\": [1]", " "]),
        )
            .prop_map(|(name, odds, active, more)| {
                format!("{{\"name\": \"{name}\", \"odds\": {odds}, \"is_active\": {active}{more}}}")
            });
        let outcomes = prop_oneof![
            12 => vec(outcome, 0..4).prop_map(|list| Some(format!("[{}]", list.join(", ")))),
            1 => Just(None),
            1 => select(vec!["{}", "[1]", "[", "[{}]"]).prop_map(|text| Some(text.to_owned())),
            // More than a byte counts.
            1 => (254..260usize).prop_map(|count| Some(format!("[{}]", vec!["{\"name\": \"n\"}"; count].join(", ")))),
        ];
        let groups = vec![
            None,
            Some("[\"a\"]"),
            Some("[ \"a\" ]"),
            Some("null"),
            Some("{}"),
            Some(""),
        ];
        let lines = vec![None, Some(0.0), Some(-0.0), Some(2.5), Some(f64::NAN)];
        (
            (0..4i64, 0..12i64),
            // One text after another could be another two.
            select(vec![("37", "43"), ("374", "3"), ("", "3743"), ("5000", "")]),
            select(lines),
            select(vec![None, Some(""), Some("43"), Some("asian")]),
            select(groups),
            outcomes,
            option::weighted(0.1, 0..3i64),
        )
            .prop_map(
                |(
                    (snapshot, row_id),
                    (id, name),
                    line,
                    handicap_type,
                    groups,
                    outcomes,
                    unavailable_at,
                )| Owned {
                    snapshot,
                    row_id,
                    id,
                    name,
                    line,
                    handicap_type,
                    groups,
                    outcomes,
                    unavailable_at,
                },
            )
    }

    fn snapshot(body: Arc<Body>) -> CachedSnapshot {
        CachedSnapshot {
            snapshot_id: 1,
            event_id: 1,
            bookmaker_id: 1,
            captured_at: Micros(0),
            last_confirmed_at: Micros(0),
            body,
        }
    }

    /// All that a reader sees of a market. Numbers by their bits.
    fn shown(market: CachedMarket<'_>) -> String {
        let bits = |number: Option<f64>| number.map(f64::to_bits);
        let numbers = [
            market.line(),
            market.handicap_home(),
            market.handicap_away(),
        ]
        .map(bits);
        let outcomes: Vec<_> = market
            .outcomes()
            .map(|outcome| {
                let odds = bits(outcome.odds());
                (outcome.name(), odds, outcome.is_active(), outcome.extra())
            })
            .collect();
        format!(
            "{:?}",
            (
                (market.betpawa_market_id(), market.betpawa_market_name()),
                (market.handicap_type(), numbers),
                (market.market_groups(), market.unavailable_at(), outcomes),
            )
        )
    }

    fn read(
        packer: &mut Packer,
        rows: &[Owned],
    ) -> (HashMap<i64, Arc<Body>>, Vec<Option<Malformed>>) {
        let mut bodies = Bodies::new(packer);
        let problems = rows
            .iter()
            .map(|row| bodies.push(row.snapshot, row.row()))
            .collect();
        (bodies.finish(), problems)
    }

    proptest! {
        /// Whatever was read before, in whatever order rows come, a body says of each row what reading that row alone says.
        #[test]
        fn rows_are_read_as_if_alone(reads in vec((vec(owned(), 0..30), any::<bool>(), any::<bool>()), 1..6)) {
            let mut packer = Packer::default();
            let mut held = Vec::new();
            for (rows, fails, sweeps) in &reads {
                if *fails {
                    // As a read does whose connection is lost.
                    let mut bodies = Bodies::new(&mut packer);
                    rows.iter().for_each(|row| { bodies.push(row.snapshot, row.row()); });
                    continue;
                }
                let (bodies, problems) = read(&mut packer, rows);
                let mut expected: HashMap<i64, Vec<(i64, String)>> = HashMap::new();
                let mut malformed: HashMap<i64, usize> = HashMap::new();
                for (row, problem) in rows.iter().zip(problems) {
                    let (alone, problems) = read(&mut Packer::default(), std::slice::from_ref(row));
                    prop_assert_eq!(problem, problems[0]);
                    *malformed.entry(row.snapshot).or_default() += usize::from(problem.is_some());
                    let alone = snapshot(Arc::clone(&alone[&row.snapshot]));
                    let market = alone.markets().next().expect("a market");
                    expected.entry(row.snapshot).or_default().push((row.row_id, shown(market)));
                }
                prop_assert_eq!(bodies.len(), expected.len());
                for (id, body) in bodies {
                    let mut expected = expected.remove(&id).expect("a snapshot with rows");
                    expected.sort_by_key(|(row_id, _)| *row_id);
                    let expected: Vec<String> = expected.into_iter().map(|(_, shown)| shown).collect();
                    prop_assert_eq!(body.malformed_rows(), malformed[&id]);
                    held.push((snapshot(body), expected));
                }
                if *sweeps {
                    held.drain(..held.len() / 2);
                    packer.sweep();
                }
                // M1, M3
                for (snapshot, expected) in &held {
                    let found: Vec<String> = snapshot.markets().map(shown).collect();
                    prop_assert_eq!(&found, expected);
                    for market in snapshot.markets() {
                        let (id, line) = (market.betpawa_market_id(), market.line());
                        let first = snapshot.markets().find(|other| other.betpawa_market_id() == id && other.line() == line);
                        prop_assert_eq!(snapshot.market(id, line).map(shown), first.map(shown));
                    }
                    prop_assert!(snapshot.market("374", Some(1.5)).is_none());
                }
            }
            // Equal markets are one template, in whatever order they came.
            if let Some((rows, ..)) = reads.last() {
                let (there, _) = read(&mut packer, rows);
                let mut back: Vec<Owned> = rows.clone();
                back.sort_by_key(|row| (row.row_id, row.snapshot));
                let (and_back, _) = read(&mut packer, &back);
                for (id, body) in there {
                    let (a, b) = (snapshot(body), snapshot(Arc::clone(&and_back[&id])));
                    prop_assert_eq!(a.difference(&b), None);
                }
            }
            drop(held);
            for _ in 0..40 {
                packer.sweep();
            }
            prop_assert!(packer.interner.is_empty(), "{:?}", packer.interner);
        }
    }
}
