//! `GET /metrics`: the state of the cache and what it has done, in the text form that Prometheus reads.
//!
//! Names follow its conventions: `_total` only grows, seconds and bytes are the units, and no label has a value per event.
//! What is counted is counted without locks, so that a scrape holds up neither the follower nor a reader.

pub(crate) mod process;
mod requests;
mod text;

use std::sync::atomic::Ordering;

use oddscache::{Counters, OddsCache, Reloads, Status, Timings, sql::FEED_VERSION};

use super::{health, io_timeout::Tally};
use crate::server::{logging, prune};
pub(crate) use requests::{Requests, count};
use text::Text;

#[expect(clippy::cast_precision_loss)]
pub(crate) fn text(
    cache: &OddsCache,
    requests: &Requests,
    streams: usize,
    tally: &Tally,
) -> String {
    let mut text = Text::default();
    let (view, status) = (cache.view(), cache.status());
    let (stats, warm) = (view.stats(), cache.is_warm());

    text.family(
        "build_info",
        "gauge",
        "1; what is running is in its labels.",
    );
    let version = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"");
    text.sample("build_info", version, 1);

    text.family("status", "gauge", "1 for the state that the cache is in.");
    for name in Status::NAMES {
        let labels = format!("status=\"{name}\"");
        text.sample("status", &labels, u8::from(status.name() == name));
    }
    text.gauge(
        "connected",
        "Whether the database is being followed; not while everything is read for the first time or after an outage.",
        u8::from(health::follows(&status)),
    );
    text.gauge("warm", "Whether the cache has been warm.", u8::from(warm));
    // Before the first warmup there is none: infinitely old.
    let age = match warm {
        true => view.age().as_secs_f64().to_string(),
        false => "+Inf".to_owned(),
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
    text.family(
        "memory_bytes",
        "gauge",
        "Bytes that the cache asked of the allocator, by what they are for.",
    );
    for (part, bytes) in stats.memory.parts() {
        text.sample("memory_bytes", &format!("part=\"{part}\""), bytes);
    }
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
    let log = cache.change_log();
    text.gauge(
        "feed_version",
        "The version of the installed change feed; 0 before the first warmup.",
        log.feed_version,
    );
    text.gauge(
        "feed_version_newest",
        "The version that this binary's install.sql installs. Where it is greater, run `oddscache sql install --apply`.",
        FEED_VERSION,
    );
    text.gauge(
        "change_log_pruned_below",
        "The transaction id up to which the change log was pruned: stays where it is if nobody prunes.",
        log.pruned_below,
    );
    text.gauge(
        "change_log_unpruned_transactions",
        "Transaction ids since then: of how many the change log may hold rows.",
        log.unpruned_transactions(),
    );
    let pruning = prune::pruning();
    text.counter(
        "prunes_total",
        "Times this service pruned the change log.",
        pruning.done,
    );
    text.counter(
        "prune_failures_total",
        "Times this service tried to prune the change log, and failed: the log grows until it is pruned.",
        pruning.failed,
    );
    let done = cache.counters();
    counters(&mut text, &done);
    reloads(&mut text, &done.reloads_by_reason);
    timings(&mut text, &cache.timings());

    text.gauge(
        "change_streams",
        "Streams of /v1/changes that are open.",
        streams,
    );
    requests.write(&mut text);
    connections(&mut text, tally);
    messages(&mut text);
    process::write(&mut text);
    text.finish()
}

fn counters(text: &mut Text, counters: &Counters) {
    let all = [
        (
            "reads",
            counters.reads,
            "Transactions that read the change log, or everything.",
        ),
        (
            "notifications",
            counters.notifications,
            "Times a notification came; several at once count once.",
        ),
        (
            "polls",
            counters.polls,
            "Times it looked without a notification, since it was time to.",
        ),
        (
            "asks",
            counters.asks,
            "Times it looked since somebody waits for a transaction, or asked to read everything.",
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
        (
            "rows_read",
            counters.rows_read,
            "Rows of the application's tables that were read.",
        ),
        (
            "malformed_rows_read",
            counters.malformed_rows_read,
            "Rows that did not read as they should, when they were read.",
        ),
        ("published", counters.published, "States published."),
        (
            "evicted_events",
            counters.evicted_events,
            "Events dropped for their kickoff lay too far back.",
        ),
        (
            "reconnects",
            counters.reconnects,
            "Times the connection that reads was opened anew.",
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

fn reloads(text: &mut Text, reloads: &Reloads) {
    text.family(
        "reloads_total",
        "counter",
        "Times everything was read, by reason.",
    );
    for (reason, count) in reloads.iter() {
        text.sample(
            "reloads_total",
            &format!("reason=\"{}\"", reason.name()),
            count,
        );
    }
}

/// Bounds that are shown of those there are: of what the network has a part in, and of what it has not.
const SLOW: (f64, f64) = (0.000_25, 50.0);
const FAST: (f64, f64) = (0.000_005, 1.0);

fn timings(text: &mut Text, timings: &Timings) {
    let all = [
        (
            "commit_to_visible_seconds",
            &timings.commit_to_visible,
            SLOW,
            "From a commit until readers see it; an upper bound, for each transaction whose changes were read from the log (not by a reload).",
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
            "Of such a read, packing rows of markets.",
        ),
        (
            "apply_seconds",
            &timings.apply,
            FAST,
            "Of such a read, bringing the next state up to it.",
        ),
        (
            "publish_seconds",
            &timings.publish,
            FAST,
            "Of such a read, making the next state and swapping it in.",
        ),
    ];
    for (name, timing, bounds, help) in all {
        text.family(name, "histogram", help);
        text.histogram(name, "", timing, bounds);
    }
}

/// What became of HTTP connections, and of requests that were not answered by their path.
fn connections(text: &mut Text, tally: &Tally) {
    let all = [
        (
            "http_connections_total",
            &tally.accepted,
            "HTTP connections accepted, those turned away included.",
        ),
        (
            "http_connections_turned_away_total",
            &tally.turned_away,
            "HTTP connections beyond the most that may be open.",
        ),
        (
            "http_silent_total",
            &tally.silent,
            "HTTP connections closed since they asked for nothing in time; of idle ones there are always some.",
        ),
        (
            "http_stalled_total",
            &tally.stalled,
            "HTTP connections cut off since their answer was not taken in time.",
        ),
        (
            "http_unauthorized_total",
            &tally.unauthorized,
            "HTTP requests without a known token.",
        ),
        (
            "http_overdue_total",
            &tally.overdue,
            "HTTP requests whose answer did not begin in time.",
        ),
    ];
    for (name, count, help) in all {
        text.counter(name, help, count.load(Ordering::Relaxed));
    }
}

fn messages(text: &mut Text) {
    text.family(
        "messages_total",
        "counter",
        "Messages logged, by level; those held back included.",
    );
    for (level, count) in logging::messages() {
        text.sample("messages_total", &format!("level=\"{level}\""), count);
    }
    text.counter(
        "messages_held_back_total",
        "Messages not logged one by one, since they repeat.",
        logging::held_back(),
    );
}
