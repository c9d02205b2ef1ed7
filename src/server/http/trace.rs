//! A span for each request, for OpenTelemetry. It ends when the answer has ended.
//!
//! Its attributes are those of OpenTelemetry's conventions. It has the path, but neither the query nor a header except
//! the id: those may hold secrets. A request that comes with `traceparent` continues that trace.

use axum::{
    body::Body,
    extract::{MatchedPath, Request},
    http::Version,
    middleware::Next,
    response::Response,
};
use http_body_util::BodyExt;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Instrument, Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{
    access_log::{REQUEST_ID, cut_path},
    address::Peer,
};

/// The paths that only probes and Prometheus ask for, every few seconds.
const OF_OPERATORS: [&str; 3] = ["/metrics", "/livez", "/readyz"];

/// Gives a request its span.
pub(crate) async fn trace(route: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let route = route.as_ref().map(MatchedPath::as_str);
    if route.is_some_and(|route| OF_OPERATORS.contains(&route)) {
        return next.run(request).await;
    }
    let span = begin(route, &request);
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    // As a number: an unsigned one would become text.
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    let id = response.headers().get(REQUEST_ID);
    if let Some(id) = id.and_then(|id| id.to_str().ok()) {
        span.record("request_id", id);
    }
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            // The closure holds the span until the body is dropped.
            let _ = &span;
            frame
        }))
    })
}

fn begin(route: Option<&str>, request: &Request) -> Span {
    let method = request.method().as_str();
    let name = match route {
        Some(route) => format!("{method} {route}"),
        None => method.to_owned(),
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
        request_id = Empty,
        url.path = cut_path(request.uri().path()),
        network.protocol.version = match request.version() {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        },
        client.address = peer.map(|peer| peer.ip().to_string()),
    );
    let parent = TraceContextPropagator::new().extract(&HeaderExtractor(request.headers()));
    // It fails if no layer takes spans.
    let _ = span.set_parent(parent);
    span
}
