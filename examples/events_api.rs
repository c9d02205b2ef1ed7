//! An API that embeds the cache: the event list with inline odds, without a query.
//!
//! ```sh
//! DATABASE_URL=postgres://oddscache@localhost/odds cargo run --release --example events_api
//! curl 'http://127.0.0.1:8080/api/events'
//! ```
//!
//! `cargo run --release -- demo` starts a database to try it on, and prints its `DATABASE_URL`.

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use chrono::{DateTime, Utc};
use oddscache::{CachedEvent, CachedMarket, CachedSnapshot, Config, OddsCache};
use serde::Serialize;

/// The markets shown in the list; 5000 (over/under) only with the line 2.5.
const INLINE_MARKETS: [(&str, Option<f64>); 4] = [
    ("3743", None),
    ("5000", Some(2.5)),
    ("3795", None),
    ("4693", None),
];

#[derive(Serialize)]
struct Event {
    event_id: i64,
    kickoff: Option<DateTime<Utc>>,
    odds: Vec<Offer>,
}

/// What one bookmaker offers.
#[derive(Serialize)]
struct Offer {
    /// "betpawa", or the competitor's source.
    bookmaker: String,
    last_confirmed_at: DateTime<Utc>,
    markets: Vec<Market>,
}

#[derive(Serialize)]
struct Market {
    betpawa_market_id: String,
    betpawa_market_name: String,
    line: Option<f64>,
    /// The bookmaker's share, in percent: `(sum(1 / odds) - 1) * 100`.
    margin: Option<f64>,
    outcomes: Vec<Outcome>,
    unavailable_at: Option<DateTime<Utc>>,
}

#[derive(Serialize)]
struct Outcome {
    name: String,
    odds: Option<f64>,
    is_active: bool,
}

impl Event {
    fn new(event: &CachedEvent) -> Event {
        let own = event
            .betpawa()
            .iter()
            .map(|(_, snapshot)| Offer::new("betpawa", snapshot));
        let competitors = event
            .competitors()
            .iter()
            .map(|(source, snapshot)| Offer::new(source.as_str(), snapshot));
        Event {
            event_id: event.event_id(),
            kickoff: event.kickoff(),
            odds: own.chain(competitors).collect(),
        }
    }
}

impl Offer {
    fn new(bookmaker: &str, snapshot: &CachedSnapshot) -> Offer {
        Offer {
            bookmaker: bookmaker.to_owned(),
            last_confirmed_at: snapshot.last_confirmed_at(),
            markets: snapshot
                .markets()
                .filter(is_inline)
                .map(Market::new)
                .collect(),
        }
    }
}

fn is_inline(market: &CachedMarket<'_>) -> bool {
    let wanted = |(id, line): &(&str, Option<f64>)| {
        market.betpawa_market_id() == *id && (line.is_none() || market.line() == *line)
    };
    INLINE_MARKETS.iter().any(wanted)
}

impl Market {
    fn new(market: CachedMarket<'_>) -> Market {
        Market {
            betpawa_market_id: market.betpawa_market_id().to_owned(),
            betpawa_market_name: market.betpawa_market_name().to_owned(),
            line: market.line(),
            margin: margin(market),
            outcomes: market
                .outcomes()
                .map(|outcome| Outcome {
                    name: outcome.name().to_owned(),
                    odds: outcome.odds(),
                    is_active: outcome.is_active(),
                })
                .collect(),
            unavailable_at: market.unavailable_at(),
        }
    }
}

/// Rounded to two digits; `None` where an outcome has no odds to divide by, or there is no outcome.
fn margin(market: CachedMarket<'_>) -> Option<f64> {
    let mut shares = 0.0;
    for outcome in market.outcomes() {
        shares += 1.0 / outcome.odds().filter(|odds| *odds > 0.0)?;
    }
    (market.outcomes().len() > 0).then(|| ((shares - 1.0) * 10_000.0).round() / 100.0)
}

/// All events come from one view, so the list is one committed state of the database.
async fn events(State(cache): State<OddsCache>) -> Result<Json<Vec<Event>>, (StatusCode, String)> {
    if !cache.is_warm() {
        return Err((StatusCode::SERVICE_UNAVAILABLE, cache.status().to_string()));
    }
    let view = cache.view();
    let mut events: Vec<Event> = view.events().map(Event::new).collect();
    events.sort_by_key(|event| (event.kickoff, event.event_id));
    Ok(Json(events))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("DATABASE_URL")
        .map_err(|_| "set DATABASE_URL to the application's database")?;
    let (cache, follower) = OddsCache::connect(Config::new(&url)?);
    let follower = tokio::spawn(follower.run());
    cache.ready().await?;
    println!(
        "{} events; http://127.0.0.1:8080/api/events",
        cache.view().len()
    );

    let router = Router::new()
        .route("/api/events", get(events))
        .with_state(cache);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    tokio::select! {
        served = axum::serve(listener, router) => served?,
        // Only before the first warmup can it end by itself.
        followed = follower => followed??,
    }
    Ok(())
}
