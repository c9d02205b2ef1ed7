//! A view shows all of a transaction or nothing, in any order of commits, with and without notifications.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use oddscache::{Counters, View};
use oddscache_testkit::{
    Database, connect, dump, eventually,
    followed::{Followed, run},
};

/// Rolled back transactions and savepoints leave nothing in the log and nothing in the cache.
#[tokio::test]
async fn a_transaction_that_is_rolled_back_is_never_visible() {
    let followed = Followed::seeded().await;
    let before = followed.check("the seed").await;
    let before_it = followed.cache.counters();
    let delete = "delete from odds_snapshots; delete from competitor_events; truncate market_odds";
    for sql in [
        format!("begin; {delete}; rollback"),
        format!("begin; savepoint a; {delete}; rollback to a; commit"),
    ] {
        assert_eq!(before, followed.step(&sql).await, "{sql}");
    }
    let now = followed.cache.counters();
    assert_eq!(now.log_rows, before_it.log_rows, "{now:?}");
    assert_eq!(now.reloads, 1);
}

/// Savepoints have transaction ids of their own. Their rows belong to the whole transaction.
#[tokio::test]
async fn only_the_kept_part_of_a_transaction_with_savepoints_is_visible() {
    let followed = Followed::seeded().await;
    let savepoints = "begin; savepoint a; update market_odds set line = 1 where snapshot_id = 112; savepoint b;
        delete from odds_snapshots where event_id = 2; rollback to b; savepoint c;
        update market_odds set line = 2 where snapshot_id = 222; release c; release b; release a; commit";
    followed.changes(savepoints).await;
    // Each block with EXCEPTION is a subtransaction. More than 64 do not fit into the list of a snapshot.
    let many = "do $$ begin for n in 1..100 loop begin
             update market_odds set line = n where snapshot_id = 100 + n % 130;
             if n % 3 = 0 then raise 'no'; end if;
         exception when others then null; end; end loop; end $$";
    followed.step(many).await;
}

/// A cursor over ids of log rows would miss a transaction that commits after later ones (P3).
#[tokio::test]
async fn transactions_that_commit_late_are_not_missed() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let late = connect(&database.dsn()).await;
    let later = connect(&database.dsn()).await;
    let before = followed.check("the seed").await;
    // These two transactions write their log rows first. So they have smaller log ids and smaller transaction ids than
    // the inserts below, which commit before them.
    let update = "begin; update market_odds set line = 1 where snapshot_id = 112";
    run(&late, update).await;
    let link = "begin; update competitor_events set betpawa_event_id = 2 where id = 11";
    run(&later, link).await;
    let open = followed.check("open").await;
    assert_eq!(before, open, "an open transaction shows");
    let insert = async |id: i64| {
        let sql =
            format!("insert into odds_snapshots (id, event_id, bookmaker_id) values ({id}, 1, 2)");
        followed.step(&sql).await
    };
    let mut before = open;
    for id in 900..905 {
        before = insert(id).await;
    }
    run(&late, "commit").await;
    assert_ne!(before, followed.check("late").await);
    let before = insert(910).await;
    run(&later, "commit").await;
    assert_ne!(before, followed.check("later").await);
    assert_eq!(followed.reloads(), 1);
}

/// A prepared transaction belongs to no session, and must not be visible before COMMIT PREPARED.
#[tokio::test]
async fn prepared_transactions_are_visible_once_they_are_committed() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    // Names of prepared transactions are unique in the cluster.
    let name = format!("prepared_{}", database.name);
    let prepare = |sql: &str| {
        format!("begin; set local oddscache.notify = off; {sql}; prepare transaction '{name}'")
    };
    let before = followed.check("the seed").await;
    let prepared = prepare("delete from odds_snapshots where id = 112");
    assert_eq!(before, followed.step(&prepared).await);
    let insert = "insert into odds_snapshots (id, event_id, bookmaker_id) values (910, 3, 2)";
    followed.step(insert).await;
    let commit = format!("commit prepared '{name}'");
    let after = followed.changes(&commit).await;
    followed.run(&prepare("delete from odds_snapshots")).await;
    let rollback = format!("rollback prepared '{name}'");
    assert_eq!(after, followed.step(&rollback).await);
}

/// Without polling, each change comes by its notification.
#[tokio::test]
async fn notifications_alone_bring_changes() {
    let database = Database::seeded();
    let followed = Followed::by_notifications(&database, "postgres").await;
    for line in 1..=5 {
        let before = followed.cache.counters().notifications;
        followed.set_line(line).await;
        let notified = |now: &Counters| now.notifications > before;
        followed.counted("a notification", notified).await;
        // Do not check the age of the view here.
        eventually("the change", async || {
            let view = followed.cache.view();
            dump(&view) == followed.oracle(view.cut().window_start).await
        })
        .await;
    }
}

/// Without notifications, each change comes by polling (P3).
#[tokio::test]
async fn polling_alone_brings_changes() {
    let followed = Followed::seeded().await;
    followed.listening().await;
    // A writer can switch notifications off for a transaction or a session.
    let forms = [
        "begin; set local oddscache.notify = off; update market_odds set line = 9 where snapshot_id = 112; commit",
        "set oddscache.notify = off; delete from odds_snapshots where id = 112",
    ];
    for sql in forms {
        let counters = followed.cache.counters();
        followed.changes(sql).await;
        let now = followed.cache.counters();
        assert_eq!(now.notifications, counters.notifications, "{sql}");
    }
}

/// Every role may notify. A notification only causes a read, so it cannot do harm.
#[tokio::test]
async fn a_notification_of_any_role_changes_nothing() {
    let followed = Followed::seeded().await;
    let before = followed.check("the seed").await;
    let counters = followed.listening().await;
    followed.run("notify oddscache, 'drop everything'").await;
    let notified = |now: &Counters| now.notifications > counters.notifications;
    followed.counted("a notification", notified).await;
    assert_eq!(
        before,
        followed.check("a notification without a change").await
    );
    let now = followed.cache.counters();
    assert_eq!(now.published, counters.published);
    assert_eq!(now.reloads, counters.reloads);
}

/// Each transaction moves a value and a competitor event from one event to another. No view may show half of that.
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
                // After an odd number of transactions the competitor event is linked to event 2.
                assert_eq!(to == 1, one as i64 % 2 == 1, "a torn view");
                states.insert(one as i64);
            }
            states.len()
        })
    };
    for transaction in 1..=100 {
        let sql = format!(
            "begin; update market_odds set line = {} where snapshot_id = 212;
             update competitor_events set betpawa_event_id = 3 - betpawa_event_id where id = 11;
             update market_odds set line = {transaction} where snapshot_id = 112; commit",
            100 - transaction
        );
        followed.run(&sql).await;
        if transaction % 5 == 0 {
            followed.caught_up("the writer's pace").await;
        }
    }
    followed.check("the end").await;
    stop.store(true, Ordering::Relaxed);
    let states = reader.join().expect("no torn view");
    assert!(states >= 10, "only {states} states were seen");
}

/// The window moves with time, so an event leaves it although nobody writes.
#[tokio::test]
async fn an_event_leaves_the_window_without_a_write() {
    let database = Database::seeded();
    let lookback = Duration::from_secs(2);
    let followed = Followed::with(&database.dsn(), |config| config.lookback(lookback)).await;
    // The event stays in the window for one more second. On a slow machine that may be too short, so try again.
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
    // Changes of an event outside the window are ignored, until it is postponed.
    for (sql, is_held) in [
        (
            "update market_odds set line = 9 where snapshot_id = 112",
            false,
        ),
        (
            "insert into competitor_odds_snapshots (id, competitor_event_id) values (900, 1)",
            false,
        ),
        (
            "update events set kickoff = now() at time zone 'UTC' + interval '1 day' where id = 1",
            true,
        ),
    ] {
        followed.step(sql).await;
        assert_eq!(followed.cache.event(1).is_some(), is_held, "{sql}");
    }
    assert_eq!(followed.reloads(), 1);
}
