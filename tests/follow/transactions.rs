//! Transactions: all of one or none, in whatever order they commit, with and without a bell.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use oddscache::{Status, View};
use oddscache_testkit::{
    Database, connect, dump, eventually,
    followed::{Followed, run},
};

#[tokio::test]
async fn what_is_rolled_back_never_shows() {
    let followed = Followed::seeded().await;
    let before = followed.check("the seed").await;
    let before_it = followed.heard().await;
    let delete = "delete from odds_snapshots; delete from competitor_events; truncate market_odds";
    followed.run(&format!("begin; {delete}; rollback")).await;
    followed
        .run(&format!(
            "begin; savepoint a; {delete}; rollback to a; commit"
        ))
        .await;
    let after = followed.check("rolled back").await;
    assert_eq!(before, after);
    let now = followed.cache.counters();
    // A heartbeat at the most, on a slow machine.
    assert!(now.log_rows <= before_it.log_rows + 1, "{now:?}");
    assert_eq!(now.reloads, 1);
}

#[tokio::test]
async fn of_a_transaction_with_savepoints_shows_what_was_kept() {
    let followed = Followed::seeded().await;
    followed.changes(
            "begin; savepoint a; update market_odds set line = 1 where snapshot_id = 112; savepoint b;
             delete from odds_snapshots where event_id = 2; rollback to b; savepoint c;
             update market_odds set line = 2 where snapshot_id = 222; release c; release b; release a; commit",
        ).await;
    // Each block with EXCEPTION is a subtransaction; more than 64 no longer fit into a snapshot's list.
    followed
        .step(
            "do $$ begin for n in 1..100 loop begin
                 update market_odds set line = n where snapshot_id = 100 + n % 130;
                 if n % 3 = 0 then raise 'no'; end if;
             exception when others then null; end; end loop; end $$",
        )
        .await;
}

#[tokio::test]
async fn transactions_that_commit_late_are_not_missed() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let late = connect(&database.dsn()).await;
    let later = connect(&database.dsn()).await;
    let before = followed.check("the seed").await;
    // Both have their log rows before the others, with smaller ids and xids.
    run(
        &late,
        "begin; update market_odds set line = 1 where snapshot_id = 112",
    )
    .await;
    run(
        &later,
        "begin; update competitor_events set betpawa_event_id = 2 where id = 11",
    )
    .await;
    let open = followed.check("open").await;
    assert_eq!(before, open, "an open transaction shows");
    for id in 900..905 {
        let sql =
            format!("insert into odds_snapshots (id, event_id, bookmaker_id) values ({id}, 1, 2)");
        followed.step(&sql).await;
    }
    let before = followed.check("others").await;
    run(&late, "commit").await;
    let after = followed.check("late").await;
    assert_ne!(before, after);
    followed
        .step("insert into odds_snapshots (id, event_id, bookmaker_id) values (910, 1, 2)")
        .await;
    let before = followed.check("another").await;
    run(&later, "commit").await;
    assert_ne!(before, followed.check("later").await);
    assert_eq!(followed.reloads(), 1);
}

#[tokio::test]
async fn prepared_transactions_arrive_when_they_are_committed() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    // Names of prepared transactions are the cluster's.
    let name = format!("prepared_{}", database.name);
    let prepare = |sql: &str| {
        format!("begin; set local oddscache.notify = off; {sql}; prepare transaction '{name}'")
    };
    let before = followed.check("the seed").await;
    followed
        .run(&prepare("delete from odds_snapshots where id = 112"))
        .await;
    assert_eq!(before, followed.check("prepared").await);
    followed
        .step("insert into odds_snapshots (id, event_id, bookmaker_id) values (910, 3, 2)")
        .await;
    let before = followed.check("another").await;
    followed.run(&format!("commit prepared '{name}'")).await;
    let after = followed.check("committed").await;
    assert_ne!(before, after);
    followed.run(&prepare("delete from odds_snapshots")).await;
    followed.run(&format!("rollback prepared '{name}'")).await;
    assert_eq!(after, followed.check("rolled back").await);
}

/// Whether the view is what the oracle says, with no claim about when it was read.
async fn equal(followed: &Followed, view: &View) -> bool {
    dump(view) == followed.oracle(view.cut().window_start).await
}

#[tokio::test]
async fn the_bell_alone_brings_changes() {
    let database = Database::seeded();
    let hour = Duration::from_secs(3600);
    let followed = Followed::with(&database.dsn(), |config| config.poll_interval(hour)).await;
    // The bell rings once when it begins to listen.
    eventually("listening", async || {
        followed.cache.status() == Status::Live
    })
    .await;
    for line in 1..=5 {
        let notifications = followed.cache.counters().notifications;
        followed.set_line(line).await;
        followed
            .counted("the bell", |now| now.notifications > notifications)
            .await;
        eventually("the change", async || {
            equal(&followed, &followed.cache.view()).await
        })
        .await;
    }
}

#[tokio::test]
async fn without_a_bell_the_poll_brings_changes() {
    let followed = Followed::seeded().await;
    // For a role, a database or a session it can be off as well.
    let forms = [
        "begin; set local oddscache.notify = off; update market_odds set line = 9 where snapshot_id = 112; commit",
        "set oddscache.notify = off; delete from odds_snapshots where id = 112",
    ];
    for sql in forms {
        let before = followed.check(sql).await;
        let counters = followed.heard().await;
        let after = followed.step(sql).await;
        assert_ne!(before, after);
        let now = followed.cache.counters();
        assert!(
            now.notifications == counters.notifications || now.heartbeats > counters.heartbeats,
            "{sql}: rang"
        );
    }
}

#[tokio::test]
async fn anybody_may_ring_the_bell_and_nothing_follows() {
    let followed = Followed::seeded().await;
    let before = followed.check("the seed").await;
    let counters = followed.heard().await;
    followed.run("notify oddscache, 'drop everything'").await;
    followed
        .counted("the bell", |now| now.notifications > counters.notifications)
        .await;
    assert_eq!(before, followed.check("a false bell").await);
    let now = followed.cache.counters();
    assert_eq!(
        (now.published, now.reloads),
        (counters.published, counters.reloads)
    );
}

/// A value moves between two events, and a competitor event between them too: no view may show half of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_view_is_torn() {
    let database = Database::seeded();
    database.psql(
        "update market_odds set line = 50; update competitor_events set source = 'moving' where id = 11;
         update competitor_events set betpawa_event_id = null where id = 12",
    );
    let followed = Followed::new(&database).await;
    followed.check("the seed").await;
    let stop = Arc::new(AtomicBool::new(false));
    let reader = {
        let (cache, stop) = (followed.cache.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let line = |view: &View, event| -> f64 {
                let snapshots = view.get_betpawa_snapshot(event).expect("snapshots");
                let market = snapshots.get(1).expect("a snapshot").markets().next();
                market.expect("a market").line().expect("a line")
            };
            let moving = |view: &View, event| {
                let snapshots = view.get_competitor_snapshot(event).expect("snapshots");
                usize::from(snapshots.get("moving").is_some())
            };
            let mut states = std::collections::BTreeSet::new();
            while !stop.load(Ordering::Relaxed) {
                let view = cache.view();
                let (one, two) = (line(&view, 1), line(&view, 2));
                assert_eq!(one + two, 100.0, "a torn view");
                let (from, to) = (moving(&view, 1), moving(&view, 2));
                assert_eq!(from + to, 1, "a torn view");
                // An odd number of transactions leaves it at event 2.
                assert_eq!(to == 1, one as i64 % 2 == 1, "a torn view");
                states.insert(one as i64);
            }
            states.len()
        })
    };
    for transaction in 1..=100 {
        followed
            .run(&format!(
                "begin; update market_odds set line = {} where snapshot_id = 212;
                 update competitor_events set betpawa_event_id = 3 - betpawa_event_id where id = 11;
                 update market_odds set line = {transaction} where snapshot_id = 112; commit",
                100 - transaction
            ))
            .await;
        if transaction % 5 == 0 {
            followed.caught_up("the writer's pace").await;
        }
    }
    followed.check("the end").await;
    stop.store(true, Ordering::Relaxed);
    let states = reader.join().expect("no torn view");
    assert!(states >= 10, "only {states} states were seen");
}

#[tokio::test]
async fn an_event_leaves_the_window_by_time_alone() {
    let database = Database::seeded();
    let lookback = Duration::from_secs(2);
    let followed = Followed::with(&database.dsn(), |config| config.lookback(lookback)).await;
    // Held for a second yet; again, should the machine be so slow that it was not seen in time.
    eventually("held", async || {
        followed.run("update events set kickoff = now() at time zone 'UTC' - interval '1 s' where id = 1").await;
        followed.caught_up("a late kickoff").await.event(1).is_some()
    })
    .await;
    let kickoff = followed.cache.kickoff(1);
    let read = followed.cache.counters().snapshots_read;
    let evicted = followed.cache.counters().evicted_events;
    eventually("evicted", async || followed.cache.event(1).is_none()).await;
    assert!(kickoff.is_some_and(|kickoff| kickoff <= followed.cache.view().cut().window_start));
    assert_eq!(followed.cache.counters().evicted_events, evicted + 1);
    assert_eq!(followed.cache.counters().snapshots_read, read);
    followed.check("evicted").await;
    // What happens to it now is nobody's business, until it is postponed.
    followed
        .step("update market_odds set line = 9 where snapshot_id = 112")
        .await;
    followed
        .step("insert into competitor_odds_snapshots (id, competitor_event_id) values (900, 1)")
        .await;
    assert!(followed.cache.event(1).is_none());
    followed
        .step(
            "update events set kickoff = now() at time zone 'UTC' + interval '1 day' where id = 1",
        )
        .await;
    assert!(followed.cache.event(1).is_some());
    assert_eq!(followed.reloads(), 1);
}
