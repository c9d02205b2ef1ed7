//! Error answers, all in one form.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// An error answer. A temporary error also says when to ask again.
pub(super) fn problem(status: StatusCode, message: impl Into<String>) -> Response {
    let response = (status, Json(json!({ "error": message.into() }))).into_response();
    match status {
        StatusCode::SERVICE_UNAVAILABLE => for_now(response),
        _ => response,
    }
}

/// Adds the header that says when to ask again.
pub(super) fn for_now(mut response: Response) -> Response {
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
