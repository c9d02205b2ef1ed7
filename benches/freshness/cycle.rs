//! The application's writes: single events, and scrape cycles. A cycle has 22 transactions of 50 events with three
//! snapshots each.

use std::{
    fs,
    hint::black_box,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::StreamExt;
use oddscache::OddsCache;
use oddscache_testkit::bench::{
    figures::{milliseconds, quantile},
    server::{Server, connect},
};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, Statement};

/// The application's connection, which writes snapshots.
pub(crate) struct Writer {
    client: Client,
    /// Upcoming events with a betPawa snapshot. Single changes use the last [`SINGLES`] of them.
    events: Vec<i32>,
    /// The number of single changes begun so far.
    singles: usize,
}

/// The number of events for single changes. No batch writes to them.
const SINGLES: usize = 40;

/// The number of events in a batch.
const BATCH: usize = 50;

const COLUMNS: &str = "betpawa_market_id, betpawa_market_name, line, handicap_type, handicap_home, handicap_away, outcomes, market_groups";

impl Writer {
    pub(crate) async fn new(dsn: &str) -> Writer {
        let client = connect(dsn).await;
        for (kind, table) in [
            ("ours", "market_odds"),
            ("theirs", "competitor_market_odds"),
        ] {
            let sql = format!(
                "create temp table {kind} as select {COLUMNS} from {table} \
                 where snapshot_id = (select max(snapshot_id) from {table}) order by id"
            );
            client.batch_execute(&sql).await.expect("a template");
        }
        let sql = "select id from events e where kickoff > now() at time zone 'UTC' + interval '1 hour' \
            and exists (select from odds_snapshots where event_id = e.id) order by id";
        let rows = client.query(sql, &[]).await.expect("events");
        let events = rows.iter().map(|row| row.get(0)).collect();
        Writer {
            client,
            events,
            singles: 0,
        }
    }

    /// Begins a transaction and inserts a snapshot of one event with its markets. Returns the event and leaves the
    /// transaction open.
    pub(crate) async fn begin_event(&mut self) -> i32 {
        let single = self.events.len() - 1 - self.singles % SINGLES;
        self.singles += 1;
        let id = self.events[single];
        self.client.batch_execute("begin").await.expect("begins");
        self.snapshots(&[id]).await;
        id
    }

    pub(crate) async fn commit(&self) {
        self.client.batch_execute("commit").await.expect("commits");
    }

    async fn snapshots(&self, ids: &[i32]) {
        let sql = format!(
            "with s as (insert into odds_snapshots (event_id, bookmaker_id, captured_at) \
               select id, 1, now() at time zone 'UTC' from unnest($1::int[]) id returning id) \
             insert into market_odds (snapshot_id, {COLUMNS}) select s.id, {COLUMNS} from s, ours"
        );
        self.client.execute(&sql, &[&ids]).await.expect("written");
    }

    /// Runs one transaction of a cycle. Calls `changes` with the changed events before it sends COMMIT. Returns the
    /// transaction's id and the time at which COMMIT was sent.
    pub(crate) async fn batch(
        &mut self,
        number: usize,
        changes: impl FnOnce(&[i32]),
    ) -> (u64, Instant) {
        let from = number * BATCH % (self.events.len() - SINGLES);
        let to = (from + BATCH).min(self.events.len() - SINGLES);
        let ids = self.events[from..to].to_vec();
        self.client.batch_execute("begin").await.expect("begins");
        self.snapshots(&ids).await;
        let sql = format!(
            "with s as (insert into competitor_odds_snapshots (competitor_event_id, captured_at) \
               select id, now() at time zone 'UTC' from competitor_events where betpawa_event_id = any($1) and deleted_at is null \
               returning id) \
             insert into competitor_market_odds (snapshot_id, {COLUMNS}) select s.id, {COLUMNS} from s, theirs"
        );
        self.client.execute(&sql, &[&ids]).await.expect("written");
        let xid = self.transaction().await;
        changes(&ids);
        let sent = Instant::now();
        self.commit().await;
        (xid, sent)
    }

    async fn transaction(&self) -> u64 {
        let sql = "select pg_current_xact_id()::text";
        let row = self.client.query_one(sql, &[]).await.expect("an id");
        row.get::<_, String>(0).parse().expect("a number")
    }
}

/// Commits a whole cycle as fast as possible. After each commit it counts the earlier transactions that the cache does
/// not show yet.
pub(crate) async fn lag(server: &Server, cache: &OddsCache) {
    let mut writer = Writer::new(&server.dsn).await;
    let begun = Instant::now();
    let (mut behind, mut most, mut times) = (Vec::new(), 0, Vec::new());
    for number in 0..22 {
        let (xid, sent) = writer.batch(number, |_| ()).await;
        behind.retain(|(xid, _)| !cache.view().cut().shows(*xid));
        // The transaction just committed does not count, because it is pushed afterwards.
        most = most.max(behind.len());
        behind.push((xid, sent));
        let cache = cache.clone();
        times.push(tokio::spawn(async move {
            let seen = cache.wait_for(xid, Duration::from_secs(10)).await;
            seen.expect("seen");
            sent.elapsed()
        }));
    }
    let committed = begun.elapsed();
    let mut seen = Vec::new();
    for time in times {
        seen.push(time.await.expect("seen"));
    }
    println!(
        "a scrape cycle of 22 transactions: committed in {}, all visible after {}; after a commit at most {most} \
         earlier ones were not visible yet; COMMIT sent -> visible {} median, {} at most",
        milliseconds(committed),
        milliseconds(begun.elapsed()),
        milliseconds(quantile(&mut seen, 0.5)),
        milliseconds(quantile(&mut seen, 1.0))
    );
}

/// CPU time of all threads of this process with the given name.
fn cpu(name: &str) -> Duration {
    let mut nanoseconds = 0;
    for task in fs::read_dir("/proc/self/task").expect("tasks").flatten() {
        let file = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        if file("comm").trim() == name {
            let spent = file("schedstat");
            nanoseconds += spent
                .split(' ')
                .next()
                .and_then(|text| text.parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    Duration::from_nanos(nanoseconds)
}

/// The least work of any program that keeps the times of the latest snapshots with this driver. It selects the
/// confirmed rows and reads their columns. It gets the ids for free and keeps nothing.
struct Floor {
    client: Client,
    ours: Statement,
    theirs: Statement,
}

impl Floor {
    async fn new(dsn: &str) -> Floor {
        let client = connect(dsn).await;
        let ours = "select event_id, bookmaker_id, id, captured_at, last_confirmed_at from odds_snapshots where id = any($1)";
        let theirs = "select c.betpawa_event_id, c.source, s.id, s.captured_at, s.last_confirmed_at \
            from competitor_odds_snapshots s join competitor_events c on c.id = s.competitor_event_id where s.id = any($1)";
        Floor {
            ours: client.prepare(ours).await.expect("prepared"),
            theirs: client.prepare(theirs).await.expect("prepared"),
            client,
        }
    }

    /// Sends one query for each transaction of the cycle. Returns the number of rows.
    async fn read(&self, ours: &[i64], theirs: &[i32]) -> usize {
        let mut read = 0;
        for ids in ours.chunks(1_000) {
            let rows = self.client.query_raw(&self.ours, [ids]).await;
            let mut rows = pin!(rows.expect("rows"));
            while let Some(row) = rows.next().await {
                let row = row.expect("a row");
                let times: (SystemTime, SystemTime) = (row.get(3), row.get(4));
                black_box::<(i32, i32, i64, _)>((row.get(0), row.get(1), row.get(2), times));
                read += 1;
            }
        }
        for ids in theirs.chunks(1_000) {
            let rows = self.client.query_raw(&self.theirs, [ids]).await;
            let mut rows = pin!(rows.expect("rows"));
            while let Some(row) = rows.next().await {
                let row = row.expect("a row");
                let times: (SystemTime, SystemTime) = (row.get(3), row.get(4));
                black_box::<(i32, &str, i32, _)>((row.get(0), row.get(1), row.get(2), times));
                read += 1;
            }
        }
        read
    }
}

/// Confirms all latest snapshots `CYCLES` (10) times, in statements of 1,000 ids. Prints the follower's CPU time,
/// compared with [`Floor`].
pub(crate) async fn confirmations(server: &Server, cache: &OddsCache, floor: &Runtime) {
    let cycles = std::env::var("CYCLES").ok();
    let cycles: u32 = cycles.and_then(|text| text.parse().ok()).unwrap_or(10);
    let writer = Writer::new(&server.dsn).await;
    let ids = "array(select max(s.id) from odds_snapshots s join events e on e.id = s.event_id \
        where e.kickoff > now() at time zone 'UTC' group by s.event_id, s.bookmaker_id)";
    let competitor_ids = "array(select max(s.id) from competitor_odds_snapshots s join competitor_events c \
        on c.id = s.competitor_event_id join events e on e.id = c.betpawa_event_id \
        where e.kickoff > now() at time zone 'UTC' and c.deleted_at is null group by s.competitor_event_id)";
    let ask = |sql: &str| format!("select {sql}::int8[]");
    let ours: Vec<i64> = writer
        .client
        .query_one(&ask(ids), &[])
        .await
        .expect("ids")
        .get(0);
    let theirs = writer.client.query_one(&ask(competitor_ids), &[]).await;
    let theirs: Vec<i64> = theirs.expect("ids").get(0);
    let dsn = server.dsn.clone();
    let bare = floor.spawn(async move { Floor::new(&dsn).await });
    let bare = Arc::new(bare.await.expect("a client"));
    let narrow = theirs
        .iter()
        .map(|id| i32::try_from(*id).expect("a serial"));
    let all = Arc::new((ours.clone(), narrow.collect::<Vec<_>>()));
    let before = (cpu("follower"), cpu("floor"), cache.counters());
    for _ in 0..cycles {
        let mut xid = 0;
        for (table, ids) in [
            ("odds_snapshots", &ours),
            ("competitor_odds_snapshots", &theirs),
        ] {
            for ids in ids.chunks(1_000) {
                writer.client.batch_execute("begin").await.expect("begins");
                let sql = format!(
                    "update {table} set last_confirmed_at = now() at time zone 'UTC' where id = any($1::int8[])"
                );
                writer
                    .client
                    .execute(&sql, &[&ids])
                    .await
                    .expect("confirmed");
                xid = writer.transaction().await;
                writer.commit().await;
            }
        }
        cache
            .wait_for(xid, Duration::from_secs(10))
            .await
            .expect("seen");
        let (bare, all) = (Arc::clone(&bare), Arc::clone(&all));
        let read = floor.spawn(async move { bare.read(&all.0, &all.1).await });
        assert_eq!(read.await.expect("read"), ours.len() + theirs.len());
    }
    let spent = (cpu("follower") - before.0) / cycles;
    let least = (cpu("floor") - before.1) / cycles;
    let counters = cache.counters();
    println!(
        "a cycle of {} confirmations: the follower takes {} of CPU time, x{:.2} of a client that only reads these \
         rows ({}); {} reads a cycle, markets of {} snapshots read in all cycles",
        ours.len() + theirs.len(),
        milliseconds(spent),
        spent.as_secs_f64() / least.as_secs_f64(),
        milliseconds(least),
        (counters.reads - before.2.reads) / u64::from(cycles),
        counters.snapshots_read - before.2.snapshots_read
    );
}
