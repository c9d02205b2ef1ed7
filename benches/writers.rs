//! What a write costs without triggers, and with each part of the change feed.
//!
//! ```sh
//! cargo bench --bench writers         # about four minutes
//! ```
//!
//! The benchmark starts a private server (`fsync` on) with a database for each row of the table. The databases differ
//! only in the change feed. The clients run in this process and send what an ORM sends: prepared statements with bind
//! parameters, each with many rows.
//!
//! In the first part, each database has one client, and the clients take turns after each transaction. The figures are
//! medians: of the time, and of its ratio to the time without triggers in the same turn. In the second part, several
//! clients write to one database at once, in turns of `SECONDS` (1) seconds. The figures are rates. `ROUNDS` (60) is
//! the number of turns of the first part. The second part has a tenth of that. `PART=alone` or `PART=together` runs
//! only one part.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::{
    future::poll_fn,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use oddscache::{Config, OddsCache, Status};
use oddscache_testkit::{
    bench,
    cluster::Cluster,
    connect,
    demo::{self, Size},
    followed::run,
};
use tokio_postgres::{Client, NoTls, Statement, types::ToSql};

/// A row of the printed table: a database, and a setting of its clients.
struct Variant {
    name: &'static str,
    database: &'static str,
    /// A statement that each client runs first.
    set: &'static str,
}

const fn variant(name: &'static str, database: &'static str, set: &'static str) -> Variant {
    Variant {
        name,
        database,
        set,
    }
}

const VARIANTS: [Variant; 8] = [
    variant("no triggers", "plain", ""),
    variant("triggers with an empty body", "empty", ""),
    variant("+ its rights and settings", "rights", ""),
    variant("+ keys", "keys", ""),
    variant(
        "+ log row (notify off)",
        "feed",
        "set oddscache.notify = off",
    ),
    variant("+ notify, nobody listens", "feed", ""),
    variant("+ notify each time", "notified", ""),
    variant("+ notify, a cache follows", "followed", ""),
];

/// The variants that are measured with several clients at once, as indexes into [`VARIANTS`].
const TOGETHER: [usize; 7] = [0, 1, 2, 4, 5, 6, 7];

const MARKETS: usize = 50;
const EVENTS: usize = 50;

fn market_sql(markets: usize) -> String {
    let row = |row: usize| {
        let at = |column| row * 5 + column;
        let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(at);
        format!("(${a}, ${b}, ${c}, ${d}, ${e}::text::jsonb)")
    };
    let rows: Vec<String> = (0..markets).map(row).collect();
    format!(
        "insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes) values {}",
        rows.join(", ")
    )
}

/// A client of the application, with its statements prepared.
struct Writer {
    client: Client,
    pid: i32,
    snapshots: Statement,
    thousand: Statement,
    half: Statement,
    snapshot: Statement,
    markets: Statement,
    confirm: Statement,
}

impl Writer {
    async fn open(cluster: &Cluster, variant: &Variant) -> Writer {
        let client = connect(&cluster.dsn(variant.database)).await;
        run(&client, "set jit = off").await;
        run(&client, variant.set).await;
        let rows: Vec<String> = (0..EVENTS)
            .map(|n| format!("(${}, 1, now() at time zone 'UTC')", n + 1))
            .collect();
        let into = "insert into odds_snapshots (event_id, bookmaker_id, captured_at) values";
        let row = client.query_one("select pg_backend_pid()", &[]).await;
        let prepare = async |sql: &str| client.prepare(sql).await.expect("prepared");
        Writer {
            pid: row.expect("a process").get(0),
            snapshots: prepare(&format!("{into} {} returning id", rows.join(", "))).await,
            thousand: prepare(&market_sql(1000)).await,
            half: prepare(&market_sql(500)).await,
            snapshot: prepare(&format!("{into} {} returning id", rows[0])).await,
            markets: prepare(&market_sql(MARKETS)).await,
            confirm: prepare(
                "update odds_snapshots set last_confirmed_at = now() at time zone 'UTC' where id = any($1)",
            )
            .await,
            client,
        }
    }

    /// CPU time of this client's backend, in milliseconds. The kernel updates it when the backend begins to wait.
    fn cpu_ms(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/schedstat", self.pid));
        let stat = stat.unwrap_or_default();
        let nanoseconds = stat.split(' ').next().and_then(|text| text.parse().ok());
        nanoseconds.unwrap_or(f64::NAN) / 1e6
    }

    async fn insert_markets(&self, statement: &Statement, snapshots: &[i64]) {
        let kinds: Vec<String> = (0..MARKETS).map(|n| (3743 + n).to_string()).collect();
        let lines: Vec<f64> = (0..MARKETS).map(|n| n as f64 + 0.5).collect();
        let outcomes = r#"[{"name": "1", "odds": 2.35, "is_active": true}, {"name": "X", "odds": 3.1, "is_active": true},
            {"name": "2", "odds": 2.9, "is_active": true}]"#;
        let mut values: Vec<&(dyn ToSql + Sync)> =
            Vec::with_capacity(snapshots.len() * MARKETS * 5);
        for id in snapshots {
            for (kind, line) in kinds.iter().zip(&lines) {
                values.extend([id as &(dyn ToSql + Sync), kind, kind, line, &outcomes]);
            }
        }
        let inserted = self.client.execute(statement, &values).await;
        inserted.expect("markets");
    }

    /// Inserts 50 snapshots with 2,500 markets in one transaction.
    async fn batch(&self, round: usize) {
        let events: Vec<i32> = (0..EVENTS).map(|n| event(round * EVENTS + n)).collect();
        let values: Vec<&(dyn ToSql + Sync)> = events.iter().map(|id| id as _).collect();
        run(&self.client, "begin").await;
        let rows = self.client.query(&self.snapshots, &values).await;
        let ids: Vec<i64> = rows.expect("snapshots").iter().map(|r| r.get(0)).collect();
        let (thousands, rest) = ids.as_chunks::<20>();
        for ids in thousands {
            self.insert_markets(&self.thousand, ids).await;
        }
        self.insert_markets(&self.half, rest).await;
        run(&self.client, "commit").await;
    }

    async fn confirm(&self, ids: &[i64]) {
        run(&self.client, "begin").await;
        let updated = self.client.execute(&self.confirm, &[&ids]).await;
        assert_eq!(updated.expect("confirmed"), 1000);
        run(&self.client, "commit").await;
    }

    /// Inserts one snapshot with its markets in one transaction.
    async fn single(&self, round: usize) {
        run(&self.client, "begin").await;
        let event = event(round);
        let row = self.client.query_one(&self.snapshot, &[&event]).await;
        let id: i64 = row.expect("a snapshot").get(0);
        self.insert_markets(&self.markets, &[id]).await;
        run(&self.client, "commit").await;
    }
}

fn event(number: usize) -> i32 {
    i32::try_from(101 + number % 1000).expect("an event")
}

/// Opens a session that listens for ever. It holds the listener's lock, so every writing transaction notifies it.
async fn listen(dsn: &str) {
    let (client, mut connection) = tokio_postgres::connect(dsn, NoTls).await.expect("connects");
    tokio::spawn(async move { while poll_fn(|cx| connection.poll_message(cx)).await.is_some() {} });
    let wait = "listen oddscache; select pg_advisory_lock_shared(hashtextextended('oddscache listener oddscache', 0))";
    client.batch_execute(wait).await.expect("waits");
    // The session stays open until the process ends.
    std::mem::forget(client);
}

async fn prepare(cluster: &Cluster) -> OddsCache {
    let client = connect(&cluster.dsn("postgres")).await;
    run(&client, "create database plain").await;
    let plain = connect(&cluster.dsn("plain")).await;
    let size = Size {
        history: 4,
        history_with_markets: 1,
        ..Size::default()
    };
    demo::fill(&plain, &size).await;
    run(&plain, "vacuum").await;
    drop(plain);
    for database in ["empty", "rights", "keys", "feed", "notified", "followed"] {
        let create = format!("create database {database} template plain");
        run(&client, &create).await;
        cluster.psql_ok(database, &["-qf", "sql/install.sql"]);
    }
    let replace = |database: &str, sql: &str| cluster.psql_ok(database, &["-qc", sql]);
    // The same triggers with an empty function.
    replace(
        "empty",
        "create or replace function oddscache.log_change() returns trigger language plpgsql as 'begin return null; end'",
    );
    // A function needs these attributes if it writes to a table on behalf of roles without rights on it.
    replace(
        "rights",
        "create or replace function oddscache.log_change() returns trigger language plpgsql
             security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms'
             as 'begin return null; end'",
    );
    // The function collects the keys and returns before it writes the log row.
    replace(
        "keys",
        "do $$ declare def text := pg_get_functiondef('oddscache.log_change()'::regprocedure);
               begin
                 assert position('-- 2. The log row' in def) > 0;
                 execute replace(def, '-- 2. The log row', 'RETURN NULL;');
               end $$",
    );
    run(&client, "checkpoint").await;
    listen(&cluster.dsn("notified")).await;
    let config = Config::new(&cluster.dsn("followed")).expect("a dsn");
    let (cache, follower) = OddsCache::connect(config);
    tokio::spawn(follower.run());
    cache.ready().await.expect("warm");
    while cache.status() != Status::Live {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cache
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    bench::median(&mut values)
}

/// Runs `transaction` with each writer in turn and prints a table of times and CPU times.
async fn alone(
    what: &str,
    writers: &[Writer],
    rounds: usize,
    mut transaction: impl AsyncFnMut(&Writer, usize),
) {
    let mut times = vec![Vec::new(); writers.len()];
    let mut cpu = times.clone();
    for round in 0..rounds + 3 {
        for turn in 0..writers.len() {
            let index = (round + turn) % writers.len();
            let writer = &writers[index];
            let (begun, cpu_before) = (Instant::now(), writer.cpu_ms());
            transaction(writer, round).await;
            let took = begun.elapsed().as_secs_f64() * 1e3;
            // Give a following cache time to read the change, so that its work does not slow the next writer. The
            // backend waits by then, so its CPU time is exact.
            tokio::time::sleep(Duration::from_millis(3)).await;
            if round >= 3 {
                times[index].push(took);
                cpu[index].push(writer.cpu_ms() - cpu_before);
            }
        }
    }
    println!("\n{what}, {rounds} turns");
    println!(
        "{:<30}{:>10}{:>9}{:>14}{:>15}{:>9}{:>14}",
        "", "median ms", "ratio", "quartiles", "server CPU ms", "ratio", "quartiles"
    );
    for (index, variant) in VARIANTS.iter().enumerate() {
        println!(
            "{:<30}{}  {}",
            variant.name,
            compared(&times[index], &times[0]),
            compared(&cpu[index], &cpu[0])
        );
    }
}

/// The median time, and the median and quartiles of its ratio to the time without triggers in the same turn.
fn compared(with: &[f64], without: &[f64]) -> String {
    let mut ratios: Vec<f64> = with.iter().zip(without).map(|(a, b)| a / b).collect();
    ratios.sort_by(f64::total_cmp);
    let at = |quarter: usize| ratios[ratios.len() * quarter / 4];
    let median = median(with.to_vec());
    let quartiles = format!("{:.2}-{:.2}", at(1), at(3));
    format!("{median:>10.3}{:>8.3}x{quartiles:>14}", at(2))
}

/// Transactions per second of all writers together.
async fn rate(writers: &[Writer], seconds: f64) -> f64 {
    let done = AtomicUsize::new(0);
    let begun = Instant::now();
    let client = async |number: usize, writer: &Writer| {
        let mut round = number * 97;
        while begun.elapsed().as_secs_f64() < seconds {
            writer.single(round).await;
            done.fetch_add(1, Ordering::Relaxed);
            round += 1;
        }
    };
    let clients = writers.iter().enumerate();
    futures_util::future::join_all(clients.map(|(number, writer)| client(number, writer))).await;
    done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
}

async fn together(cluster: &Cluster, cache: &OddsCache, rounds: usize, seconds: f64) {
    let mut writers = Vec::new();
    for index in TOGETHER {
        let mut clients = Vec::new();
        for _ in 0..16 {
            clients.push(Writer::open(cluster, &VARIANTS[index]).await);
        }
        writers.push(clients);
    }
    println!("\none snapshot with its 50 markets, clients at once, {rounds} turns of {seconds} s");
    println!(
        "{:<30}{:>9}{:>12}{:>10}",
        "", "clients", "median /s", "ratio"
    );
    for clients in [1, 4, 8, 16] {
        let mut rates = vec![Vec::new(); TOGETHER.len()];
        let mut reads = Vec::new();
        for round in 0..rounds {
            for turn in 0..TOGETHER.len() {
                let index = (round + turn) % TOGETHER.len();
                let before = cache.counters();
                rates[index].push(rate(&writers[index][..clients], seconds).await);
                if index + 1 == TOGETHER.len() {
                    let after = cache.counters();
                    reads.push((
                        (after.reads - before.reads) as f64 / seconds,
                        (after.notifications - before.notifications) as f64 / seconds,
                    ));
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
        }
        for (index, rate) in TOGETHER.iter().zip(&rates) {
            let ratios = rate.iter().zip(&rates[0]).map(|(a, b)| a / b);
            println!(
                "{:<30}{clients:>9}{:>12.0}{:>9.2}x",
                VARIANTS[*index].name,
                median(rate.clone()),
                median(ratios)
            );
        }
        println!(
            "{:<30}{:>9}  the cache: {:.0} reads a second, {:.0} of them for a notification",
            "",
            "",
            median(reads.iter().map(|(reads, _)| *reads)),
            median(reads.iter().map(|(_, notifications)| *notifications))
        );
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let number = |name, default| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (seconds, rounds) = (number("SECONDS", 1.0), number("ROUNDS", 60.0) as usize);
    let cluster = Cluster::start(&[
        "shared_buffers = 1GB",
        "max_wal_size = 8GB",
        "checkpoint_timeout = 1h",
        "autovacuum = off",
        "max_connections = 200",
    ])
    .expect("a cluster");
    let cache = prepare(&cluster).await;
    let mut writers = Vec::new();
    for variant in &VARIANTS {
        writers.push(Writer::open(&cluster, variant).await);
    }
    let part = std::env::var("PART").unwrap_or_default();
    if !part.contains("together") {
        let ids: Vec<i64> = {
            let sql = "select id from odds_snapshots order by id desc limit 1000";
            let rows = writers[0].client.query(sql, &[]).await.expect("ids");
            rows.iter().map(|row| row.get(0)).collect()
        };
        alone(
            "one snapshot with its 50 markets, one client",
            &writers,
            rounds * 3,
            async |writer, round| writer.single(round).await,
        )
        .await;
        alone(
            "50 snapshots and 2,500 markets",
            &writers,
            rounds,
            async |writer, round| writer.batch(round).await,
        )
        .await;
        alone(
            "last_confirmed_at of 1,000 snapshots",
            &writers,
            rounds,
            async |writer, _| writer.confirm(&ids).await,
        )
        .await;
    }
    drop(writers);
    if !part.contains("alone") {
        together(&cluster, &cache, (rounds / 10).max(3), seconds).await;
    }
}
