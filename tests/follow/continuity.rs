//! The reading connection is lost and comes back. The follower goes on from its cursor if continuity is proven, and
//! reads everything into a new epoch otherwise. `servers` has the tests in which the server loses history.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use oddscache::{Counters, ReloadReason, Status};
use oddscache_testkit::{
    Database, connect, dump, eventually,
    followed::{Followed, run},
    log::Log,
    psql,
};
use tokio_postgres::Client;
use tracing::Level;

use crate::faults::allow_connections;

const CHANGE: &str = "delete from odds_snapshots where id = 112";
const ANOTHER: &str = "delete from odds_snapshots where id = 222";

/// How the follower went on after a lost connection.
#[derive(Debug, PartialEq)]
enum After {
    /// It read what had changed.
    Changes,
    /// Continuity was proven, but the log did not tell what had changed. It read everything, in the same epoch.
    EverythingInTheSameEpoch,
    /// It read everything into a new epoch.
    NewEpoch,
}

/// A followed cache that loses its connection.
struct Lost {
    database: Database,
    followed: Followed,
}

impl Lost {
    async fn new() -> Lost {
        Lost::of(Database::seeded()).await
    }

    async fn of(database: Database) -> Lost {
        let followed = Followed::new(&database).await;
        followed.live().await;
        Lost { database, followed }
    }

    /// A cache that has read a change.
    async fn after_a_change() -> Lost {
        let lost = Lost::new().await;
        lost.followed.changes(CHANGE).await;
        lost
    }

    /// Ends the connection, runs `sql`, and lets the follower connect again. It must go on as `after` says, and the
    /// cache must equal the oracle. Then it must follow as before.
    async fn while_away(&self, sql: &str, after: After) {
        self.meanwhile(&self.followed.app, sql, after).await;
    }

    /// The same, but `app` runs `sql`.
    async fn meanwhile(&self, app: &Client, sql: &str, after: After) {
        let followed = &self.followed;
        let before = followed.cache.counters();
        let epoch = followed.epoch();
        allow_connections(&self.database, false);
        followed.terminate("follow").await;
        followed.disconnected().await;
        run(app, sql).await;
        allow_connections(&self.database, true);
        let read = |now: &Counters| now.resumed + now.reloads > before.resumed + before.reloads;
        followed.counted(sql, read).await;
        followed.check(sql).await;
        let now = followed.cache.counters();
        let expected = match after {
            After::Changes => (1, 0, 0),
            After::EverythingInTheSameEpoch => (1, 1, 0),
            After::NewEpoch => (0, 1, 1),
        };
        let found = (
            now.resumed - before.resumed,
            now.reloads - before.reloads,
            followed.epoch() - epoch,
        );
        assert_eq!(found, expected, "{sql}: {after:?}");
        followed.step(ANOTHER).await;
    }
}

/// Before, each lost connection led to a read of everything, and to a new epoch. Until the follower is back, the view
/// ages.
#[tokio::test]
async fn a_lost_connection_is_resumed_and_the_old_view_ages_until_then() {
    let log = Log::capture(Level::INFO);
    let Lost { database, followed } = Lost::new().await;
    followed.check("the seed").await;
    let old = followed.cache.view();
    let before = dump(&old);
    allow_connections(&database, false);
    followed.terminate("follow").await;
    followed.disconnected().await;
    followed.run(CHANGE).await;
    let began = Instant::now();
    // The old view stays readable and unchanged, and ages.
    eventually("ages", async || old.age() > Duration::from_millis(300)).await;
    let view = followed.cache.view();
    assert_eq!(dump(&view), before);
    assert!(view.age() >= began.elapsed());
    allow_connections(&database, true);
    assert_ne!(before, followed.check("connected again").await);
    assert!(followed.cache.view().age() < old.age());
    assert_eq!(dump(&old), before);
    followed.live().await;
    followed.step(ANOTHER).await;
    let now = followed.cache.counters();
    assert_eq!((now.resumed, now.reloads, followed.epoch()), (1, 1, 1));
    let text = log.take();
    assert!(text.contains("resumed: continuity proven"), "{text}");
}

/// Writers commit all the while, some of them asynchronously, and the connection is lost again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_commit_is_missed_while_the_connection_is_lost_again_and_again() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|nth| {
            let (dsn, is_over) = (database.dsn(), Arc::clone(&is_over));
            tokio::spawn(async move {
                let writer = connect(&dsn).await;
                if nth > 0 {
                    run(&writer, "set synchronous_commit = off").await;
                }
                for line in (0..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                    let sql = format!(
                        "begin; update market_odds set line = {line} where snapshot_id % 30 = {nth};
                         update odds_snapshots set last_confirmed_at = now() where event_id = {nth}; commit"
                    );
                    run(&writer, &sql).await;
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            })
        })
        .collect();
    for nth in 1..=12 {
        eventually("a connection to end", async || {
            let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                where datname = current_database() and application_name = 'oddscache follow'";
            let row = followed.app.query_one(sql, &[]).await.expect("terminated");
            row.get::<_, i64>(0) == 1
        })
        .await;
        let again = |now: &Counters| now.resumed >= nth;
        let counters = followed.counted("resumed", again).await;
        // Every other time the connection is lost right after it was resumed. Pauses then grow.
        if nth % 2 == 0 {
            let more = |now: &Counters| now.reads > counters.reads + 1;
            followed.counted("reads", more).await;
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("the last transaction has ended");
    }
    followed.check("at the end").await;
    followed.live().await;
    followed.changes(CHANGE).await;
    assert_eq!((followed.reloads(), followed.epoch()), (1, 1));
}

/// A log that holds what was read proves continuity, whatever was written meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_meanwhile_is_read() {
    let lost = Lost::new().await;
    lost.while_away("select 1", After::Changes).await;
    let many = "update market_odds set line = 3; delete from competitor_events where id = 11; insert into odds_snapshots
        (id, event_id, bookmaker_id) values (900, 1, 1)";
    lost.while_away(many, After::Changes).await;
    // A transaction that was in progress when the connection was lost.
    let late = connect(&lost.database.dsn()).await;
    run(
        &late,
        "begin; update market_odds set line = 4 where snapshot_id = 121",
    )
    .await;
    lost.followed
        .step("update market_odds set line = 5 where snapshot_id = 211")
        .await;
    lost.meanwhile(&late, "commit", After::Changes).await;
}

/// While the follower is away, a log row that it has read disappears or changes. The server may have lost what it read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_rows_that_are_gone_begin_a_new_epoch() {
    let last = "where (xid, id) in (select xid, id from oddscache.change_log order by xid desc, id desc limit 1)";
    for change in [
        format!("delete from oddscache.change_log {last}"),
        format!("update oddscache.change_log set at = at + interval '1 microsecond' {last}"),
        format!("update oddscache.change_log set id = id + 1 {last}"),
        format!("update oddscache.change_log set table_name = 'heartbeat' {last}"),
    ] {
        let lost = Lost::after_a_change().await;
        lost.while_away(&change, After::NewEpoch).await;
        let counters = lost.followed.cache.counters();
        let reason = ReloadReason::ConnectionLost;
        assert_eq!(counters.reloads_by_reason.of(reason), 1, "{change}");
    }
}

/// A read of everything reads no log rows. The newest ones of then prove continuity.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_row_from_before_the_warmup_proves_continuity() {
    let lost = Lost::new().await;
    lost.while_away("delete from oddscache.change_log", After::NewEpoch)
        .await;
}

/// A server that assigns transaction ids again logs changes under ids that the follower has passed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_rows_under_an_id_that_was_passed_begin_a_new_epoch() {
    let lost = Lost::after_a_change().await;
    let row = lost
        .followed
        .app
        .query_one("select pg_current_xact_id()::text", &[])
        .await;
    let passed: String = row.expect("an id").get(0);
    // After this the cursor is beyond that id.
    lost.followed.check("passed").await;
    let again = format!(
        "insert into oddscache.change_log (xid, table_name, op, keys) values ('{passed}', 'events', 'UPDATE', '{{1}}')"
    );
    lost.while_away(&again, After::NewEpoch).await;
}

/// While the follower is away, somebody prunes. Rows that it has not read, or rows that prove continuity, may be gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_pruned_meanwhile_proves_nothing() {
    let prune = "delete from oddscache.change_log;
        update oddscache.log_state set pruned_below = pg_snapshot_xmax(pg_current_snapshot())";
    let unread = format!("update market_odds set line = 8 where snapshot_id = 121; {prune}");
    for sql in [prune, &unread] {
        let lost = Lost::after_a_change().await;
        lost.while_away(sql, After::NewEpoch).await;
    }
    // Older rows are no evidence.
    let lost = Lost::after_a_change().await;
    // Other tests use the same cluster. So a transaction that was in progress at the cursor may be older than all rows.
    let cut = lost.followed.cache.view().cut().snapshot.clone();
    let xmin = cut.split(':').next().expect("xmin:xmax:xip");
    let older = format!(
        "update oddscache.log_state set pruned_below = (
           select least(xid, '{xmin}') from oddscache.change_log order by xid desc limit 1);
         delete from oddscache.change_log l using oddscache.log_state s where l.xid < s.pruned_below"
    );
    lost.while_away(&older, After::Changes).await;
    // A quiet database has no evidence, and `pruned_below` stays.
    let database = Database::seeded();
    database.psql(prune);
    // Other tests use the same cluster. While a transaction is in progress that is older, the follower cannot tell
    // whether its rows were pruned.
    let app = connect(&database.dsn()).await;
    let sql =
        "select pg_snapshot_xmin(pg_current_snapshot()) >= pruned_below from oddscache.log_state";
    eventually("older transactions have ended", async || {
        app.query_one(sql, &[]).await.expect("the log").get(0)
    })
    .await;
    let lost = Lost::of(database).await;
    lost.while_away("select 1", After::Changes).await;
    lost.while_away(
        "update market_odds set line = 9 where snapshot_id = 121",
        After::Changes,
    )
    .await;
}

/// The log does not tell what DDL changes. Continuity is proven, so the epoch stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ddl_meanwhile_is_a_reload_in_the_same_epoch() {
    let lost = Lost::after_a_change().await;
    let ddl = "alter table market_odds disable trigger oddscache_update;
        update market_odds set line = 7 where snapshot_id = 121;
        alter table market_odds enable always trigger oddscache_update";
    lost.while_away(ddl, After::EverythingInTheSameEpoch).await;
    lost.while_away("truncate market_odds", After::EverythingInTheSameEpoch)
        .await;
}

/// Without the feed nothing proves continuity.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_was_uninstalled_meanwhile_begins_a_new_epoch() {
    let Lost { database, followed } = Lost::after_a_change().await;
    allow_connections(&database, false);
    followed.terminate("follow").await;
    followed.disconnected().await;
    let uninstall = std::fs::read_to_string("sql/uninstall.sql").expect("a script");
    followed.run(&uninstall).await;
    allow_connections(&database, true);
    eventually("degraded", async || {
        matches!(followed.cache.status(), Status::Degraded { .. })
    })
    .await;
    followed.check_epoch(2, "without the feed").await;
    psql(&database.name, &["-qf", "sql/install.sql"]);
    followed.live().await;
    followed.step(ANOTHER).await;
    assert_eq!(followed.cache.counters().resumed, 0);
}

/// If each connection is lost before a read proves continuity, that read may be the reason. So the follower gives it up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_never_proves_continuity_gives_way_to_a_read_of_everything() {
    for (times, after) in [(3, (1, 1, 1)), (4, (0, 2, 2))] {
        let Lost { database, followed } = Lost::after_a_change().await;
        let migration = connect(&database.dsn()).await;
        run(&migration, "begin; lock table events").await;
        for _ in 0..times {
            eventually("the next connection", async || {
                let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                    where datname = current_database() and application_name = 'oddscache follow'";
                let row = followed.app.query_one(sql, &[]).await.expect("terminated");
                row.get::<_, i64>(0) == 1
            })
            .await;
            // The first failure is the lost connection, the second is the lock.
            followed.fails(2).await;
        }
        run(&migration, "commit").await;
        followed.live().await;
        followed.step(ANOTHER).await;
        let now = followed.cache.counters();
        let found = (now.resumed, now.reloads, followed.epoch());
        assert_eq!(found, after, "{times} lost connections");
    }
}
