//! Servers that lose their history, standbys, and poolers between the cache and a server.
//!
//! Each test has servers of its own, because it destroys them. They are copies of one seeded data directory, and start
//! within half a second.

mod failover;
mod history;
mod pooler;
mod pooler_history;
mod standby;
mod standby_writes;

use oddscache_testkit::{cluster::Cluster, connect, followed::run};
use tokio_postgres::Client;

/// Settings with which a crash loses the last commits.
const FORGETFUL: [&str; 4] = [
    "synchronous_commit = off",
    "wal_writer_delay = 10s",
    "bgwriter_lru_maxpages = 0",
    "checkpoint_timeout = 1h",
];

/// Keeps later followers from waiting for notifications while this session is open. A follower that begins to wait
/// commits a transaction. That commit would flush the write-ahead log, so a crash could no longer lose the commits
/// before.
async fn without_notifications(cluster: &Cluster) -> Client {
    let client = connect(&cluster.dsn("postgres")).await;
    let lock = "select pg_advisory_lock(hashtextextended('oddscache listener oddscache', 0))";
    run(&client, lock).await;
    client
}

/// Sets the line of a snapshot's markets. Returns the id of the transaction.
async fn set_line(app: &Client, snapshot: i64, line: i32) -> u64 {
    let sql = format!(
        "with done as (update market_odds set line = {line} where snapshot_id = {snapshot})
         select pg_current_xact_id()::text"
    );
    let row = app.query_one(&sql, &[]).await.expect("an update");
    row.get::<_, &str>(0).parse().expect("a transaction id")
}

/// Changes lines until a transaction gets the id of a lost one.
async fn use_again(app: &Client, lost: &[u64]) {
    let mut ids = Vec::new();
    for line in 1..20 {
        ids.push(set_line(app, 222, line).await);
        if lost.contains(ids.last().expect("one")) {
            return;
        }
        // Each change takes two ids. Take one more here. Otherwise the changes might skip the ids of all lost
        // transactions.
        run(app, "select pg_current_xact_id()").await;
    }
    panic!("none of {ids:?} is one of {lost:?}");
}
