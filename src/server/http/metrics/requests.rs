//! Counts HTTP answers and their times.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};

use super::text::{BOUNDS, Counted, Text};

/// Counts durations by [`BOUNDS`], without a lock. The library has a finer one for its own durations. It is not public,
/// because only this service would need it.
#[derive(Debug, Default)]
struct Histogram {
    /// How many durations lie up to each bound and above the bound before. The last count has those above all bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    fn record(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Counted for Histogram {
    fn up_to(&self, seconds: f64) -> u64 {
        let counts = BOUNDS.iter().zip(&self.counts);
        let counts = counts.take_while(|(bound, _)| **bound <= seconds);
        counts.map(|(_, count)| count.load(Ordering::Relaxed)).sum()
    }

    #[expect(clippy::cast_precision_loss)]
    fn total(&self) -> (u64, f64) {
        let counts = self.counts.iter();
        (
            counts.map(|count| count.load(Ordering::Relaxed)).sum(),
            self.micros.load(Ordering::Relaxed) as f64 / 1e6,
        )
    }
}

/// Counts by path and kind of answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Requests(Arc<[Route; PATHS.len()]>);

#[derive(Debug, Default)]
struct Route {
    answers: [AtomicU64; KINDS.len()],
    time: Histogram,
}

/// The values of the label `path`. Other paths are `other`.
const PATHS: [&str; 14] = [
    "/",
    "/page/{file}",
    "/v1/events",
    "/v1/events/{id}",
    "/v1/events/{id}/history",
    "/v1/list",
    "/v1/dump",
    "/v1/changes",
    "/v1/stats",
    "/openapi.json",
    "/metrics",
    "/livez",
    "/readyz",
    "other",
];
const KINDS: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// The lowest and the highest bound that are shown.
const SHOWN: (f64, f64) = (0.000_1, 10.0);

/// Counts a request. Its time runs until the answer begins, not until a stream ends.
pub(crate) async fn count(
    State(requests): State<Requests>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let response = next.run(request).await;
    let path = path.as_ref().map_or("other", MatchedPath::as_str);
    let index = PATHS.iter().position(|known| *known == path);
    let route = &requests.0[index.unwrap_or(PATHS.len() - 1)];
    let kind = usize::from(response.status().as_u16() / 100).clamp(2, 5) - 2;
    route.answers[kind].fetch_add(1, Ordering::Relaxed);
    route.time.record(begun.elapsed());
    response
}

impl Requests {
    pub(super) fn write(&self, text: &mut Text) {
        let routes = || PATHS.iter().zip(&*self.0);
        text.family(
            "http_requests_total",
            "counter",
            "HTTP answers, by path and kind.",
        );
        for (path, route) in routes() {
            for (kind, count) in KINDS.iter().zip(&route.answers) {
                let labels = format!("path=\"{path}\",code=\"{kind}\"");
                text.sample(
                    "http_requests_total",
                    &labels,
                    count.load(Ordering::Relaxed),
                );
            }
        }
        text.family(
            "http_request_seconds",
            "histogram",
            "Time until an HTTP answer began, by path.",
        );
        for (path, route) in routes() {
            let labels = format!("path=\"{path}\"");
            text.histogram("http_request_seconds", &labels, &route.time, SHOWN);
        }
    }
}
