//! Checks every request: its method, that it has no body, the length of its target, its token if one is needed. Also
//! checks that every answer begins in time.

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

use super::{auth::Access, counters::HttpCounters, limits::Limits, problem::problem};

#[derive(Debug, Clone)]
pub(crate) struct Checks {
    pub(crate) limits: Arc<Limits>,
    pub(crate) access: Access,
    pub(crate) counters: Arc<HttpCounters>,
}

impl Checks {
    /// The refusal of a request, if it is refused.
    fn refusal(&self, request: &Request) -> Option<Response> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let sentence = "read-only: GET and HEAD only";
            let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, sentence);
            let headers = response.headers_mut();
            headers.insert(ALLOW, HeaderValue::from_static("GET,HEAD"));
            return Some(closing(response, request));
        }
        if !request.body().is_end_stream() {
            let sentence = "a request has no body here: its path and query say everything";
            let response = problem(StatusCode::PAYLOAD_TOO_LARGE, sentence);
            return Some(closing(response, request));
        }
        let most = self.limits.most_target_bytes;
        let uri = request.uri();
        let length = uri
            .path_and_query()
            .map_or(0, |target| target.as_str().len());
        if length > most {
            let sentence =
                format!("path and query have {length} bytes, more than {most}: ask in parts");
            return Some(problem(StatusCode::URI_TOO_LONG, sentence));
        }
        if !self.access.allows(uri.path(), request.headers()) {
            self.counters.unauthorized.fetch_add(1, Ordering::Relaxed);
            let sentence = "this needs a valid token: send it as Authorization: Bearer TOKEN";
            let mut response = problem(StatusCode::UNAUTHORIZED, sentence);
            let ask = HeaderValue::from_static("Bearer realm=\"oddscache\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, ask);
            return Some(response);
        }
        None
    }
}

/// Ends the connection with the answer if the request has a body, because the server does not read bodies.
fn closing(mut response: Response, request: &Request) -> Response {
    if !request.body().is_end_stream() {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

pub(crate) async fn check(State(checks): State<Checks>, request: Request, next: Next) -> Response {
    if let Some(refusal) = checks.refusal(&request) {
        return refusal;
    }
    let bound = checks.limits.request_timeout;
    match timeout(bound, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            checks.counters.overdue.fetch_add(1, Ordering::Relaxed);
            let sentence = format!("no answer within {} s", bound.as_secs_f32());
            problem(StatusCode::SERVICE_UNAVAILABLE, sentence)
        }
    }
}

/// In place of [`check`] on a connection beyond the limit: only the health checks get an answer.
pub(crate) async fn turn_away(
    State(checks): State<Checks>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = match (checks.refusal(&request), request.uri().path()) {
        (Some(refusal), _) => refusal,
        (None, "/livez" | "/readyz") => next.run(request).await,
        _ => {
            let most = checks.limits.most_connections;
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
