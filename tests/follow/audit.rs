//! The audit finds each change that no trigger saw, and names, counts and repairs it. It finds nothing else.

use std::time::Duration;

use oddscache::Counters;
use oddscache_testkit::{Database, followed::Followed};

/// Follows the seed with an audit that never rests.
async fn audited() -> Followed {
    Followed::with(&Database::seeded().dsn(), |config| {
        config
            .poll_interval(Duration::from_millis(20))
            .audit_cycle(Duration::from_millis(40))
            .audit_budget(1.0)
    })
    .await
}

/// Commits a change without its log rows, as if no trigger had seen it.
async fn unseen(followed: &Followed, sql: &str) {
    let sql = format!("begin; {sql}; delete from oddscache.change_log; commit");
    followed.run(&sql).await;
}

/// Each statement changes rows in a different way and leaves no log row. Only the audit can find such a change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_finds_and_repairs_every_change_that_no_trigger_saw() {
    let followed = audited().await;
    let mut before = followed.check("the seed").await;
    let epoch = followed.epoch();
    let changes = [
        "update events set kickoff = kickoff + interval '1 hour' where id = 1",
        "update events set kickoff = now() - interval '3 hours' where id = 2",
        "update events set kickoff = now() + interval '3 hours' where id = 2",
        "update odds_snapshots set last_confirmed_at = now() where id = 112",
        "update odds_snapshots set captured_at = captured_at + interval '1 second' where id = 122",
        "delete from odds_snapshots where id = 112",
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) select 9112, 1, 1, now() at time zone 'utc'",
        "update market_odds set line = 9 where snapshot_id = 122",
        "delete from market_odds where snapshot_id = 122",
        "update market_odds set unavailable_at = now() where snapshot_id = 222",
        "update competitor_market_odds set outcomes = '[{\"name\": \"1\", \"odds\": 1.2345678}]' where snapshot_id = 12",
        "update competitor_events set deleted_at = now() where id = 1",
        "update competitor_events set betpawa_event_id = 1 where id = 21",
        "delete from competitor_odds_snapshots where id = 112",
    ];
    for sql in changes {
        let mismatches = followed.cache.counters().audit_mismatches;
        unseen(&followed, sql).await;
        let found = |now: &Counters| now.audit_mismatches > mismatches;
        followed.counted(sql, found).await;
        followed.audited().await;
        let after = followed.check(sql).await;
        assert_ne!(before, after, "{sql}: changes nothing that the cache holds");
        let now = followed.cache.counters().audit_mismatches;
        assert_eq!(now, mismatches + 1, "{sql}: one event");
        before = after;
    }
    assert_eq!(followed.epoch(), epoch);
}

/// A false finding would make the follower read everything again, time after time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_finds_nothing_that_triggers_saw() {
    let followed = audited().await;
    for round in 0..30 {
        let sql = format!(
            "update market_odds set line = {round} where snapshot_id in (112, 122, 222);
             update odds_snapshots set last_confirmed_at = now() where id = 212;
             update events set kickoff = kickoff + interval '1 second';
             update competitor_events set betpawa_event_id = {} where id = 21;
             insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) select {}, 2, 2, now() at time zone 'utc'",
            round % 2 + 1,
            5000 + round
        );
        followed.run(&sql).await;
    }
    followed.audited().await;
    followed.check("thirty rounds").await;
    let counters = followed.cache.counters();
    assert_eq!((counters.audit_mismatches, counters.reloads), (0, 1));
    assert!(counters.audited_events > 0);
}

/// Uses the default budget. The tests above set a larger one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_is_on_by_default() {
    let followed = Followed::seeded().await;
    let audited = |now: &Counters| now.audited_events > 0;
    let counters = followed.counted("audited", audited).await;
    assert_eq!(counters.audit_mismatches, 0);
}
