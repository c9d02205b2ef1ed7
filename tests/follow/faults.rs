//! Connections, triggers, the change log and the server fail, and come back.

use oddscache::{Config, Counters, Status, sql::Script};
use oddscache_testkit::{
    Database, cluster, connect, dump, eventually,
    followed::{Followed, run},
    psql, run_script,
};

const CHANGE: &str = "delete from odds_snapshots where id = 112";
const ANOTHER: &str = "delete from odds_snapshots where id = 222";

/// Allows or refuses new connections to the database. Existing ones stay.
pub(crate) fn allow_connections(database: &Database, allow: bool) {
    let sql = format!("alter database {} allow_connections {allow}", database.name);
    psql("postgres", &["-qc", &sql]);
}

/// Changes stay visible without the listening connection, and no new epoch begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_listening_connection_it_only_polls() {
    let database = Database::seeded();
    let listen = Config::new(&database.dsn()).expect("dsn");
    let followed = Followed::with(&database.dsn(), |config| config.listen_from(listen)).await;
    followed.live().await;
    allow_connections(&database, false);
    followed.terminate("listen").await;
    followed.polling("").await;
    followed.changes(CHANGE).await;
    allow_connections(&database, true);
    followed.live().await;
    let before = followed.cache.counters().notifications;
    followed.step(ANOTHER).await;
    let notified = |now: &Counters| now.notifications > before;
    followed.counted("a notification", notified).await;
    assert_eq!(followed.epoch(), 1);
    assert_eq!(followed.reloads(), 1);
}

/// Log rows that were deleted before the follower read them must not go unnoticed.
#[tokio::test]
async fn a_log_pruned_beyond_the_cursor_becomes_a_reload() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let before = followed.check("the seed").await;
    // The lock keeps the follower from reading before the log is pruned.
    let migration = connect(&database.dsn()).await;
    run(&migration, "begin; lock table events").await;
    followed.run(CHANGE).await;
    let prune = "delete from oddscache.change_log;
        update oddscache.log_state set pruned_below = pg_snapshot_xmax(pg_current_snapshot())";
    followed.run(prune).await;
    run(&migration, "commit").await;
    assert_ne!(before, followed.check("pruned").await);
    assert!(followed.reloads() > 1);
    assert_eq!(followed.epoch(), 1);
}

/// A change stays visible even if its log row is pruned at once.
#[tokio::test]
async fn pruning_loses_nothing() {
    let followed = Followed::seeded().await;
    for line in 0..5 {
        followed.set_line(line).await;
        let twice = "select oddscache.prune('0'); select oddscache.prune('0')";
        followed.run(twice).await;
        followed.check("pruned").await;
    }
}

/// TRUNCATE of the log removes log rows without prune(), so the follower reads everything again.
#[tokio::test]
async fn a_truncated_log_is_not_taken_for_an_empty_one() {
    let followed = Followed::seeded().await;
    let sql = format!("{CHANGE}; truncate oddscache.change_log");
    followed.changes(&sql).await;
}

/// A disabled trigger logs nothing. The follower sees in the catalog that it was disabled.
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

/// The feed disappears while the follower runs. It reads everything again and again, and says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_feed_is_uninstalled_and_installed_again() {
    let database = Database::seeded();
    let reader = database.reader();
    let dsn = cluster().dsn_as(&reader, &database.name);
    let followed = Followed::beside(&dsn, &database.dsn(), |config| config).await;
    let (schema, table) = (
        "schema oddscache has no objects",
        "SELECT on table \"oddscache\".change_log",
    );
    for (break_it, why) in [("sql/uninstall.sql", schema), ("", table)] {
        let before = followed.check("the feed is there").await;
        match break_it {
            "" => {
                followed
                    .run(&format!(
                        "revoke select on oddscache.change_log from {reader}"
                    ))
                    .await
            }
            script => drop(psql(&database.name, &["-qf", script])),
        }
        eventually(why, async || {
            matches!(followed.cache.status(), Status::Degraded { faults, bound: Some(_), .. } if faults[0].what.contains(why))
        })
        .await;
        for line in [11, 12] {
            followed.set_line(line).await;
            followed.check("a change without the feed").await;
        }
        assert_ne!(before, dump(&followed.cache.view()));
        let reconnects = followed.cache.counters().reconnects;
        psql(&database.name, &["-qf", "sql/install.sql"]);
        run_script(&database.name, Script::Grants, &[("role", &reader)]);
        followed.live().await;
        followed.set_line(13).await;
        followed.check("a change with the feed").await;
        assert_eq!(followed.cache.counters().reconnects, reconnects);
    }
}
