//! Statements that change more than the log names key by key. The cost must depend on what they can have changed.

use oddscache_testkit::followed::Followed;

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
