//! What handles request and learn: they wait for transactions, subscribe to changes, request a reload, and see whether
//! notifications arrive.

use std::{collections::BTreeMap, time::Duration};

use oddscache::{Error, Status};
use oddscache_testkit::{
    Database, connect, eventually,
    followed::{Followed, run},
    normal, psql,
};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

/// A follower that does not poll within the time of the test.
async fn not_polling(database: &Database) -> Followed {
    let followed = Followed::with(&database.dsn(), |config| {
        config
            .poll_interval(Duration::from_secs(600))
            .audit_cycle(Duration::from_secs(600_000))
    })
    .await;
    // From now on only a notification or a request causes a read.
    eventually("live", async || followed.cache.status() == Status::Live).await;
    followed
}

/// Runs statements in a transaction and leaves it open. Returns the transaction id, for `wait_for`.
async fn written(client: &tokio_postgres::Client, sql: &str) -> u64 {
    run(
        client,
        &format!("begin; set local oddscache.notify = off; {sql}"),
    )
    .await;
    let row = client
        .query_one("select pg_current_xact_id()::text", &[])
        .await;
    row.expect("a transaction id")
        .get::<_, String>(0)
        .parse()
        .expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_for_shows_a_write_without_notification_or_poll() {
    let database = Database::seeded();
    let followed = not_polling(&database).await;
    for line in 1..20 {
        let sql = format!("update market_odds set line = {line} where snapshot_id = 112");
        let xid = written(&followed.app, &sql).await;
        assert!(!followed.cache.view().cut().shows(xid));
        followed.run("commit").await;
        let view = followed.cache.wait_for(xid, LONG).await.expect("shown");
        assert!(view.cut().shows(xid));
        let snapshots = view.get_betpawa_snapshot(1).expect("event 1");
        let market = snapshots
            .get(1)
            .expect("bookmaker 1")
            .markets()
            .next()
            .expect("a market");
        assert_eq!(market.line(), Some(f64::from(line)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_for_times_out_while_the_transaction_is_open() {
    let database = Database::seeded();
    let followed = not_polling(&database).await;
    let other = connect(&database.dsn()).await;
    let open = written(
        &other,
        "update market_odds set line = 3 where snapshot_id = 112",
    )
    .await;
    // An open transaction does not hide later ones.
    let sql = "update market_odds set line = 4 where snapshot_id = 222";
    let later = written(&followed.app, sql).await;
    followed.run("commit").await;
    assert!(later > open);
    followed.cache.wait_for(later, LONG).await.expect("shown");
    let error = followed
        .cache
        .wait_for(open, Duration::from_millis(200))
        .await;
    let Err(Error::NotShown { xid, status, .. }) = error else {
        panic!("{error:?}");
    };
    assert_eq!((xid, status.as_str()), (open, "live"));
    run(&other, "commit").await;
    followed.cache.wait_for(open, LONG).await.expect("shown");
    followed.check("both").await;
}

/// A statement, and the events that the change must name: in `betpawa`, in `competitors`, and in `kickoffs`.
type Expected = (
    &'static str,
    &'static [i64],
    &'static [(&'static str, i64)],
    &'static [i64],
);

/// A replica that copies only the events named by changes equals the cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_name_every_event_that_differs() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let mut changes = followed.cache.changes();
    let view = followed.cache.view();
    let event = |view: &oddscache::View, id| -> Option<Value> {
        view.event(id)
            .map(|event| normal(serde_json::to_value(event).expect("JSON")))
    };
    let mut replica: BTreeMap<i64, Value> = BTreeMap::new();
    for id in view.event_ids() {
        replica.insert(id, event(&view, id).expect("listed"));
    }
    let steps: [Expected; 8] = [
        (
            "update market_odds set line = 9 where snapshot_id = 112",
            &[1],
            &[],
            &[],
        ),
        (
            "update odds_snapshots set last_confirmed_at = now() where id in (112, 222)",
            &[1, 2],
            &[],
            &[],
        ),
        (
            "update competitor_events set deleted_at = now() where id = 1",
            &[],
            &[("sportybet", 1)],
            &[],
        ),
        (
            "update competitor_events set betpawa_event_id = 1 where id = 21",
            &[],
            &[("sportybet", 1)],
            &[],
        ),
        (
            "update events set kickoff = kickoff + interval '1 hour' where id = 2",
            &[],
            &[],
            &[2],
        ),
        (
            "update events set kickoff = now() - interval '3 hours' where id = 2",
            &[2],
            &[("bet9ja", 2), ("sportybet", 2)],
            &[],
        ),
        (
            "update events set kickoff = now() + interval '3 hours' where id = 2",
            &[2],
            &[("bet9ja", 2), ("sportybet", 2)],
            &[],
        ),
        // The first statement writes equal values, so the change does not name its event.
        (
            "update market_odds set line = line where snapshot_id = 222; update market_odds set line = 8 where snapshot_id = 122",
            &[1],
            &[],
            &[],
        ),
    ];
    for (sql, betpawa, competitors, kickoffs) in steps {
        followed.run(&format!("begin; {sql}; commit")).await;
        let change = changes.next().await.expect("following").expect("in time");
        assert_eq!(change.betpawa, betpawa, "{sql}");
        let named: Vec<(&str, i64)> = change
            .competitors
            .iter()
            .flat_map(|(source, ids)| ids.iter().map(|id| (source.as_str(), *id)))
            .collect();
        assert_eq!(named, competitors, "{sql}");
        assert_eq!(change.kickoffs, kickoffs, "{sql}");
        assert_eq!(change.epoch, 1);
        let view = followed.cache.view();
        for id in change.event_ids() {
            match event(&view, id) {
                Some(event) => replica.insert(id, event),
                None => replica.remove(&id),
            };
        }
        let held: Vec<Value> = replica.values().cloned().collect();
        assert_eq!(held, oddscache_testkit::dump(&view), "{sql}");
    }
}

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
    let lagged = changes
        .next()
        .await
        .expect("following")
        .expect_err("too late");
    assert_eq!(lagged.missed, published - 256);
    for _ in 0..256 {
        changes.next().await.expect("following").expect("kept");
    }
    followed.follower.abort();
    let _ = (&mut followed.follower).await;
    assert!(changes.next().await.is_none());
    assert!(followed.cache.changes().next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_can_be_requested_by_a_handle_or_in_the_database() {
    let database = Database::seeded();
    let followed = not_polling(&database).await;
    let mut changes = followed.cache.changes();
    for reloads in [2, 3] {
        if reloads == 2 {
            followed.cache.resync();
        } else {
            followed.run("select oddscache.resync('a test')").await;
        }
        eventually("read again", async || {
            followed.cache.counters().reloads == reloads
        })
        .await;
        let change = changes.next().await.expect("following").expect("in time");
        assert!(change.is_empty() && change.epoch == 1, "{change:?}");
    }
    followed.check("read again").await;
    assert_eq!(followed.cache.view().epoch(), 1);
}

/// An event that a reload finds unchanged is not held twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_shares_the_memory_of_what_did_not_change() {
    let database = Database::seeded();
    let followed = not_polling(&database).await;
    let before = followed.cache.event(1).expect("held");
    followed.cache.resync();
    eventually("read again", async || {
        followed.cache.counters().reloads == 2
    })
    .await;
    let after = followed.cache.event(1).expect("held");
    assert!(std::sync::Arc::ptr_eq(&before, &after));
}

/// Writers notify another channel. A successful LISTEN alone does not make the status live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_on_another_channel_are_found_to_be_lost() {
    let database = Database::seeded();
    psql(
        &database.name,
        &[
            "-qc",
            "update oddscache.log_state set channel = 'elsewhere'",
        ],
    );
    let followed = Followed::new(&database).await;
    eventually("polling only", async || {
        matches!(followed.cache.status(), Status::PollingOnly { reason } if reason.contains("did not arrive"))
    })
    .await;
    assert!(followed.cache.counters().heartbeats > 0);
    let before = followed.check("the seed").await;
    followed
        .run("delete from odds_snapshots where id = 112")
        .await;
    assert_ne!(before, followed.check("polled").await);
}

/// In a quiet database heartbeats prove that notifications arrive. Their log rows change nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_keep_a_quiet_database_live() {
    let database = Database::seeded();
    let followed = not_polling(&database).await;
    let published = followed.cache.counters().published;
    eventually("three heartbeats", async || {
        followed.cache.counters().heartbeats >= 3
    })
    .await;
    assert_eq!(followed.cache.status(), Status::Live);
    let counters = followed.cache.counters();
    assert!(counters.log_rows >= 2, "{counters:?}");
    assert_eq!((counters.published, counters.reloads), (published, 1));
}
