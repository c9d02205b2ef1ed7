//! What handles ask and are told: transactions waited for, changes, reading again, whether the bell is heard.

use std::{collections::BTreeMap, time::Duration};

use oddscache::{Error, Status};
use oddscache_testkit::{
    Database, connect, eventually,
    followed::{Followed, run},
    normal, psql,
};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

/// A follower that would not look by itself within the test.
async fn sleepy(database: &Database) -> Followed {
    let followed = Followed::with(&database.dsn(), |config| {
        config
            .poll_interval(Duration::from_secs(600))
            .audit_cycle(Duration::from_secs(600_000))
    })
    .await;
    // The first bell, and what LISTEN itself rings for.
    eventually("live", async || followed.cache.status() == Status::Live).await;
    followed
}

/// Runs statements in a transaction that is left open; returns what the writer passes on.
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
async fn a_writer_sees_its_own_write_without_bell_or_poll() {
    let database = Database::seeded();
    let followed = sleepy(&database).await;
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
async fn a_transaction_that_is_still_open_is_waited_for_in_vain() {
    let database = Database::seeded();
    let followed = sleepy(&database).await;
    let other = connect(&database.dsn()).await;
    let open = written(
        &other,
        "update market_odds set line = 3 where snapshot_id = 112",
    )
    .await;
    // Later ones show all the same.
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

/// A change, and the events it must name: of our own snapshots, of competitors', and by their kickoff.
type Expected = (
    &'static str,
    &'static [i64],
    &'static [(&'static str, i64)],
    &'static [i64],
);

/// A replica fed by nothing but the changes and the views they name equals the cache.
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
        // Read again, and nothing differs: no change at all for the first of these.
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
async fn a_subscriber_that_lags_is_told_and_one_without_a_follower_too() {
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
async fn everything_is_read_again_when_asked_here_or_in_the_database() {
    let database = Database::seeded();
    let followed = sleepy(&database).await;
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

/// What is the same after reading everything again is not held twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_shares_the_memory_of_what_did_not_change() {
    let database = Database::seeded();
    let followed = sleepy(&database).await;
    let before = followed.cache.event(1).expect("held");
    followed.cache.resync();
    eventually("read again", async || {
        followed.cache.counters().reloads == 2
    })
    .await;
    let after = followed.cache.event(1).expect("held");
    assert!(std::sync::Arc::ptr_eq(&before, &after));
}

/// Notifications go where nobody listens: the bell is not live only because LISTEN succeeded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bell_that_nobody_hears_is_found_out() {
    let database = Database::seeded();
    psql(
        &database.name,
        &[
            "-qc",
            "update oddscache.log_state set channel = 'elsewhere'",
        ],
    );
    let followed = Followed::new(&database).await;
    eventually("found out", async || {
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

/// A quiet database: the bell stays proven by heartbeats, whose log rows change nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_bell_stays_live_by_its_heartbeats() {
    let database = Database::seeded();
    let followed = sleepy(&database).await;
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
