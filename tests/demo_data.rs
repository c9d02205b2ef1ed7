//! The demo's data, its simulated scraper, and the oracle that all other tests trust.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod common;
#[path = "../src/demo/dataset.rs"]
#[allow(dead_code, unreachable_pub)]
mod dataset;

use common::Database;
use dataset::Scale;
use tokio_postgres::{Client, NoTls};

async fn connect(db: &Database) -> Client {
    let (client, connection) = tokio_postgres::connect(&db.dsn(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
#[ignore = "a minute of work; run with --ignored --nocapture to see time and size"]
async fn the_real_scale_loads_in_well_under_a_minute() {
    let db = Database::empty();
    let client = connect(&db).await;
    dataset::create(&client).await.unwrap();
    let started = std::time::Instant::now();
    let mut last = (0, 0);
    let loaded = dataset::load(&client, &Scale::default(), |done, total, what| {
        let tenth = done * 10 / total.max(1);
        if std::env::var("V").is_ok() && tenth != last.0 {
            println!("{:?}", started.elapsed());
        }
        if tenth != last.0 {
            last = (tenth, done);
            println!("{what}: {done}/{total}");
        }
    })
    .await
    .unwrap();
    println!("{loaded:?}");
    assert!(loaded.elapsed.as_secs() < 60);
    let started = std::time::Instant::now();
    let rows = client
        .query(
            include_str!("../src/demo/oracle.sql"),
            &[&(std::time::SystemTime::now() - std::time::Duration::from_secs(7200))],
        )
        .await
        .unwrap();
    println!("oracle: {} rows in {:?}", rows.len(), started.elapsed());
}
