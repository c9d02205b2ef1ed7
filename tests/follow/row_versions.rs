//! Rows that somebody wrote without a log row while the feed is off, found by the transactions that wrote them. The
//! markets of all other snapshots are not read.

use std::time::Duration;

use oddscache::{ReloadReason, Status, sql::Table};
use oddscache_testkit::{
    cluster::Cluster,
    connect, eventually,
    followed::{Followed, run},
    server_has,
};

/// Follows the database of a server without an audit.
///
/// Tests that count what is read have a server of their own. While a transaction of any database of a server is open,
/// what was written after its beginning is read once more.
async fn unaudited(server: &Cluster) -> Followed {
    let never = Duration::from_secs(600_000);
    Followed::with(&server.dsn("postgres"), |config| config.audit_cycle(never)).await
}

/// The same, while no trigger fires.
async fn unlogged(server: &Cluster) -> Followed {
    let followed = unaudited(server).await;
    for table in Table::ALL.map(Table::name) {
        followed
            .run(&format!("alter table {table} disable trigger user"))
            .await;
    }
    eventually("degraded", async || {
        matches!(followed.cache.status(), Status::Degraded { faults, .. } if faults.len() >= 6)
    })
    .await;
    followed.check("the seed").await;
    followed
}

/// Runs a step that changes what the cache holds. Returns of how many snapshots the markets were read.
async fn read_by(followed: &Followed, sql: &str) -> u64 {
    let before = followed.cache.counters().snapshots_read;
    followed.changes(sql).await;
    assert_eq!(followed.epoch(), 1, "{sql}");
    followed.cache.counters().snapshots_read - before
}

/// RV2, RV3: each way of writing rows. Snapshot 112 is a latest one with two markets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_snapshots_with_written_rows_are_read() {
    let server = Cluster::seeded(&[]);
    let followed = unlogged(&server).await;
    for (snapshots, sql) in [
        (1, "update market_odds set line = 77 where snapshot_id = 112"),
        (1, "delete from market_odds where id = 1121"),
        (1, "delete from market_odds where snapshot_id = 112"),
        (
            1,
            "insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
             values (5000000, 112, '1', 'one', '[]')",
        ),
        // One row goes, and another comes: their number is as before.
        (
            1,
            "delete from market_odds where id = 5000000;
             insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
             values (5000001, 112, '1', 'two', '[]')",
        ),
        // A row moves from one snapshot to another.
        (2, "update market_odds set snapshot_id = 122 where id = 5000001"),
        // In a subtransaction, which has an id of its own.
        (
            1,
            "do $do$ begin begin update market_odds set line = 5 where snapshot_id = 122;
             exception when division_by_zero then null; end; end $do$",
        ),
        // Of the other side.
        (1, "update competitor_market_odds set handicap_home = 3 where snapshot_id = 12"),
        // Headers: the time, another latest snapshot, a link, an event.
        (0, "update odds_snapshots set last_confirmed_at = captured_at + interval '1 s'"),
        (1, "delete from odds_snapshots where id = 112"),
        (0, "update competitor_events set deleted_at = now() where id = 1"),
        (0, "update events set kickoff = kickoff + interval '1 hour' where id = 1"),
    ] {
        assert_eq!(read_by(&followed, sql).await, snapshots, "{sql}");
    }
}

/// A column that nobody reads changes nothing.
#[tokio::test]
async fn a_column_that_is_not_read_comes_and_goes() {
    let server = Cluster::seeded(&[]);
    let followed = unaudited(&server).await;
    let rows = followed.cache.counters().rows_read;
    for sql in [
        "alter table events add column a_note text",
        "alter table market_odds add column \"a b\" int default 7",
        "alter table events drop column a_note",
        "alter table market_odds rename column \"a b\" to c",
    ] {
        followed.step(sql).await;
        // The next change is read with the new statements.
        followed.set_line(sql.len() as i32).await;
        followed.check(sql).await;
    }
    let counters = followed.cache.counters();
    assert_eq!(
        (counters.reloads, followed.epoch(), counters.reconnects),
        (1, 1, 0)
    );
    // Four changes of two rows, and a header for each.
    assert!(counters.rows_read - rows <= 4 * 4, "{counters:?}");
}

/// RV2: a transaction that was open at the last read has a smaller id than others that had ended by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_open_at_the_last_read() {
    let server = Cluster::seeded(&[]);
    let followed = unlogged(&server).await;
    let open = connect(&server.dsn("postgres")).await;
    run(
        &open,
        "begin; savepoint one; update market_odds set line = 66 where snapshot_id = 112",
    )
    .await;
    // Later transactions that end first, and are read.
    for line in 1..3 {
        let sql = format!("update market_odds set line = {line} where snapshot_id = 122");
        assert_eq!(read_by(&followed, &sql).await, 1);
    }
    let before = followed.cache.counters();
    run(&open, "commit").await;
    followed.check("the transaction that was open").await;
    let after = followed.cache.counters();
    // Of snapshot 122 it is not certain, because its writers have greater ids than the open transaction.
    let read = after.snapshots_read - before.snapshots_read;
    assert!((1..=2).contains(&read), "{read}");
}

/// RV4: an equal number of older rows takes the place of others, so neither their number nor their writer tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_rows_take_the_place_of_others() {
    let server = Cluster::seeded(&[]);
    server.sql(
        "create table one (like market_odds including defaults);
         create table two (like market_odds including defaults);
         insert into one (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) values (7000001, 112, '1', 'one', '[]');
         insert into two (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) values (7000001, 112, '1', 'two', '[]');
         alter table one inherit market_odds",
    );
    let followed = unlogged(&server).await;
    for line in 0..2 {
        followed.set_line(line).await;
        followed.check("before").await;
    }
    followed
        .changes("alter table one no inherit market_odds; alter table two inherit market_odds")
        .await;
}

/// RV4: only a heap is known to name the writers of its rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_no_heap_is_read() {
    if !server_has("ALTER TABLE ... SET ACCESS METHOD", 15) {
        return;
    }
    let server = Cluster::seeded(&[]);
    server.sql(
        "create access method other type table handler heap_tableam_handler;
         alter table market_odds set access method other",
    );
    let followed = unlogged(&server).await;
    let held = followed.cache.stats().total_snapshots as u64;
    let sql = "update market_odds set line = 77 where snapshot_id = 112";
    assert!(read_by(&followed, sql).await >= held);
}

/// RV1: while changes are not logged, the last read of everything is the last moment at which the cache equalled the
/// database, not the last read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_are_not_logged_between_others_that_are() {
    let server = Cluster::seeded(&[]);
    let followed = unaudited(&server).await;
    followed
        .run("alter table market_odds disable trigger oddscache_update")
        .await;
    eventually("degraded", async || {
        matches!(followed.cache.status(), Status::Degraded { .. })
    })
    .await;
    for line in 0..5 {
        let unlogged = format!("update market_odds set line = {line} where snapshot_id = 112");
        followed.run(&unlogged).await;
        // Logged changes move the cursor beyond it.
        for _ in 0..3 {
            followed
                .run("update odds_snapshots set last_confirmed_at = clock_timestamp() where id = 122")
                .await;
        }
        eventually("shown", async || {
            let view = followed.cache.view();
            let expected = followed.oracle(view.cut().window_start).await;
            oddscache_testkit::same(&oddscache_testkit::dump(&view), &expected).is_ok()
        })
        .await;
    }
    let before = followed.cache.counters();
    followed
        .counted("reads of all that may have changed", |now| {
            now.reloads > before.reloads + 2
        })
        .await;
    let now = followed.cache.counters();
    assert_eq!(now.snapshots_read, before.snapshots_read, "nothing changed");
}

/// The triggers on market_odds, as install.sql leaves them.
const ON: &str = "alter table market_odds enable always trigger oddscache_insert, enable always trigger oddscache_update,
    enable always trigger oddscache_delete, enable always trigger oddscache_truncate";

/// RV1, RV5: when a trigger goes, and when it comes back, only what was written meanwhile is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_goes_and_comes_back() {
    let server = Cluster::seeded(&[]);
    let followed = unaudited(&server).await;
    let write = "update market_odds set line = 41 where snapshot_id = 112";
    let off = "alter table market_odds disable trigger user";
    assert_eq!(
        read_by(&followed, &format!("{off}; {write}; {ON}")).await,
        1
    );
    // Written by another transaction than the one that brings the trigger back, and read by nobody in between.
    let reads = connect(&server.dsn("postgres")).await;
    run(&reads, "begin; lock table events").await;
    followed.run(off).await;
    followed.run(&write.replace("41", "42")).await;
    let before = followed.cache.counters();
    followed.run(ON).await;
    run(&reads, "commit").await;
    followed.check("written while the trigger was off").await;
    let after = followed.cache.counters();
    assert_eq!(after.snapshots_read - before.snapshots_read, 1);
    let reloads = |of| after.reloads_by_reason.of(of);
    assert_eq!(
        (
            reloads(ReloadReason::Catalog),
            after.reloads,
            followed.epoch()
        ),
        (2, 3, 1)
    );
}

/// RV5: all triggers were there, and their function logged nothing. Once it is repaired, everything is read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_looked_whole_and_logged_nothing() {
    let server = Cluster::seeded(&[]);
    let followed = unaudited(&server).await;
    let install = std::fs::read_to_string("sql/install.sql").expect("a script");
    followed
        .step("create or replace function oddscache.log_change() returns trigger language plpgsql as 'begin return null; end'")
        .await;
    followed
        .run("update market_odds set line = 55 where snapshot_id = 112")
        .await;
    // Later reads move on.
    for _ in 0..3 {
        let reads = followed.cache.counters().reads;
        followed.run("select pg_current_xact_id()").await;
        followed.counted("a read", |now| now.reads > reads).await;
    }
    followed.step(&install).await;
    followed.live().await;
    followed.set_line(3).await;
    followed.check("the feed logs again").await;
    assert_eq!(followed.epoch(), 1);
}
