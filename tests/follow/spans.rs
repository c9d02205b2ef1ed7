//! The follower emits `tracing` spans for what it does. Their fields hold what a user wants to know.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
};

use oddscache::ReloadReason;
use oddscache_testkit::{Database, eventually, followed::Followed};
use tracing::{
    Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, filter::LevelFilter, layer::Context, layer::SubscriberExt};

/// All spans so far, each with its id. tracing assigns ids again, so the last span with an id is the open one.
#[derive(Default, Clone)]
struct Spans(Arc<Mutex<Vec<(u64, Span)>>>);

#[derive(Debug, Clone)]
struct Span {
    name: &'static str,
    level: Level,
    fields: BTreeMap<&'static str, String>,
}

impl Visit for Span {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }
}

impl<S: Subscriber> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let metadata = attributes.metadata();
        if !metadata.target().starts_with("oddscache") {
            return;
        }
        let mut span = Span {
            name: metadata.name(),
            level: *metadata.level(),
            fields: BTreeMap::new(),
        };
        attributes.record(&mut span);
        self.0.lock().unwrap().push((id.into_u64(), span));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut spans = self.0.lock().unwrap();
        let mut latest = spans.iter_mut().rev();
        if let Some((_, span)) = latest.find(|(of, _)| *of == id.into_u64()) {
            values.record(span);
        }
    }
}

impl Spans {
    /// Whether there was a span with this name, level and fields.
    fn has(&self, name: &str, level: Level, fields: &[(&str, &str)]) -> bool {
        let spans = self.0.lock().unwrap();
        spans.iter().any(|(_, span)| {
            let is = |(field, value): &(&str, &str)| {
                span.fields.get(field).is_some_and(|is| is == value)
            };
            span.name == name && span.level == level && fields.iter().all(is)
        })
    }
}

#[tokio::test]
async fn warmup_read_and_publish_are_spans() {
    let spans = Spans::default();
    // If the process has only one subscriber, and a thread without it reaches a span or an event first, tracing
    // switches that one off for all threads. A second subscriber prevents that.
    let _other = tracing::Dispatch::new(tracing_subscriber::registry());
    let subscriber =
        tracing_subscriber::registry().with(spans.clone().with_filter(LevelFilter::DEBUG));
    let _guard = tracing::subscriber::set_default(subscriber);
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let rows = followed.cache.counters().rows_read.to_string();
    assert!(
        spans.has(
            "warmup",
            Level::INFO,
            &[
                ("reason", ReloadReason::First.name()),
                ("epoch", "1"),
                ("rows", &rows),
                ("events", "3")
            ],
        ),
        "{:?}",
        spans.0.lock().unwrap()
    );
    followed
        .step("update odds_snapshots set last_confirmed_at = now() where event_id in (1, 2)")
        .await;
    eventually("a read of one log row", async || {
        let read = |reason| {
            let fields = [("reason", reason), ("epoch", "1"), ("log_rows", "1")];
            spans.has("read", Level::DEBUG, &fields)
        };
        read("notification") || read("time")
    })
    .await;
    assert!(
        spans.has("publish", Level::DEBUG, &[("epoch", "1"), ("events", "2")]),
        "{:?}",
        spans.0.lock().unwrap()
    );
    followed.cache.resync();
    eventually("a resync", async || {
        let fields = [("reason", "resync"), ("epoch", "1")];
        spans.has("read", Level::DEBUG, &fields)
    })
    .await;
}
