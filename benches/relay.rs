//! What a relay adds: time from COMMIT until a subscriber shows the change, beside the publisher's own view of the same
//! commits; bytes; and the start of a subscriber, beside a bare read of the same messages.
//!
//! ```sh
//! cargo bench --bench relay
//! ```
//!
//! The benchmark starts a private PostgreSQL with 1,100 upcoming events and a private nats-server, which must be
//! installed. `COMMITS` (300) is the number of commits.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::{
    thread,
    time::{Duration, Instant},
};

use oddscache::{Config, OddsCache, Relay};
use oddscache_testkit::{
    bench::{
        figures::{median, milliseconds, quantile},
        server,
    },
    connect,
    nats::Nats,
    xid,
};
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_postgres::Client;

const COLUMNS: &str = "betpawa_market_id, betpawa_market_name, line, handicap_type, handicap_home, handicap_away, outcomes, market_groups";

/// The outcomes with other odds.
const MOVED: &str = "(select json_agg(o || jsonb_build_object('odds', round((o->>'odds')::numeric + (random() / 2)::numeric, 2))) \
    from jsonb_array_elements(outcomes::jsonb) o)";

/// A cache on a runtime of its own, and the events that it shows as changed, each with the time.
struct Cache {
    cache: OddsCache,
    runtime: Runtime,
    seen: mpsc::UnboundedReceiver<(i64, Instant)>,
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
                    let _ = sender.send((id, now));
                }
            }
        });
        Cache {
            cache,
            runtime,
            seen,
        }
    }

    /// When it showed the event.
    async fn shows(&mut self, event: i64) -> Instant {
        loop {
            let (id, at) = self.seen.recv().await.expect("a change");
            if id == event {
                return at;
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

async fn confirm(client: &Client, events: &[i32]) {
    let sql = "update odds_snapshots set last_confirmed_at = now() at time zone 'UTC' where id in \
        (select max(id) from odds_snapshots where event_id = any($1::int[]) and bookmaker_id = 1 group by event_id)";
    client.execute(sql, &[&events]).await.expect("confirmed");
}

/// Runs a change in a transaction, and waits until both show it. Returns how many bytes the relay took.
async fn bytes_of(client: &Client, caches: [&OddsCache; 2], change: impl AsyncFnOnce()) -> u64 {
    let before = caches[0].counters().relay_bytes;
    client.batch_execute("begin").await.expect("begun");
    change().await;
    let xid = xid(client).await;
    client.batch_execute("commit").await.expect("committed");
    for cache in caches {
        let shown = cache.wait_for(xid, Duration::from_secs(20)).await;
        shown.expect("shown");
    }
    // The publisher counts once the stream has acknowledged.
    thread::sleep(Duration::from_millis(200));
    caches[0].counters().relay_bytes - before
}

/// The bytes of the odds words of these events' snapshots of bookmaker 1, and 40 for each head.
fn packed(cache: &OddsCache, events: &[i32]) -> usize {
    let view = cache.view();
    let snapshots = events.iter().filter_map(|id| view.event(i64::from(*id)));
    let snapshots = snapshots.filter_map(|event| event.betpawa().get(1));
    let bytes = snapshots.map(|snapshot| {
        let outcomes: usize = snapshot
            .markets()
            .map(|market| market.outcomes().len())
            .sum();
        40 + 4 * outcomes
    });
    bytes.sum()
}

async fn run() {
    let commits = std::env::var("COMMITS").map_or(300, |text| text.parse().unwrap());
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let server = server::start(&[]).await;
    let dsn = server.dsn.clone();
    let relay = Relay::new(&nats.url()).unwrap();
    let mut publisher = Cache::start(Config::new(&dsn).unwrap());
    publisher.cache.ready().await.expect("warm");
    publisher
        .runtime
        .spawn(publisher.cache.relay_to(relay.clone()).run());
    let mut subscriber = Cache::start(Config::relay(relay.clone()));
    subscriber.cache.ready().await.expect("warm");

    let client = connect(&dsn).await;
    let template = format!(
        "create temp table template as select {COLUMNS} from market_odds \
         where snapshot_id = (select max(snapshot_id) from market_odds) order by id"
    );
    client.batch_execute(&template).await.expect("a template");
    let sql = "select id from events e where kickoff > now() at time zone 'UTC' + interval '1 hour' \
        and exists (select from odds_snapshots where event_id = e.id) order by id";
    let rows = client.query(sql, &[]).await.expect("events");
    let events: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();

    // Both have shown all events by their warmups.
    for cache in [&mut publisher, &mut subscriber] {
        while cache.seen.try_recv().is_ok() {}
    }
    let (mut direct, mut relayed, mut added) = (Vec::new(), Vec::new(), Vec::new());
    for nth in 0..commits {
        let event = events[nth % events.len()];
        client.batch_execute("begin").await.expect("begun");
        write(&client, &[event]).await;
        let sent = Instant::now();
        client.batch_execute("commit").await.expect("committed");
        let one = publisher.shows(i64::from(event)).await;
        let two = subscriber.shows(i64::from(event)).await;
        direct.push(one.saturating_duration_since(sent));
        relayed.push(two.saturating_duration_since(sent));
        added.push(two.saturating_duration_since(one));
        thread::sleep(Duration::from_millis(30));
    }
    println!("{commits} commits of one snapshot, from COMMIT until shown (p50, p99):");
    for (what, times) in [
        ("publisher", &mut direct),
        ("subscriber", &mut relayed),
        ("the relay's part", &mut added),
    ] {
        let (p50, p99) = (median(times), quantile(times, 0.99));
        println!("  {what:18} {} {}", milliseconds(p50), milliseconds(p99));
    }
    println!(
        "  ratio of the medians x{:.2}",
        median(&mut relayed).as_secs_f64() / median(&mut direct).as_secs_f64()
    );

    let batch = &events[..150.min(events.len())];
    let both = [&publisher.cache, &subscriber.cache];
    // The first batch brings the markets of the template to all of these events.
    bytes_of(&client, both, async || write(&client, batch).await).await;
    let changed = bytes_of(&client, both, async || write(&client, batch).await).await;
    let confirmed = bytes_of(&client, both, async || confirm(&client, batch).await).await;
    let floor = packed(&publisher.cache, batch);
    println!(
        "bytes of {} changed snapshots: {changed}, x{:.2} of words and heads; confirmed: {confirmed}, x{:.2} of 16 bytes each",
        batch.len(),
        changed as f64 / floor as f64,
        confirmed as f64 / (16 * batch.len()) as f64
    );

    let (mut starts, mut bare) = (Vec::new(), Vec::new());
    let jetstream = async_nats::jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    for _ in 0..5 {
        let begun = Instant::now();
        let states = jetstream.get_stream("oddscache_odds_state").await.unwrap();
        let mut bytes = 0;
        for part in 0.. {
            let subject = format!("oddscache.odds.state.a.{part}");
            match states.direct_get_last_for_subject(subject).await {
                Ok(message) => bytes += message.payload.len(),
                Err(_) => break,
            }
        }
        if bytes > 0 {
            bare.push(begun.elapsed());
        }
        let begun = Instant::now();
        let late = Cache::start(Config::relay(relay.clone()));
        late.cache.ready().await.expect("warm");
        starts.push(begun.elapsed());
        late.runtime.shutdown_background();
    }
    println!(
        "start of a subscriber: {}",
        milliseconds(median(&mut starts))
    );
    if !bare.is_empty() {
        println!(
            "a bare read of a state: {}",
            milliseconds(median(&mut bare))
        );
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
