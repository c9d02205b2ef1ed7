//! The cache measures how long commits took to become visible, and counts what it did and why.

use std::time::{Duration, Instant};

use oddscache::Timing;
use oddscache_testkit::{
    Database, connect, eventually,
    followed::{Followed, run},
};

fn seconds(timing: &Timing, before: &Timing) -> Duration {
    Duration::from_secs_f64(timing.sum_seconds - before.sum_seconds)
}

/// An alert on the time to visibility must count each commit once, and nothing else.
#[tokio::test]
async fn each_transaction_is_counted_once_and_heartbeats_and_warmups_are_not() {
    let followed = Followed::seeded().await;
    // Neither the warmup nor the heartbeats of older followers count as commits.
    let begun = Instant::now();
    followed.run("select oddscache.heartbeat()").await;
    followed.caught_up("the heartbeat").await;
    assert_eq!(followed.cache.counters().log_rows, 1);
    let quiet = followed.cache.timings();
    assert_eq!(quiet.commit_to_visible, Timing::default());
    for timing in [&quiet.decode, &quiet.apply, &quiet.publish] {
        assert_eq!(timing.count, 0);
    }
    assert!(quiet.read.count > 0, "heartbeats cause reads");

    let reads = followed.cache.counters();
    for line in 1..=4 {
        followed.set_line(line).await;
        // One transaction with three log rows. One of its statements changes nothing that the cache holds.
        let sql = format!(
            "begin; update market_odds set line = {line} where snapshot_id = 211;
             update events set kickoff = kickoff + interval '1 minute' where id = 1;
             update competitor_odds_snapshots set last_confirmed_at = now() where id = 12; commit"
        );
        followed.run(&sql).await;
        followed.caught_up("both").await;
    }
    let busy = followed.timed(8).await;
    let elapsed = begun.elapsed();
    let commits = &busy.commit_to_visible;
    assert_eq!(commits.count, 8);
    let counts = commits.buckets.iter().map(|bucket| bucket.count);
    assert_eq!(counts.sum::<u64>(), 8);
    assert!(commits.sum_seconds > 0.0 && commits.p50_seconds <= commits.p99_seconds);
    for (name, timing) in [
        ("read", &busy.read),
        ("decode", &busy.decode),
        ("apply", &busy.apply),
        ("publish", &busy.publish),
    ] {
        assert!(timing.count > 0, "{name}");
        let took = timing.sum_seconds;
        assert!(took > 0.0, "{name}: {timing:?}");
        assert!(took < elapsed.as_secs_f64(), "{name}: {timing:?}");
    }
    assert!(busy.publish.count <= followed.cache.counters().published - reads.published);
    let read = followed.cache.counters();
    assert!(read.rows_read >= reads.rows_read + 8, "{read:?}");
    assert!(read.polls > 0, "{read:?}");

    // A reload is counted under its reason, and not as a commit.
    followed.cache.resync();
    followed.counted("read again", |now| now.reloads == 2).await;
    let counters = followed.cache.counters();
    let reasons = counters.reloads_by_reason.iter();
    let reasons = reasons.filter(|(_, count)| *count > 0);
    let reasons = reasons.map(|(reason, count)| (reason.name(), count));
    assert!(reasons.eq([("first", 1), ("requested", 1)]), "{counters:?}");
    assert_eq!(counters.reconnects, 0);
    assert_eq!(followed.cache.timings().commit_to_visible.count, 8);
}

/// PostgreSQL does not say when a transaction committed. So the time to visibility begins at the last read that did not
/// see it, and not when the row was logged.
#[tokio::test]
async fn a_transaction_left_open_counts_from_the_last_read_that_did_not_see_it() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let writer = connect(&database.dsn()).await;
    let update = "begin; update market_odds set line = 9 where snapshot_id = 112";
    run(&writer, update).await;
    let written = Instant::now();
    let reads = followed.cache.counters().reads;
    eventually("a second of reads", async || {
        followed.cache.counters().reads > reads + 3 && written.elapsed() > Duration::from_secs(1)
    })
    .await;
    let open = written.elapsed();
    run(&writer, "commit").await;
    let timing = followed.timed(1).await.commit_to_visible;
    assert!(seconds(&timing, &Timing::default()) < open, "{timing:?}");
}

/// Failed reads must not make the time to visibility look shorter.
#[tokio::test]
async fn a_commit_that_a_lock_hides_from_the_reader_counts_from_the_commit() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let migration = connect(&database.dsn()).await;
    let lock = "begin; lock table events in access exclusive mode";
    run(&migration, lock).await;
    followed.set_line(9).await;
    let committed = Instant::now();
    followed.fails(2).await;
    let held = committed.elapsed();
    run(&migration, "rollback").await;
    let timing = followed.timed(1).await.commit_to_visible;
    let found = seconds(&timing, &Timing::default());
    let most = committed.elapsed() + Duration::from_secs(1);
    assert!((held..most).contains(&found), "{timing:?}, held {held:?}");
}

/// An operator sees how far the log was pruned.
#[tokio::test]
async fn the_cache_knows_which_transactions_the_log_covers() {
    let followed = Followed::seeded().await;
    followed.set_line(9).await;
    followed.caught_up("a change").await;
    let before = followed.cache.change_log();
    let pruned_below = "select pruned_below::text from oddscache.log_state";
    let row = followed.app.query_one(pruned_below, &[]).await;
    let pruned_below: String = row.expect("a row").get(0);
    assert_eq!(before.pruned_below.to_string(), pruned_below);
    assert!(before.next_xid > before.pruned_below, "{before:?}");
    // This update has the same effect as a prune() that keeps nothing.
    let prune =
        "update oddscache.log_state set pruned_below = pg_snapshot_xmin(pg_current_snapshot())";
    followed.run(prune).await;
    eventually("it is known", async || {
        followed.cache.change_log().pruned_below > before.pruned_below
    })
    .await;
    let after = followed.cache.change_log();
    let before = after.next_xid - before.pruned_below;
    assert!(after.unpruned_transactions() < before, "{after:?}");
}
