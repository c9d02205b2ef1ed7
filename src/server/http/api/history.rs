//! `GET /v1/events/{id}/history`: how the prices of a market moved. Read from the database, not from the cache.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use oddscache::{History, HistoryError, HistoryQuery};
use tokio::time::{Duration, Instant};

use super::{
    detail::Detail,
    query::{self, Parameters},
    state::Api,
};
use crate::server::http::problem::{Reason, problem, unavailable};

/// How often the log says at most that histories cannot be read.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// Reads histories, and says in the log why one cannot be read.
#[derive(Debug, Clone)]
pub(crate) struct Histories {
    history: History,
    warned: Arc<Mutex<Option<Instant>>>,
}

impl Histories {
    pub(crate) fn new(history: History) -> Histories {
        Histories {
            history,
            warned: Arc::default(),
        }
    }

    fn warn(&self, error: &HistoryError) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|warned| warned.elapsed() >= WARN_AGAIN) {
            *warned = Some(Instant::now());
            tracing::warn!(%error, "the history of a market cannot be read; the cache goes on");
        }
    }

    /// The answer in place of a history.
    fn refusal(&self, error: &HistoryError, detail: Detail) -> Response {
        let said = |brief: &str| match detail {
            Detail::Full => error.to_string(),
            Detail::Brief => format!("{brief}; the service's log says why"),
        };
        match error {
            HistoryError::Busy { .. } | HistoryError::TimedOut { .. } => {
                unavailable(Reason::Overloaded, error.to_string(), None)
            }
            // Asking again does not help.
            HistoryError::NoIndex { .. } => {
                self.warn(error);
                let sentence = said("the database lacks an index for this");
                problem(StatusCode::NOT_IMPLEMENTED, sentence)
            }
            _ => {
                self.warn(error);
                let sentence = said("the database gives no history");
                unavailable(Reason::Database, sentence, None)
            }
        }
    }
}

/// `GET /v1/events/{id}/history`
pub(crate) async fn history(
    State(api): State<Api>,
    id: Result<Path<i64>, PathRejection>,
    uri: Uri,
) -> Result<Response, Response> {
    let Path(id) =
        id.map_err(|_| problem(StatusCode::BAD_REQUEST, "an event id is a whole number"))?;
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
    let answer = histories.history.read(&wanted).await;
    match answer {
        Ok(history) => Ok(Json(history).into_response()),
        Err(error) => Err(histories.refusal(&error, api.detail)),
    }
}
