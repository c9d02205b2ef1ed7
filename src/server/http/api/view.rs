//! The view that an answer is made from.

use axum::{http::StatusCode, response::Response};
use oddscache::{Error, OddsCache, View};

use super::{query::Freshness, state::Api};
use crate::server::http::{
    cut,
    problem::{Reason, problem, unavailable},
};

/// The view to answer from. Otherwise 503, or 409 for a transaction that does not exist.
pub(crate) async fn view(api: &Api, freshness: &Freshness) -> Result<View, Response> {
    let cache = &api.cache;
    if !cache.is_warm() {
        let status = api.detail.status(&cache.status());
        let sentence = format!("not warm yet: {status}");
        return Err(unavailable(Reason::Warming, sentence, age_ms(cache)));
    }
    let refused = |error: Error| {
        let reason = match error {
            // Asking again does not help, so this is no fault of the service. The request may have been right for
            // another database, so it is not malformed either.
            Error::NotBegun { .. } => return problem(StatusCode::CONFLICT, error.to_string()),
            Error::NotShown { .. } => Reason::NotShown,
            _ => Reason::TooStale,
        };
        let said = api.detail.error(error, &cache.status());
        unavailable(reason, said, age_ms(cache))
    };
    if let Some(xid) = freshness.wait_for {
        let shown = cache.wait_for(xid, freshness.timeout()).await;
        shown.map_err(refused)?;
    }
    match freshness.max_age {
        Some(max_age) => cache.view_within(max_age).map_err(refused),
        None => Ok(cache.view()),
    }
}

/// The age of the newest view, once the cache is warm.
pub(crate) fn age_ms(cache: &OddsCache) -> Option<u64> {
    cache.is_warm().then(|| cut::age_ms(&cache.view()))
}
