//! Market rows into bodies, beside a copy of the same bytes. A row comes in borrowed fields, as the driver hands it out.
//!
//! ```sh
//! cargo bench --bench decode
//! ```
//!
//! The rows are those of 1,100 events of three bookmakers with 50 markets each: of real names, one market in four of the
//! event's own players, 263 bytes a row. Times are per row ("item"); `copy` is the floor.
#![allow(clippy::expect_used, dead_code, unreachable_pub, unused_imports)]

// The decoder is none of the library's public names.
#[path = "../src/decode/mod.rs"]
mod decode;
#[path = "../src/model/mod.rs"]
mod model;
#[path = "../src/pack.rs"]
mod pack;

use std::hint::black_box;

use divan::{Bencher, counter::ItemsCount};
use pack::{Bodies, MarketRow, Packer};

const EVENTS: i64 = 1100;
const BOOKMAKERS: i64 = 3;
const MARKETS: i64 = 50;
/// As many as the cache reads at a time.
const SNAPSHOTS_AT_A_TIME: usize = 500;

fn main() {
    divan::main();
}

/// A row's bytes, and where its texts begin and end.
struct Row {
    snapshot_id: i64,
    row_id: i64,
    bytes: String,
    ends: [usize; 4],
    line: Option<f64>,
    groups: bool,
}

impl Row {
    fn market(&self) -> MarketRow<'_> {
        let [id, name, outcomes, groups] = self.ends;
        MarketRow {
            row_id: self.row_id,
            betpawa_market_id: Some(&self.bytes[..id]),
            betpawa_market_name: Some(&self.bytes[id..name]),
            line: self.line,
            handicap_type: None,
            handicap_home: None,
            handicap_away: None,
            outcomes: Some(&self.bytes[name..outcomes]),
            market_groups: self.groups.then(|| &self.bytes[outcomes..groups]),
            unavailable_at: None,
        }
    }
}

/// A number that depends on nothing else; not random, but without a pattern that a predictor would find.
fn mixed(seed: i64) -> i64 {
    let mixed = seed.wrapping_mul(-7_046_029_254_386_353_131);
    ((mixed ^ (mixed >> 29)).wrapping_mul(-4_658_895_280_553_007_687) >> 33).abs()
}

const FAMILY_NAMES: [&str; 12] = [
    "Mensah", "Okafor", "Silva", "Diallo", "Kamara", "Banda", "Phiri", "Otieno", "Traore", "Rossi",
    "O'Brien", "Ndiaye",
];

/// `round`: of a later scrape the odds differ, and nothing else.
fn row(event: i64, bookmaker: i64, market: i64, round: i64, lineup: i64) -> Row {
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
                let player = mixed((event * 64 + market) * 8 + n + lineup * 1_000_003);
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
            // As numeric has it: 1.5 and 2 beside 1.85.
            let odds = odds as f64 / 100.0;
            format!(r#"{{"name": "{name}", "odds": {odds}, "is_active": {is_active}}}"#)
        })
        .collect();
    let id = (3700 + market * 13).to_string();
    let outcomes = format!("[{}]", outcomes.join(", "));
    let ends = [
        id.len(),
        id.len() + name.len(),
        id.len() + name.len() + outcomes.len(),
        id.len() + name.len() + outcomes.len() + groups.len(),
    ];
    Row {
        snapshot_id: (round * EVENTS + event) * 4 + bookmaker,
        row_id: ((round * EVENTS + event) * 4 + bookmaker) * 64 + market,
        bytes: id + name + &outcomes + groups,
        ends,
        line: (market % 3 == 0).then_some(market as f64 / 2.0),
        // A competitor lists some markets under no group, others of them at each event.
        groups: bookmaker == 0 || mixed(event * 4096 + bookmaker * 64 + market) % 10 < 7,
    }
}

/// All rows of a scrape, each event and bookmaker leaving out a market in fifty.
fn rows(round: i64, lineup: i64) -> Vec<Row> {
    let snapshots =
        (0..EVENTS).flat_map(|event| (0..BOOKMAKERS).map(move |bookmaker| (event, bookmaker)));
    let rows: Vec<Row> = snapshots
        .flat_map(|(event, bookmaker)| (0..MARKETS).map(move |market| (event, bookmaker, market)))
        .filter(|(event, bookmaker, market)| mixed((event * 4 + bookmaker) * 64 + market) % 50 != 0)
        .map(|(event, bookmaker, market)| row(event, bookmaker, market, round, lineup))
        .collect();
    rows
}

fn bytes(rows: &[Row]) -> usize {
    rows.iter().map(|row| row.bytes.len() + 32).sum()
}

fn decode(packer: &mut Packer, rows: &[Row]) -> Vec<std::sync::Arc<model::Body>> {
    let mut all = Vec::new();
    for rows in rows.chunks(SNAPSHOTS_AT_A_TIME * MARKETS as usize) {
        let mut bodies = Bodies::new(packer);
        for row in rows {
            assert!(
                bodies
                    .push(row.snapshot_id, black_box(row).market())
                    .is_none()
            );
        }
        all.extend(bodies.finish().into_values());
    }
    all
}

/// The floor: the rows' bytes once through memory.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn copy(bencher: Bencher<'_, '_>) {
    let rows = rows(0, 0);
    let mut to = vec![0u8; bytes(&rows)];
    println!("{} bytes a row", bytes(&rows) / rows.len());
    bencher
        .counter(ItemsCount::new(rows.len()))
        .bench_local(|| {
            let mut at = 0;
            for row in &rows {
                let row = black_box(row);
                let end = at + row.bytes.len();
                to[at..end].copy_from_slice(row.bytes.as_bytes());
                // The numbers: row id, snapshot id, line and the fields' lengths.
                to[end..end + 32].copy_from_slice(&[7; 32]);
                at = end + 32;
            }
            black_box(&to);
        });
}

/// A warmup: nothing is known of any row.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn fresh(bencher: Bencher<'_, '_>) {
    let rows = rows(0, 0);
    bencher
        .counter(ItemsCount::new(rows.len()))
        .with_inputs(Packer::default)
        .bench_local_values(|mut packer| (decode(&mut packer, &rows), packer));
}

/// A scrape: all odds are new, the markets are those of the snapshots before.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn known(bencher: Bencher<'_, '_>) {
    let mut packer = Packer::default();
    let mut held = decode(&mut packer, &rows(0, 0));
    let next = rows(1, 0);
    bencher
        .counter(ItemsCount::new(next.len()))
        .bench_local(|| {
            let new = decode(&mut packer, &next);
            std::mem::replace(&mut held, new)
        });
}

/// The same, with the rows of all snapshots in one another's way.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn known_interleaved(bencher: Bencher<'_, '_>) {
    let mut packer = Packer::default();
    let interleave = |rows: &mut Vec<Row>| {
        for some in rows.chunks_mut(SNAPSHOTS_AT_A_TIME * MARKETS as usize) {
            some.sort_by_key(|row| (row.row_id % 64, row.snapshot_id));
        }
    };
    let (mut first, mut next) = (rows(0, 0), rows(1, 0));
    interleave(&mut first);
    interleave(&mut next);
    let mut held = decode(&mut packer, &first);
    bencher
        .counter(ItemsCount::new(next.len()))
        .bench_local(|| {
            let new = decode(&mut packer, &next);
            std::mem::replace(&mut held, new)
        });
}
