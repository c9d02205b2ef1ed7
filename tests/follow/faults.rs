//! Connections, triggers, the change log and the server fail, and come back.

use std::time::{Duration, Instant};

use oddscache::{Error, Status};
use oddscache_testkit::{
    Database,
    cluster::Cluster,
    connect, dump, eventually,
    followed::{Followed, SEED, run},
    psql,
};

/// Allows or refuses new connections to the database. Existing ones stay.
fn allow_connections(database: &Database, allow: bool) {
    let sql = format!("alter database {} allow_connections {allow}", database.name);
    psql("postgres", &["-qc", &sql]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_reading_connection_a_new_epoch_begins_and_the_old_view_stays() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    followed.live().await;
    followed.check("the seed").await;
    let old = followed.cache.view();
    let before = dump(&old);
    allow_connections(&database, false);
    followed.terminate(false).await;
    followed.disconnected().await;
    followed
        .run("delete from odds_snapshots where id = 112")
        .await;
    let began = Instant::now();
    // The old view stays readable and unchanged, and ages.
    eventually("ages", async || old.age() > Duration::from_millis(300)).await;
    let view = followed.cache.view();
    assert_eq!(view.epoch(), 1);
    assert_eq!(dump(&view), before);
    assert!(view.age() >= began.elapsed());
    allow_connections(&database, true);
    assert_ne!(before, followed.check("connected again").await);
    let view = followed.cache.view();
    assert_eq!(view.epoch(), 2);
    assert!(view.age() < old.age());
    assert_eq!(dump(&old), before);
    followed.live().await;
    followed
        .step("delete from odds_snapshots where id = 222")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_listening_connection_it_only_polls() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    followed.live().await;
    allow_connections(&database, false);
    followed.terminate(true).await;
    eventually("polling", async || {
        matches!(followed.cache.status(), Status::PollingOnly { .. })
    })
    .await;
    let before = followed.check("the listener is lost").await;
    let after = followed
        .step("delete from odds_snapshots where id = 112")
        .await;
    assert_ne!(before, after);
    allow_connections(&database, true);
    followed.live().await;
    let notifications = followed.cache.counters().notifications;
    followed
        .step("delete from odds_snapshots where id = 222")
        .await;
    eventually("a notification", async || {
        followed.cache.counters().notifications > notifications
    })
    .await;
    assert_eq!(followed.cache.view().epoch(), 1);
    assert_eq!(followed.cache.counters().reloads, 1);
}

#[tokio::test]
async fn a_log_pruned_beyond_the_cursor_becomes_a_reload() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let before = followed.check("the seed").await;
    // The lock keeps the follower from reading before the log is pruned.
    let migration = connect(&database.dsn()).await;
    run(&migration, "begin; lock table events").await;
    followed
        .run("delete from odds_snapshots where id = 112")
        .await;
    let prune = "delete from oddscache.change_log;
        update oddscache.log_state set pruned_below = pg_snapshot_xmax(pg_current_snapshot())";
    followed.run(prune).await;
    run(&migration, "commit").await;
    assert_ne!(before, followed.check("pruned").await);
    assert!(followed.cache.counters().reloads > 1);
    assert_eq!(followed.cache.view().epoch(), 1);
}

#[tokio::test]
async fn pruning_loses_nothing() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    for line in 0..5 {
        let sql = format!("update market_odds set line = {line} where snapshot_id = 112");
        followed.run(&sql).await;
        followed
            .run("select oddscache.prune('0'); select oddscache.prune('0')")
            .await;
        followed.check(&sql).await;
    }
}

#[tokio::test]
async fn a_truncated_log_is_not_taken_for_an_empty_one() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let before = followed.check("the seed").await;
    let after = followed
        .step("delete from odds_snapshots where id = 112; truncate oddscache.change_log")
        .await;
    assert_ne!(before, after);
}

#[tokio::test]
async fn a_change_made_while_a_trigger_is_disabled_is_found() {
    crate::steps(
        crate::By::Reload,
        &[
            "alter table market_odds disable trigger user; update market_odds set line = 9 where snapshot_id = 112;
             alter table market_odds enable always trigger oddscache_insert, enable always trigger oddscache_update,
                 enable always trigger oddscache_delete, enable always trigger oddscache_truncate",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_names_a_dropped_trigger_until_it_is_back() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let before = followed.check("the seed").await;
    followed
        .run("drop trigger oddscache_update on market_odds")
        .await;
    let error = followed.disconnected().await;
    let Error::Trigger {
        table,
        trigger,
        problem,
    } = &error
    else {
        panic!("{error:?}");
    };
    assert!(table.contains("market_odds"), "{error}");
    assert_eq!(
        (trigger.as_str(), *problem),
        ("oddscache_update", "missing")
    );
    followed
        .run("update market_odds set line = 9 where snapshot_id = 112")
        .await;
    let view = followed.cache.view();
    assert_eq!(dump(&view), before);
    eventually("ages", async || view.age() > Duration::from_millis(300)).await;
    psql(&database.name, &["-qf", "sql/install.sql"]);
    assert_ne!(before, followed.check("installed again").await);
    followed
        .step("update market_odds set line = 8 where snapshot_id = 112")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_feed_is_uninstalled_and_installed_again() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let before = followed.check("the seed").await;
    psql(&database.name, &["-qf", "sql/uninstall.sql"]);
    let error = followed.disconnected().await;
    eventually("named", async || {
        matches!(
            followed.cache.status(),
            Status::Disconnected {
                error: Error::FeedMissing { .. },
                ..
            }
        )
    })
    .await;
    assert!(!error.to_string().is_empty());
    followed
        .run("delete from odds_snapshots where id = 112")
        .await;
    assert_eq!(dump(&followed.cache.view()), before);
    psql(&database.name, &["-qf", "sql/install.sql"]);
    assert_ne!(before, followed.check("installed again").await);
    followed
        .step("delete from odds_snapshots where id = 222")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_stops_and_starts() {
    let cluster = Cluster::start(&["fsync = off"]).expect("a cluster");
    let dsn = cluster.dsn("postgres");
    for args in [
        ["-qf", "src/demo/schema.sql"],
        ["-qf", "sql/install.sql"],
        ["-qc", SEED],
    ] {
        let output = cluster.psql("postgres", &args).expect("psql");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let mut followed = Followed::with(&dsn, |config| config).await;
    let mut before = followed.check("the seed").await;
    for (epoch, mode) in [(2, "fast"), (3, "immediate")] {
        cluster.stop(mode).expect("stops");
        followed.disconnected().await;
        assert_eq!(dump(&followed.cache.view()), before);
        cluster.boot().expect("starts");
        followed.app = oddscache_testkit::connect(&dsn).await;
        let sql = format!("update market_odds set line = {epoch} where snapshot_id = 112");
        let after = followed.step(&sql).await;
        assert_ne!(before, after);
        assert_eq!(followed.cache.view().epoch(), epoch);
        before = after;
    }
    followed.live().await;
}
