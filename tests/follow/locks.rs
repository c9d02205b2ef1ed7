//! A migration locks a table for a while. The follower gives way, and blocks nobody.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use oddscache::{Config, View};
use oddscache_testkit::{
    Database, connect, dump, eventually,
    followed::{Followed, Shown, run},
    xid,
};

/// The follower waits for a lock no longer than its lock time-out, and keeps its connection.
#[tokio::test]
async fn the_reader_gives_way_to_a_migration_and_catches_up() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let before = followed.check("the seed").await;
    let migration = connect(&database.dsn()).await;
    let lock = "begin; lock table market_odds in access exclusive mode";
    run(&migration, lock).await;
    followed.fails(2).await;
    let view = followed.cache.view();
    assert!(view.age() > Duration::from_millis(300));
    assert_eq!(dump(&view), before);
    // Neither a writer nor a second migration waits for the follower for longer than its lock time-out of 300 ms.
    let other = connect(&database.dsn()).await;
    run(&other, "set lock_timeout = '900 ms'").await;
    for hours in 1..=3 {
        let sql = format!(
            "set lock_timeout = '900 ms';
             update events set kickoff = kickoff + interval '{hours} hours' where id = 1"
        );
        followed.run(&sql).await;
        let began = Instant::now();
        let lock = "begin; lock table events in access exclusive mode; commit";
        run(&other, lock).await;
        assert!(began.elapsed() < Duration::from_millis(900));
    }
    let commit = "update market_odds set line = 9 where snapshot_id = 112; commit";
    run(&migration, commit).await;
    assert_ne!(before, followed.check("the lock is gone").await);
    // It lost no connection, so there was no second warmup.
    assert_eq!(followed.epoch(), 1);
    assert_eq!(followed.reloads(), 1);
}

/// TRUNCATE is not MVCC-safe: a read with a snapshot from before the TRUNCATE finds the table empty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_view_shows_half_of_a_truncate_that_commits_while_the_reader_waits() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let markets = |view: &View, event: i64| {
        let held = view.get_competitor_snapshot(event)?.get("bet9ja")?;
        Some(held.markets().len())
    };
    for _ in 0..5 {
        let reset = "truncate competitor_market_odds; insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
             select id, '1', 'one', '[]' from competitor_odds_snapshots;
             update competitor_events set betpawa_event_id = 1 where id = 11; update competitor_events set deleted_at = now() where id = 12";
        followed.step(reset).await;
        let stop = Arc::new(AtomicBool::new(false));
        let sampler = {
            let (cache, stop) = (followed.cache.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut seen = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let view = cache.view();
                    let markets = markets(&view, 1).or(markets(&view, 2));
                    seen.push((view.cut().snapshot.clone(), markets));
                    seen.dedup();
                }
                seen
            })
        };
        let truncating = connect(&database.dsn()).await;
        run(&truncating, "begin; truncate competitor_market_odds").await;
        let xid = xid(&truncating).await;
        // After this the next read needs the markets of a snapshot that event 2 did not hold.
        let link = "update competitor_events set betpawa_event_id = 2 where id = 11";
        followed.run(link).await;
        followed.reader_waits().await;
        run(&truncating, "commit").await;
        followed.check("truncated").await;
        stop.store(true, Ordering::Relaxed);
        for (cut, markets) in sampler.join().expect("no panic") {
            let truncated = Shown::parse(&cut).expect("a snapshot").shows(xid);
            let expected = Some(usize::from(!truncated));
            assert_eq!(markets, expected, "at {cut}, where {xid} truncated");
        }
    }
}

/// The migration takes its locks in a different order than the reader, which makes a deadlock. After a second the
/// server would cancel one of the two.
#[tokio::test]
async fn a_deadlock_with_the_reader_never_cancels_the_migration() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let migration = connect(&database.dsn()).await;
    for _ in 0..3 {
        let lock = "begin; lock table competitor_market_odds in access exclusive mode";
        run(&migration, lock).await;
        followed.reader_waits().await;
        // The reader already holds this lock.
        run(&migration, "lock table events in access exclusive mode").await;
        let commit = "update events set kickoff = kickoff + interval '1 hour' where id = 1; commit";
        run(&migration, commit).await;
        followed.check("the lock is gone").await;
    }
    assert_eq!(followed.epoch(), 1);
}

/// A cancelled read leaves everything as it was. Above all, the cursor must not move.
#[tokio::test]
async fn a_read_that_is_cancelled_among_its_rows_is_made_again() {
    let database = Database::seeded();
    database.psql(&format!(
        "create role cancelled_{0} login; grant usage on schema oddscache to cancelled_{0};
         grant select on all tables in schema public, oddscache to cancelled_{0};
         create sequence armed; select nextval('armed'); grant select on sequence armed to public;
         create function slow() returns boolean language plpgsql as $$ begin
           if (select last_value from public.armed) > 1 then perform pg_sleep(30); end if; return true; end $$;
         alter table market_odds enable row level security; create policy every_row on market_odds using (slow())",
        database.name
    ));
    let dsn = oddscache_testkit::cluster()
        .dsn_as(&format!("cancelled_{}", database.name), &database.name);
    let never = Duration::from_secs(600_000);
    let config = |config: Config| config.allow_row_security(true).audit_cycle(never);
    let followed = Followed::beside(&dsn, &database.dsn(), config).await;
    let before = followed.check("the seed").await;
    let failures = followed.cache.counters().failures;
    followed
        .run("select setval('armed', 2); update market_odds set line = 9 where snapshot_id = 112")
        .await;
    let asleep = async |what: &str| -> i64 {
        let sql = format!(
            "select count({what}) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
        );
        let row = followed.app.query_one(&sql, &[]).await;
        row.expect("counted").get(0)
    };
    eventually("asleep", async || asleep("*").await > 0).await;
    followed.run("select setval('armed', 1)").await;
    assert_eq!(asleep("pg_cancel_backend(pid)").await, 1);
    assert_ne!(before, followed.check("cancelled once").await);
    let counters = followed.cache.counters();
    assert_eq!((counters.failures, counters.reloads), (failures + 1, 1));
}
