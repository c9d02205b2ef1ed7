//! Reads its own writes: waits until the cache shows the changes of one transaction. Any process can have made them.
//!
//! The example moves `last_confirmed_at` of one snapshot by a microsecond. Run it on a database where that does no
//! harm, as a role that may write. `cargo run --release -- demo` starts such a database and prints its `DATABASE_URL`.
//!
//! ```sh
//! export DATABASE_URL="host=/tmp/oddscache-... port=... user=postgres dbname=odds"
//! cargo run --release --example read_your_writes
//! ```

use std::{
    env,
    time::{Duration, Instant},
};

use oddscache::{Config, Error, OddsCache};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url =
        env::var("DATABASE_URL").map_err(|_| "set DATABASE_URL to a database to try it on")?;
    let config = Config::new(&url)?;
    let (cache, follower) = OddsCache::connect(config.clone());
    tokio::spawn(follower.run());
    cache.ready().await?;

    let view = cache.view();
    let first = view
        .events()
        .find_map(|event| event.betpawa().iter().next());
    let (bookmaker_id, snapshot) = first.ok_or("no snapshot is held: is the database empty?")?;
    let (event_id, snapshot_id) = (snapshot.event_id(), snapshot.snapshot_id());
    println!(
        "before: snapshot {snapshot_id} of event {event_id}, confirmed {:?}",
        snapshot.last_confirmed_at()
    );

    // The writer could be another process, in any language, that passes on the id of its transaction.
    let (mut client, connection) = config.open().await?;
    tokio::spawn(connection);
    let transaction = client.transaction().await?;
    let confirm = "UPDATE odds_snapshots \
                   SET last_confirmed_at = coalesce(last_confirmed_at, captured_at) + interval '1 us' \
                   WHERE id = $1::bigint";
    transaction.execute(confirm, &[&snapshot_id]).await?;
    // Ask for the id before COMMIT. Afterwards the session no longer knows it.
    let row = transaction
        .query_one("SELECT pg_current_xact_id()::text", &[])
        .await?;
    let xid: u64 = row.get::<_, String>(0).parse()?;

    // The cache does not show a transaction that has not committed. `wait_for` returns an error then, never an old
    // view.
    match cache.wait_for(xid, Duration::from_millis(50)).await {
        Err(error @ Error::NotShown { .. }) => println!("not yet: {error}"),
        other => return Err(format!("shown before it committed: {other:?}").into()),
    }

    transaction.commit().await?;
    let committed = Instant::now();
    let view = cache.wait_for(xid, Duration::from_secs(5)).await?;
    let took = committed.elapsed();
    let snapshots = view.get_betpawa_snapshot(event_id);
    let snapshot = snapshots
        .and_then(|snapshots| snapshots.get(bookmaker_id))
        .ok_or("the snapshot was deleted meanwhile")?;
    println!(
        "after: snapshot {} of event {event_id}, confirmed {:?}",
        snapshot.snapshot_id(),
        snapshot.last_confirmed_at()
    );
    println!("the cache showed transaction {xid} {took:?} after its commit");
    Ok(())
}
