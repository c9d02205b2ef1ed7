//! A cache that the process itself feeds. It needs no database, no network and no async runtime. Tests of code that
//! reads from a cache can do the same.
//!
//! ```sh
//! cargo run --example without_postgres
//! ```

use std::{error::Error, thread};

use chrono::{DateTime, TimeDelta, Utc};
use oddscache::{OddsCache, SnapshotInput, State};

/// Snapshots as a message queue might deliver them. `SnapshotInput` reads the JSON that the cache itself writes.
const FIRST: [&str; 2] = [
    r#"{"snapshot_id": 1, "event_id": 7, "bookmaker_id": 1, "captured_at": "2030-01-01T12:00:00Z", "markets": [
        {"betpawa_market_id": "3743", "betpawa_market_name": "1X2", "outcomes": [
            {"name": "1", "odds": 2.10}, {"name": "X", "odds": 3.40}, {"name": "2", "odds": 3.65}]}]}"#,
    r#"{"snapshot_id": 2, "event_id": 7, "bookmaker_id": 2, "captured_at": "2030-01-01T12:00:01Z", "markets": [
        {"betpawa_market_id": "3743", "betpawa_market_name": "1X2", "outcomes": [
            {"name": "1", "odds": 2.05}, {"name": "X", "odds": 3.50}, {"name": "2", "odds": 3.70}]}]}"#,
];
const LATER: &str = r#"
    {"snapshot_id": 3, "event_id": 7, "bookmaker_id": 1, "captured_at": "2030-01-01T12:05:00Z", "markets": [
        {"betpawa_market_id": "3743", "betpawa_market_name": "1X2", "outcomes": [
            {"name": "1", "odds": 2.25}, {"name": "X", "odds": 3.30}, {"name": "2", "odds": 3.20}]}]}"#;

/// For each outcome of a market without a line: its name, the best price, and the bookmaker that offers it.
fn best(state: &State, event_id: i64, betpawa_market_id: &str) -> Vec<(String, f64, i64)> {
    let mut best: Vec<(String, f64, i64)> = Vec::new();
    for (bookmaker_id, snapshot) in state
        .event(event_id)
        .iter()
        .flat_map(|e| e.betpawa().iter())
    {
        let market = snapshot.market(betpawa_market_id, None);
        for outcome in market.iter().flat_map(|market| market.outcomes()) {
            let Some(odds) = outcome.odds().filter(|_| outcome.is_active()) else {
                continue;
            };
            match best.iter_mut().find(|(name, ..)| name == outcome.name()) {
                Some(found) if found.1 < odds => (found.1, found.2) = (odds, bookmaker_id),
                Some(_) => {}
                None => best.push((outcome.name().to_owned(), odds, bookmaker_id)),
            }
        }
    }
    best
}

fn main() -> Result<(), Box<dyn Error>> {
    let (cache, mut writer) = OddsCache::detached();
    let kickoff: DateTime<Utc> = "2030-01-01T18:00:00Z".parse()?;

    for json in FIRST {
        let snapshot: SnapshotInput = serde_json::from_str(json)?;
        writer.put_betpawa_snapshot(&snapshot, Some(kickoff));
    }
    println!("put, but not published: {} events", cache.view().len());
    writer.publish();
    println!("published: {} event", cache.view().len());

    // Any thread can have its own clone of the handle. A lookup takes no lock and never waits.
    let elsewhere = cache.clone();
    let found = thread::spawn(move || elsewhere.read(|state| best(state, 7, "3743")));
    println!(
        "best: {:?}",
        found.join().map_err(|_| "the reader panicked")?
    );

    // A view never changes while a reader holds it. The next view has the new odds.
    let held = cache.view();
    writer.put_betpawa_snapshot(&serde_json::from_str(LATER)?, None);
    writer.publish();
    println!("held: {:?}", best(&held, 7, "3743"));
    println!("latest: {:?}", best(&cache.view(), 7, "3743"));

    let evicted = writer.evict_expired(kickoff + TimeDelta::hours(2));
    writer.publish();
    println!("evicted: {evicted} event, {} left", cache.view().len());
    Ok(())
}
