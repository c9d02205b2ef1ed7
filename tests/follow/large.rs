//! Statements that change more than the log names key by key. The cost must depend on what they can have changed.

use std::collections::HashSet;

use oddscache::{Config, OddsCache};
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
    let mut seen = HashSet::new();
    eventually("the follower tries again", async || {
        let row = others.app.query_one(tries, &[]).await.expect("a time");
        seen.insert(row.get::<_, Option<String>>(0));
        seen.len() > 3
    })
    .await;
    assert!(!cache.is_warm());
    // The other one follows meanwhile.
    others
        .step("update market_odds set line = 9 where snapshot_id = 112")
        .await;
    others.run(&lock("pg_advisory_unlock")).await;
    cache.ready().await.expect("warm");
    follower.abort();
}
