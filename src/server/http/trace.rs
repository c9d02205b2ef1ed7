//! A span for each request, for OpenTelemetry. It ends when the answer has ended.
//!
//! Its attributes are those of OpenTelemetry's conventions. It has the path, but neither the query nor a header except
//! the id: those may hold secrets. A request that comes with `traceparent` continues that trace.

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, Method, Version},
    middleware::Next,
    response::Response,
};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Instrument, Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{
    access_log::{REQUEST_ID, cut_path},
    address::Peer,
    router::Face,
    watched::{Watch, watched},
};

/// The header that names the caller's trace.
const TRACE_PARENT: &str = "traceparent";

/// Gives a request its span. `has_tls`: whether connections other than those of Unix sockets have TLS.
pub(crate) async fn trace(
    State(has_tls): State<bool>,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let route = route.as_ref().map(MatchedPath::as_str);
    // Only probes and Prometheus ask for these, every few seconds.
    if route.is_some_and(|route| Face::OF_OPERATORS.contains(&route)) {
        return next.run(request).await;
    }
    let span = begin(has_tls, route, &request);
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    // As a number: an unsigned one would become text.
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", status.as_str());
    }
    let id = response.headers().get(REQUEST_ID);
    if let Some(id) = id.and_then(|id| id.to_str().ok()) {
        span.record("request_id", id);
    }
    response.map(|body| watched(body, Answer(span)))
}

fn begin(has_tls: bool, route: Option<&str>, request: &Request) -> Span {
    let (method, in_name) = known(request.method());
    let name = match route {
        Some(route) => format!("{in_name} {route}"),
        None => in_name.to_owned(),
    };
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0);
    let span = tracing::debug_span!(
        target: "oddscache::requests",
        "request",
        otel.name = name,
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        error.type = Empty,
        request_id = Empty,
        url.scheme = if has_tls && peer.is_some() { "https" } else { "http" },
        url.path = cut_path(request.uri().path()),
        network.protocol.version = match request.version() {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        },
        client.address = peer.map(|peer| peer.ip().to_string()),
    );
    // Without `tracestate`, which may be long and is passed on to nobody.
    let mut headers = HeaderMap::new();
    if let Some(parent) = request.headers().get(TRACE_PARENT) {
        headers.insert(TRACE_PARENT, parent.clone());
    }
    let parent = TraceContextPropagator::new().extract(&HeaderExtractor(&headers));
    // It fails if no layer takes spans.
    let _ = span.set_parent(parent);
    span
}

/// The method as an attribute and in the name of a span. A client may send any word, so only the standard ones are
/// named.
fn known(method: &Method) -> (&str, &str) {
    let standard = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::CONNECT,
        Method::OPTIONS,
        Method::TRACE,
        Method::PATCH,
    ];
    match standard.contains(method) {
        true => (method.as_str(), method.as_str()),
        false => ("_OTHER", "HTTP"),
    }
}

/// Ends the span with the body of the answer.
struct Answer(Span);

impl Watch for Answer {}

impl Drop for Answer {
    fn drop(&mut self) {
        // A span of OpenTelemetry ends when it was left last.
        self.0.in_scope(|| ());
    }
}
