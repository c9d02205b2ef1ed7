//! Rows that changed without a log row, while partitions come and go and somebody asks for a resync.

use std::time::{Duration, Instant};

use oddscache::{ReloadReason, Status};
use oddscache_testkit::{
    Database, eventually,
    followed::{Followed, rarely},
};

/// A partition comes back with other bounds, and lost a row outside of the new ones while its triggers were disabled.
#[tokio::test]
async fn a_partition_that_comes_back_with_narrower_bounds() {
    let followed = Followed::seeded().await;
    let install = std::fs::read_to_string("sql/install.sql").expect("a script");
    followed
        .step(&format!(
            "create table day partition of odds_snapshots for values from ('2020-01-01') to ('2021-01-01'); {install}"
        ))
        .await;
    followed.live().await;
    followed
        .changes("insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values (900, 1, 1, '2020-09-03')")
        .await;
    followed
        .changes(
            "alter table odds_snapshots detach partition day;
             alter table day disable trigger user;
             delete from day where id = 900;
             do $do$ declare name text; begin
                 for name in select tgname from pg_trigger where tgrelid = 'day'::regclass and not tgisinternal loop
                     execute format('alter table day enable always trigger %I', name);
                 end loop;
             end $do$;
             alter table odds_snapshots attach partition day for values from ('2020-01-01') to ('2020-06-01')",
        )
        .await;
}

/// While a partition has no triggers, its events are looked up again and again. A request to read everything that a
/// read finds when that is due must not be forgotten.
#[tokio::test]
async fn a_request_for_everything_is_kept_while_a_partition_has_no_triggers() {
    let followed = Followed::with(&Database::seeded().dsn(), rarely).await;
    followed
        .run("create table day partition of odds_snapshots for values from ('2020-01-01') to ('2021-01-01')")
        .await;
    followed.set_line(3).await;
    followed
        .counted("a partition without triggers", |_| {
            matches!(followed.cache.status(), Status::Degraded { .. })
        })
        .await;
    // Until only the reads of the partition are left.
    let mut last = (0, Instant::now());
    eventually("rests", async || {
        let reads = followed.cache.counters().reads;
        if reads != last.0 {
            last = (reads, Instant::now());
        }
        last.1.elapsed() > Duration::from_millis(500)
    })
    .await;
    // Nobody logged the change of the price, and neither row notifies: the next read is that of the partition.
    followed
        .run(
            "begin; set local oddscache.notify = off; update market_odds set line = 77 where snapshot_id = 112;
             delete from oddscache.change_log where xid = pg_current_xact_id();
             insert into oddscache.change_log (xid, table_name, op, note)
             values (pg_current_xact_id(), 'resync', 'RESYNC', 'ASKED'); commit",
        )
        .await;
    followed
        .counted("the request", |now| {
            now.reloads_by_reason.of(ReloadReason::Requested) > 0
        })
        .await;
    followed.check("the price").await;
}

/// What a partition brings may take longer than a read of changes may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_brings_more_than_a_read_of_changes_has_time_for() {
    let database = Database::seeded();
    let followed = Followed::with(&database.dsn(), |config| {
        config
            .read_timeout(Duration::from_millis(500))
            .audit_cycle(Duration::from_secs(600_000))
    })
    .await;
    followed
        .step(
            "insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
             select n, 'sr' || n, '', '', '', now() at time zone 'UTC' + interval '1 day' from generate_series(1000, 1399) n;
             insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
             select n + 10000000, 1000000 + n / 10, (n % 10)::text, 'one', '[]' from generate_series(0, 79999) n;
             create table came (like odds_snapshots including defaults);
             insert into came (id, event_id, bookmaker_id, captured_at)
             select 1000000 + n, 1000 + n % 400, 100 + n / 400, '2020-02-03' from generate_series(0, 7999) n;
             alter table came add check (captured_at >= '2020-01-01' and captured_at < '2021-01-01')",
        )
        .await;
    followed
        .changes("alter table odds_snapshots attach partition came for values from ('2020-01-01') to ('2021-01-01')")
        .await;
    let now = followed.cache.counters();
    assert_eq!(
        (followed.epoch(), now.reconnects, now.reads > 0),
        (1, 0, true)
    );
}
