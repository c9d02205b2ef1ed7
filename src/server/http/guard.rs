//! What is asked of every request before it is answered, and of every answer: the right method, no body, a target of
//! bounded length, a token where one is needed, and a beginning in time.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    body::HttpBody,
    extract::{Request, State},
    http::{
        HeaderValue, Method, StatusCode,
        header::{ALLOW, CONNECTION, WWW_AUTHENTICATE},
    },
    middleware::Next,
    response::Response,
};
use tokio::time::timeout;

use super::{auth::Access, io_timeout::Tally, limits::Limits, problem::problem};

#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub(crate) limits: Arc<Limits>,
    pub(crate) access: Access,
    pub(crate) tally: Arc<Tally>,
}

impl Guard {
    /// Why a request is not to be answered, and with what.
    fn refusal(&self, request: &Request) -> Option<Response> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let sentence = "read-only: GET and HEAD only";
            let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, sentence);
            let headers = response.headers_mut();
            headers.insert(ALLOW, HeaderValue::from_static("GET,HEAD"));
            return Some(closing(response, request));
        }
        if !request.body().is_end_stream() {
            let sentence =
                "a request has no body here: what is asked for stands in its path and query";
            return Some(closing(
                problem(StatusCode::PAYLOAD_TOO_LARGE, sentence),
                request,
            ));
        }
        let most = self.limits.most_target_bytes;
        let uri = request.uri();
        let length = uri
            .path_and_query()
            .map_or(0, |target| target.as_str().len());
        if length > most {
            let sentence =
                format!("path and query have {length} bytes, and {most} at the most: ask in parts");
            return Some(problem(StatusCode::URI_TOO_LONG, sentence));
        }
        if !self.access.allows(uri.path(), request.headers()) {
            self.tally.unauthorized.fetch_add(1, Ordering::Relaxed);
            let sentence =
                "this needs a token that is known: send it as Authorization: Bearer TOKEN";
            let mut response = problem(StatusCode::UNAUTHORIZED, sentence);
            let ask = HeaderValue::from_static("Bearer realm=\"oddscache\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, ask);
            return Some(response);
        }
        None
    }
}

/// A body is not waited for: the connection ends with the answer.
fn closing(mut response: Response, request: &Request) -> Response {
    if !request.body().is_end_stream() {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

pub(crate) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    if let Some(refusal) = guard.refusal(&request) {
        return refusal;
    }
    let bound = guard.limits.request_timeout;
    match timeout(bound, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            guard.tally.overdue.fetch_add(1, Ordering::Relaxed);
            let sentence = format!("no answer within {} s", bound.as_secs_f32());
            problem(StatusCode::SERVICE_UNAVAILABLE, sentence)
        }
    }
}

/// In place of [`guard`] on a connection too many: only whether it lives and is ready is answered.
pub(crate) async fn turn_away(
    State(guard): State<Guard>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = match (guard.refusal(&request), request.uri().path()) {
        (Some(refusal), _) => refusal,
        (None, "/livez" | "/readyz") => next.run(request).await,
        _ => {
            let most = guard.limits.most_connections;
            let sentence = format!(
                "{most} connections are open; try again later, or raise --most-connections"
            );
            problem(StatusCode::SERVICE_UNAVAILABLE, sentence)
        }
    };
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}
