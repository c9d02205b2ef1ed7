//! An API that embeds the cache. It serves the event list with inline odds, and whole events, without a query.
//!
//! ```sh
//! DATABASE_URL=postgres://oddscache@localhost/odds cargo run --release --example embed_in_axum
//! curl 'http://127.0.0.1:8080/api/events'         # all events by kickoff, with a few markets each
//! curl 'http://127.0.0.1:8080/api/events/101'     # one event with all its markets; 503 if older than two seconds
//! curl 'http://127.0.0.1:8080/readyz'             # 200 once the cache is warm
//! ```
//!
//! `cargo run --release -- demo` starts a database to try it on, and prints its `DATABASE_URL`. Set `LISTEN` to listen
//! on another address. Port 0 takes any free port.

use std::{
    env,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use oddscache::{Config, EventList, OddsCache};

/// The markets in the list. Of 5000 (over/under) it shows only the line 2.5.
const INLINE_MARKETS: [(&str, Option<f64>); 4] = [
    ("3743", None),
    ("5000", Some(2.5)),
    ("3795", None),
    ("4693", None),
];

/// The API refuses to serve an event when the view is older than this. A healthy cache is about a second old at most.
const MAX_AGE: Duration = Duration::from_secs(2);

/// The shared state. Axum clones it for every request.
#[derive(Clone)]
struct Api {
    cache: OddsCache,
    /// A request holds the lock while it copies the last list and writes the events that changed. That takes about a
    /// millisecond for a thousand events, and about ten for the first list. If nothing changed, all requests share one
    /// list.
    list: Arc<Mutex<EventList>>,
}

/// All events come from one view, so the list is one committed state of the database.
async fn events(State(api): State<Api>) -> Result<impl IntoResponse, Unavailable> {
    if !api.cache.is_warm() {
        return Err(Unavailable(api.cache.status().to_string()));
    }
    let mut list = api.list.lock().unwrap_or_else(PoisonError::into_inner);
    // Take the view after the lock. A view taken before it could be older than the list that the last request rendered.
    let json = list.render(&api.cache.view());
    Ok(([(CONTENT_TYPE, "application/json")], json))
}

/// Never serves old odds silently. If the cache cannot read the database, the response is an error with the view's age.
async fn event(State(api): State<Api>, Path(event_id): Path<i64>) -> Result<Response, Unavailable> {
    let view = api
        .cache
        .view_within(MAX_AGE)
        .map_err(|stale| Unavailable(stale.to_string()))?;
    Ok(match view.event(event_id) {
        Some(event) => Json(event).into_response(),
        None => (StatusCode::NOT_FOUND, format!("no event {event_id}\n")).into_response(),
    })
}

async fn readyz(State(api): State<Api>) -> Result<&'static str, Unavailable> {
    let status = api.cache.status().to_string();
    api.cache
        .is_warm()
        .then_some("ready\n")
        .ok_or(Unavailable(status))
}

/// A 503 response with the reason.
struct Unavailable(String);

impl IntoResponse for Unavailable {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", self.0)).into_response()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url =
        env::var("DATABASE_URL").map_err(|_| "set DATABASE_URL to the application's database")?;
    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".to_owned());
    let (cache, follower) = OddsCache::connect(Config::new(&url)?);
    let follower = tokio::spawn(follower.run());

    let api = Api {
        cache: cache.clone(),
        list: Arc::new(Mutex::new(EventList::new(INLINE_MARKETS))),
    };
    let router = Router::new()
        .route("/api/events", get(events))
        .route("/api/events/{event_id}", get(event))
        .route("/readyz", get(readyz))
        .with_state(api);
    // Listen before the cache is warm, so that readiness probes get a response.
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        if cache.ready().await.is_ok() {
            println!("warm: {} events", cache.view().len());
        }
    });
    tokio::select! {
        served = axum::serve(listener, router) => served?,
        // The follower ends by itself only before the first warmup, with an error that waiting does not fix.
        followed = follower => followed??,
    }
    Ok(())
}
