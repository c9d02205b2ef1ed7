//! Acts on every change: prints each price that moves, as it moves.
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

/// What was acted on last, by event id. Kept by whoever acts: the latest view may be ahead of the change at hand, and
/// what is ahead comes as a change of its own. An event costs a reference here, no copy.
type Seen = HashMap<i64, Arc<CachedEvent>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url =
        env::var("DATABASE_URL").map_err(|_| "set DATABASE_URL to the application's database")?;
    let (cache, follower) = OddsCache::connect(Config::new(&url)?);
    let follower = tokio::spawn(follower.run());
    cache.ready().await?;

    // First subscribe, then look: what is published in between is seen, and comes as a change as well.
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
            // Never silence: too slow for 256 publications in a row, it is told how many it missed, and looks at all.
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
        // Came and went.
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

/// Prints every outcome whose odds are not what they were. Those of a market that is new are no move.
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

/// What tells a market from the others of its snapshot: those with a handicap share their id, and have no line.
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
