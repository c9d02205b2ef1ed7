//! Rows that somebody wrote without a log row while the feed was off, found by the transactions that wrote them. The
//! markets of all other snapshots are not read.

use std::time::Duration;

use oddscache::ReloadReason;
use oddscache_testkit::{
    Database, connect, eventually,
    followed::{Followed, run},
    server_has,
};

/// `unlogged` runs statements while the triggers of a table are off. A follower sees all of it in one transaction.
const UNLOGGED: &str = "create procedure unlogged(changed text, sql text) language plpgsql as $$
    declare each record; begin
        for each in select tgrelid::regclass as part, tgname from pg_trigger where not tgisinternal
            and (tgrelid = changed::regclass or tgrelid in (select inhrelid from pg_inherits where inhparent = changed::regclass)) loop
            execute format('alter table %s disable trigger %I', each.part, each.tgname);
        end loop;
        execute sql;
        for each in select tgrelid::regclass as part, tgname from pg_trigger where not tgisinternal
            and (tgrelid = changed::regclass or tgrelid in (select inhrelid from pg_inherits where inhparent = changed::regclass)) loop
            execute format('alter table %s enable always trigger %I', each.part, each.tgname);
        end loop;
    end $$";

/// Follows the seed without an audit.
async fn followed() -> Followed {
    let database = Database::seeded();
    let never = Duration::from_secs(600_000);
    let followed = Followed::with(&database.dsn(), |config| config.audit_cycle(never)).await;
    followed.run(UNLOGGED).await;
    followed.check("the seed").await;
    followed
}

/// Runs a step that changes what the cache holds. Returns of how many snapshots the markets were read, and how often a
/// changed catalog was the reason.
async fn read_by(followed: &Followed, sql: &str) -> (u64, u64) {
    let counts = || {
        let counters = followed.cache.counters();
        let catalog = counters.reloads_by_reason.of(ReloadReason::Catalog);
        (counters.snapshots_read, catalog)
    };
    let before = counts();
    followed.changes(sql).await;
    let after = counts();
    assert_eq!(followed.epoch(), 1, "{sql}");
    (after.0 - before.0, after.1 - before.1)
}

/// RV2, RV3: each way of writing rows. Snapshot 112 is a latest one with two markets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_snapshots_with_written_rows_are_read() {
    let followed = followed().await;
    let own = |sql: &str| format!("call unlogged('market_odds', $sql$ {sql} $sql$)");
    for (snapshots, sql) in [
        (1, own("update market_odds set line = 77 where snapshot_id = 112")),
        (1, own("delete from market_odds where id = 1121")),
        (1, own("delete from market_odds where snapshot_id = 112")),
        (
            1,
            own("insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
                 values (5000000, 112, '1', 'one', '[]')"),
        ),
        // One row goes, and another comes: their number is as before.
        (
            1,
            own("delete from market_odds where id = 5000000;
                 insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
                 values (5000001, 112, '1', 'two', '[]')"),
        ),
        // A row moves from one snapshot to another.
        (2, own("update market_odds set snapshot_id = 122 where id = 5000001")),
        // In a subtransaction, which has an id of its own.
        (
            1,
            own("do $do$ begin begin update market_odds set line = 5 where snapshot_id = 122;
                 exception when division_by_zero then null; end; end $do$"),
        ),
        // Of the other side.
        (
            1,
            "call unlogged('competitor_market_odds',
                 'update competitor_market_odds set handicap_home = 3 where snapshot_id = 12')"
                .to_owned(),
        ),
        // Headers: the time, another latest snapshot, an event.
        (
            0,
            "call unlogged('odds_snapshots', 'update odds_snapshots set last_confirmed_at = captured_at + interval ''1 s''')"
                .to_owned(),
        ),
        (
            1,
            "call unlogged('odds_snapshots', 'delete from odds_snapshots where id = 112')".to_owned(),
        ),
        (
            0,
            "call unlogged('competitor_events', 'update competitor_events set deleted_at = now() where id = 1')".to_owned(),
        ),
        (
            0,
            "call unlogged('events', 'update events set kickoff = kickoff + interval ''1 hour'' where id = 1')".to_owned(),
        ),
    ] {
        assert_eq!(read_by(&followed, &sql).await, (snapshots, 1), "{sql}");
    }
}

/// A column that nobody reads changes nothing.
#[tokio::test]
async fn a_column_that_is_not_read_comes_and_goes() {
    let followed = followed().await;
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
    let database = Database::seeded();
    let never = Duration::from_secs(600_000);
    let followed = Followed::with(&database.dsn(), |config| config.audit_cycle(never)).await;
    let open = connect(&database.dsn()).await;
    run(
        &open,
        "begin; alter table market_odds disable trigger oddscache_update; savepoint one;
         update market_odds set line = 66 where snapshot_id = 112;
         alter table market_odds enable always trigger oddscache_update",
    )
    .await;
    // Later transactions that end first, and are read.
    for seconds in 1..4 {
        followed
            .step(&format!(
                "update odds_snapshots set last_confirmed_at = captured_at + interval '{seconds} s' where id = 122"
            ))
            .await;
    }
    let before = followed.cache.counters();
    run(&open, "commit").await;
    followed.check("the transaction that was open").await;
    let after = followed.cache.counters();
    assert_eq!(followed.epoch(), 1);
    assert_eq!(after.snapshots_read - before.snapshots_read, 1);
}

/// The log is gone, and with it the names of what changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_emptied_pruned_or_installed_again() {
    let followed = followed().await;
    let install = std::fs::read_to_string("sql/install.sql").expect("a script");
    for sql in [
        "truncate oddscache.change_log",
        "delete from oddscache.change_log;
         update oddscache.log_state set pruned_below = (pg_current_xact_id()::text::bigint + 1)::text::xid8",
        &format!("drop schema oddscache cascade; {install}"),
    ] {
        let before = followed.cache.counters();
        let change = format!("update market_odds set line = {} where snapshot_id = 112; {sql}", sql.len());
        followed.changes(&change).await;
        let now = followed.cache.counters();
        assert!(now.reloads > before.reloads, "{sql}");
        assert!(now.snapshots_read - before.snapshots_read <= 2, "{sql}: {now:?}");
        assert_eq!((followed.epoch(), now.reconnects), (1, 0), "{sql}");
    }
    followed.set_line(44).await;
    followed.check("the new log").await;
}

/// RV4: an equal number of older rows takes the place of others, so neither their number nor their writer tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_rows_take_the_place_of_others() {
    let followed = followed().await;
    let install = std::fs::read_to_string("sql/install.sql").expect("a script");
    followed
        .step(&format!(
            "create table one (like market_odds including defaults);
             create table two (like market_odds including defaults);
             insert into one (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) values (7000001, 112, '1', 'one', '[]');
             insert into two (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) values (7000001, 112, '1', 'two', '[]');
             alter table one inherit market_odds; {install}"
        ))
        .await;
    followed.live().await;
    for line in 0..3 {
        followed.set_line(line).await;
    }
    followed.check("before").await;
    followed
        .changes("alter table one no inherit market_odds; alter table two inherit market_odds;
             alter table market_odds disable trigger oddscache_update; alter table market_odds enable always trigger oddscache_update")
        .await;
}

/// RV4: only a heap is known to name the writers of its rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_no_heap_is_read() {
    if !server_has("ALTER TABLE ... SET ACCESS METHOD", 15) {
        return;
    }
    let database = Database::seeded();
    database.psql(
        "create access method other type table handler heap_tableam_handler;
         alter table market_odds set access method other",
    );
    let never = Duration::from_secs(600_000);
    let followed = Followed::with(&database.dsn(), |config| config.audit_cycle(never)).await;
    followed.run(UNLOGGED).await;
    let held = followed.cache.stats().total_snapshots as u64;
    let sql =
        "call unlogged('market_odds', 'update market_odds set line = 77 where snapshot_id = 112')";
    assert_eq!(read_by(&followed, sql).await, (held, 1));
}

/// RV1: while changes are not logged, the last read of everything is the last moment at which the cache equalled the
/// database, not the last read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_are_not_logged_between_others_that_are() {
    let followed = followed().await;
    followed
        .run("alter table market_odds disable trigger oddscache_update")
        .await;
    eventually("degraded", async || {
        matches!(followed.cache.status(), oddscache::Status::Degraded { .. })
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

/// RV5: all triggers were there, and their function logged nothing. Once it is repaired, everything is read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_looked_whole_and_logged_nothing() {
    let followed = followed().await;
    let install = std::fs::read_to_string("sql/install.sql").expect("a script");
    let resyncs = |now: &oddscache::Counters| now.reloads_by_reason.of(ReloadReason::Requested);
    followed
        .step("create or replace function oddscache.log_change() returns trigger language plpgsql as 'begin return null; end'")
        .await;
    followed.counted("a resync", |now| resyncs(now) == 1).await;
    followed
        .run("update market_odds set line = 55 where snapshot_id = 112")
        .await;
    // Later reads move on.
    for _ in 0..3 {
        let reads = followed.cache.counters().reads;
        followed.run("select pg_current_xact_id()").await;
        followed.counted("a read", |now| now.reads > reads).await;
    }
    followed.run(&install).await;
    eventually("everything was read again", async || {
        let view = followed.cache.view();
        let expected = followed.oracle(view.cut().window_start).await;
        oddscache_testkit::same(&oddscache_testkit::dump(&view), &expected).is_ok()
    })
    .await;
    followed.live().await;
    followed.set_line(3).await;
    followed.check("the feed logs again").await;
    assert_eq!(followed.epoch(), 1);
}

/// A request to read everything came with a log row that is not understood, or was pruned before it was read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_kept_where_the_log_is_not_understood_or_pruned() {
    let followed = followed().await;
    let log =
        "insert into oddscache.change_log (xid, table_name, op, note) values (pg_current_xact_id()";
    for (nth, more) in [
        format!("{log}, 'of another version', 'INSERT', null); {log}, 'resync', 'RESYNC', 'ASKED')"),
        format!(
            "{log}, 'resync', 'RESYNC', 'ASKED'); delete from oddscache.change_log;
             update oddscache.log_state set pruned_below = (pg_current_xact_id()::text::bigint + 1)::text::xid8"
        ),
    ]
    .into_iter()
    .enumerate()
    {
        // Nothing tells of this row: an older reader has seen its writer.
        followed
            .run("begin; update market_odds set line = 61 where snapshot_id = 112; delete from oddscache.change_log where xid = pg_current_xact_id(); commit")
            .await;
        let reads = followed.cache.counters().reads;
        followed.counted("a read", |now| now.reads > reads + 1).await;
        followed.run(&more).await;
        followed
            .counted("a resync", |now| {
                now.reloads_by_reason.of(ReloadReason::Requested) > nth as u64
            })
            .await;
        followed.check("the request").await;
    }
}
