//! A whole read: beside a copy of the same rows, and the memory at its peak.

use std::{
    fs,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use oddscache_testkit::{
    bench::median,
    followed::run,
    process::{Memory, memory as memory_of},
    service::Service,
};
use tokio::time::sleep;

use crate::{
    line::{Line, time},
    world::{World, config, typical},
};

const WINDOW: &str = "e.kickoff > (now() AT TIME ZONE 'UTC') - interval '2 hours'";

const COLUMNS: &str = "m.id, m.snapshot_id, m.betpawa_market_id, m.betpawa_market_name, m.line, m.handicap_type, \
    m.handicap_home, m.handicap_away, m.outcomes, m.market_groups, m.unavailable_at";

/// Copies the snapshot headers with their events.
fn copy_headers() -> [String; 2] {
    [
        format!(
            "COPY (SELECT e.id, e.kickoff, l.* FROM events e JOIN (SELECT DISTINCT ON (event_id, bookmaker_id) \
             id, event_id, bookmaker_id, captured_at, last_confirmed_at FROM odds_snapshots \
             ORDER BY event_id, bookmaker_id, id DESC) l ON l.event_id = e.id WHERE {WINDOW}) TO STDOUT (FORMAT binary)"
        ),
        format!(
            "COPY (SELECT e.id, e.kickoff, c.source, l.* FROM events e \
             JOIN competitor_events c ON c.betpawa_event_id = e.id JOIN (SELECT DISTINCT ON \
             (competitor_event_id) id, competitor_event_id, captured_at, last_confirmed_at \
             FROM competitor_odds_snapshots ORDER BY competitor_event_id, id DESC) l ON l.competitor_event_id = c.id \
             WHERE {WINDOW} AND c.deleted_at IS NULL) TO STDOUT (FORMAT binary)"
        ),
    ]
}

/// Copies the markets of every second latest snapshot.
fn copy_markets(half: u32) -> [String; 2] {
    [
        format!(
            "COPY (SELECT {COLUMNS} FROM market_odds m WHERE m.snapshot_id = ANY(ARRAY(SELECT id FROM \
             (SELECT max(s.id) AS id FROM odds_snapshots s JOIN events e ON e.id = s.event_id WHERE {WINDOW} \
             GROUP BY s.event_id, s.bookmaker_id) l WHERE id % 2 = {half}))) TO STDOUT (FORMAT binary)"
        ),
        format!(
            "COPY (SELECT {COLUMNS} FROM competitor_market_odds m WHERE m.snapshot_id = ANY(ARRAY(SELECT id FROM \
             (SELECT max(s.id) AS id FROM competitor_odds_snapshots s \
             JOIN competitor_events c ON c.id = s.competitor_event_id JOIN events e ON e.id = c.betpawa_event_id \
             WHERE {WINDOW} AND c.deleted_at IS NULL \
             GROUP BY c.betpawa_event_id, c.source) l WHERE id % 2 = {half}))) TO STDOUT (FORMAT binary)"
        ),
    ]
}

fn psql(world: &World, statements: impl IntoIterator<Item = String>) -> Child {
    let mut command = world.cluster.client("psql").expect("psql");
    command.args(["-Xq", "-d", &world.dsn, "-c", "SET jit = off"]);
    for statement in statements {
        command.args(["-c", &statement]);
    }
    let child = command.stdout(Stdio::null()).spawn();
    child.expect("psql")
}

/// Copies the same rows to /dev/null over two connections, as many as a follower reads everything with. Blocks.
fn copy(world: &World) -> f64 {
    let begun = Instant::now();
    let first = copy_headers().into_iter().chain(copy_markets(0));
    let children = [psql(world, first), psql(world, copy_markets(1))];
    for mut child in children {
        assert!(child.wait().expect("psql").success());
    }
    begun.elapsed().as_secs_f64()
}

/// A new cache, a cache that follows, and the copy take turns.
pub(crate) async fn beside_copy(world: &World, rounds: u32) {
    let (mut ours, mut inner, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    let mut resyncs = Vec::new();
    for round in 0..=rounds {
        let begun = Instant::now();
        let view = oddscache::warm_up(config(&world.dsn)).await.expect("warm");
        let took = begun.elapsed().as_secs_f64();
        let copied = copy(world);
        let resync = world.resync().await;
        world.settle().await;
        // The first round fills the server's caches and does not count.
        if round > 0 {
            ours.push(took);
            inner.push(view.stats().last_warmup.as_ref().expect("warm").seconds);
            floor.push(copied);
            resyncs.push(resync);
        }
    }
    let floor = median(&mut floor);
    let text = "`psql` copies the same rows, two connections";
    Line::seconds("whole read: a new cache", median(&mut ours))
        .beside_seconds(floor, text)
        .note(format!(
            "its transaction {}; both sides connect",
            time(median(&mut inner))
        ))
        .print();
    Line::of(
        "whole read: `resync()` of a cache that follows",
        &typical(&resyncs),
    )
    .beside_seconds(floor, text)
    .print();
}

/// Forgets the greatest resident memory of a process so far.
fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("a process of our own");
}

/// The service's memory in a process of its own, beside what its view holds.
pub(crate) async fn memory(world: &World) {
    let service = Service::measured(&world.dsn, &["--audit-cycle", "1000h"]).await;
    service.ready().await;
    let first = memory_of(service.pid());
    let stats = service.json("/v1/stats").await;
    let held = stats["memory_bytes"].as_f64().expect("bytes") / 1024.0;
    let mib = |kib: f64| format!("{:.1} MiB", kib / 1024.0);
    let print = |what: &str, note: String, memory: Memory| {
        let peak = memory.peak as f64;
        Line::new(what, peak, mib(peak))
            .beside(held, &format!("{}: what the view holds", mib(held)))
            .note(format!(
                "{note}then {} resident",
                mib(memory.resident as f64)
            ))
            .print();
    };
    print(
        "memory: the service's peak until its first view, all of the process",
        String::new(),
        first,
    );
    sleep(Duration::from_secs(3)).await;
    let rests = memory_of(service.pid()).resident as f64;
    forget_peak(service.pid());
    let reloads = async || {
        let stats = service.json("/v1/stats").await;
        stats["counters"]["reloads"].as_u64().expect("a count")
    };
    let before = reloads().await;
    run(&world.client, "select oddscache.resync()").await;
    while reloads().await == before {
        sleep(Duration::from_millis(10)).await;
    }
    print(
        "memory: its peak while it reads everything again, the old view readable",
        format!("first {}, ", mib(rests)),
        memory_of(service.pid()),
    );
}
