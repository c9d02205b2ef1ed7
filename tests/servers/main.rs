//! Servers that lose their history, standbys, and poolers between the cache and a server.
//!
//! Each test has servers of its own and destroys them; those are copies of one seeded data directory, and start in half a second.

mod failover;
mod history;
mod pooler;
mod pooler_history;
mod standby;
mod standby_writes;

use oddscache_testkit::{cluster::Cluster, connect, followed::run};
use tokio_postgres::Client;

/// A server that loses what was committed last when it crashes.
const FORGETFUL: [&str; 4] = [
    "synchronous_commit = off",
    "wal_writer_delay = 10s",
    "bgwriter_lru_maxpages = 0",
    "checkpoint_timeout = 1h",
];

/// Keeps followers that come later from waiting for notifications, for as long as this session lives: to begin, they commit a
/// transaction that is written ahead, and with it all before.
async fn without_notifications(cluster: &Cluster) -> Client {
    let client = connect(&cluster.dsn("postgres")).await;
    let lock = "select pg_advisory_lock(hashtextextended('oddscache listener oddscache', 0))";
    run(&client, lock).await;
    client
}

/// Sets the line of a snapshot's markets; returns the transaction's id.
async fn set_line(app: &Client, snapshot: i64, line: i32) -> u64 {
    let sql = format!(
        "with done as (update market_odds set line = {line} where snapshot_id = {snapshot})
         select pg_current_xact_id()::text"
    );
    let row = app.query_one(&sql, &[]).await.expect("an update");
    row.get::<_, &str>(0).parse().expect("a transaction id")
}

/// Changes lines until one of the transactions has an id that was given out before.
async fn use_again(app: &Client, lost: &[u64]) {
    let mut ids = Vec::new();
    for line in 1..20 {
        ids.push(set_line(app, 222, line).await);
        if lost.contains(ids.last().expect("one")) {
            return;
        }
        // Each change takes two ids, and may keep to those that others had.
        run(app, "select pg_current_xact_id()").await;
    }
    panic!("none of {ids:?} is one of {lost:?}");
}
