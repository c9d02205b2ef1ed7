//! The HTTP side: read-only, JSON, under `/v1`. Each answer is made from one view.

use std::{convert::Infallible, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use oddscache::{CachedEvent, Error, OddsCache, View};
use serde::{Deserialize, Deserializer, de};
use serde_json::json;

use super::{
    changes::Hub,
    cut::{self, answer},
    ids,
    metrics::{self, Requests},
    page,
};

/// Streamed answers are written in pieces of about this size.
const PIECE_BYTES: usize = 64 * 1024;

/// All paths there are.
pub(crate) fn router(cache: OddsCache, hub: Hub) -> Router {
    let requests = Requests::default();
    let changes = {
        let (cache, hub) = (cache.clone(), hub.clone());
        async move |headers: HeaderMap| hub.stream(cache, &headers)
    };
    let metrics = {
        let (cache, requests) = (cache.clone(), requests.clone());
        async move || {
            let text = metrics::text(&cache, &requests, hub.open());
            (
                [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
                text,
            )
        }
    };
    Router::new()
        .route("/v1/changes", get(changes))
        .route("/metrics", get(metrics))
        .route("/v1/events/{id}", get(event))
        .route("/v1/events", get(events))
        .route("/v1/dump", get(dump))
        .route("/v1/stats", get(stats))
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .merge(page::router())
        .fallback(async || {
            problem(
                StatusCode::NOT_FOUND,
                "there is no such path; see the README for those there are",
            )
        })
        .method_not_allowed_fallback(async || {
            problem(
                StatusCode::METHOD_NOT_ALLOWED,
                "read-only: GET and HEAD only",
            )
        })
        .layer(from_fn_with_state(requests, metrics::count))
        .with_state(cache)
}

pub(crate) fn problem(status: StatusCode, message: impl Into<String>) -> Response {
    (status, Json(json!({ "error": message.into() }))).into_response()
}

/// A wait without `timeout` ends after this, and none may be longer than the other.
const WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How fresh the view must be that an answer is made from.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Freshness {
    /// A transaction that the view must contain: read-your-writes.
    wait_for: Option<u64>,
    /// For how long to wait for it.
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
    /// How long ago it may have been proven current.
    #[serde(default, deserialize_with = "duration")]
    max_age: Option<Duration>,
}

/// Such as `500ms` or `2s`.
fn duration<'de, D: Deserializer<'de>>(text: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(text)?;
    let duration = humantime::parse_duration(&text);
    duration
        .map(Some)
        .map_err(|_| de::Error::custom("a time has a unit: 500ms, 2s"))
}

impl Freshness {
    /// The view to answer from.
    async fn view(&self, cache: &OddsCache) -> Result<View, Response> {
        let timeout = self.timeout.unwrap_or(WAIT);
        if timeout > LONGEST_WAIT {
            let message = format!("timeout is at most {} s", LONGEST_WAIT.as_secs());
            return Err(problem(StatusCode::BAD_REQUEST, message));
        }
        if !cache.is_warm() {
            return Err(unavailable(
                format!("not warm yet: {}", cache.status()),
                age_ms(cache),
            ));
        }
        let stale = |error: Error| unavailable(error.to_string(), age_ms(cache));
        if let Some(xid) = self.wait_for {
            cache.wait_for(xid, timeout).await.map_err(stale)?;
        }
        match self.max_age {
            Some(max_age) => cache.view_within(max_age).map_err(stale),
            None => Ok(cache.view()),
        }
    }
}

fn unavailable(message: String, age_ms: Option<u64>) -> Response {
    let answer = Json(json!({ "error": message, "age_ms": age_ms }));
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, answer).into_response();
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn bad_query(error: QueryRejection) -> Response {
    problem(StatusCode::BAD_REQUEST, error.body_text())
}

async fn event(
    State(cache): State<OddsCache>,
    id: Result<Path<i64>, PathRejection>,
    query: Result<Query<Freshness>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let Path(id) =
        id.map_err(|_| problem(StatusCode::BAD_REQUEST, "an event id is a whole number"))?;
    let Query(freshness) = query.map_err(bad_query)?;
    let view = freshness.view(&cache).await?;
    match view.event(id) {
        Some(event) => Ok(answer(&view, &headers, || Json(event).into_response())),
        None => Err(problem(
            StatusCode::NOT_FOUND,
            format!("event {id} is not held: it has no snapshot, or is not within the window"),
        )),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    ids: Option<String>,
    // Those of `Freshness`: serde cannot both flatten and deny unknown fields.
    wait_for: Option<u64>,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    max_age: Option<Duration>,
}

/// A list of events in event id order: those asked for that are held, or all.
async fn events(
    State(cache): State<OddsCache>,
    query: Result<Query<EventsQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let Query(query) = query.map_err(bad_query)?;
    let freshness = Freshness {
        wait_for: query.wait_for,
        timeout: query.timeout,
        max_age: query.max_age,
    };
    let view = freshness.view(&cache).await?;
    let ids = match query.ids {
        None => view.event_ids(),
        Some(list) => ids::parse(&list).map_err(|wrong| problem(StatusCode::BAD_REQUEST, wrong))?,
    };
    let form = Form {
        before: "[",
        between: ",",
        after: "]",
    };
    Ok(answer(&view, &headers, || {
        streamed("application/json", pieces(view.clone(), ids, form))
    }))
}

/// One line an event, in event id order.
async fn dump(
    State(cache): State<OddsCache>,
    query: Result<Query<Freshness>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let Query(freshness) = query.map_err(bad_query)?;
    let view = freshness.view(&cache).await?;
    let ids = view.event_ids();
    let form = Form {
        before: "",
        between: "\n",
        after: "\n",
    };
    Ok(answer(&view, &headers, || {
        streamed("application/x-ndjson", pieces(view.clone(), ids, form))
    }))
}

/// What stands before, between and after the events of a list.
struct Form {
    before: &'static str,
    between: &'static str,
    after: &'static str,
}

fn streamed(
    content_type: &'static str,
    pieces: impl Iterator<Item = Bytes> + Send + 'static,
) -> Response {
    // Pulled piece by piece as the client takes them, so a slow one costs the view it holds and one piece.
    let body = Body::from_stream(stream::iter(pieces.map(Ok::<_, Infallible>)));
    ([(CONTENT_TYPE, content_type)], body).into_response()
}

fn pieces(view: View, ids: Vec<i64>, form: Form) -> impl Iterator<Item = Bytes> + Send + 'static {
    let mut ids = ids.into_iter();
    let mut first = true;
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let mut piece = Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 2);
        while piece.len() < PIECE_BYTES {
            let Some(id) = ids.next() else {
                piece.extend_from_slice(if first { form.before } else { "" }.as_bytes());
                // An empty dump has no line.
                piece.extend_from_slice(
                    if first && form.before.is_empty() {
                        ""
                    } else {
                        form.after
                    }
                    .as_bytes(),
                );
                done = true;
                break;
            };
            if let Some(event) = view.event(id) {
                piece.extend_from_slice(if first { form.before } else { form.between }.as_bytes());
                first = false;
                write(event, &mut piece);
            }
        }
        (!piece.is_empty()).then(|| Bytes::from(piece))
    })
}

fn write(event: &CachedEvent, out: &mut Vec<u8>) {
    // Writing into memory does not fail, and no map of an event has a key that is no string.
    if let Err(error) = serde_json::to_writer(out, event) {
        tracing::error!(event_id = event.event_id(), %error, "an event could not be written as JSON");
    }
}

async fn stats(State(cache): State<OddsCache>) -> Response {
    let view = cache.view();
    let mut stats = json!(view.stats());
    if let Some(fields) = stats.as_object_mut() {
        fields.insert("status".to_owned(), json!(cache.status().to_string()));
        fields.insert(
            "as_of".to_owned(),
            json!(cache.is_warm().then(|| view.cut().as_of)),
        );
        fields.insert("age_ms".to_owned(), json!(age_ms(&cache)));
        fields.insert("epoch".to_owned(), json!(view.epoch()));
        fields.insert("counters".to_owned(), json!(cache.counters()));
    }
    Json(stats).into_response()
}

fn age_ms(cache: &OddsCache) -> Option<u64> {
    cache.is_warm().then(|| cut::age_ms(&cache.view()))
}

async fn ready(State(cache): State<OddsCache>) -> Response {
    let status = if cache.is_warm() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let answer = json!({ "ready": cache.is_warm(), "status": cache.status().to_string(), "age_ms": age_ms(&cache) });
    (status, Json(answer)).into_response()
}
