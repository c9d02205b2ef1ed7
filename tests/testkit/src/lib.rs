//! What the tests and the benchmarks of oddscache share. Each process has one private cluster, and each test has one
//! database.
//!
//! Paths such as `sql/install.sql` start at the root of the package, because cargo runs tests there.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use oddscache::sql::Script;
use serde_json::Value;
use tokio_postgres::{Client, NoTls};

pub mod bench;
pub mod certificates;
#[path = "../../../src/demo/cluster.rs"]
pub mod cluster;
pub mod demo;
pub mod followed;
pub mod hostile;
pub mod load;
pub mod log;
pub mod nats;
pub mod nginx;
#[path = "../../../src/demo/packages.rs"]
pub mod packages;
pub mod pgbouncer;
pub mod plain;
pub mod process;
pub mod programs;
pub mod prometheus;
pub mod proxy;
pub mod replica;
pub mod servers;
pub mod service;
pub mod writes;

use cluster::Cluster;

/// The cluster of this test process. Its watchdog deletes it when the process ends.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        Cluster::start(&[
            "fsync = off",
            "max_connections = 200",
            "max_prepared_transactions = 10",
        ])
        .expect("a private PostgreSQL cluster")
    })
}

/// The tables that the cache reads.
pub const TABLES: [&str; 6] = [
    "events",
    "competitor_events",
    "odds_snapshots",
    "competitor_odds_snapshots",
    "market_odds",
    "competitor_market_odds",
];

/// A database of one test, dropped with the cluster.
#[derive(Debug, Clone)]
pub struct Database {
    pub name: String,
}

impl Database {
    /// An empty database.
    pub fn empty() -> Database {
        Database::copy("template1")
    }

    fn copy(template: &str) -> Database {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let sql = format!("create database {name} template {template}");
        psql("postgres", &["-qc", &sql]);
        Database { name }
    }

    /// A database with the application's tables, but without rows.
    pub fn application() -> Database {
        let database = Database::empty();
        psql(&database.name, &["-qf", "src/demo/schema.sql"]);
        database
    }

    /// The same with the change feed. The first call creates a template. Copying it takes a tenth of the time.
    pub fn with_feed() -> Database {
        static TEMPLATE: OnceLock<Database> = OnceLock::new();
        let template = TEMPLATE.get_or_init(|| {
            let database = Database::application();
            psql(&database.name, &["-qf", "sql/install.sql"]);
            database
        });
        Database::copy(&template.name)
    }

    /// Creates a role for this database, with the rights of `sql/grants.sql`. Returns its name.
    pub fn reader(&self) -> String {
        let role = format!("reader_of_{}", self.name);
        run_script(&self.name, Script::Grants, &[("role", &role)]);
        role
    }

    pub fn dsn(&self) -> String {
        cluster().dsn(&self.name)
    }

    /// Runs statements with psql and returns the rows, unaligned. Fails the test on an error.
    pub fn psql(&self, sql: &str) -> String {
        psql(&self.name, &["-qAtc", sql])
    }

    /// Fails the test unless each query has this answer: `query => answer`, one a line.
    #[track_caller]
    pub fn answers(&self, queries: &str) {
        for [sql, answer] in cases(queries) {
            assert_eq!(self.psql(sql), answer, "{sql}");
        }
    }
}

/// The rows of a table of test cases: one a line, with ` => ` between its columns. A line that begins with `=>` continues
/// the row before. Fails the test if a row has another number of columns. A column may be empty.
pub fn cases<const COLUMNS: usize>(table: &str) -> Vec<[&str; COLUMNS]> {
    let mut rows: Vec<Vec<&str>> = Vec::new();
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let columns = line.split("=>").map(str::trim);
        match rows.last_mut() {
            Some(row) if line.starts_with("=>") => row.extend(columns.skip(1)),
            _ => rows.push(columns.collect()),
        }
    }
    let fixed = rows.into_iter().map(|row| {
        let row: Result<[&str; COLUMNS], _> = row.try_into();
        row.unwrap_or_else(|row| panic!("not {COLUMNS} columns: {row:?}"))
    });
    fixed.collect()
}

/// Runs psql as the superuser. Fails the test unless psql succeeds. Blocks the thread. A follower may hold the locks of
/// a read meanwhile, so a test with a running follower needs several threads.
pub fn psql(database: &str, args: &[&str]) -> String {
    cluster().psql_ok(database, args)
}

/// Runs a script of `sql/` with these settings through psql as the superuser, and returns its rows. The rows of the
/// script `indexes` are statements, which this runs as well. Fails the test unless all succeed.
pub fn run_script(database: &str, script: Script, settings: &[(&str, &str)]) -> String {
    run_script_on(cluster(), database, script, settings)
}

/// The same on another cluster.
pub fn run_script_on(
    cluster: &Cluster,
    database: &str,
    script: Script,
    settings: &[(&str, &str)],
) -> String {
    let text = script.fill(settings).expect("settings of the script");
    let rows = cluster.psql_ok(database, &["-qAtc", &text]);
    if script == Script::Indexes && !rows.is_empty() {
        let statements = rows.lines().flat_map(|statement| ["-c", statement]);
        let args: Vec<&str> = ["-q"].into_iter().chain(statements).collect();
        cluster.psql_ok(database, &args);
    }
    rows
}

/// The server's major version.
pub fn server_version() -> u32 {
    static VERSION: OnceLock<u32> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let number = psql("postgres", &["-qAtc", "show server_version_num"]);
        number.parse::<u32>().expect("a version") / 10_000
    })
}

/// Whether the server has a feature that came with this version. If not, prints that the test leaves this part out.
pub fn server_has(what: &str, since: u32) -> bool {
    let has = server_version() >= since;
    if !has {
        let version = server_version();
        println!("LEFT OUT: {what} needs PostgreSQL {since}; this is {version}");
    }
    has
}

/// A client whose connection runs in the background until the client is dropped.
pub async fn connect(dsn: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.expect("connects");
    tokio::spawn(connection);
    client
}

/// The id of the client's transaction, which must be open.
pub async fn xid(client: &Client) -> u64 {
    let sql = "select pg_current_xact_id()::text";
    let row = client.query_one(sql, &[]).await.expect("a transaction");
    row.get::<_, &str>(0).parse().expect("a transaction id")
}

/// The events that the cache must hold, by an independent query: the oracle.
pub async fn oracle(client: &Client, window_start: DateTime<Utc>) -> Vec<Value> {
    let window_start = window_start.to_rfc3339();
    let mut oracle = include_str!("../../../src/server/commands/explain/oracle.sql").to_owned();
    for table in ["bookmakers", "tournaments", "sports"] {
        let sql = "select to_regclass($1) is null";
        let row = client.query_one(sql, &[&table]).await.expect("the catalog");
        if row.get(0) {
            oracle = oracle.replace(&format!("from {table} t"), "from (select where false) t");
        }
    }
    let sql = format!("PREPARE oracle(timestamptz) AS {oracle}");
    client
        .batch_execute("DEALLOCATE ALL")
        .await
        .expect("deallocate");
    client.batch_execute(&sql).await.expect("the oracle");
    let answer = client
        .simple_query(&format!("EXECUTE oracle('{window_start}')"))
        .await
        .expect("the oracle");
    let rows = answer.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(1),
        _ => None,
    });
    rows.map(|line| {
        with_defaults(normal(
            serde_json::from_str(line).expect("the oracle's JSON"),
        ))
    })
    .collect()
}

/// Adds the defaults that the cache serves. The oracle shows outcomes as they are stored. Missing or null `odds` stay
/// null, and a missing or null `is_active` means true.
fn with_defaults(mut event: Value) -> Value {
    for side in ["betpawa", "competitors"] {
        let snapshots = event[side].as_object_mut().into_iter().flatten();
        let markets = snapshots.flat_map(|(_, snapshot)| snapshot["markets"].as_array_mut());
        let outcomes = markets
            .flatten()
            .flat_map(|market| market["outcomes"].as_array_mut());
        for outcome in outcomes.flatten().filter_map(Value::as_object_mut) {
            outcome.entry("odds").or_insert(Value::Null);
            let is_active = outcome.entry("is_active").or_insert(Value::Null);
            if is_active.is_null() {
                *is_active = Value::Bool(true);
            }
        }
    }
    event
}

/// The events of a view as JSON, in the order of their ids.
pub fn dump(view: &oddscache::View) -> Vec<Value> {
    let event = |id| serde_json::to_value(view.event(id).expect("listed")).expect("JSON");
    view.event_ids()
        .into_iter()
        .map(event)
        .inspect(assert_utc)
        .map(normal)
        .collect()
}

fn is_time(key: &str) -> bool {
    key.ends_with("_at") || key == "kickoff"
}

fn assert_utc(value: &Value) {
    match value {
        Value::Array(values) => values.iter().for_each(assert_utc),
        Value::Object(map) => map.iter().for_each(|(key, value)| match value {
            Value::String(text) if is_time(key) => {
                assert!(text.ends_with('Z'), "{key} is not in UTC: {text}");
            }
            _ => assert_utc(value),
        }),
        _ => {}
    }
}

/// Brings numbers and times into one form. So 2 equals 2.0, and a time equals itself however many digits it has.
pub fn normal(value: Value) -> Value {
    match value {
        Value::Number(number) => Value::from(number.as_f64().expect("a double")),
        Value::Array(values) => values.into_iter().map(normal).collect(),
        Value::Object(map) => {
            let entry = |(key, value): (String, Value)| match &value {
                Value::String(text) if is_time(&key) => (key, Value::from(micros(text))),
                _ => (key, normal(value)),
            };
            Value::Object(map.into_iter().map(entry).collect())
        }
        other => other,
    }
}

/// The cache serves the greatest time that it can hold in place of `infinity`.
fn micros(time: &str) -> i64 {
    if time == "infinity" || time.starts_with("+262142-12-31T23:59:59") {
        return i64::MAX;
    }
    let time = DateTime::parse_from_rfc3339(time).expect("RFC 3339");
    time.timestamp_micros()
}

/// Fails the test with the first difference.
#[track_caller]
pub fn assert_same(cache: &[Value], oracle: &[Value], what: &str) {
    if let Err(difference) = same(cache, oracle) {
        panic!("{what}: {difference}");
    }
}

/// Fails with the first difference between two lists of events.
pub fn same(cache: &[Value], oracle: &[Value]) -> Result<(), String> {
    let ids = |events: &[Value]| -> Vec<String> {
        let ids = events.iter().map(|event| event["event_id"].to_string());
        ids.collect()
    };
    let (cached, expected) = (ids(cache), ids(oracle));
    if cached != expected {
        return Err(format!(
            "events {cached:?} in the cache, {expected:?} in the oracle"
        ));
    }
    for (cache, oracle) in cache.iter().zip(oracle) {
        if let Some(difference) = difference("", cache, oracle) {
            return Err(format!("event {}: {difference}", cache["event_id"]));
        }
    }
    Ok(())
}

fn difference(path: &str, cache: &Value, oracle: &Value) -> Option<String> {
    match (cache, oracle) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => a
            .iter()
            .find_map(|(key, value)| difference(&format!("{path}.{key}"), value, &b[key])),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => (0..a.len())
            .find_map(|index| difference(&format!("{path}[{index}]"), &a[index], &b[index])),
        (a, b) => (a != b).then(|| format!("{path} is {a} in the cache, {b} in the oracle")),
    }
}

/// Waits until `condition` is true. Fails the test after a minute.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(
            Instant::now() < deadline,
            "timed out after a minute: {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
