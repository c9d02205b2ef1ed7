//! Proxies between the browser and a service.

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use tokio::{net::TcpListener, sync::watch};

use oddscache_testkit::service::Service;

/// Sends a request on to the service at `base`. Returns its response.
pub(crate) async fn forward(base: &str, request: Request) -> Response {
    let mut asked = reqwest::Client::new().get(format!("{base}{}", request.uri()));
    for (name, value) in request.headers() {
        if name != "host" {
            asked = asked.header(name, value);
        }
    }
    let Ok(answer) = asked.send().await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let mut response = Response::builder().status(answer.status());
    for (name, value) in answer.headers() {
        if name != "transfer-encoding" {
            response = response.header(name, value);
        }
    }
    response
        .body(Body::from_stream(answer.bytes_stream()))
        .unwrap()
}

/// A proxy before a service. Tests tell it what to hold back.
pub(crate) struct Valve {
    pub(crate) base: String,
    /// Whether streams of changes flow. Otherwise they stay open and silent.
    pub(crate) changes: watch::Sender<bool>,
    /// Whether requests for the list are answered. Otherwise they are refused.
    pub(crate) list: AtomicBool,
    /// The same for single events.
    pub(crate) event: AtomicBool,
    /// The address of another service that answers `/v1/stats`.
    pub(crate) stats: watch::Sender<Option<String>>,
    service: String,
}

impl Valve {
    pub(crate) async fn before(service: &Service) -> Arc<Valve> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let valve = Arc::new(Valve {
            base: format!("http://{}", listener.local_addr().unwrap()),
            changes: watch::Sender::new(true),
            list: AtomicBool::new(true),
            event: AtomicBool::new(true),
            stats: watch::Sender::new(None),
            service: service.base.clone(),
        });
        let router = Router::new().fallback(pass).with_state(Arc::clone(&valve));
        tokio::spawn(axum::serve(listener, router).into_future());
        valve
    }
}

async fn pass(State(valve): State<Arc<Valve>>, request: Request) -> Response {
    let path = request.uri().path();
    let open = match path {
        "/v1/list" => valve.list.load(Ordering::Relaxed),
        _ if path.starts_with("/v1/events/") => valve.event.load(Ordering::Relaxed),
        _ => true,
    };
    if !open {
        let answer = r#"{"error":"the valve is shut"}"#;
        return (StatusCode::SERVICE_UNAVAILABLE, answer).into_response();
    }
    let is_stream = path == "/v1/changes";
    let stats = valve.stats.borrow().clone().filter(|_| path == "/v1/stats");
    let service = stats.as_ref().unwrap_or(&valve.service);
    let (head, body) = forward(service, request).await.into_parts();
    let pieces = body.into_data_stream().then(move |piece| {
        let mut flows = valve.changes.subscribe();
        async move {
            if is_stream {
                // This fails only when the valve is gone. Nobody waits for the piece then.
                let _ = flows.wait_for(|flows| *flows).await.is_ok();
            }
            piece
        }
    });
    Response::from_parts(head, Body::from_stream(pieces))
}
