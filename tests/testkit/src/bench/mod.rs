//! What the benchmarks share: realistic data, and timings of candidates in turn.

pub mod figures;
pub mod server;

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use oddscache::{MarketInput, OddsCache, OutcomeInput, SnapshotInput, Writer};

pub const REAL: usize = 1_100;
pub const SOURCES: [&str; 2] = ["sportybet", "bet9ja"];
/// The markets of the event list. Each snapshot begins with these four.
pub const INLINE: [&str; 4] = ["3743", "5000", "3795", "4693"];

/// Event ids with gaps. Of five ids of the sequence, about three belong to upcoming events.
pub fn event_ids(events: usize) -> Vec<i64> {
    let all = (0..).filter(|n: &u64| mix(*n) % 5 < 3);
    all.map(|n| n as i64 + 20_000).take(events).collect()
}

/// A pseudorandom number (splitmix64).
pub fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

/// The ids in a pseudorandom order.
pub fn shuffled(ids: &[i64]) -> Vec<i64> {
    let mut order: Vec<(u64, i64)> = ids.iter().map(|id| (mix(*id as u64), *id)).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, id)| id).collect()
}

pub fn time() -> DateTime<Utc> {
    DateTime::<Utc>::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

pub fn market(event_id: i64, bookmaker: i64, n: i64) -> MarketInput {
    let outcome = |of: i64| {
        let number = mix((event_id * 1000 + bookmaker * 300 + n * 3 + of) as u64);
        let odds = 1.0 + (number % 9000) as f64 / 1000.0;
        OutcomeInput::new(["1", "X", "2"][of as usize], odds)
    };
    MarketInput {
        betpawa_market_id: match INLINE.get(n as usize) {
            Some(id) => (*id).to_owned(),
            None => (6000 + n).to_string(),
        },
        betpawa_market_name: format!("Market {n} | Full Time"),
        line: (n == 1 || n > 3 && n % 3 == 0).then_some(2.5),
        outcomes: (0..3).map(outcome).collect(),
        ..MarketInput::default()
    }
}

/// A snapshot of an event. A later `version` has another id.
pub fn snapshot(event_id: i64, bookmaker: i64, markets: i64, version: i64) -> SnapshotInput {
    SnapshotInput {
        snapshot_id: (version * 10_000_000 + event_id) * 3 + bookmaker,
        event_id,
        bookmaker_id: i64::from(bookmaker == 0),
        captured_at: time(),
        last_confirmed_at: None,
        markets: (0..markets)
            .map(|n| market(event_id, bookmaker, n))
            .collect(),
    }
}

/// Puts an event's three snapshots.
pub fn put(writer: &mut Writer, event_id: i64, markets: i64, version: i64) {
    writer.put_betpawa_snapshot(&snapshot(event_id, 0, markets, version), Some(time()));
    for (bookmaker, source) in (1..).zip(SOURCES) {
        let snapshot = snapshot(event_id, bookmaker, markets, version);
        writer.put_competitor_snapshot(source, &snapshot, Some(time()));
    }
}

pub fn filled(ids: &[i64], markets: i64) -> (OddsCache, Writer) {
    let (cache, mut writer) = OddsCache::detached();
    for event_id in ids {
        put(&mut writer, *event_id, markets, 1);
    }
    writer.publish();
    (cache, writer)
}

pub fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}

pub fn quantile(values: &mut [f64], at: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let value = values.get((last as f64 * at).round() as usize);
    value.copied().unwrap_or(f64::NAN)
}

pub type Candidate<'a> = (&'a str, Box<dyn FnMut() -> u64 + 'a>);

/// Measures all candidates in each round, so that other work of the machine affects them alike. Returns for each the
/// nanoseconds per unit, as the median of the rounds. A candidate returns a number that depends on its work. So the
/// compiler cannot leave the work out.
pub fn side_by_side(rounds: usize, units: usize, candidates: &mut [Candidate<'_>]) -> Vec<f64> {
    let mut times = vec![Vec::with_capacity(rounds); candidates.len()];
    for round in 0..=rounds {
        for ((_, candidate), times) in candidates.iter_mut().zip(&mut times) {
            let begun = Instant::now();
            std::hint::black_box(candidate());
            let took = begun.elapsed().as_nanos() as f64 / units as f64;
            // The first round warms up.
            if round > 0 {
                times.push(took);
            }
        }
    }
    times.iter_mut().map(|times| median(times)).collect()
}

pub fn line(what: &str, value: f64, unit: &str, ratio: f64, reach: &str) {
    println!("{what:<58}{value:>10.1} {unit:<3}{ratio:>8.2}x   {reach}");
}
