//! `--access-log`: a line of the log for each request, when its answer has ended.
//!
//! A line has the path, but neither the query nor a header except the id: those may hold secrets. The log's queue is
//! bounded and drops what does not fit, so no request waits for its line.

use std::time::Instant;

use axum::{
    body::HttpBody,
    extract::Request,
    http::{HeaderName, HeaderValue, Method, Version},
    middleware::Next,
    response::Response,
};

use super::{
    address::Peer,
    watched::{Watch, watched},
};

/// The header of the id that a proxy gives a request. The answer has the same id, or one that the service made.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A client could fill the log with longer ids.
const MOST_ID_BYTES: usize = 128;

/// A longer path is cut in the log.
const MOST_PATH_BYTES: usize = 512;

/// What a line says of a request. It is written when this is dropped.
struct Line {
    id: String,
    peer: Option<Peer>,
    method: Method,
    path: String,
    version: Version,
    begun: Instant,
    /// `None` if the client went before its answer began.
    answer: Option<Answer>,
}

struct Answer {
    status: u16,
    after_ms: f64,
    bytes: u64,
    is_whole: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        let answer = self.answer.as_ref();
        tracing::info!(
            target: crate::server::logging::ACCESS,
            request_id = self.id,
            peer = self.peer.map(|peer| peer.to_string()),
            method = self.method.as_str(),
            path = self.path,
            version = ?self.version,
            status = answer.map(|answer| answer.status),
            bytes = answer.map_or(0, |answer| answer.bytes),
            whole = answer.is_some_and(|answer| answer.is_whole),
            began_ms = answer.map(|answer| answer.after_ms),
            ended_ms = millis(self.begun),
            "request"
        );
    }
}

fn millis(since: Instant) -> f64 {
    (since.elapsed().as_secs_f64() * 1e6).round() / 1e3
}

/// Logs a request, and gives its answer an id.
pub(crate) async fn log(request: Request, next: Next) -> Response {
    let id = id_of(request.headers().get(REQUEST_ID));
    let mut line = Line {
        id: id.clone(),
        peer: request.extensions().get().copied(),
        method: request.method().clone(),
        path: cut_path(request.uri().path()).to_owned(),
        version: request.version(),
        begun: Instant::now(),
        answer: None,
    };
    let mut response = next.run(request).await;
    line.answer = Some(Answer {
        status: response.status().as_u16(),
        after_ms: millis(line.begun),
        bytes: 0,
        is_whole: response.body().is_end_stream(),
    });
    if let Ok(id) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response.map(|body| watched(body, line))
}

/// The path, or the beginning of a long one.
pub(super) fn cut_path(path: &str) -> &str {
    &path[..path.floor_char_boundary(MOST_PATH_BYTES)]
}

/// The id that came with the request, or a new one if it is too long or has other characters than ids have.
fn id_of(given: Option<&HeaderValue>) -> String {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:+/=".contains(&byte);
    let given = given.and_then(|id| id.to_str().ok());
    match given.filter(|id| (1..=MOST_ID_BYTES).contains(&id.len()) && id.bytes().all(fits)) {
        Some(id) => id.to_owned(),
        None => format!("{:032x}", fastrand::u128(..)),
    }
}

impl Watch for Line {
    fn frame(&mut self, bytes: usize, is_end: bool) {
        if let Some(answer) = &mut self.answer {
            answer.bytes += bytes as u64;
            answer.is_whole |= is_end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sane_ids_are_taken() {
        let of = |text: &str| id_of(HeaderValue::from_str(text).ok().as_ref());
        for sane in ["7", "4bf92f35-77b3.4da6:a3ce", &"x".repeat(MOST_ID_BYTES)] {
            assert_eq!(of(sane), sane);
        }
        let long = "x".repeat(MOST_ID_BYTES + 1);
        for other in ["", "a b", "a\"b", "é", &long] {
            let made = of(other);
            assert!(made.len() == 32 && made != of(other), "{other}: {made}");
        }
    }
}
