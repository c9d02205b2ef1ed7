//! Error answers, all in one form.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

/// Why there is no answer now, for programs: the field `reason` of a 503.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reason {
    /// The cache has not read everything for the first time.
    Warming,
    /// The view is older than `max_age`.
    TooStale,
    /// The view did not contain the transaction of `wait_for` in time.
    NotShown,
    /// The database is away, or refuses to be read.
    Database,
    /// Too many clients, or the answer took too long.
    Overloaded,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Reason::Warming => "warming",
            Reason::TooStale => "too_stale",
            Reason::NotShown => "not_shown",
            Reason::Database => "database",
            Reason::Overloaded => "overloaded",
        }
    }
}

/// An error answer. A temporary error also says when to ask again, and that the service is overloaded.
pub(super) fn problem(status: StatusCode, message: impl Into<String>) -> Response {
    let error = message.into();
    match status {
        StatusCode::SERVICE_UNAVAILABLE => for_now(json!({
            "error": error,
            "reason": Reason::Overloaded.name(),
        })),
        _ => (status, Json(json!({ "error": error }))).into_response(),
    }
}

/// The 503 for a view that is not what the request wants. `age_ms` is the age of the newest view.
pub(super) fn unavailable(reason: Reason, error: String, age_ms: Option<u64>) -> Response {
    let reason = reason.name();
    for_now(json!({ "error": error, "reason": reason, "age_ms": age_ms }))
}

/// A 503 with the header that says when to ask again.
fn for_now(body: Value) -> Response {
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
    let seconds = HeaderValue::from_static("1");
    response.headers_mut().insert(RETRY_AFTER, seconds);
    response
}

/// A sentence that says what is wrong with a request: 400.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) String);

impl From<Refusal> for Response {
    fn from(Refusal(sentence): Refusal) -> Response {
        problem(StatusCode::BAD_REQUEST, sentence)
    }
}
