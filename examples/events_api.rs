//! An API that embeds the cache: the event list with inline odds, without a query.
//!
//! ```sh
//! DATABASE_URL=postgres://oddscache@localhost/odds cargo run --release --example events_api
//! curl 'http://127.0.0.1:8080/api/events'
//! ```
//!
//! `cargo run --release -- demo` starts a database to try it on, and prints its `DATABASE_URL`.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use oddscache::{Config, EventList, OddsCache};

/// The markets shown in the list; 5000 (over/under) only with the line 2.5.
const INLINE_MARKETS: [(&str, Option<f64>); 4] = [
    ("3743", None),
    ("5000", Some(2.5)),
    ("3795", None),
    ("4693", None),
];

#[derive(Clone)]
struct Api {
    cache: OddsCache,
    /// Held for as long as it takes to copy a list and to write what changed: less than a millisecond for a thousand
    /// events. Where nothing changed, the same list goes to all.
    list: Arc<Mutex<EventList>>,
}

/// All events come from one view, so the list is one committed state of the database.
async fn events(State(api): State<Api>) -> Result<impl IntoResponse, (StatusCode, String)> {
    if !api.cache.is_warm() {
        return Err((
            StatusCode::SERVICE_UNAVAILABLE,
            api.cache.status().to_string(),
        ));
    }
    let mut list = api.list.lock().unwrap_or_else(PoisonError::into_inner);
    // Once the lock is there: a view from before it might be older than the list of whoever held it.
    let json = list.render(&api.cache.view());
    Ok(([(CONTENT_TYPE, "application/json")], json))
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

    let api = Api {
        cache,
        list: Arc::new(Mutex::new(EventList::new(INLINE_MARKETS))),
    };
    let router = Router::new()
        .route("/api/events", get(events))
        .with_state(api);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    tokio::select! {
        served = axum::serve(listener, router) => served?,
        // Only before the first warmup can it end by itself.
        followed = follower => followed??,
    }
    Ok(())
}
