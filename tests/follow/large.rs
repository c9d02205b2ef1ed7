//! Statements that change more than the log names key by key. The cost must depend on what they can have changed.

use std::{collections::HashSet, time::Duration};

use oddscache::{Config, OddsCache, ReloadReason};
use oddscache_testkit::{Database, eventually, followed::Followed};

use crate::{By, step};

/// Writes a log row as the trigger does for a statement of many keys.
fn logged(table: &str, keys: &str, note: &str) -> String {
    format!(
        "insert into oddscache.change_log (xid, table_name, op, keys, note) \
         values (pg_current_xact_id(), '{table}', 'UPDATE', {keys}, {note})"
    )
}

#[tokio::test]
async fn a_confirmation_of_a_whole_table_reads_no_markets() {
    let followed = Followed::seeded().await;
    for table in ["odds_snapshots", "competitor_odds_snapshots"] {
        let before = followed.cache.counters();
        let update = format!("update {table} set last_confirmed_at = '2031-02-03 04:05:06.789'");
        let sql = format!("{update}; {}", logged(table, "null", "null"));
        step(&followed, By::Wide, &sql).await;
        let now = followed.cache.counters();
        assert_eq!(
            now.snapshots_read, before.snapshots_read,
            "markets were read"
        );
    }
}

/// More keys than a log row lists.
#[tokio::test]
async fn many_new_snapshots() {
    let followed = Followed::seeded().await;
    let sql = "insert into odds_snapshots (id, event_id, bookmaker_id) select 100000 + n, n, 1 from generate_series(1, 20001) n";
    step(&followed, By::Wide, sql).await;
}

/// A job that deletes or changes old markets names more snapshots than the log lists. It costs a look at the ids.
#[tokio::test]
async fn old_markets_of_many_snapshots_are_not_read() {
    let followed = Followed::seeded().await;
    let many = |ids: &str| {
        format!(
            "insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) \
             select n + 5000000, {ids}, '1', 'one', '[]' from generate_series(1, 20001) n"
        )
    };
    let before = followed.cache.counters();
    followed.step(&many("n + 1000000")).await;
    followed
        .step("delete from market_odds where snapshot_id > 1000000")
        .await;
    let now = followed.cache.counters();
    assert_eq!(now.rows_read, before.rows_read);
    // All latest snapshots have ids below 1,024, so they are in the first block.
    step(&followed, By::Wide, &many("n")).await;
    step(&followed, By::Wide, "update market_odds set line = 7").await;
    step(
        &followed,
        By::Wide,
        "update competitor_market_odds set line = 7; \
         insert into oddscache.change_log (xid, table_name, op, keys, note) \
         values (pg_current_xact_id(), 'competitor_market_odds', 'UPDATE', array[0], 'BLOCKS')",
    )
    .await;
    let truncate = "truncate competitor_market_odds";
    let before = followed.cache.counters();
    step(&followed, By::Wide, truncate).await;
    // The other side's markets are not read.
    let now = followed.cache.counters();
    let sides = now.rows_read - before.rows_read;
    assert!(sides < 100, "{sides} rows were read");
}

/// After a restart of the server all caches want to read everything.
#[tokio::test]
async fn caches_read_everything_in_turns() {
    let database = Database::seeded();
    let others = Followed::new(&database).await;
    let lock = |how: &str| {
        format!(
            "select {how}(hashtextextended('oddscache reader ' || n || ' oddscache', 0)) from generate_series(0, 1) n"
        )
    };
    others.run(&lock("pg_advisory_lock")).await;
    let (cache, follower) = OddsCache::connect(Config::new(&database.dsn()).expect("dsn"));
    let follower = tokio::spawn(follower.run());
    let tries = "select max(query_start)::text from pg_stat_activity \
                 where datname = current_database() and query like '%oddscache reader%' and pid <> pg_backend_pid()";
    let tried_again = async || {
        let mut seen = HashSet::new();
        eventually("a follower tries again", async || {
            let row = others.app.query_one(tries, &[]).await.expect("a time");
            seen.insert(row.get::<_, Option<String>>(0));
            seen.len() > 3
        })
        .await;
    };
    tried_again().await;
    assert!(!cache.is_warm());
    // The other one follows meanwhile.
    others
        .step("update market_odds set line = 9 where snapshot_id = 112")
        .await;
    others.run(&lock("pg_advisory_unlock")).await;
    cache.ready().await.expect("warm");
    follower.abort();
    // All caches look at all rows when a trigger came back.
    others.run(&lock("pg_advisory_lock")).await;
    others
        .run(
            "alter table market_odds disable trigger oddscache_update;
             update market_odds set line = 8 where snapshot_id = 112;
             alter table market_odds enable always trigger oddscache_update",
        )
        .await;
    tried_again().await;
    others.run(&lock("pg_advisory_unlock")).await;
    others.check("its turn has come").await;
}

/// A resync reads every event again. Meanwhile the view moves on with what is committed.
#[tokio::test]
async fn a_resync_finds_what_was_not_logged_while_the_follower_goes_on() {
    let followed = Followed::with(&Database::seeded().dsn(), |config| {
        config.audit_cycle(Duration::from_secs(600_000))
    })
    .await;
    // More events than one slice has.
    let events = "insert into events (id, sportradar_id, name, home_team, away_team, kickoff) \
                  select n, 'sr' || n, '', '', '', now() at time zone 'UTC' + interval '1 day' from generate_series(1000, 1499) n; \
                  insert into odds_snapshots (id, event_id, bookmaker_id) select n, n, 1 from generate_series(1000, 1499) n; \
                  insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) \
                  select n + 10000, n, '1', 'one', '[]' from generate_series(1000, 1499) n";
    followed.step(events).await;
    // A price, a snapshot that came, one that went, an event that came, and one that went.
    let unseen = "update market_odds set line = 7 where snapshot_id in (1001, 1300); \
                  insert into odds_snapshots (id, event_id, bookmaker_id) values (5000, 1200, 2); \
                  delete from odds_snapshots where id = 1450; \
                  update events set kickoff = now() at time zone 'UTC' - interval '1 day' where id = 1100; \
                  insert into events (id, sportradar_id, name, home_team, away_team, kickoff) \
                  values (2000, 'sr2000', '', '', '', now() at time zone 'UTC' + interval '1 day'); \
                  insert into odds_snapshots (id, event_id, bookmaker_id) values (6000, 2000, 1)";
    followed
        .run(&format!(
            "begin; {unseen}; delete from oddscache.change_log where xid = pg_current_xact_id(); commit"
        ))
        .await;
    let before = followed.cache.counters();
    followed.cache.resync();
    // Asked twice: what was read before the second request is read again.
    followed.run("select oddscache.resync('again')").await;
    for line in 20..24 {
        let view = followed.cache.view();
        followed.set_line(line).await;
        eventually("the view moves on", async || {
            followed.cache.view().version() > view.version()
        })
        .await;
    }
    followed
        .counted("resynced", |now| now.reloads > before.reloads)
        .await;
    followed.check("resynced").await;
    let now = followed.cache.counters();
    let requested = now.reloads_by_reason.of(ReloadReason::Requested);
    assert_eq!((now.reloads, requested, followed.epoch()), (2, 1, 1));
    assert!(now.reads > before.reads + 10, "{now:?}");
}
