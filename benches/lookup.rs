//! Look-ups at the real scale, beside their floor: a borrowed `get` from a plain hash map.
//!
//! ```sh
//! cargo bench --bench lookup
//! ```
#![allow(clippy::expect_used)]

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use divan::{Bencher, black_box};
use hashbrown::HashMap;
use oddscache::{MarketInput, OddsCache, OutcomeInput, SnapshotInput, Writer};

const EVENTS: i64 = 1100;
const MARKETS: i64 = 50;

fn main() {
    divan::main();
}

fn snapshot(event_id: i64, bookmaker_id: i64) -> SnapshotInput {
    let time = DateTime::<Utc>::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let outcome = |market: i64, n: i64| OutcomeInput {
        name: format!("outcome {n}"),
        odds: Some(1.0 + ((event_id * 7 + market * 3 + n) % 900) as f64 / 100.0),
        is_active: true,
        extra: serde_json::Map::new(),
    };
    let market = |n: i64| MarketInput {
        betpawa_market_id: (3700 + n).to_string(),
        betpawa_market_name: format!("market {n}"),
        line: (n % 5 == 0).then_some(2.5),
        outcomes: (0..3).map(|outcomes| outcome(n, outcomes)).collect(),
        ..MarketInput::default()
    };
    SnapshotInput {
        snapshot_id: event_id * 10 + bookmaker_id,
        event_id,
        bookmaker_id,
        captured_at: time,
        last_confirmed_at: None,
        markets: (0..MARKETS).map(market).collect(),
    }
}

fn filled() -> (OddsCache, Writer) {
    let (cache, mut writer) = OddsCache::detached();
    for event_id in 1..=EVENTS {
        writer.put_betpawa_snapshot(&snapshot(event_id, 1), None);
        for source in ["sportybet", "bet9ja"] {
            writer.put_competitor_snapshot(source, &snapshot(event_id, 0), None);
        }
    }
    writer.publish();
    (cache, writer)
}

/// Event ids in an order that no cache line likes.
fn ids() -> impl Iterator<Item = i64> {
    (0..).map(|n: i64| (n * 769) % EVENTS + 1)
}

#[divan::bench(sample_count = 200, sample_size = 2000)]
fn floor_plain_map(bencher: Bencher<'_, '_>) {
    let map: HashMap<i64, Box<i64>> = (1..=EVENTS).map(|id| (id, Box::new(id))).collect();
    let mut ids = ids();
    bencher.bench_local(|| {
        map.get(&black_box(ids.next().unwrap_or(1)))
            .map(|event| **event)
    });
}

#[divan::bench(sample_count = 200, sample_size = 2000)]
fn held_view(bencher: Bencher<'_, '_>) {
    let view = filled().0.view();
    let mut ids = ids();
    bencher.bench_local(|| {
        view.get_betpawa_snapshot(black_box(ids.next().unwrap_or(1)))
            .map(|found| found.len())
    });
}

#[divan::bench(sample_count = 200, sample_size = 2000)]
fn through_the_handle(bencher: Bencher<'_, '_>) {
    let (cache, _writer) = filled();
    let mut ids = ids();
    bencher.bench_local(|| {
        cache
            .get_betpawa_snapshot(black_box(ids.next().unwrap_or(1)))
            .map(|found| found.len())
    });
}

#[divan::bench(sample_count = 200, sample_size = 2000)]
fn taking_a_view(bencher: Bencher<'_, '_>) {
    let (cache, _writer) = filled();
    bencher.bench_local(|| black_box(cache.view()).len());
}

#[divan::bench(sample_count = 200, sample_size = 2000)]
fn fifty_events_floor(bencher: Bencher<'_, '_>) {
    let map: HashMap<i64, Box<i64>> = (1..=EVENTS).map(|id| (id, Box::new(id))).collect();
    let wanted: Vec<i64> = ids().take(50).collect();
    bencher.bench_local(|| {
        wanted
            .iter()
            .filter_map(|id| map.get(id))
            .map(|event| **event)
            .sum::<i64>()
    });
}

#[divan::bench(sample_count = 200, sample_size = 2000)]
fn fifty_events_from_a_view(bencher: Bencher<'_, '_>) {
    let view = filled().0.view();
    let wanted: Vec<i64> = ids().take(50).collect();
    bencher.bench_local(|| {
        wanted
            .iter()
            .filter_map(|id| view.event(*id))
            .map(|event| event.event_id())
            .sum::<i64>()
    });
}

#[divan::bench]
fn inline_odds_of_all_events(bencher: Bencher<'_, '_>) {
    let view = filled().0.view();
    bencher.bench_local(|| {
        let mut best: BTreeMap<usize, f64> = BTreeMap::new();
        for event in view.events() {
            for market in event
                .betpawa()
                .iter()
                .flat_map(|(_, snapshot)| snapshot.markets().take(4))
            {
                for (index, outcome) in market.outcomes().enumerate() {
                    let best = best.entry(index).or_default();
                    *best = best.max(outcome.odds().unwrap_or_default());
                }
            }
        }
        best
    });
}
