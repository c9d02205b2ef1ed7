//! The demo's data, its simulated scraper, and the oracle that all other tests trust.
#![allow(clippy::expect_used, clippy::unwrap_used)]

#[path = "../../src/demo/dataset.rs"]
#[allow(dead_code)]
mod dataset;
#[path = "../../src/demo/scraper/mod.rs"]
#[allow(dead_code)]
mod scraper;

mod data;
mod oracle;
mod scraping;

use std::time::{Duration, SystemTime};

use dataset::Scale;
use oddscache_testkit::{Database, connect};
use serde_json::Value;
use tokio_postgres::{Client, Row};

const ORACLE: &str = include_str!("../../src/server/commands/explain/oracle.sql");

/// The smallest scale at which the data set contains every special case.
fn small(seed: u64) -> Scale {
    Scale {
        events: 80,
        markets: 30,
        history: 4,
        history_with_markets: 2,
        seed,
    }
}

/// A database with the application's tables, but without rows.
async fn created() -> (Database, Client) {
    let db = Database::empty();
    let client = connect(&db.dsn()).await;
    dataset::create(&client).await.unwrap();
    (db, client)
}

async fn loaded(scale: Scale) -> (Database, Client) {
    let (db, client) = created().await;
    dataset::load(&client, &scale, |_, _, _| {}).await.unwrap();
    (db, client)
}

fn window_start() -> SystemTime {
    SystemTime::now() - Duration::from_secs(2 * 3600)
}

/// The events that the oracle returns, parsed. Fails unless they are in the order of their ids.
async fn oracle(client: &Client, start: SystemTime) -> Vec<Value> {
    let rows = client.query(ORACLE, &[&start]).await.unwrap();
    let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    assert!(ids.is_sorted_by(|a, b| a < b));
    let line = |row: &Row| serde_json::from_str(row.get(1)).unwrap();
    let lines: Vec<Value> = rows.iter().map(line).collect();
    assert!(lines.iter().map(|line| &line["event_id"]).eq(&ids));
    lines
}

async fn count(client: &Client, sql: &str) -> i64 {
    let sql = format!("select count(*) from ({sql}) rows");
    client.query_one(&sql, &[]).await.expect(&sql).get(0)
}
