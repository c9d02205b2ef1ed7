use std::{collections::BTreeMap, sync::Arc};

use proptest::{collection::vec, prelude::*, sample::select};

use super::{decode::MalformedPart, *};
use crate::{
    decode::packer::{MarketCollector, MarketRow},
    model::{
        BetpawaSnapshots, Bookmaker, CachedSnapshot, CompetitorSnapshots, EventHeader, EventNames,
        Tournament,
    },
    store::{
        draft::Draft,
        state::{Moment, State},
    },
};

/// A market row in few numbers: its kind, its outcomes, what is odd about it.
#[derive(Debug, Clone)]
struct Row {
    kind: u8,
    outcomes: Vec<(u8, u8)>,
    oddity: u8,
}

#[derive(Debug, Clone)]
struct Event {
    kickoff: i64,
    name: Option<String>,
    tournament: u8,
    snapshots: Vec<(u8, i64, i64, Vec<Row>)>,
}

fn row() -> impl Strategy<Value = Row> {
    (0..6u8, vec((0..4u8, 0..6u8), 0..4), 0..24u8).prop_map(|(kind, outcomes, oddity)| Row {
        kind,
        outcomes,
        oddity,
    })
}

fn content() -> impl Strategy<Value = BTreeMap<i64, Event>> {
    let time = || prop_oneof![6 => 0..4i64, 1 => select(vec![-7, i64::from(i32::MAX) * 5000])];
    let snapshot = (0..6u8, 0..4i64, time(), vec(row(), 0..5));
    let name = proptest::option::of("[ab\"ö]{0,3}");
    let event = (0..3i64, name, 0..4u8, vec(snapshot, 1..5)).prop_map(
        |(kickoff, name, tournament, snapshots)| Event {
            kickoff,
            name,
            tournament,
            snapshots,
        },
    );
    let id = prop_oneof![8 => 0..5i64, 1 => select(vec![i64::MIN, i64::MAX, -1])];
    vec((id, event), 0..5).prop_map(|events| events.into_iter().collect())
}

fn packed(draft: &mut Draft, rows: &[Row]) -> Arc<PackedMarkets> {
    let mut collector = MarketCollector::default();
    for (row_id, row) in (0..).zip(rows) {
        let outcomes: Vec<String> = row
            .outcomes
            .iter()
            .map(|(name, odds)| {
                let name = ["1", "X", "Ö\\n\\\"", "A. Mensah"][usize::from(*name)];
                let odds = ["1.85", "2", "3.00001", "null", "1e300", "\"x\""][usize::from(*odds)];
                let active = row.oddity != 1;
                let more = if row.oddity == 2 {
                    ", \"more\": {\"a\": [1]}"
                } else {
                    ""
                };
                format!("{{\"name\": \"{name}\", \"odds\": {odds}, \"is_active\": {active}{more}}}")
            })
            .collect();
        let outcomes = match row.oddity {
            3 => "[".to_owned(),
            4 => format!(
                "[{}]",
                vec!["{\"name\": \"n\", \"odds\": 1.5}"; 300].join(",")
            ),
            _ => format!("[{}]", outcomes.join(",")),
        };
        let id = row.kind.to_string();
        collector.push(
            &mut draft.packer,
            1,
            MarketRow {
                row_id,
                betpawa_market_id: Some(&id),
                betpawa_market_name: (row.oddity != 5).then_some("name"),
                line: [
                    None,
                    Some(0.0),
                    Some(-0.0),
                    Some(f64::from_bits(0x7ff8_0000_0000_1234)),
                ][usize::from(row.kind % 4)],
                handicap_type: (row.kind == 4).then_some("asian"),
                handicap_home: (row.kind == 4).then_some(1.5),
                handicap_away: None,
                outcomes: Some(&outcomes),
                market_groups: [Some("[\"a\"]"), Some("[ \"a\" ]"), Some("{}"), None]
                    [usize::from(row.oddity % 4)],
                unavailable_at: (row.oddity == 6).then_some(Micros(77)),
            },
        );
    }
    let packed = collector.finish(&mut draft.packer).remove(&1);
    packed.unwrap_or_else(|| MarketCollector::empty(&mut draft.packer))
}

fn fill(draft: &mut Draft, content: &BTreeMap<i64, Event>) {
    let held: Vec<i64> = draft.ids_in(..).collect();
    for id in held.iter().filter(|id| !content.contains_key(id)) {
        draft.remove(*id);
    }
    // Names that depend on the content, so that tournaments and bookmakers are renamed, and bookmakers come and go.
    let name = content.len().to_string();
    let bookmakers = (0..content.len() as i64 % 4).map(|id| {
        let renamed = (id == 1).then_some(name.as_str());
        (id, Bookmaker::new(renamed, Some("name")))
    });
    let tournaments = (1..4).map(|id| Tournament::new(id, [Some(&name), None, Some("sport")]));
    draft.set_lookup(bookmakers.collect(), tournaments);
    for (event_id, event) in content {
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for (key, id, time, rows) in &event.snapshots {
            let snapshot = CachedSnapshot {
                snapshot_id: *id,
                event_id: if *id == 3 { 8 } else { *event_id },
                bookmaker_id: if *key < 3 { i64::from(*key) } else { id / 3 },
                captured_at: Micros(*time),
                last_confirmed_at: Micros(time + id % 2),
                packed: packed(draft, rows),
            };
            if *key < 3 {
                own.push(snapshot);
            } else {
                others.push((draft.packer.source(&key.to_string()), snapshot));
            }
        }
        let id = i64::from(event.tournament);
        let header = EventHeader {
            kickoff: (event.kickoff > 0).then_some(Micros(event.kickoff)),
            names: EventNames::new([event.name.as_deref(), Some("a"), None, Some("\u{202e}")]),
            tournament: (id > 0).then(|| draft.packer.lookup.tournament(id)),
        };
        draft.set(
            *event_id,
            header,
            BetpawaSnapshots::new(own),
            CompetitorSnapshots::new(others),
        );
    }
}

fn state(draft: &mut Draft) -> State {
    draft.state(Arc::default(), 1, Some(Moment::now()), None)
}

/// Everything that a reader sees, with numbers as bits.
fn shown(state: &State) -> Vec<String> {
    let bits = |number: Option<f64>| number.map(f64::to_bits);
    let snapshot = |snapshot: &CachedSnapshot| {
        let markets: Vec<String> = snapshot
            .markets()
            .map(|market| {
                let outcomes: Vec<_> = market
                    .outcomes()
                    .map(|outcome| {
                        (
                            outcome.name(),
                            bits(outcome.odds()),
                            outcome.is_active(),
                            outcome.extra(),
                        )
                    })
                    .collect();
                let numbers = [
                    market.line(),
                    market.handicap_home(),
                    market.handicap_away(),
                ]
                .map(bits);
                let texts = (
                    market.betpawa_market_id(),
                    market.betpawa_market_name(),
                    market.handicap_type(),
                );
                format!(
                    "{texts:?} {numbers:?} {:?} {:?} {outcomes:?}",
                    market.market_groups(),
                    market.unavailable_at()
                )
            })
            .collect();
        let CachedSnapshot {
            snapshot_id,
            event_id,
            bookmaker_id,
            captured_at,
            last_confirmed_at,
            ..
        } = snapshot;
        let malformed = snapshot.malformed_rows();
        format!(
            "{snapshot_id} {event_id} {bookmaker_id} {captured_at:?} {last_confirmed_at:?} {malformed} {markets:?}"
        )
    };
    let ids = state.event_ids();
    let events = ids.into_iter().filter_map(|id| state.event(id));
    events
        .map(|event| {
            let own: Vec<_> = event
                .betpawa
                .iter()
                .map(|(id, held)| (id, snapshot(held)))
                .collect();
            let others: Vec<_> = event
                .competitors
                .iter()
                .map(|(source, held)| (source, snapshot(held)))
                .collect();
            let names = (
                event.names.columns(),
                event.tournament(),
                event.bookmakers(),
            );
            format!(
                "{} {:?} {names:?} {own:?} {others:?}",
                event.event_id, event.kickoff
            )
        })
        .collect()
}

/// Two states of one draft and the change between them; and another process's draft that holds the first.
struct Both {
    before: State,
    after: State,
    change: crate::store::changes::Change,
    there: Draft,
    here: Draft,
}

fn both(before: &BTreeMap<i64, Event>, after: &BTreeMap<i64, Event>) -> Both {
    let (mut here, mut there) = (Draft::default(), Draft::default());
    // The other process has interned other names before.
    fill(&mut there, after);
    fill(&mut there, before);
    there.change(Arc::default(), 1);
    fill(&mut here, before);
    here.change(Arc::default(), 1);
    let before = state(&mut here);
    fill(&mut here, after);
    let change = here.change(Arc::default(), 1);
    let after = state(&mut here);
    Both {
        before,
        after,
        change,
        there,
        here,
    }
}

fn decode(parts: &[Vec<u8>], draft: &mut Draft) -> Result<Decoder, MalformedPart> {
    let mut decoder = Decoder::new();
    for part in parts {
        decoder.decode_part(part, draft)?;
    }
    Ok(decoder)
}

proptest! {
    /// What one process publishes shows in another exactly as it was, whatever the size of the parts.
    #[test]
    fn changes_and_states_arrive_as_they_were(before in content(), after in content(), limit in 200..3000usize) {
        let Both { before, after, change, mut there, here: _here } = both(&before, &after);
        let ids = change.event_ids();
        let parts = [limit, usize::MAX].into_iter().find_map(|limit| Encoder::new(limit).encode_changes(&before, &after, &ids).ok());
        let parts = parts.expect("no limit");
        prop_assert_eq!(parts.is_empty(), ids.is_empty());
        let unchanged = there.digest();
        prop_assert_eq!(unchanged, before.digest);
        let decoder = decode(&parts, &mut there).expect("well formed");
        prop_assert_eq!(there.digest(), unchanged);
        decoder.apply(&mut there);
        prop_assert_eq!(there.digest(), after.digest);
        prop_assert_eq!(there.change(Arc::default(), 1), change);
        prop_assert_eq!(shown(&state(&mut there)), shown(&after));

        // The whole state, from nothing.
        let parts = Encoder::new(usize::MAX).encode_state(&after).expect("no limit");
        let mut next = there.successor();
        decode(&parts, &mut next).expect("well formed").apply(&mut next);
        next.replace(&mut there);
        prop_assert_eq!(next.digest(), after.digest);
        prop_assert!(next.change(Arc::default(), 1).is_empty());
        prop_assert_eq!(shown(&state(&mut next)), shown(&after));
    }

}

proptest! {
    // Each case tries every truncation.
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A damaged part is an error or another state. It never panics, and what it makes is limited.
    #[test]
    fn a_damaged_part_does_no_harm(before in content(), after in content(), flips in vec((any::<usize>(), 1..=255u8), 1..4)) {
        let Both { before, after, change, mut there, here: _here } = both(&before, &after);
        let parts = Encoder::new(usize::MAX).encode_changes(&before, &after, &change.event_ids()).expect("no limit");
        let digest = there.digest();
        for part in &parts {
            let mut damaged = part.clone();
            for (at, bits) in &flips {
                let at = at % damaged.len();
                damaged[at] ^= bits;
            }
            for length in 0..part.len() {
                let _ = decode(&[part[..length].to_vec()], &mut there);
            }
            let decoded = decode(&[damaged], &mut there);
            prop_assert_eq!(there.digest(), digest);
            if let Ok(decoder) = decoded {
                decoder.apply(&mut there);
                // Readers can go through whatever came of it.
                shown(&state(&mut there));
                break;
            }
        }
    }

    #[test]
    fn garbage_does_no_harm(content in content(), garbage in vec(prop_oneof![3 => 0..10u8, 1 => 0x40..0x47u8, 1 => any::<u8>()], 0..200)) {
        let mut draft = Draft::default();
        fill(&mut draft, &content);
        let garbage = [&[VERSION][..], &garbage].concat();
        if let Ok(decoder) = decode(&[garbage], &mut draft) {
            decoder.apply(&mut draft);
            shown(&state(&mut draft));
        }
    }
}

fn plain(odds: usize, outcomes: usize) -> String {
    let list: Vec<String> = (0..outcomes)
        .map(|outcome| {
            format!(
                "{{\"name\": \"{outcome}\", \"odds\": {:.2}, \"is_active\": true}}",
                1.0 + (odds + outcome * 7) as f64 / 100.0
            )
        })
        .collect();
    format!("[{}]", list.join(","))
}

/// 150 snapshots of 80 markets, the odds of `round`; `confirmed` counts confirmations.
fn batch(draft: &mut Draft, round: i64, confirmed: i64) {
    for event_id in 0..50i64 {
        let mut snapshots = Vec::new();
        for bookmaker_id in 0..3i64 {
            let mut collector = MarketCollector::default();
            for market in 0..80i64 {
                let id = market.to_string();
                let outcomes = plain(
                    (round * (3 + market % 5) + event_id * 11 + bookmaker_id) as usize % 400,
                    3,
                );
                collector.push(
                    &mut draft.packer,
                    1,
                    MarketRow {
                        row_id: market,
                        betpawa_market_id: Some(&id),
                        betpawa_market_name: Some("a market of usual length"),
                        line: Some(market as f64 / 2.0),
                        handicap_type: None,
                        handicap_home: None,
                        handicap_away: None,
                        outcomes: Some(&outcomes),
                        market_groups: Some("[\"main\", \"popular\"]"),
                        unavailable_at: None,
                    },
                );
            }
            let packed = collector
                .finish(&mut draft.packer)
                .remove(&1)
                .expect("markets");
            let time = 1_700_000_000_000_000 + round * 300_000_000 + event_id * 1_234;
            snapshots.push(CachedSnapshot {
                snapshot_id: 1_000_000 + round * 150 + event_id * 3 + bookmaker_id,
                event_id: event_id * 3 + 100_000,
                bookmaker_id,
                captured_at: Micros(time),
                last_confirmed_at: Micros(
                    time + confirmed * 60_000_000 + confirmed * event_id * 999,
                ),
                packed,
            });
        }
        draft.set(
            event_id * 3 + 100_000,
            Some(Micros(1_800_000_000_000_000)),
            BetpawaSnapshots::new(snapshots),
            Default::default(),
        );
    }
}

#[test]
fn messages_are_small() {
    let mut draft = Draft::default();
    batch(&mut draft, 0, 0);
    draft.change(Arc::default(), 1);
    let first = state(&mut draft);
    batch(&mut draft, 0, 1);
    draft.change(Arc::default(), 1);
    let confirmed = state(&mut draft);
    batch(&mut draft, 1, 0);
    draft.change(Arc::default(), 1);
    let changed = state(&mut draft);
    let size = |parts: Vec<Vec<u8>>| parts.iter().map(Vec::len).sum::<usize>();
    let encoder = Encoder::new(usize::MAX);
    let ids = first.event_ids();
    let confirmations = size(
        encoder
            .encode_changes(&first, &confirmed, &ids)
            .expect("no limit"),
    );
    let changes = size(
        encoder
            .encode_changes(&confirmed, &changed, &ids)
            .expect("no limit"),
    );
    let whole = size(encoder.encode_state(&changed).expect("no limit"));
    let (words, heads) = (150 * 80 * 3 * 4, 150 * 40);
    println!(
        "150 confirmations: {confirmations} bytes; 150 changed: {changes}; state: {whole}; words + heads: {}",
        words + heads
    );
    assert!(confirmations <= 150 * 12, "{confirmations}");
    assert!(changes <= words + heads, "{changes}");
    assert!(whole <= words + heads, "{whole}");
}

/// Breaks one odds word of a part on purpose: digests tell.
#[test]
fn a_wrong_odds_word_makes_the_digest_differ() {
    let mut here = Draft::default();
    batch(&mut here, 0, 0);
    here.change(Arc::default(), 1);
    let before = state(&mut here);
    batch(&mut here, 1, 0);
    here.change(Arc::default(), 1);
    let after = state(&mut here);
    let mut there = Draft::default();
    batch(&mut there, 0, 0);
    there.change(Arc::default(), 1);
    let [mut part] = <[_; 1]>::try_from(
        Encoder::new(usize::MAX)
            .encode_changes(&before, &after, &after.event_ids())
            .expect("no limit"),
    )
    .expect("one part");
    // The last byte is the end of the last odds difference.
    *part.last_mut().expect("bytes") ^= 2;
    decode(&[part], &mut there)
        .expect("well formed")
        .apply(&mut there);
    assert_eq!(there.change(Arc::default(), 1).event_ids().len(), 50);
    assert_ne!(there.digest(), after.digest);
}

#[test]
fn a_snapshot_larger_than_a_part_is_named() {
    let mut draft = Draft::default();
    batch(&mut draft, 0, 0);
    let state = state(&mut draft);
    let refused = Encoder::new(100)
        .encode_state(&state)
        .expect_err("too large");
    assert_eq!(
        (refused.event_id, refused.snapshot_id, refused.limit),
        (100_000, 1_000_000, 100)
    );
}

/// A short part must not make much: each reference to a large market is charged.
#[test]
fn what_a_short_part_makes_is_limited() {
    let mut draft = Draft::default();
    let mut collector = MarketCollector::default();
    let outcomes = format!(
        "[{}]",
        vec!["{\"name\": \"\", \"odds\": 1.5}"; 60_000].join(",")
    );
    collector.push(
        &mut draft.packer,
        1,
        MarketRow {
            row_id: 1,
            betpawa_market_id: Some("1"),
            betpawa_market_name: Some("1"),
            line: None,
            handicap_type: None,
            handicap_home: None,
            handicap_away: None,
            outcomes: Some(&outcomes),
            market_groups: None,
            unavailable_at: None,
        },
    );
    let packed = collector
        .finish(&mut draft.packer)
        .remove(&1)
        .expect("markets");
    let snapshot = CachedSnapshot {
        snapshot_id: 1,
        event_id: 1,
        bookmaker_id: 1,
        captured_at: Micros(0),
        last_confirmed_at: Micros(0),
        packed,
    };
    draft.set(
        1,
        None,
        BetpawaSnapshots::new(vec![snapshot]),
        Default::default(),
    );
    // Event 1, the snapshot of bookmaker 1, a head of zeros, then copies of the one market.
    let run = [0x3, 0x1];
    let mut part = vec![VERSION, EVENT, 2, NEW_TEMPLATE, 2, 0, 0, 0, 0, 3, 0];
    for _ in 0..1000 {
        part.extend(run);
    }
    let refused = decode(&[part], &mut draft).expect_err("too much");
    assert_eq!(refused.what, "its records make more than a part may");
}
