//! Turns market rows into packed markets: decodes, interns, packs. Owns the interned names, which outlive a single
//! draft.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::{
    decode::{self, Malformed},
    model::{
        CachedSnapshot, Interner, Lookup, MarketKey, MarketsBuilder, Micros, OddsBuffer,
        PackedMarkets, SnapshotInput, Source, StagedRow,
    },
};

/// The columns of a market row. Texts borrow from the driver's buffer.
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

/// The interned names, the tournaments and bookmakers, and buffers that are reused.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    interner: Interner,
    builder: MarketsBuilder,
    sources: HashSet<Source>,
    pub(crate) lookup: Lookup,
}

impl Packer {
    /// The shared copy of a source's name.
    pub(crate) fn source(&mut self, name: &str) -> Source {
        if let Some(source) = self.sources.get(name) {
            return source.clone();
        }
        let source = Source::from(name);
        self.sources.insert(source.clone());
        source
    }

    /// Packs a snapshot that came from a [`Writer`](crate::writer::Writer) rather than as rows.
    pub(crate) fn snapshot(&mut self, input: &SnapshotInput) -> CachedSnapshot {
        input.pack(&mut self.interner, &mut self.builder)
    }

    /// The interned names, for packed markets that come from another process.
    #[cfg(feature = "nats")]
    pub(crate) fn interner(&mut self) -> &mut Interner {
        &mut self.interner
    }

    pub(crate) fn sweep(&mut self) {
        self.interner.sweep();
        self.lookup.sweep();
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.interner.heap_bytes()
            + self.builder.heap_bytes()
            + self.lookup.heap_bytes()
            + self.sources.allocation_size()
            + self.sources.iter().map(Source::heap_bytes).sum::<usize>()
    }
}

/// Collects the packed markets of many snapshots. Rows may come in any order. It is fastest if the rows of a snapshot
/// come together, ordered by id. All calls between two of `finish` take the same packer.
#[derive(Debug, Default)]
pub(crate) struct MarketCollector {
    builder: MarketsBuilder,
    /// Snapshot id -> the builder's index.
    snapshots: HashMap<i64, u32>,
    /// Id and index of the latest row's snapshot, so that its next row needs no hash lookup.
    last: Option<(i64, u32)>,
}

impl MarketCollector {
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

    /// Adds a row. Returns what is wrong with it, if anything; what can be read is kept in any case.
    pub(crate) fn push(
        &mut self,
        packer: &mut Packer,
        snapshot_id: i64,
        row: MarketRow<'_>,
    ) -> Option<Malformed> {
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
        let (interner, builder) = (&mut packer.interner, &mut self.builder);
        // Try the two market templates that usually follow the one before. Read the text in full only if neither fits.
        let previous = builder.last(snapshot);
        let expected = expected(interner, previous, &key, row.outcomes, &mut builder.odds);
        let (market_template, mut problem) = match expected {
            Some(market_template) => (market_template, None),
            None => {
                let problem = decode::outcomes(row.outcomes, &mut builder.names, &mut builder.odds);
                let market_template =
                    interner.market_template(previous, &key, builder.names.text());
                (market_template, problem)
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
        let malformed = builder.stage(interner, staged, market_template, problem.is_some());
        problem.or(malformed.then_some(Malformed::MarketGroups))
    }

    /// Snapshot id -> packed markets, of all rows since the last call. Snapshots without a market row are absent. The
    /// buffers are reused.
    pub(crate) fn finish(&mut self, packer: &mut Packer) -> HashMap<i64, Arc<PackedMarkets>> {
        self.last = None;
        let packed_markets = self.builder.finish(&mut packer.interner);
        self.snapshots
            .drain()
            .filter_map(|(id, index)| Some((id, Arc::clone(packed_markets.get(index as usize)?))))
            .collect()
    }

    /// The packed markets of a snapshot without markets.
    pub(crate) fn empty(packer: &mut Packer) -> Arc<PackedMarkets> {
        packer.builder.finish_one(&mut packer.interner)
    }
}

/// The market template of a row that fits one of those expected after `previous`. Adds the row's odds if it does.
fn expected(
    interner: &mut Interner,
    previous: u32,
    key: &MarketKey<'_>,
    outcomes: Option<&str>,
    odds: &mut OddsBuffer,
) -> Option<u32> {
    let slots = interner.expected(previous);
    let [first, second] = slots.map(|slot| interner.market_template_at(slot));
    let first = first?;
    let mut reads = |market_template| decode::expected(outcomes, market_template, odds);
    let first_matches = key.matches(first.kind());
    if first_matches && reads(first) {
        return Some(slots[0]);
    }
    if let Some(second) = second
        && key.matches(second.kind())
        && reads(second)
    {
        interner.came_again(previous);
        return Some(slots[1]);
    }
    // Same outcomes, but another line or other groups: keep the names, look up the kind.
    if !first_matches && reads(first) {
        return interner.market_template_with_names_of(previous, key, slots[0]);
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*, sample::select};

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        decode::tests::{any_text, any_value, reference},
        model::CachedMarket,
    };

    /// A market row that owns its columns.
    #[derive(Debug, Clone)]
    struct OwnedRow {
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

    impl OwnedRow {
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

    fn any_row() -> impl Strategy<Value = OwnedRow> {
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
            // More outcomes than one byte counts.
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
            // Joined without a separator, these pairs would be equal.
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
                )| OwnedRow {
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

    fn snapshot(packed: Arc<PackedMarkets>) -> CachedSnapshot {
        CachedSnapshot {
            snapshot_id: 1,
            event_id: 1,
            bookmaker_id: 1,
            captured_at: Micros(0),
            last_confirmed_at: Micros(0),
            packed,
        }
    }

    /// Everything that a reader sees of a market, with numbers as bits.
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
        rows: &[OwnedRow],
    ) -> (HashMap<i64, Arc<PackedMarkets>>, Vec<Option<Malformed>>) {
        let mut packed_markets = MarketCollector::default();
        let problems = rows
            .iter()
            .map(|row| packed_markets.push(packer, row.snapshot, row.row()))
            .collect();
        (packed_markets.finish(packer), problems)
    }

    proptest! {
        /// Packed markets show each row as if it had been read alone. Earlier rows and their order change nothing.
        #[test]
        fn a_row_reads_the_same_whatever_was_read_before(
            reads in vec((vec(any_row(), 0..30), any::<bool>(), any::<bool>()), 1..6),
        ) {
            let mut packer = Packer::default();
            let mut held = Vec::new();
            for (rows, fails, sweeps) in &reads {
                if *fails {
                    // A read that loses its connection.
                    let mut packed_markets = MarketCollector::default();
                    rows.iter().for_each(|row| { packed_markets.push(&mut packer, row.snapshot, row.row()); });
                    continue;
                }
                let (packed_markets, problems) = read(&mut packer, rows);
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
                prop_assert_eq!(packed_markets.len(), expected.len());
                for (id, packed) in packed_markets {
                    let mut expected = expected.remove(&id).expect("a snapshot with rows");
                    expected.sort_by_key(|(row_id, _)| *row_id);
                    let expected: Vec<String> = expected.into_iter().map(|(_, shown)| shown).collect();
                    prop_assert_eq!(packed.malformed_rows(), malformed[&id]);
                    held.push((snapshot(packed), expected));
                }
                if *sweeps {
                    held.drain(..held.len() / 2);
                    packer.sweep();
                }
                // M1, M3: a view that is held keeps its values.
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
            // Equal markets share one template, whatever order their rows came in.
            if let Some((rows, ..)) = reads.last() {
                let (there, _) = read(&mut packer, rows);
                let mut back: Vec<OwnedRow> = rows.clone();
                back.sort_by_key(|row| (row.row_id, row.snapshot));
                let (and_back, _) = read(&mut packer, &back);
                for (id, packed) in there {
                    let (a, b) = (snapshot(packed), snapshot(Arc::clone(&and_back[&id])));
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

    /// A reader must see what `serde_json` makes of these `outcomes` and `groups`, odds bit for bit, and every problem
    /// must be reported. That must hold whatever the cache has learned to expect: nothing, `other` outcomes, or these.
    fn shows_what_is_written(outcomes: &str, groups: &str, other: &str) {
        let json = |text: &str| serde_json::from_str::<Value>(text);
        // With its feature arbitrary_precision, serde_json keeps a number that overflows a double; this crate does not.
        let numbers = |text: &str| -> Vec<f64> {
            let parts = text.split(|c: char| !c.is_ascii_digit() && !".eE+-".contains(c));
            parts.flat_map(str::parse).collect()
        };
        let too_great = |text: &str| numbers(text).into_iter().any(f64::is_infinite);
        if json("1e999").is_ok() && [outcomes, groups].into_iter().any(too_great) {
            return;
        }
        let (expected, problem) = match json(outcomes) {
            Ok(value) => reference(&value),
            Err(_) => (vec![], Some(Malformed::Unreadable)),
        };
        let expected: Vec<Value> = expected
            .into_iter()
            .map(|(name, bits, is_active, extra)| {
                let odds = bits.map(f64::from_bits);
                let mut shown = json!({"name": name, "odds": odds, "is_active": is_active});
                if let Some(Value::Object(extra)) = extra {
                    shown.as_object_mut().unwrap().extend(extra);
                }
                shown
            })
            .collect();
        let (groups_shown, groups_wrong) = match json(groups) {
            Ok(Value::Null) => (json!([]), false),
            Ok(list @ Value::Array(_)) => (list, false),
            _ => (json!([]), true),
        };
        let wrong = problem.is_some() || groups_wrong;

        let mut packer = Packer::default();
        let mut packed_markets = MarketCollector::default();
        let rows: Vec<i64> = vec![1, 2, 3, 4];
        for (id, outcomes) in rows.iter().zip([outcomes, other, outcomes, outcomes]) {
            let row = OwnedRow {
                snapshot: *id,
                row_id: *id,
                id: "1",
                name: "1",
                line: None,
                handicap_type: None,
                groups: None,
                outcomes: Some(outcomes.to_owned()),
                unavailable_at: None,
            };
            let row = MarketRow {
                market_groups: Some(groups),
                ..row.row()
            };
            let said = packed_markets.push(&mut packer, *id, row);
            assert!(
                *id == 2 || said.is_some() == wrong,
                "{outcomes} {groups}: {said:?}"
            );
        }
        let packed_markets = packed_markets.finish(&mut packer);
        for id in [1, 3, 4] {
            let snapshot = snapshot(Arc::clone(&packed_markets[&id]));
            let text = serde_json::to_string(&snapshot).expect("JSON");
            let shown = json(&text).expect("what is shown is JSON");
            let market = &shown["markets"][0];
            assert_eq!(market["market_groups"], groups_shown, "{groups}");
            let list = market["outcomes"].as_array().expect("a list");
            // Compare texts, in which -0.0 differs from 0.0.
            let texts =
                |list: &[Value]| -> Vec<String> { list.iter().map(Value::to_string).collect() };
            assert_eq!(texts(list), texts(&expected), "{outcomes}");
        }
    }

    #[test]
    fn good_bad_and_expected_rows_show_what_was_written() {
        let good = r#"[{"name": "1", "odds": 2.125, "is_active": true}, {"name": "\u00e9", "odds": null, "id": {"a": [1e3]}}]"#;
        let bad = r#"[{"name": 1, "odds": "2", "is_active": 0}, 7, [], {}]"#;
        let usual = r#"[{"name": "1", "odds": 1.85, "is_active": true}, {"name": "X", "odds": 3.4, "is_active": false}]"#;
        let expected = r#"[{"name": "1", "odds": 12, "is_active": true}]"#;
        shows_what_is_written(good, r#"["main", {"x": 1}]"#, "[]");
        shows_what_is_written(bad, "{}", "[]");
        shows_what_is_written(usual, r#"["main"]"#, expected);
    }

    proptest! {
        #[test]
        fn a_reader_sees_what_was_written(
            outcomes in prop_oneof![9 => any_text(), 1 => "\\PC{0,20}"],
            groups in prop_oneof![
                4 => select(vec!["null", "[]", "[\"main\"]", "{}", ""]).prop_map(str::to_owned),
                4 => any_value().prop_map(|value| value.to_string()),
                1 => "\\PC{0,12}",
            ],
            other in any_text(),
        ) {
            shows_what_is_written(&outcomes, &groups, &other);
        }
    }
}
