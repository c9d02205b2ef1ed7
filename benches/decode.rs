//! Decoding market rows into packed markets, compared with copying the same bytes. A row has borrowed fields, as the
//! driver returns it.
//!
//! ```sh
//! cargo bench --bench decode
//! ```
//!
//! The rows belong to 1,100 events of three bookmakers with 50 markets each. They have realistic names, and in one
//! market of four the outcomes are players of the event. A row has 268 bytes on average. Times are per row ("item").
//! `copy` is the floor.
#![allow(clippy::expect_used, dead_code, unreachable_pub, unused_imports)]

// The decoder is private, so the benchmark compiles its sources.
#[path = "../src/decode/mod.rs"]
mod decode;
#[path = "../src/model/mod.rs"]
mod model;

use std::{hint::black_box, sync::Arc};

use decode::packer::{MarketCollector, MarketRow, Packer};
use divan::{Bencher, counter::ItemsCount};
use model::PackedMarkets;

const EVENTS: i64 = 1100;
const BOOKMAKERS: i64 = 3;
const MARKETS: i64 = 50;
/// About as many rows as the cache reads at a time.
const ROWS_AT_A_TIME: usize = 500 * MARKETS as usize;

fn main() {
    divan::main();
}

/// Rows with their bytes one after the other, as a socket delivers them.
struct Rows {
    bytes: String,
    rows: Vec<Row>,
}

/// A row: its numbers, and where its texts lie in `Rows::bytes`. Each text begins where the one before ends.
struct Row {
    snapshot_id: i64,
    row_id: i64,
    start: usize,
    ends: [usize; 5],
    line: Option<f64>,
    groups: bool,
}

impl Row {
    fn market<'a>(&self, bytes: &'a str) -> MarketRow<'a> {
        let [id, name, outcomes, groups, _] = self.ends;
        MarketRow {
            row_id: self.row_id,
            betpawa_market_id: Some(&bytes[self.start..id]),
            betpawa_market_name: Some(&bytes[id..name]),
            line: self.line,
            handicap_type: None,
            handicap_home: None,
            handicap_away: None,
            outcomes: Some(&bytes[name..outcomes]),
            market_groups: self.groups.then(|| &bytes[outcomes..groups]),
            unavailable_at: None,
        }
    }

    fn bytes<'a>(&self, bytes: &'a str) -> &'a [u8] {
        &bytes.as_bytes()[self.start..self.ends[4]]
    }
}

/// Stands for the bytes of a row that are not text: ids, the line, and the length of each field.
const NUMBERS: &str = "----------------------------------------------------------------";

/// A pseudorandom number for a seed. Successive seeds give no pattern that a branch predictor could learn.
fn mixed(seed: i64) -> i64 {
    let mixed = seed.wrapping_mul(-7_046_029_254_386_353_131);
    ((mixed ^ (mixed >> 29)).wrapping_mul(-4_658_895_280_553_007_687) >> 33).abs()
}

const FAMILY_NAMES: [&str; 12] = [
    "Mensah", "Okafor", "Silva", "Diallo", "Kamara", "Banda", "Phiri", "Otieno", "Traore", "Rossi",
    "O'Brien", "Ndiaye",
];

/// Appends a row's bytes and returns the row. `round` counts scrapes: only ids and odds differ between two rounds.
fn row(bytes: &mut String, event: i64, bookmaker: i64, market: i64, round: i64) -> Row {
    let players = market == 5 || market >= 39;
    let (name, groups) = match (players, market % 3) {
        (true, _) => (
            "Anytime Goalscorer - Full Time",
            r#"["Players", "Specials"]"#,
        ),
        (false, 0) => ("Over/Under - Full Time", r#"["Main", "Goals", "Popular"]"#),
        (false, 1) => (
            "Asian Handicap Corners - First Half",
            r#"["Handicap", "Corners"]"#,
        ),
        (false, _) => ("1X2 - Full Time", r#"["Main", "Popular"]"#),
    };
    let outcomes: Vec<String> = (0..2 + (market % 3 != 0) as i64 + (market % 10 == 7) as i64 * 2)
        .map(|n| {
            let seed = ((event * 4 + bookmaker) * 64 + market) * 8 + n;
            let name = if players {
                let player = mixed((event * 64 + market) * 8 + n);
                let initial = char::from(b'A' + (player % 26) as u8);
                let family = FAMILY_NAMES[(player / 26 % 12) as usize];
                format!("{initial}. {family}")
            } else {
                let set: [&str; 5] = match market % 3 {
                    0 => ["Over", "Under", "Exactly", "Odd", "Even"],
                    1 => ["Home (-0.5)", "Away (+0.5)", "Neither", "None", "Both"],
                    _ => ["1", "X", "2", "1X", "X2"],
                };
                set[n as usize].to_owned()
            };
            let odds = 101 + mixed(seed * 16 + round) % (if n == 1 { 1200 } else { 300 });
            let is_active = mixed(seed + round) % 50 != 0;
            // Without trailing zeros (1.85, 1.5, 2), as a numeric column returns them.
            let odds = odds as f64 / 100.0;
            format!(r#"{{"name": "{name}", "odds": {odds}, "is_active": {is_active}}}"#)
        })
        .collect();
    let id = (3700 + market * 13).to_string();
    let outcomes = format!("[{}]", outcomes.join(", "));
    let start = bytes.len();
    let ends = [&*id, name, &*outcomes, groups, NUMBERS].map(|text| {
        bytes.push_str(text);
        bytes.len()
    });
    Row {
        snapshot_id: (round * EVENTS + event) * 4 + bookmaker,
        row_id: ((round * EVENTS + event) * 4 + bookmaker) * 64 + market,
        start,
        ends,
        line: (market % 3 == 0).then_some(market as f64 / 2.0),
        // A competitor lists some markets without a group. Which ones differs from event to event.
        groups: bookmaker == 0 || mixed(event * 4096 + bookmaker * 64 + market) % 10 < 7,
    }
}

/// All rows of a scrape. Each event and bookmaker lacks about one market of fifty. `interleaved` mixes the rows of the
/// snapshots that are read together.
fn rows(round: i64, interleaved: bool) -> Rows {
    let events =
        (0..EVENTS).flat_map(|event| (0..BOOKMAKERS).map(move |bookmaker| (event, bookmaker)));
    let mut all: Vec<(i64, i64, i64)> = events
        .flat_map(|(event, bookmaker)| (0..MARKETS).map(move |market| (event, bookmaker, market)))
        .filter(|(event, bookmaker, market)| mixed((event * 4 + bookmaker) * 64 + market) % 50 != 0)
        .collect();
    if interleaved {
        for some in all.chunks_mut(ROWS_AT_A_TIME) {
            some.sort_by_key(|(event, bookmaker, market)| (*market, *event, *bookmaker));
        }
    }
    let mut bytes = String::new();
    let rows = all
        .into_iter()
        .map(|(event, bookmaker, market)| row(&mut bytes, event, bookmaker, market, round))
        .collect();
    Rows { bytes, rows }
}

fn decode(packer: &mut Packer, rows: &Rows) -> Vec<Arc<PackedMarkets>> {
    let mut all = Vec::new();
    for some in rows.rows.chunks(ROWS_AT_A_TIME) {
        let mut packed_markets = MarketCollector::default();
        for row in some {
            let market = black_box(row).market(&rows.bytes);
            let problem = packed_markets.push(packer, row.snapshot_id, market);
            assert!(problem.is_none(), "a row is malformed");
        }
        all.extend(packed_markets.finish(packer).into_values());
    }
    all
}

/// The floor: copies the bytes of each row.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn copy(bencher: Bencher<'_, '_>) {
    let rows = rows(0, false);
    let mut to = vec![0u8; rows.bytes.len()];
    println!("{} bytes a row", rows.bytes.len() / rows.rows.len());
    bencher
        .counter(ItemsCount::new(rows.rows.len()))
        .bench_local(|| {
            for row in &rows.rows {
                let row = black_box(row);
                to[row.start..row.ends[4]].copy_from_slice(row.bytes(&rows.bytes));
            }
            black_box(&to);
        });
}

/// A warmup: the packer has seen no row before.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn fresh(bencher: Bencher<'_, '_>) {
    let rows = rows(0, false);
    bencher
        .counter(ItemsCount::new(rows.rows.len()))
        .with_inputs(Packer::default)
        .bench_local_values(|mut packer| (decode(&mut packer, &rows), packer));
}

/// A scrape: all odds are new, but the packer knows the markets from the snapshots before.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn known(bencher: Bencher<'_, '_>) {
    scrape(bencher, false);
}

/// The same with the rows of different snapshots interleaved.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn known_interleaved(bencher: Bencher<'_, '_>) {
    scrape(bencher, true);
}

fn scrape(bencher: Bencher<'_, '_>, interleaved: bool) {
    let mut packer = Packer::default();
    let mut held = decode(&mut packer, &rows(0, interleaved));
    let next = rows(1, interleaved);
    bencher
        .counter(ItemsCount::new(next.rows.len()))
        .bench_local(|| {
            let new = decode(&mut packer, &next);
            std::mem::replace(&mut held, new)
        });
}
