//! How many bytes a change takes.

use std::{thread, time::Duration};

use oddscache::OddsCache;
use oddscache_testkit::xid;
use tokio_postgres::Client;

use crate::{Bench, write};

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

pub(crate) async fn run(bench: &Bench, both: [&OddsCache; 2]) {
    let (client, batch) = (&bench.writer, bench.batch());
    // Until the relay has sent this, it may still be sending earlier changes.
    bytes_of(client, both, async || write(client, batch).await).await;
    let changed = bytes_of(client, both, async || write(client, batch).await).await;
    let confirmed = bytes_of(client, both, async || confirm(client, batch).await).await;
    let floor = packed(both[0], batch);
    println!(
        "bytes of {} changed snapshots: {changed}, x{:.2} of words and heads; confirmed: {confirmed}, x{:.2} of 16 bytes each",
        batch.len(),
        changed as f64 / floor as f64,
        confirmed as f64 / (16 * batch.len()) as f64
    );
}
