//! The view that an answer is made from.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use oddscache::{Error, OddsCache, View};
use serde_json::json;

use super::{query::Freshness, state::Api};
use crate::server::http::{cut, problem::for_now};

/// The view to answer from, or 503.
pub(crate) async fn view(api: &Api, freshness: &Freshness) -> Result<View, Response> {
    let cache = &api.cache;
    if !cache.is_warm() {
        let status = api.detail.status(&cache.status());
        return Err(unavailable(
            format!("not warm yet: {status}"),
            age_ms(cache),
        ));
    }
    let stale = |error: Error| {
        let said = api.detail.error(error, &cache.status());
        unavailable(said, age_ms(cache))
    };
    if let Some(xid) = freshness.wait_for {
        let shown = cache.wait_for(xid, freshness.timeout()).await;
        shown.map_err(stale)?;
    }
    match freshness.max_age {
        Some(max_age) => cache.view_within(max_age).map_err(stale),
        None => Ok(cache.view()),
    }
}

fn unavailable(message: String, age_ms: Option<u64>) -> Response {
    let answer = Json(json!({ "error": message, "age_ms": age_ms }));
    for_now((StatusCode::SERVICE_UNAVAILABLE, answer).into_response())
}

/// The age of the newest view, once the cache is warm.
pub(crate) fn age_ms(cache: &OddsCache) -> Option<u64> {
    cache.is_warm().then(|| cut::age_ms(&cache.view()))
}
