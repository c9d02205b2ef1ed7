//! Reads histories for all requests, and says what is wrong where there is none.

use std::sync::Arc;

use axum::{http::StatusCode, response::Response};
use oddscache::{History, HistoryError, HistoryQuery, MarketHistory};

use super::detail::Detail;
use crate::server::{
    http::problem::{Reason, problem, unavailable},
    logging::Seldom,
};

/// Reads histories, and says in the log why one cannot be read.
#[derive(Debug, Clone)]
pub(crate) struct Histories {
    history: History,
    warns: Arc<Seldom>,
}

impl Histories {
    pub(crate) fn new(history: History) -> Histories {
        Histories {
            history,
            warns: Arc::default(),
        }
    }

    pub(super) async fn read(&self, query: &HistoryQuery) -> Result<MarketHistory, HistoryError> {
        self.history.read(query).await
    }

    fn warn(&self, error: &HistoryError) {
        if self.warns.is_due() {
            tracing::warn!(%error, "the history of a market cannot be read; the cache goes on");
        }
    }

    /// The answer in place of a history.
    pub(super) fn refusal(&self, error: &HistoryError, detail: Detail) -> Response {
        let said = |brief: &str| match detail {
            Detail::Full => error.to_string(),
            Detail::Brief => format!("{brief}; the service's log says why"),
        };
        match error {
            HistoryError::Busy { .. } | HistoryError::TimedOut { .. } | HistoryError::Locked => {
                let sentence = match detail {
                    Detail::Full => error.to_string(),
                    Detail::Brief => "no history can be read now; try again later".to_owned(),
                };
                unavailable(Reason::Overloaded, sentence, None)
            }
            HistoryError::TooLarge { .. } => problem(StatusCode::BAD_REQUEST, error.to_string()),
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
