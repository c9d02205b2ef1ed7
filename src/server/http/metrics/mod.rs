//! `GET /metrics`: the state of the cache and what it has done, in the text form that Prometheus reads.
//!
//! Names follow its conventions: `_total` only grows, units are seconds and bytes, and no label has a value per event.
//! All counters are atomics: a scrape holds up neither the follower nor a reader.

pub(crate) mod process;
mod requests;
mod text;

use std::sync::atomic::{AtomicU64, Ordering};

use oddscache::{
    AuditPasses, Counters, OddsCache, Stats, Status, Timings, View, sql::FEED_VERSION,
};

use serde_json::json;

use super::{counters::HttpCounters, health};
#[cfg(feature = "otlp")]
use crate::server::traces;
use crate::server::{logging, prune, stderr, version::COMMIT};
pub(crate) use requests::{Requests, count};
use text::Text;

pub(crate) fn text(
    cache: &OddsCache,
    requests: &Requests,
    streams: usize,
    http: &HttpCounters,
) -> String {
    let mut text = Text::default();
    let help = "1; the labels say what is running.";
    text.family("build_info", "gauge", help);
    let version = env!("CARGO_PKG_VERSION");
    let labels = format!("version=\"{version}\",commit=\"{COMMIT}\"");
    text.sample("build_info", &labels, 1);
    let view = cache.view();
    state(&mut text, cache, &view);
    held(&mut text, view.stats());
    reading(&mut text, cache);
    change_log(&mut text, cache);
    audit(&mut text, cache.audit());
    counters(&mut text, &cache.counters());
    timings(&mut text, &cache.timings());
    let help = "Open streams of /v1/changes.";
    text.gauge("change_streams", streams, help);
    requests.write(&mut text);
    connections(&mut text, http);
    messages(&mut text);
    #[cfg(feature = "otlp")]
    spans(&mut text);
    process::write(&mut text);
    text.finish()
}

/// What the cache is doing, and how fresh it is.
fn state(text: &mut Text, cache: &OddsCache, view: &View) {
    let (status, warm) = (cache.status(), cache.is_warm());
    text.family("status", "gauge", "1 for the state that the cache is in.");
    for name in Status::NAMES {
        let labels = format!("status=\"{name}\"");
        text.sample("status", &labels, u8::from(status.name() == name));
    }
    let connected = u8::from(health::follows(&status));
    let help = "1 if changes arrive; 0 until the first read of everything, and from an outage to the end of the next read.";
    text.gauge("connected", connected, help);
    text.gauge("warm", u8::from(warm), "Whether the cache has been warm.");
    // Before the first warmup there is no proof: infinitely old.
    let age = match warm {
        true => view.age().as_secs_f64().to_string(),
        false => "+Inf".to_owned(),
    };
    let help = "How long ago the view was last proven to be the current state of the database.";
    text.gauge("view_age_seconds", age, help);
    let cut = view.cut();
    #[expect(clippy::cast_precision_loss)]
    let as_of = cut.as_of.timestamp_micros() as f64 / 1e6;
    let help = "The database's clock in the transaction that last proved the view current.";
    text.gauge(
        "cut_timestamp_seconds",
        if warm { as_of } else { 0.0 },
        help,
    );
    let (faults, bound) = match &status {
        Status::Degraded { faults, bound, .. } => (faults.len(), *bound),
        _ => (0, None),
    };
    let help = "Faults that make the cache degraded: triggers, and rows that cannot be read. /v1/stats names each.";
    text.gauge("faults", faults, help);
    let help = "A change that is not logged shows within this time; 0 if every change is logged.";
    let bound = bound.unwrap_or_default().as_secs_f64();
    text.gauge("degraded_bound_seconds", bound, help);
    let help = "Whether the cache reads from a standby.";
    text.gauge("standby", u8::from(cut.standby), help);
    let help = "Grows when the state was replaced rather than moved forward.";
    text.gauge("epoch", view.epoch(), help);
}

/// What the view holds.
fn held(text: &mut Text, stats: &Stats) {
    let help = "Events with a snapshot, by the snapshot's origin.";
    text.family("events", "gauge", help);
    text.sample("events", "side=\"betpawa\"", stats.betpawa_events);
    text.sample("events", "side=\"competitor\"", stats.competitor_events);
    text.gauge("snapshots", stats.total_snapshots, "Snapshots held.");
    text.gauge("markets", stats.total_markets, "Markets held.");
    let help = "Bytes that the cache requested from the allocator, by purpose.";
    text.family("memory_bytes", "gauge", help);
    for (part, bytes) in stats.memory.parts() {
        text.sample("memory_bytes", &format!("part=\"{part}\""), bytes);
    }
    let help = "Malformed rows held.";
    text.gauge("malformed_rows", stats.malformed_rows, help);
    if let Some(warmup) = &stats.last_warmup {
        let help = "How long the last warmup took.";
        text.gauge("warmup_seconds", warmup.seconds, help);
    }
}

/// How far a read of everything is; zeros if none is running.
fn reading(text: &mut Text, cache: &OddsCache) {
    let reading = cache.reading();
    let (read, expected) = reading.map_or((0, 0), |reading| {
        (
            reading.snapshots_read,
            reading.snapshots.unwrap_or_default(),
        )
    });
    let help = "1 while everything is read.";
    text.gauge("reading", u8::from(reading.is_some()), help);
    let help =
        "Snapshots whose markets the running read of everything has read; 0 if none is running.";
    text.gauge("reading_snapshots_read", read, help);
    let help =
        "Snapshots whose markets the running read of everything reads; 0 if none is running.";
    text.gauge("reading_snapshots", expected, help);
}

fn change_log(text: &mut Text, cache: &OddsCache) {
    let (log, pruning) = (cache.change_log(), prune::pruning());
    let help = "The version of the installed change feed; 0 before the first warmup.";
    text.gauge("feed_version", log.feed_version, help);
    let help = "The version that this binary's install.sql installs. Where it is greater, run `oddscache sql install --apply`.";
    text.gauge("feed_version_newest", FEED_VERSION, help);
    let help = "The change log is pruned below this transaction id. The number stands still if nobody prunes.";
    text.gauge("change_log_pruned_below", log.pruned_below, help);
    let help = "Transaction ids that are not pruned: the change log may hold rows of so many transactions.";
    let unpruned = log.unpruned_transactions();
    text.gauge("change_log_unpruned_transactions", unpruned, help);
    let help = "Times this service pruned the change log.";
    text.counter("prunes_total", pruning.done, help);
    let help =
        "Times this service failed to prune the change log, which grows until somebody does.";
    text.counter("prune_failures_total", pruning.failed, help);
}

/// How long the passes of the audit take. A pass has no sample before that is known.
fn audit(text: &mut Text, passes: AuditPasses) {
    let help = "How long the last pass of the audit took.";
    text.family("audit_pass_seconds", "gauge", help);
    for (name, pass) in passes.iter() {
        if let Some(seconds) = pass.last_seconds {
            text.sample("audit_pass_seconds", &format!("pass=\"{name}\""), seconds);
        }
    }
    let help = "How long the pass of the audit that is under way will take, by its steps so far.";
    text.family("audit_pass_expected_seconds", "gauge", help);
    for (name, pass) in passes.iter() {
        if let Some(seconds) = pass.expected_seconds {
            let labels = format!("pass=\"{name}\"");
            text.sample("audit_pass_expected_seconds", &labels, seconds);
        }
    }
}

/// What the follower has done: the names are those of [`Counters`] as JSON.
const COUNTERS: [(&str, &str); 27] = [
    (
        "reads",
        "Transactions that read the change log, or everything.",
    ),
    (
        "notifications",
        "Notifications; several at once count once.",
    ),
    ("polls", "Reads of the change log because a poll was due."),
    (
        "requested_reads",
        "Reads of the change log because a reader requested one.",
    ),
    (
        "lost_notifications",
        "How often a read found a change whose notification did not arrive.",
    ),
    ("log_rows", "Rows of the change log that were read."),
    ("snapshots_read", "Snapshots whose markets were read."),
    (
        "rows_read",
        "Rows of the application's tables that were read.",
    ),
    ("malformed_rows_read", "Malformed rows that were read."),
    (
        "unreadable_rows",
        "Rows that the server could not send, each counted when it was found.",
    ),
    ("published", "States published."),
    (
        "evicted_events",
        "Events dropped: their kickoff is too long ago.",
    ),
    (
        "reconnects",
        "Times the connection that reads was opened again.",
    ),
    (
        "resumed",
        "Times it went on in the same epoch after a lost connection: continuity was proven.",
    ),
    (
        "failures",
        "Reads and connections that failed and were tried again.",
    ),
    (
        "audited_events",
        "Events whose markets the audit compared with the database.",
    ),
    (
        "audited_headers",
        "Events of which the audit compared kickoff, ids and times with the database.",
    ),
    (
        "audit_passes",
        "Times the audit compared everything of all events.",
    ),
    (
        "audit_headers_passes",
        "Times the audit compared kickoff, ids and times of all events.",
    ),
    (
        "audit_mismatches",
        "Events that the audit found to differ: should stay 0.",
    ),
    (
        "relay_deltas",
        "Publications that were sent to the relay, or came from it.",
    ),
    (
        "relay_bytes",
        "Bytes of publications and states of the relay.",
    ),
    (
        "relay_states",
        "Whole states that were sent to the relay, or read from it.",
    ),
    (
        "relay_answers",
        "Answers that a publisher gave, or that a subscriber received.",
    ),
    (
        "relay_gaps",
        "How often a subscriber missed a change and read the whole state.",
    ),
    (
        "relay_refused",
        "Messages of the relay that were malformed, or of a former leader.",
    ),
    (
        "relay_mismatches",
        "How often a subscriber's state differed from the publisher's: should stay 0.",
    ),
];

fn counters(text: &mut Text, done: &Counters) {
    let values = json!(done);
    for (name, help) in COUNTERS {
        let count = values[name].as_u64().unwrap_or_default();
        text.counter(&format!("{name}_total"), count, help);
    }
    text.family(
        "reloads_total",
        "counter",
        "Times everything was read, by reason.",
    );
    for (reason, count) in done.reloads_by_reason.iter() {
        let labels = format!("reason=\"{}\"", reason.name());
        text.sample("reloads_total", &labels, count);
    }
}

/// The lowest and the highest bound that are shown, in seconds: for times with a network round trip, and for others.
const SLOW: (f64, f64) = (0.000_25, 50.0);
const FAST: (f64, f64) = (0.000_005, 1.0);

fn timings(text: &mut Text, timings: &Timings) {
    let visible = "Upper bound of the time from a commit until readers see it. Commits that a reload shows are left out.";
    for (name, timing, bounds, help) in [
        (
            "commit_to_visible_seconds",
            &timings.commit_to_visible,
            SLOW,
            visible,
        ),
        (
            "read_seconds",
            &timings.read,
            SLOW,
            "Transactions that read changes, decoding included.",
        ),
        (
            "decode_seconds",
            &timings.decode,
            FAST,
            "The part of such a read that packs rows of markets.",
        ),
        (
            "apply_seconds",
            &timings.apply,
            FAST,
            "The part of such a read that applies its rows to the next state.",
        ),
        (
            "publish_seconds",
            &timings.publish,
            FAST,
            "The part of such a read that makes the next state and swaps it in.",
        ),
    ] {
        text.family(name, "histogram", help);
        text.histogram(name, "", timing, bounds);
    }
}

/// How HTTP connections ended, and requests that no path answered.
fn connections(text: &mut Text, counters: &HttpCounters) {
    let mut counter = |name, count: &AtomicU64, help| {
        text.counter(
            &format!("http_{name}_total"),
            count.load(Ordering::Relaxed),
            help,
        );
    };
    let help = "HTTP connections accepted, those turned away included.";
    counter("connections", &counters.accepted, help);
    let help = "HTTP connections beyond the most that may be open.";
    counter("connections_turned_away", &counters.turned_away, help);
    let help = "Silent HTTP connections closed to make room for new ones.";
    counter("connections_evicted", &counters.evicted, help);
    let help =
        "HTTP connections closed because no request came in time; some idle ones are normal.";
    counter("silent", &counters.silent, help);
    let help = "HTTP connections and HTTP/2 streams cut off because the client did not take its answer in time.";
    counter("stalled", &counters.stalled, help);
    let help = "HTTP/2 connections closed because the client cancelled too many requests.";
    counter("flooding", &counters.flooding, help);
    let help = "HTTP/2 requests refused because as many were under way as may be.";
    counter("refused", &counters.refused, help);
    let help = "HTTP requests without a valid token.";
    counter("unauthorized", &counters.unauthorized, help);
    let help = "HTTP requests whose answer did not begin in time.";
    counter("overdue", &counters.overdue, help);
}

fn messages(text: &mut Text) {
    let help = "Messages by level, including those held back.";
    text.family("messages_total", "counter", help);
    for (level, count) in logging::messages() {
        text.sample("messages_total", &format!("level=\"{level}\""), count);
    }
    let help = "Messages not logged one by one, because they repeat.";
    text.counter("messages_held_back_total", logging::held_back(), help);
    let help = "Messages dropped, because standard error took no more.";
    text.counter("log_lines_dropped_total", stderr::dropped(), help);
}

#[cfg(feature = "otlp")]
fn spans(text: &mut Text) {
    let help = "Spans that the collector of --otlp-endpoint took, did not take, or that were dropped because too many waited.";
    text.family("spans_total", "counter", help);
    for (result, count) in traces::counts() {
        text.sample("spans_total", &format!("result=\"{result}\""), count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_shown() {
        let counters = json!(Counters::default());
        let counters = counters.as_object().expect("an object").keys();
        // These two are one metric with a label.
        let counters = counters.filter(|name| !name.starts_with("reloads"));
        let mut shown = COUNTERS.map(|(name, _)| name);
        shown.sort_unstable();
        assert!(counters.eq(shown.iter()), "{shown:?}");
    }
}
