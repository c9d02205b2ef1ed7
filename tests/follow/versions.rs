//! The feed and the caches can be upgraded in either order, because a follower also understands the feed version before
//! its own.

use std::{
    fmt::Debug,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use oddscache::{ReloadReason, Status, sql::FEED_VERSION};
use oddscache_testkit::{
    Database, connect, eventually,
    followed::{Followed, SEED, run},
    psql,
};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
};

/// A database with the seed and with the change feed of version 2, as it was released.
fn version_2() -> Database {
    let database = Database::application();
    psql(&database.name, &["-qf", "tests/sql/install_v2.sql"]);
    database.psql(SEED);
    database
}

const STEPS: [&str; 7] = [
    "update market_odds set line = 9 where snapshot_id = 112",
    "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values (9001, 1, 1, now())",
    "insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) \
     values (90011, 9001, '1', 'x', '[]')",
    "update competitor_events set deleted_at = now() where id = 1",
    "update events set kickoff = kickoff + interval '1 hour' where id = 2",
    "delete from competitor_market_odds where snapshot_id = 22",
    "delete from odds_snapshots where id = 9001",
];

/// Collects the texts of warnings.
#[derive(Default, Clone)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == Level::WARN {
            event.record(&mut self.clone());
        }
    }
}

impl Visit for Warnings {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

/// A follower of a version 2 feed reads every kind of change by its keys, after notifications alone. It warns of the
/// old version once.
#[tokio::test]
async fn the_version_before_is_followed() {
    let warnings = Warnings::default();
    // If the process has only one subscriber, and a thread without it reaches a span or an event first, tracing
    // switches that one off for all threads. A second subscriber prevents that.
    let _other = tracing::Dispatch::new(tracing_subscriber::registry());
    let subscriber = tracing_subscriber::registry().with(warnings.clone());
    let _guard = tracing::subscriber::set_default(subscriber);
    let database = version_2();
    let followed = Followed::with(&database.dsn(), |config| {
        config
            .poll_interval(Duration::from_secs(600))
            .audit_cycle(Duration::from_secs(600_000))
    })
    .await;
    eventually("live", async || followed.cache.status() == Status::Live).await;
    assert_eq!(followed.cache.change_log().feed_version, 2);
    let mut before = followed.check("the seed").await;
    for sql in STEPS {
        let after = followed.step(sql).await;
        assert_ne!(before, after, "{sql}: changes nothing that the cache holds");
        before = after;
    }
    assert_eq!(followed.cache.counters().reloads, 1);
    followed.cache.resync();
    eventually("a reload", async || followed.cache.counters().reloads == 2).await;
    let warnings = warnings.0.lock().unwrap();
    let of_version = warnings
        .iter()
        .filter(|text| text.contains("older version"));
    assert_eq!(of_version.count(), 1, "{warnings:?}");
}

/// The feed is upgraded while one writer commits without pause and another has a transaction open. Version 2 logged the
/// first statement of that transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_upgrade_in_place_leaves_no_gap() {
    let database = version_2();
    let followed = Followed::new(&database).await;
    let open = connect(&database.dsn()).await;
    run(&open, &format!("begin; {}", STEPS[0])).await;

    let (busy, stop) = (
        connect(&database.dsn()).await,
        Arc::new(AtomicBool::new(false)),
    );
    let told = Arc::clone(&stop);
    let writer = tokio::spawn(async move {
        let mut written = 0_u32;
        while !told.load(Ordering::Relaxed) {
            written += 1;
            let sql = format!("update market_odds set line = {written} where snapshot_id = 122");
            run(&busy, &sql).await;
        }
        written
    });
    eventually("the writer writes", async || {
        followed.cache.counters().log_rows > 10
    })
    .await;
    assert_eq!(followed.cache.change_log().feed_version, 2);
    psql(&database.name, &["-qf", "sql/install.sql"]);
    eventually("the new version is known", async || {
        followed.cache.change_log().feed_version == FEED_VERSION
    })
    .await;
    let rows = followed.cache.counters().log_rows;
    eventually("the writer goes on", async || {
        followed.cache.counters().log_rows > rows + 10
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    assert!(writer.await.expect("it writes") > 20);
    followed.check("what was written across the upgrade").await;
    run(
        &open,
        "update market_odds set line = 5 where snapshot_id = 111; commit",
    )
    .await;
    followed.check("a transaction across the upgrade").await;
    // While a transaction was writing, the script left the log as it was. This second run changes it.
    psql(&database.name, &["-qf", "sql/install.sql"]);
    for sql in &STEPS[1..] {
        followed.step(sql).await;
    }
    let counters = followed.cache.counters();
    assert_eq!((followed.cache.view().epoch(), counters.reconnects), (1, 0));
    assert_eq!(counters.audit_mismatches, 0);
    let others = counters.reloads - counters.reloads_by_reason.of(ReloadReason::Catalog);
    assert_eq!(others, 1, "only the first warmup: {counters:?}");
}
