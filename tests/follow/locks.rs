//! A migration holds a table for a while: the reader gives way, and stands in nobody's way.

use std::time::{Duration, Instant};

use crate::common::{
    Database, connect, dump, eventually,
    followed::{Followed, run},
};

#[tokio::test]
async fn the_reader_gives_way_to_a_migration_and_catches_up() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let before = followed.check("the seed").await;
    let migration = connect(&database.dsn()).await;
    run(
        &migration,
        "begin; lock table market_odds in access exclusive mode",
    )
    .await;
    let failures = followed.cache.counters().failures;
    eventually("gives way", async || {
        followed.cache.counters().failures >= failures + 2
    })
    .await;
    let view = followed.cache.view();
    assert!(view.age() > Duration::from_millis(300));
    assert_eq!(dump(&view), before);
    // Neither writers nor a second migration wait for the reader for longer than its own patience (300 ms).
    let other = connect(&database.dsn()).await;
    run(&other, "set lock_timeout = '900 ms'").await;
    for hours in 1..=3 {
        let sql =
            format!("update events set kickoff = kickoff + interval '{hours} hours' where id = 1");
        run(
            &followed.app,
            &format!("set lock_timeout = '900 ms'; {sql}"),
        )
        .await;
        let began = Instant::now();
        run(
            &other,
            "begin; lock table events in access exclusive mode; commit",
        )
        .await;
        assert!(began.elapsed() < Duration::from_millis(900));
    }
    run(
        &migration,
        "update market_odds set line = 9 where snapshot_id = 112; commit",
    )
    .await;
    assert_ne!(before, followed.check("the lock is gone").await);
    // It lost no connection, so there was no second warmup.
    assert_eq!(followed.cache.view().epoch(), 1);
    assert_eq!(followed.cache.counters().reloads, 1);
}

/// A migration that takes its locks in another order than the reader: the server, after a second, would end one of the two.
#[tokio::test]
async fn a_deadlock_with_the_reader_never_costs_the_migration() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let migration = connect(&database.dsn()).await;
    let waits = "select exists (select from pg_locks l join pg_stat_activity a using (pid) where not l.granted
        and l.database = (select oid from pg_database where datname = current_database()) and a.application_name = 'oddscache')";
    for _ in 0..3 {
        run(
            &migration,
            "begin; lock table competitor_market_odds in access exclusive mode",
        )
        .await;
        eventually("the reader waits", async || {
            followed
                .app
                .query_one(waits, &[])
                .await
                .expect("locks")
                .get(0)
        })
        .await;
        // Which the reader holds already.
        run(&migration, "lock table events in access exclusive mode").await;
        run(
            &migration,
            "update events set kickoff = kickoff + interval '1 hour' where id = 1; commit",
        )
        .await;
        followed.check("the lock is gone").await;
    }
    assert_eq!(followed.cache.view().epoch(), 1);
}
