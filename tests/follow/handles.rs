//! What a handle can do: wait for transactions, subscribe to changes, request a reload, and see whether notifications
//! arrive.

use std::time::Duration;

use oddscache::{Counters, Error, Status};
use oddscache_testkit::{
    Database, connect,
    followed::{Followed, run},
    replica::Replica,
    xid,
};
use serde_json::{Value, json};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(60);

/// A follower that does not poll within the time of the test.
async fn followed(database: &Database) -> Followed {
    Followed::by_notifications(database, "postgres").await
}

/// Runs statements in a transaction and leaves it open. Returns the transaction id, for `wait_for`.
async fn written(client: &tokio_postgres::Client, sql: &str) -> u64 {
    let sql = format!("begin; set local oddscache.notify = off; {sql}");
    run(client, &sql).await;
    xid(client).await
}

/// `wait_for` causes a read, so a writer sees its own write at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_for_shows_a_write_without_notification_or_poll() {
    let database = Database::seeded();
    let followed = followed(&database).await;
    for line in 1..20 {
        let sql = format!("update market_odds set line = {line} where snapshot_id = 112");
        let xid = written(&followed.app, &sql).await;
        assert!(!followed.cache.view().cut().shows(xid));
        followed.run("commit").await;
        let view = followed.cache.wait_for(xid, LONG).await.expect("shown");
        assert!(view.cut().shows(xid));
        let snapshots = view.get_betpawa_snapshot(1).expect("event 1");
        let mut markets = snapshots.get(1).expect("bookmaker 1").markets();
        let shown = markets.next().expect("a market").line();
        assert_eq!(shown, Some(f64::from(line)));
    }
}

/// `wait_for` returns only after the commit. The error names the transaction and the status.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_for_times_out_while_the_transaction_is_open() {
    let database = Database::seeded();
    let followed = followed(&database).await;
    let other = connect(&database.dsn()).await;
    let sql = "update market_odds set line = 3 where snapshot_id = 112";
    let open = written(&other, sql).await;
    // An open transaction does not hide later ones.
    let sql = "update market_odds set line = 4 where snapshot_id = 222";
    let later = written(&followed.app, sql).await;
    followed.run("commit").await;
    assert!(later > open);
    followed.cache.wait_for(later, LONG).await.expect("shown");
    let soon = Duration::from_millis(200);
    let error = followed.cache.wait_for(open, soon).await;
    let Err(Error::NotShown { xid, status, .. }) = error else {
        panic!("{error:?}");
    };
    assert_eq!((xid, status.as_str()), (open, "live"));
    run(&other, "commit").await;
    followed.cache.wait_for(open, LONG).await.expect("shown");
    followed.check("both").await;
}

/// A transaction that nobody can have begun never shows, so `wait_for` does not wait for it. It does wait for one that has
/// begun and not ended, although no snapshot of PostgreSQL tells that it exists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_for_refuses_a_transaction_that_has_not_begun() {
    let database = Database::seeded();
    let followed = followed(&database).await;
    let sql = "update market_odds set line = 5 where snapshot_id = 112";
    let begun = written(&followed.app, sql).await;
    let soon = Duration::from_millis(200);
    let error = followed.cache.wait_for(begun, soon).await;
    assert!(matches!(error, Err(Error::NotShown { .. })), "{error:?}");
    followed.run("commit").await;
    followed.cache.wait_for(begun, LONG).await.expect("shown");
    let far = begun + (1 << 40);
    let error = followed.cache.wait_for(far, LONG).await;
    let Err(Error::NotBegun { xid, next }) = error else {
        panic!("{error:?}");
    };
    assert_eq!(xid, far);
    assert!((begun + 1..far).contains(&next), "{next}");
}

/// Changes name every event that differs: a replica that copies only these events equals the cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_name_every_event_that_differs() {
    let followed = Followed::seeded().await;
    let mut changes = followed.cache.changes();
    let view = followed.cache.view();
    let mut replica = Replica::of(&view);
    let (none, both) = (json!({}), json!({ "bet9ja": [2], "sportybet": [2] }));
    let sportybet = json!({ "sportybet": [1] });
    let naming = |betpawa: &[i64], competitors: &Value, kickoffs: &[i64]| json!({ "betpawa": betpawa, "competitors": competitors, "kickoffs": kickoffs });
    for (sql, expected) in [
        (
            "update market_odds set line = 9 where snapshot_id = 112",
            naming(&[1], &none, &[]),
        ),
        (
            "update odds_snapshots set last_confirmed_at = now() where id in (112, 222)",
            naming(&[1, 2], &none, &[]),
        ),
        (
            "update competitor_events set deleted_at = now() where id = 1",
            naming(&[], &sportybet, &[]),
        ),
        (
            "update competitor_events set betpawa_event_id = 1 where id = 21",
            naming(&[], &sportybet, &[]),
        ),
        (
            "update events set kickoff = kickoff + interval '1 hour' where id = 2",
            naming(&[], &none, &[2]),
        ),
        (
            "update events set kickoff = now() - interval '3 hours' where id = 2",
            naming(&[2], &both, &[]),
        ),
        (
            "update events set kickoff = now() + interval '3 hours' where id = 2",
            naming(&[2], &both, &[]),
        ),
        // The first statement writes equal values, so the change does not name its event.
        (
            "update market_odds set line = line where snapshot_id = 222; update market_odds set line = 8 where snapshot_id = 122",
            naming(&[1], &none, &[]),
        ),
    ] {
        followed.run(&format!("begin; {sql}; commit")).await;
        let change = timeout(LONG, changes.next()).await.expect("a change");
        let change = change.expect("following").expect("not too late");
        let competitors = change.competitors.iter();
        let competitors = competitors.map(|(source, ids)| (source.as_str().to_owned(), json!(ids)));
        let competitors = Value::Object(competitors.collect());
        let named = naming(&change.betpawa, &competitors, &change.kickoffs);
        assert_eq!(named, expected, "{sql}");
        assert_eq!(change.epoch, 1);
        let view = followed.cache.view();
        replica.apply(&change, &view);
        replica.equals(&view).expect(sql);
    }
}

/// A subscriber that is too slow learns how many changes it missed. After the end of the follower it gets no more
/// changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_learns_that_it_lags_and_that_the_follower_ended() {
    let database = Database::seeded();
    let mut followed = Followed::new(&database).await;
    let mut changes = followed.cache.changes();
    let published = followed.cache.counters().published;
    for line in 0..300 {
        let sql = format!("update market_odds set line = {line} where snapshot_id = 112");
        let xid = written(&followed.app, &sql).await;
        followed.run("commit").await;
        followed.cache.wait_for(xid, LONG).await.expect("shown");
    }
    let published = followed.cache.counters().published - published;
    assert!(published >= 300);
    let lagged = changes.next().await.expect("following");
    let lagged = lagged.expect_err("too late");
    assert_eq!(lagged.missed, published - 256);
    for _ in 0..256 {
        changes.next().await.expect("following").expect("kept");
    }
    followed.follower.abort();
    let _ = (&mut followed.follower).await;
    assert!(changes.next().await.is_none());
    assert!(followed.cache.changes().next().await.is_none());
}

/// A requested reload reads everything within the same epoch. If nothing differs, its change names no event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_can_be_requested_by_a_handle_or_in_the_database() {
    let database = Database::seeded();
    let followed = followed(&database).await;
    let mut changes = followed.cache.changes();
    for reloads in [2, 3] {
        if reloads == 2 {
            followed.cache.resync();
        } else {
            followed.run("select oddscache.resync('a test')").await;
        }
        let again = |now: &Counters| now.reloads == reloads;
        followed.counted("read again", again).await;
        let change = timeout(LONG, changes.next()).await.expect("a change");
        let change = change.expect("following").expect("not too late");
        assert!(change.is_empty() && change.epoch == 1, "{change:?}");
    }
    followed.check("read again").await;
    assert_eq!(followed.epoch(), 1);
}

/// A reload keeps the memory of an event that it finds unchanged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_shares_the_memory_of_unchanged_events() {
    let database = Database::seeded();
    let followed = followed(&database).await;
    let before = followed.cache.event(1).expect("held");
    followed.cache.resync();
    followed.counted("read again", |now| now.reloads == 2).await;
    let after = followed.cache.event(1).expect("held");
    assert!(std::sync::Arc::ptr_eq(&before, &after));
}

/// Writers notify another channel. A successful LISTEN alone does not make the status live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_on_another_channel_are_found_to_be_lost() {
    let database = Database::seeded();
    database.psql("update oddscache.log_state set channel = 'elsewhere'");
    let followed = Followed::new(&database).await;
    followed.live().await;
    let sql = "delete from odds_snapshots where id = 112";
    followed.changes(sql).await;
    followed.polling("did not arrive").await;
}

/// A follower of an older version sends heartbeats. Their notifications and log rows change nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_of_older_followers_change_nothing() {
    let database = Database::seeded();
    let followed = followed(&database).await;
    let published = followed.cache.counters().published;
    for rows in 1..=2 {
        // A heartbeat writes at most one row a second.
        followed
            .run("update oddscache.change_log set at = at - interval '1 minute'")
            .await;
        followed.run("select oddscache.heartbeat()").await;
        let read = |now: &Counters| now.log_rows == rows;
        followed.counted("a heartbeat", read).await;
    }
    let counters = followed.cache.counters();
    assert_eq!(followed.cache.status(), Status::Live);
    assert_eq!((counters.published, counters.reloads), (published, 1));
}
