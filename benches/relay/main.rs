//! What a relay adds, each figure with its floor in the same run: the time from COMMIT until a subscriber shows the
//! change, bytes, the start of a subscriber, and what subscribers cost the database and the publisher.
//!
//! ```sh
//! cargo bench --bench relay
//! PART=cost ROUNDS=5 cargo bench --bench relay
//! ```
//!
//! The benchmark starts a private PostgreSQL with 1,100 upcoming events and a private nats-server, which must be
//! installed. `PART` is a list of `latency`, `bytes`, `start` and `cost`, by default of all. `COMMITS` (300) is the number
//! of commits, `ROUNDS` (3) that of the measurements of costs, and `SECONDS` (20) the time of each measurement at rest.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

mod bytes;
mod cost;
mod latency;
mod start;

use std::time::Instant;

use oddscache::{Config, OddsCache, Relay};
use oddscache_testkit::{
    bench::server::{self, Server},
    connect,
    nats::Nats,
};
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_postgres::Client;

const COLUMNS: &str = "betpawa_market_id, betpawa_market_name, line, handicap_type, handicap_home, handicap_away, outcomes, market_groups";

/// The outcomes with other odds.
const MOVED: &str = "(select json_agg(o || jsonb_build_object('odds', round((o->>'odds')::numeric + (random() / 2)::numeric, 2))) \
    from jsonb_array_elements(outcomes::jsonb) o)";

/// A cache on a runtime of its own, and the events that it shows as changed, each with the time and the version.
struct Cache {
    cache: OddsCache,
    runtime: Runtime,
    seen: mpsc::UnboundedReceiver<(i64, Instant, u64)>,
}

impl Cache {
    fn start(config: Config) -> Cache {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
        let (cache, follower) = OddsCache::connect(config);
        runtime.spawn(follower.run());
        let (sender, seen) = mpsc::unbounded_channel();
        let mut changes = cache.changes();
        runtime.spawn(async move {
            while let Some(Ok(change)) = changes.next().await {
                let now = Instant::now();
                for id in change.event_ids() {
                    let _ = sender.send((id, now, change.version));
                }
            }
        });
        Cache {
            cache,
            runtime,
            seen,
        }
    }

    /// When it showed the event, and in which version.
    async fn shows(&mut self, event: i64) -> (Instant, u64) {
        loop {
            let (id, at, version) = self.seen.recv().await.expect("a change");
            if id == event {
                return (at, version);
            }
        }
    }
}

async fn write(client: &Client, events: &[i32]) {
    let sql = format!(
        "with s as (insert into odds_snapshots (event_id, bookmaker_id, captured_at) \
           select id, 1, now() at time zone 'UTC' from unnest($1::int[]) id returning id) \
         insert into market_odds (snapshot_id, {COLUMNS}) select s.id, {} from s, template",
        COLUMNS.replace("outcomes", MOVED)
    );
    client.execute(&sql, &[&events]).await.expect("written");
}

/// The number in a variable of the environment.
fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// A server, a connection that writes, and the events that it may change.
struct Bench {
    nats: Nats,
    server: Server,
    writer: Client,
    events: Vec<i32>,
}

impl Bench {
    async fn new() -> Option<Bench> {
        let nats = Nats::start("").await?;
        // Their work at times of their own would be counted.
        let server = server::start(&["autovacuum = off", "checkpoint_timeout = 1h"]).await;
        let writer = Bench::writer(&server.dsn).await;
        let sql = "select id from events e where kickoff > now() at time zone 'UTC' + interval '1 hour' \
            and exists (select from odds_snapshots where event_id = e.id) order by id";
        let rows = writer.query(sql, &[]).await.expect("events");
        let events: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
        // The first write brings the markets of the template to all of these events.
        write(&writer, &events).await;
        Some(Bench {
            nats,
            server,
            writer,
            events,
        })
    }

    /// A connection with the template that [`write`] needs.
    async fn writer(dsn: &str) -> Client {
        let client = connect(dsn).await;
        let template = format!(
            "create temp table template as select {COLUMNS} from market_odds \
             where snapshot_id = (select max(snapshot_id) from market_odds) order by id"
        );
        client.batch_execute(&template).await.expect("a template");
        client
    }

    fn relay(&self) -> Relay {
        Relay::new(&self.nats.url()).unwrap()
    }

    /// The events of a scrape's transaction.
    fn batch(&self) -> &[i32] {
        &self.events[..150.min(self.events.len())]
    }
}

async fn run() {
    let part = std::env::var("PART").unwrap_or_default();
    let is_asked = |name: &str| part.is_empty() || part.split(',').any(|asked| asked == name);
    let Some(bench) = Bench::new().await else {
        return;
    };
    if is_asked("cost") {
        cost::run(&bench).await;
    }
    if !["latency", "bytes", "start"].into_iter().any(is_asked) {
        return;
    }
    let mut publisher = Cache::start(Config::new(&bench.server.dsn).unwrap());
    publisher.cache.ready().await.expect("warm");
    let publish = publisher.cache.relay_to(bench.relay());
    publisher.runtime.spawn(publish.run());
    let mut subscriber = Cache::start(Config::relay(bench.relay()));
    subscriber.cache.ready().await.expect("warm");
    if is_asked("latency") {
        latency::run(&bench, &mut publisher, &mut subscriber).await;
    }
    if is_asked("bytes") {
        bytes::run(&bench, [&publisher.cache, &subscriber.cache]).await;
    }
    if is_asked("start") {
        start::run(&bench, &publisher.cache).await;
    }
    let counters = subscriber.cache.counters();
    println!(
        "{} deltas, {} gaps, {} mismatches",
        counters.relay_deltas, counters.relay_gaps, counters.relay_mismatches
    );
    publisher.runtime.shutdown_background();
    subscriber.runtime.shutdown_background();
}

fn main() {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(run());
}
