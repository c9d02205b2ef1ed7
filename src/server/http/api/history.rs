//! `GET /v1/events/{id}/history`: how the prices of a market moved. Read from the database, not from the cache.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{StatusCode, Uri, header::CACHE_CONTROL},
    response::{IntoResponse, Response},
};
use oddscache::HistoryQuery;

use super::{
    ids,
    query::{self, Parameters},
    state::Api,
};
use crate::server::http::problem::problem;

/// `GET /v1/events/{id}/history`
pub(crate) async fn history(
    State(api): State<Api>,
    id: Result<Path<i64>, PathRejection>,
    uri: Uri,
) -> Result<Response, Response> {
    let id = ids::event(id)?;
    let parameters = Parameters::read(&uri, query::HISTORY, &[])?;
    let Some(market) = parameters.market else {
        let sentence = "name the market by its betpawa_market_id: ?market=3743";
        return Err(problem(StatusCode::BAD_REQUEST, sentence));
    };
    let Some(histories) = &api.histories else {
        let sentence =
            "this service reads no history: it follows a relay, or --history-connections is 0";
        return Err(problem(StatusCode::NOT_IMPLEMENTED, sentence));
    };
    let mut wanted = HistoryQuery::new(id, market);
    wanted.line = parameters.line;
    if let Some(only) = parameters.only {
        (wanted.bookmaker_id, wanted.source) = only.names();
    }
    (wanted.from, wanted.to) = (parameters.range.from, parameters.range.to);
    wanted.limit = parameters.range.limit.unwrap_or(wanted.limit);
    let answer = histories.read(&wanted).await;
    match answer {
        Ok(history) => Ok(([(CACHE_CONTROL, "no-store")], Json(history)).into_response()),
        Err(error) => Err(histories.refusal(&error, api.detail)),
    }
}
