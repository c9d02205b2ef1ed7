//! Each of these tests failed once, because a change was missed, a view was torn, or a reader learned too much. The
//! first line says how.

use std::time::Duration;

use oddscache::{Config, Error, OddsCache, Status, sql::Script, warm_up};
use oddscache_testkit::{
    Database, cluster, connect, dump, eventually,
    followed::{Followed, run},
    run_script,
};

fn config(dsn: &str) -> Config {
    Config::new(dsn)
        .expect("dsn")
        .poll_interval(Duration::from_millis(50))
}

/// The follower never noticed a trigger that was dropped between the check and the snapshot of the first read.
#[tokio::test]
async fn a_trigger_dropped_before_the_snapshot_is_noticed() {
    let database = Database::seeded();
    let migration = connect(&database.dsn()).await;
    let drop = "begin; drop trigger oddscache_update on market_odds";
    run(&migration, drop).await;
    let (cache, follower) = OddsCache::connect(config(&database.dsn()));
    let follower = tokio::spawn(follower.run());
    eventually("a read that waits for the lock", async || {
        cache.counters().failures > 0
    })
    .await;
    run(&migration, "commit").await;
    cache.ready().await.expect("warm");
    let status = cache.status();
    let is_it =
        matches!(&status, Status::Degraded { faults, .. } if faults[0].what.contains("update"));
    assert!(is_it, "{status}");
    follower.abort();
}

/// When row security was enabled on a table while the cache followed, the view lost rows that the role could no longer
/// see.
#[tokio::test]
async fn row_security_is_refused_unless_allowed() {
    let database = Database::seeded();
    let dsn = cluster().dsn_as(&database.reader(), &database.name);
    let followed = Followed::beside(&dsn, &database.dsn(), |config| config).await;
    let events = followed.cache.view().len();
    let is_it = |error: &Error| matches!(error, Error::RowSecurity { .. });
    for table in ["events", "oddscache.change_log"] {
        let security = async |what: &str| {
            let sql = format!("alter table {table} {what} row level security");
            followed.run(&sql).await;
        };
        security("enable").await;
        followed.disconnected_by(is_it).await;
        assert_eq!(followed.cache.view().len(), events, "the old view stays");
        security("disable").await;
        eventually("following again", async || {
            !matches!(followed.cache.status(), Status::Disconnected { .. })
        })
        .await;
    }
    followed.run("alter table events enable row level security; create policy every_row on events using (true)").await;
    let error = warm_up(config(&dsn)).await.expect_err("refused");
    assert!(matches!(error, Error::RowSecurity { .. }), "{error}");
    let view = warm_up(config(&dsn).allow_row_security(true)).await;
    assert_eq!(view.expect("allowed").len(), events);
}

/// While DDL locks the log, writers give up logging rather than wait. The follower did not notice.
#[tokio::test]
async fn a_change_made_during_a_reindex_of_the_log_is_seen() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let dba = connect(&database.dsn()).await;
    run(&dba, "begin; reindex table oddscache.change_log").await;
    followed.set_line(77).await;
    run(&dba, "commit").await;
    followed.check("after the reindex").await;
}

/// The number of log rows was bounded, but not the number of keys in them. A read took 1.1 GB of memory, and blocked
/// the runtime for a minute.
#[tokio::test]
async fn very_many_keys_become_blocks_of_keys() {
    let never = Duration::from_secs(600_000);
    let database = Database::seeded();
    let followed = Followed::with(&database.dsn(), |config| config.audit_cycle(never)).await;
    let before = followed.cache.counters();
    followed
        .run(
            "insert into oddscache.change_log (xid, table_name, op, keys) select pg_current_xact_id(), 'market_odds', 'DELETE', \
             (select array_agg(g * 20000 + k) from generate_series(1, 20000) k) from generate_series(1, 50) g",
        )
        .await;
    followed.check("after all these keys").await;
    let now = followed.cache.counters();
    assert_eq!(now.reloads, before.reloads + 1);
    assert_eq!(now.log_rows, before.log_rows + 50, "{now:?}");
    // None of the keys is of a snapshot that is held.
    assert_eq!(now.rows_read, before.rows_read);
}

/// Before the first warmup the empty view had a small age.
#[tokio::test]
async fn before_the_first_warmup_a_view_has_the_greatest_age() {
    let (cache, _follower) = OddsCache::connect(config("host=/nowhere user=nobody"));
    assert_eq!(cache.view().age(), Duration::MAX);
    let error = cache.view_within(Duration::from_secs(1_000_000_000));
    let error = error.expect_err("too stale");
    assert!(matches!(error, Error::TooStale { .. }), "{error}");

    let followed = Followed::seeded().await;
    let view = followed.cache.view_within(Duration::from_secs(3600));
    assert!(!view.expect("just proven").is_empty());
    followed.follower.abort();
    let young = Duration::from_millis(200);
    eventually("it ages", async || {
        followed.cache.view_within(young).is_err()
    })
    .await;
}

/// One row without captured_at stopped the whole cache for ever.
#[tokio::test]
async fn a_snapshot_without_captured_at_is_served_and_counted() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    followed
        .run(
            "alter table competitor_odds_snapshots alter column captured_at drop not null; \
             insert into competitor_odds_snapshots (id, competitor_event_id, captured_at) \
             select 9999, id, null from competitor_events where betpawa_event_id is not null and deleted_at is null limit 1",
        )
        .await;
    followed.caught_up("the bad row").await;
    let view = followed.cache.view();
    let snapshots = view.events().flat_map(|event| event.competitors().iter());
    let mut bad = snapshots.filter(|(_, snapshot)| snapshot.snapshot_id() == 9999);
    let (_, bad) = bad.next().expect("served");
    assert_eq!(bad.captured_at(), chrono::DateTime::UNIX_EPOCH);
    assert_eq!(view.stats().malformed_rows, 1);
    // Only captured_at changes, and the count must follow.
    let set = |time: &str| {
        format!("update competitor_odds_snapshots set captured_at = {time} where id = 9999")
    };
    let delete = "delete from competitor_odds_snapshots where id = 9999".to_owned();
    for (sql, malformed_rows) in [
        (set("now()"), 0),
        (set("null"), 1),
        (set("now()"), 0),
        (set("null"), 1),
        (delete, 0),
    ] {
        followed.run(&sql).await;
        followed.caught_up(&sql).await;
        let stats = followed.cache.stats();
        assert_eq!(stats.malformed_rows, malformed_rows, "{sql}");
    }

    // Reads of many keys, and reads of everything, use different statements.
    let many = "insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id)
        select n, 's' || n, 1, now(), n, '' from generate_series(10000, 10499) n;
        insert into competitor_odds_snapshots (id, competitor_event_id, captured_at) select n, n, null from generate_series(10000, 10499) n";
    followed.run(many).await;
    followed.caught_up("many bad rows").await;
    assert_eq!(followed.cache.stats().malformed_rows, 500);
    let anew = Followed::new(&database).await;
    assert_eq!(anew.cache.stats().malformed_rows, 500);
    let shown = |followed: &Followed| dump(&followed.cache.view());
    assert_eq!(shown(&followed), shown(&anew));
}

/// After the feed was installed again with another channel, the follower went on listening to the old one.
#[tokio::test]
async fn the_listener_follows_a_change_of_the_channel() {
    let database = Database::seeded();
    let poll = Duration::from_secs(2);
    let followed = Followed::with(&database.dsn(), |config| config.poll_interval(poll)).await;
    run_script(&database.name, Script::Install, &[("channel", "elsewhere")]);
    followed.check("installed again").await;
    let notifications = followed.cache.counters().notifications;
    let mut line = 0;
    eventually("notifications on the new channel", async || {
        line += 1;
        followed.set_line(line).await;
        followed.caught_up("the change").await;
        followed.cache.counters().notifications >= notifications + 3
    })
    .await;
}

/// Two events had snapshots with the same id. A change of the markets with that id reached only one of the events.
#[tokio::test]
async fn two_events_may_hold_snapshots_of_one_id() {
    let followed = Followed::seeded().await;
    for sql in [
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at)
         values (9000, 1, 1, '2030-01-01'), (9000, 2, 1, '2030-01-02')",
        "insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
         values (9000, '1', 'x', '[]')",
    ] {
        followed.step(sql).await;
    }
}

/// The error of a trigger contained row data. The status showed it, and everybody can read the status.
#[tokio::test]
async fn the_status_contains_no_data_of_a_trigger_s_error() {
    let followed = Followed::seeded().await;
    let mut status = Vec::new();
    followed
        .run(
            "insert into oddscache.change_log (xid, table_name, op, note) \
             values (pg_current_xact_id(), 'events', 'RESYNC', '22P02 invalid input syntax: \"the secret\"')",
        )
        .await;
    let reloads = followed.reloads();
    eventually("a reload", async || {
        status.push(followed.cache.status().to_string());
        followed.reloads() > reloads || status.len() > 100_000
    })
    .await;
    assert!(!status.concat().contains("secret"), "{status:?}");
}

/// If a password contained an unescaped @, an error showed the part after the @ as the host. Also, the server refused
/// the longest time-outs.
#[tokio::test]
async fn odd_passwords_stay_secret_and_the_longest_time_outs_are_accepted() {
    let error = Config::new("postgres://user:sec@ret@127.0.0.1:1/db").expect_err("an @ too many");
    let text = format!("{error} {error:?}");
    assert!(!text.contains("sec") && !text.contains("ret@"), "{text}");

    let database = Database::seeded();
    let endless = config(&database.dsn())
        .read_timeout(Duration::MAX / 4)
        .warmup_timeout(Duration::MAX);
    assert!(!warm_up(endless).await.expect("warm").is_empty());
}

/// A read lists the tables at its beginning and at its end. The second list left out some tables, so every read was
/// repeated.
#[tokio::test]
async fn it_follows_with_a_plain_child_table_and_while_a_partition_is_being_detached() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    followed
        .run(
            "create table child_of_market_odds () inherits (market_odds); \
             alter table odds_snapshots detach partition odds_snapshots_default; \
             create table of_2040 partition of odds_snapshots for values from ('2040-01-01') to ('2041-01-01'); \
             create table of_2041 partition of odds_snapshots for values from ('2041-01-01') to ('2042-01-01'); \
             insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values (9001, 1, 1, '2040-02-03')",
        )
        .await;
    followed.check("partitions without a default").await;

    // An older transaction makes DETACH CONCURRENTLY wait. Until it ends, the partition is half detached.
    let reader = connect(&database.dsn()).await;
    let read = "begin isolation level repeatable read; select count(*) from odds_snapshots";
    run(&reader, read).await;
    let dba = connect(&database.dsn()).await;
    let detach = "alter table odds_snapshots detach partition of_2041 concurrently";
    let detaching = tokio::spawn(async move { run(&dba, detach).await });
    let pending = "select exists (select from pg_inherits where inhdetachpending)";
    eventually("being detached", async || {
        let row = followed.app.query_one(pending, &[]).await;
        row.expect("an answer").get(0)
    })
    .await;
    followed.step("insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values (9002, 2, 1, '2040-02-04')").await;
    run(&reader, "commit").await;
    detaching.await.expect("detached");
    let confirm = "update odds_snapshots set last_confirmed_at = '2040-03-01' where id = 9002";
    followed.step(confirm).await;
}

/// A warmup failed if the server refused to export a snapshot, for instance for lack of disk space.
#[tokio::test]
async fn a_warmup_succeeds_without_exporting_a_snapshot() {
    let database = Database::seeded();
    database.psql("alter function pg_catalog.pg_export_snapshot() rename to gone");
    let followed = Followed::with(&database.dsn(), |config| config.warmup_connections(2)).await;
    followed.check("the seed").await;
    followed.step("truncate market_odds").await;
    assert_eq!(followed.reloads(), 2);
}
