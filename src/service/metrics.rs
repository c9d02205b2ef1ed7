//! `GET /metrics`: the state of the cache and what it has done, in the text form that Prometheus reads.
//!
//! Names follow its conventions: `_total` only grows, seconds and bytes are the units, and no label has a value per event.

use std::{
    fmt::{Display, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use oddscache::{Counters, OddsCache, Status};

/// How answers fared, by path and kind of answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Requests(Arc<[Route; PATHS.len()]>);

#[derive(Debug, Default)]
struct Route {
    answers: [AtomicU64; KINDS.len()],
    nanos: AtomicU64,
}

/// What a label may say; all else is `other`.
const PATHS: [&str; 10] = [
    "/v1/events",
    "/v1/events/{id}",
    "/v1/list",
    "/v1/dump",
    "/v1/changes",
    "/v1/stats",
    "/openapi.json",
    "/metrics",
    "/readyz",
    "other",
];
const KINDS: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

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
    let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    route.nanos.fetch_add(nanos, Ordering::Relaxed);
    response
}

/// The text under way.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a String does not fail.
        let _ = writeln!(
            self.0,
            "# HELP oddscache_{name} {help}\n# TYPE oddscache_{name} {kind}"
        );
    }

    /// `labels`: as they stand in the text, `a="b"`; all values of ours need no escape.
    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.0, "oddscache_{name} {value}"),
            labels => writeln!(self.0, "oddscache_{name}{{{labels}}} {value}"),
        };
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, "", value);
    }
}

#[expect(clippy::cast_precision_loss)]
pub(crate) fn text(cache: &OddsCache, requests: &Requests, streams: usize) -> String {
    let mut text = Text(String::with_capacity(8 * 1024));
    let (view, status) = (cache.view(), cache.status());
    let (stats, warm) = (view.stats(), cache.is_warm());

    text.family("status", "gauge", "1 for the state that the cache is in.");
    for name in Status::NAMES {
        let labels = format!("status=\"{name}\"");
        text.sample("status", &labels, u8::from(status.name() == name));
    }
    let connected = !matches!(status, Status::Disconnected { .. } | Status::Ended { .. });
    text.gauge(
        "connected",
        "Whether the database is being followed.",
        u8::from(connected),
    );
    text.gauge("warm", "Whether the cache has been warm.", u8::from(warm));
    // Before the first warmup there is none: infinitely old.
    let age = if warm {
        view.age().as_secs_f64()
    } else {
        f64::INFINITY
    };
    let age = if age.is_finite() {
        age.to_string()
    } else {
        "+Inf".to_owned()
    };
    text.gauge(
        "view_age_seconds",
        "How long ago the view was last proven to be the current state of the database.",
        age,
    );
    let cut = view.cut();
    let as_of = cut.as_of.timestamp_micros() as f64 / 1e6;
    text.gauge(
        "cut_timestamp_seconds",
        "The database's clock in the transaction that the view was last proven by.",
        if warm { as_of } else { 0.0 },
    );
    text.gauge(
        "standby",
        "Whether the server that is read from is a standby.",
        u8::from(cut.standby),
    );
    text.gauge(
        "epoch",
        "Changes when the state was replaced rather than moved forward.",
        view.epoch(),
    );

    text.family(
        "events",
        "gauge",
        "Events with a snapshot, by where it comes from.",
    );
    text.sample("events", "side=\"betpawa\"", stats.betpawa_events);
    text.sample("events", "side=\"competitor\"", stats.competitor_events);
    text.gauge("snapshots", "Snapshots held.", stats.total_snapshots);
    text.gauge("markets", "Markets held.", stats.total_markets);
    text.gauge(
        "memory_bytes",
        "Bytes that the cache asked of the allocator.",
        stats.memory_bytes,
    );
    text.gauge(
        "malformed_rows",
        "Rows held that did not read as they should.",
        stats.malformed_rows,
    );
    if let Some(warmup) = &stats.last_warmup {
        text.gauge(
            "warmup_seconds",
            "How long the last warmup took.",
            warmup.seconds,
        );
    }
    counters(&mut text, &cache.counters());

    text.gauge(
        "change_streams",
        "Streams of /v1/changes that are open.",
        streams,
    );
    text.family(
        "http_requests_total",
        "counter",
        "HTTP answers, by path and kind.",
    );
    for (path, route) in PATHS.iter().zip(&*requests.0) {
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
        "summary",
        "Time until an HTTP answer began.",
    );
    for (path, route) in PATHS.iter().zip(&*requests.0) {
        let labels = format!("path=\"{path}\"");
        let seconds = route.nanos.load(Ordering::Relaxed) as f64 / 1e9;
        text.sample("http_request_seconds_sum", &labels, seconds);
        let counts = route
            .answers
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        text.sample("http_request_seconds_count", &labels, counts.sum::<u64>());
    }
    text.0
}

fn counters(text: &mut Text, counters: &Counters) {
    let all = [
        (
            "reads",
            counters.reads,
            "Transactions that read the change log, or everything.",
        ),
        (
            "bells",
            counters.bells,
            "Times a notification came; several at once count once.",
        ),
        (
            "heartbeats",
            counters.heartbeats,
            "Heartbeats sent to find out whether notifications arrive.",
        ),
        (
            "log_rows",
            counters.log_rows,
            "Rows of the change log that were read.",
        ),
        (
            "snapshots_read",
            counters.snapshots_read,
            "Snapshots whose markets were read.",
        ),
        ("published", counters.published, "States published."),
        (
            "evicted_events",
            counters.evicted_events,
            "Events dropped for their kickoff lay too far back.",
        ),
        (
            "reloads",
            counters.reloads,
            "Times everything was read, the first warmup included.",
        ),
        (
            "failures",
            counters.failures,
            "Reads and connections that failed and were tried again.",
        ),
        (
            "audited_events",
            counters.audited_events,
            "Events that the audit compared with the database.",
        ),
        (
            "audit_passes",
            counters.audit_passes,
            "Times the audit went through all events.",
        ),
        (
            "audit_mismatches",
            counters.audit_mismatches,
            "Events that the audit found to differ: should stay 0.",
        ),
    ];
    for (name, value, help) in all {
        text.counter(&format!("{name}_total"), help, value);
    }
}
