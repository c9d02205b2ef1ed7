//! Time from COMMIT until readers see the change, compared with two simpler designs. One is a bare LISTEN client, the
//! other decodes the WAL (`pg_recvlogical` with test_decoding). Both then run one SELECT of the changed rows, whose ids
//! they get for free. The benchmark also measures how far the cache falls behind a scrape cycle, and what a cycle of
//! confirmations costs.
//!
//! ```sh
//! cargo bench --bench freshness
//! ```
//!
//! The kinds take turns and never run at once, so that they do not compete for the processor. `COMMITS` (600) is the
//! number of commits of each kind. `PART=cycles` runs only the cycles. `CYCLES` (10) is the number of cycles of
//! confirmations.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

mod cycle;

use std::{
    future::poll_fn,
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cycle::Writer;
use oddscache::{Config, OddsCache};
use oddscache_testkit::bench::{
    figures::{milliseconds, quantile},
    server::{self, Server},
};
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_postgres::{AsyncMessage, Client, NoTls, Statement};

/// Selects the latest snapshot of each bookmaker with its markets, for the given events.
const SELECT: &str = "SELECT s.id, s.event_id, s.bookmaker_id, s.captured_at, s.last_confirmed_at, m.id, m.betpawa_market_id, \
    m.betpawa_market_name, m.line, m.handicap_type, m.handicap_home, m.handicap_away, m.outcomes::text, m.market_groups::text, \
    m.unavailable_at \
    FROM (SELECT DISTINCT ON (event_id, bookmaker_id) * FROM odds_snapshots WHERE event_id = ANY($1) \
      ORDER BY event_id, bookmaker_id, id DESC) s LEFT JOIN market_odds m ON m.snapshot_id = s.id";

/// Selects the latest snapshot of each competitor with its markets, for the given events.
const SELECT_COMPETITORS: &str = "SELECT s.id, s.betpawa_event_id, s.source, s.captured_at, s.last_confirmed_at, m.id, \
    m.betpawa_market_id, m.betpawa_market_name, m.line, m.handicap_type, m.handicap_home, m.handicap_away, m.outcomes::text, \
    m.market_groups::text, m.unavailable_at \
    FROM (SELECT DISTINCT ON (c.betpawa_event_id, c.source) c.betpawa_event_id, c.source, l.* FROM competitor_events c \
      CROSS JOIN LATERAL (SELECT l.id, l.captured_at, l.last_confirmed_at FROM competitor_odds_snapshots l \
        WHERE l.competitor_event_id = c.id ORDER BY l.id + 0 DESC LIMIT 1) l \
      WHERE c.betpawa_event_id = ANY($1) AND c.deleted_at IS NULL ORDER BY c.betpawa_event_id, c.source, l.id DESC) s \
    LEFT JOIN competitor_market_odds m ON m.snapshot_id = s.id";

/// Events that a follower has read, each with the time.
type Seen = mpsc::UnboundedReceiver<(i64, Instant)>;

/// A client that selects the changed events after a notification. The benchmark tells it their ids, which a real client
/// would have to find out.
struct Selector {
    client: Client,
    /// [`SELECT`] and [`SELECT_COMPETITORS`], if this client prepares them.
    select: Option<(Statement, Statement)>,
    changed: Changed,
    seen: mpsc::UnboundedSender<(i64, Instant)>,
}

/// Events that changed and are not selected yet. For those in the second list the competitors changed too.
type Changed = Arc<Mutex<(Vec<i32>, Vec<i32>)>>;

impl Selector {
    async fn run(&self) {
        let (singles, batch) = std::mem::take(&mut *self.changed.lock().unwrap());
        let ids = [singles, batch.clone()].concat();
        if !ids.is_empty() {
            let rows = match &self.select {
                Some((select, _)) => self.client.query(select, &[&ids]).await,
                None => self.client.query(SELECT, &[&ids]).await,
            };
            assert!(!rows.expect("selects").is_empty());
        }
        if !batch.is_empty() {
            let rows = match &self.select {
                Some((_, select)) => self.client.query(select, &[&batch]).await,
                None => self.client.query(SELECT_COMPETITORS, &[&batch]).await,
            };
            assert!(!rows.expect("selects").is_empty());
        }
        for id in ids {
            let _ = self.seen.send((i64::from(id), Instant::now()));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ours,
    /// LISTEN with a prepared SELECT.
    Listen,
    /// LISTEN with a SELECT that the driver prepares again each time.
    ListenUnprepared,
    Decoding,
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::Ours, "oddscache"),
    (Kind::Listen, "LISTEN + SELECT, prepared"),
    (Kind::ListenUnprepared, "LISTEN + SELECT"),
    (Kind::Decoding, "pg_recvlogical + SELECT, prepared"),
];

/// A running follower of one kind. Dropping it stops it.
struct Follower {
    seen: Seen,
    changed: Changed,
    runtime: Option<Runtime>,
    decoder: Option<Child>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(decoder) = &mut self.decoder {
            let _ = decoder.kill();
            let _ = decoder.wait();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits until a client reads the replication slot, or until none does.
async fn slot_is(server: &Server, active: bool) {
    let sql = "select from pg_replication_slots where active = $1";
    while server
        .client
        .query(sql, &[&active])
        .await
        .expect("slots")
        .is_empty()
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A runtime with its own threads. Their name identifies them when CPU time is summed up.
fn runtime(name: &str) -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let builder = builder.worker_threads(2).thread_name(name);
    builder.enable_all().build().expect("a runtime")
}

async fn follow(kind: Kind, server: &Server) -> Follower {
    let runtime = runtime("follower");
    let (sender, seen) = mpsc::unbounded_channel();
    let changed = Changed::default();
    let mut decoder = None;
    let (dsn, queue) = (server.dsn.clone(), Arc::clone(&changed));
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let selector = move |prepared: bool| async move {
        let client = oddscache_testkit::connect(&dsn).await;
        let select = match prepared {
            true => Some((
                client.prepare(SELECT).await.expect("prepares"),
                client.prepare(SELECT_COMPETITORS).await.expect("prepares"),
            )),
            false => None,
        };
        Selector {
            client,
            select,
            changed: queue,
            seen: sender,
        }
    };
    match kind {
        Kind::Ours => {
            let (cache, follower) = OddsCache::connect(Config::new(&server.dsn).expect("config"));
            runtime.spawn(follower.run());
            let (sender, queue) = (selector(false).await.seen, cache.clone());
            let mut changes = cache.changes();
            runtime.spawn(async move {
                while let Some(change) = changes.next().await {
                    for id in change.expect("not lagging").event_ids() {
                        let _ = sender.send((id, Instant::now()));
                    }
                }
                drop(queue);
            });
            cache.ready().await.expect("warm");
            let _ = ready.send(());
        }
        Kind::Listen | Kind::ListenUnprepared => {
            let dsn = server.dsn.clone();
            runtime.spawn(async move {
                let selector = selector(kind == Kind::Listen).await;
                let (client, mut wire) = tokio_postgres::connect(&dsn, NoTls)
                    .await
                    .expect("connects");
                let (notify, mut notified) = mpsc::unbounded_channel();
                tokio::spawn(async move {
                    while let Some(Ok(message)) = poll_fn(|cx| wire.poll_message(cx)).await {
                        if let AsyncMessage::Notification(_) = message {
                            let _ = notify.send(());
                        }
                    }
                });
                // Writers notify only while a listener holds this lock.
                client
                    .batch_execute(
                        "LISTEN oddscache; \
                         SELECT pg_advisory_lock_shared(hashtextextended('oddscache listener oddscache', 0))",
                    )
                    .await
                    .expect("listens");
                let _ = ready.send(());
                while notified.recv().await.is_some() {
                    selector.run().await;
                }
            });
        }
        Kind::Decoding => {
            slot_is(server, false).await;
            let mut child = server
                .cluster
                .client("pg_recvlogical")
                .expect("pg_recvlogical")
                .args([
                    "-d",
                    &server.dsn,
                    "-S",
                    "bench",
                    "--start",
                    "-f",
                    "-",
                    "-F",
                    "0",
                ])
                .stdout(Stdio::piped())
                .spawn()
                .expect("pg_recvlogical");
            let output = child.stdout.take().expect("its output");
            let (notify, mut notified) = mpsc::unbounded_channel();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if line.starts_with("COMMIT") && notify.send(()).is_err() {
                        break;
                    }
                }
            });
            decoder = Some(child);
            slot_is(server, true).await;
            runtime.spawn(async move {
                let selector = selector(true).await;
                let _ = ready.send(());
                while notified.recv().await.is_some() {
                    selector.run().await;
                }
            });
        }
    }
    is_ready.await.expect("it starts");
    Follower {
        seen,
        changed,
        runtime: Some(runtime),
        decoder,
    }
}

/// Commits `commits` single changes and returns the times from sending COMMIT until the follower read each change. With
/// `load`, scrape batches are committed meanwhile. The follower reads them, but their times do not count.
async fn block(kind: Kind, server: &Server, commits: usize, load: bool) -> Vec<Duration> {
    let mut follower = follow(kind, server).await;
    let stop = Arc::new(AtomicBool::new(false));
    let loading = load.then(|| {
        let (dsn, stop, changed) = (
            server.dsn.clone(),
            Arc::clone(&stop),
            Arc::clone(&follower.changed),
        );
        tokio::spawn(async move {
            let mut writer = Writer::new(&dsn).await;
            for batch in (0..22).cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                writer
                    .batch(batch, |ids| changed.lock().unwrap().1.extend(ids))
                    .await;
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        })
    });
    let mut writer = Writer::new(&server.dsn).await;
    // A new follower is still reading what it missed.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut times = Vec::with_capacity(commits);
    for _ in 0..commits {
        let id = writer.begin_event().await;
        while follower.seen.try_recv().is_ok() {}
        follower.changed.lock().unwrap().0.push(id);
        let sent = Instant::now();
        let committing = writer.commit();
        let wait = async {
            loop {
                let (seen, at) = follower.seen.recv().await.expect("it follows");
                if seen == i64::from(id) && at >= sent {
                    return at;
                }
            }
        };
        let ((), at) = tokio::join!(committing, wait);
        times.push(at - sent);
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    stop.store(true, Ordering::Relaxed);
    if let Some(loading) = loading {
        loading.await.expect("the load ends");
    }
    times
}

async fn freshness(server: &Server, commits: usize, load: bool) {
    const ROUNDS: usize = 4;
    let mut times = [const { Vec::new() }; KINDS.len()];
    for _ in 0..ROUNDS {
        for (place, (kind, _)) in KINDS.iter().enumerate() {
            times[place].extend(block(*kind, server, commits / ROUNDS, load).await);
        }
    }
    println!(
        "COMMIT sent -> one event's new snapshot and markets read, {commits} commits each, {}",
        if load { "under scrape load" } else { "quiet" }
    );
    println!("{:<36}{:>12}{:>12}{:>16}", "", "p50", "p99", "ours / this");
    let ours = (quantile(&mut times[0], 0.5), quantile(&mut times[0], 0.99));
    for (place, (_, name)) in KINDS.iter().enumerate() {
        let (p50, p99) = (
            quantile(&mut times[place], 0.5),
            quantile(&mut times[place], 0.99),
        );
        let ratio = |ours: Duration, theirs: Duration| ours.as_secs_f64() / theirs.as_secs_f64();
        println!(
            "{name:<36}{:>12}{:>12}{:>8.2}{:>8.2}",
            milliseconds(p50),
            milliseconds(p99),
            ratio(ours.0, p50),
            ratio(ours.1, p99)
        );
    }
}

#[tokio::main]
async fn main() {
    let commits = std::env::var("COMMITS")
        .ok()
        .and_then(|text| text.parse().ok());
    let commits = commits.unwrap_or(600);
    let server = server::start(&["wal_level = logical"]).await;
    if std::env::var("PART").is_ok_and(|part| part == "cycles") {
        return cycles(&server).await;
    }
    let slot = "select pg_create_logical_replication_slot('bench', 'test_decoding')";
    server.client.query(slot, &[]).await.expect("a slot");
    freshness(&server, commits, false).await;
    freshness(&server, commits, true).await;
    slot_is(&server, false).await;
    let drop_slot = "select pg_drop_replication_slot('bench')";
    server.client.query(drop_slot, &[]).await.expect("dropped");
    cycles(&server).await;
}

/// Measures how far the cache falls behind a scrape cycle, and what a cycle of confirmations costs.
async fn cycles(server: &Server) {
    let (runtime, floor) = (runtime("follower"), runtime("floor"));
    let (cache, follower) = OddsCache::connect(Config::new(&server.dsn).expect("config"));
    runtime.spawn(follower.run());
    cache.ready().await.expect("warm");
    cycle::lag(server, &cache).await;
    cycle::confirmations(server, &cache, &floor).await;
    floor.shutdown_background();
    runtime.shutdown_background();
}
