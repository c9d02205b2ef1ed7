//! Acts on every change: prints each price when it moves.
//!
//! ```sh
//! DATABASE_URL=postgres://oddscache@localhost/odds cargo run --release --example follow_changes
//! ```
//!
//! `cargo run --release -- demo` starts a database in which odds move, and prints its `DATABASE_URL`.

use std::{
    collections::{BTreeSet, HashMap},
    env,
    sync::Arc,
};

use oddscache::{CachedEvent, CachedMarket, CachedSnapshot, Config, OddsCache};

/// The version of each event that this program last acted on, by event id. The latest view may be ahead of the change
/// at hand. Comparing with the version seen last prints each move once. An entry is a reference, not a copy.
type Seen = HashMap<i64, Arc<CachedEvent>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url =
        env::var("DATABASE_URL").map_err(|_| "set DATABASE_URL to the application's database")?;
    let (cache, follower) = OddsCache::connect(Config::new(&url)?);
    let follower = tokio::spawn(follower.run());
    cache.ready().await?;

    // Subscribe before reading the events. A state published in between is then read here and also announced as a
    // change, so nothing is missed.
    let mut changes = cache.changes();
    let held = cache.event_ids().into_iter();
    let mut seen: Seen = held.filter_map(|id| Some((id, cache.event(id)?))).collect();
    println!("following {} events", seen.len());

    while let Some(change) = changes.next().await {
        let differ = match change {
            Ok(change) => {
                let cut = &change.cut;
                println!("at {}, epoch {}", cut.as_of.to_rfc3339(), change.epoch);
                change.event_ids()
            }
            // A subscriber that falls more than 256 publications behind gets an error with the number that it missed.
            // Compare all events then.
            Err(lagged) => {
                println!("{lagged}");
                let all: BTreeSet<i64> = seen.keys().copied().chain(cache.event_ids()).collect();
                all.into_iter().collect()
            }
        };
        for event_id in differ {
            let now = cache.event(event_id);
            show(event_id, seen.get(&event_id).map(|e| &**e), now.as_deref());
            match now {
                Some(now) => seen.insert(event_id, now),
                None => seen.remove(&event_id),
            };
        }
    }
    // The stream ends when the follower does.
    follower.await??;
    Ok(())
}

fn show(event_id: i64, before: Option<&CachedEvent>, now: Option<&CachedEvent>) {
    let (before, now) = match (before, now) {
        (Some(before), Some(now)) => (before, now),
        (None, Some(_)) => return println!("  event {event_id}: new"),
        (Some(_), None) => return println!("  event {event_id}: gone"),
        // The event came and went between two looks.
        (None, None) => return,
    };
    for (bookmaker_id, snapshot) in now.betpawa().iter() {
        let name = format!("bookmaker {bookmaker_id}");
        show_moves(
            event_id,
            &name,
            before.betpawa().get(bookmaker_id),
            snapshot,
        );
    }
    for (source, snapshot) in now.competitors().iter() {
        let before = before.competitors().get(source.as_str());
        show_moves(event_id, source.as_str(), before, snapshot);
    }
}

/// Prints every outcome whose odds moved. A new market has no earlier odds, so it is no move.
fn show_moves(event_id: i64, who: &str, before: Option<&CachedSnapshot>, now: &CachedSnapshot) {
    for market in now.markets() {
        let mut old = before.iter().flat_map(|before| before.markets());
        let Some(old) = old.find(|old| key(old) == key(&market)) else {
            continue;
        };
        let moved = market.outcomes().filter_map(|new| {
            let old = old.outcomes().find(|old| old.name() == new.name())?;
            let (old, odds) = (old.odds()?, new.odds()?);
            (old != odds).then_some((new.name(), old, odds))
        });
        for (outcome, old, new) in moved {
            let name = label(&market);
            println!("  event {event_id}, {who}, {name}, {outcome}: {old} -> {new}");
        }
    }
}

/// Identifies a market within its snapshot. The market id and the line are not enough: markets with a handicap share
/// their id and have no line.
fn key<'a>(market: &CachedMarket<'a>) -> (&'a str, Option<f64>, Option<f64>, Option<f64>) {
    let handicap = (market.handicap_home(), market.handicap_away());
    (
        market.betpawa_market_id(),
        market.line(),
        handicap.0,
        handicap.1,
    )
}

fn label(market: &CachedMarket<'_>) -> String {
    let name = market.betpawa_market_name();
    match market.line().or(market.handicap_home()) {
        Some(number) => format!("{name} {number}"),
        None => name.to_owned(),
    }
}
