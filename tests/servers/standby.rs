//! Following a hot standby. The follower polls, and has a special rule for which log rows are new.

use std::time::{Duration, Instant};

use oddscache::{Config, Counters};
use oddscache_testkit::{
    assert_same,
    cluster::Cluster,
    connect, dump, eventually,
    followed::{Followed, rarely, run},
    log::Log,
    oracle,
    servers::replayed,
};
use tokio_postgres::Client;
use tracing::Level;

use crate::set_line;

/// A primary, to which the application writes, and its standby, which the cache follows.
pub(crate) struct Behind {
    pub(crate) primary: Cluster,
    pub(crate) standby: Cluster,
    /// `app` writes to the primary.
    pub(crate) followed: Followed,
    /// A connection to the standby.
    pub(crate) beside: Client,
}

impl Behind {
    pub(crate) async fn new(settings: &[&str]) -> Behind {
        let primary = Cluster::seeded(&[]);
        let standby = primary.standby(settings);
        let often = Duration::from_millis(20);
        let (dsn, app) = (standby.dsn("postgres"), primary.dsn("postgres"));
        let followed = Followed::beside(&dsn, &app, |config| config.poll_interval(often)).await;
        let beside = connect(&dsn).await;
        Behind {
            primary,
            standby,
            followed,
            beside,
        }
    }

    pub(crate) async fn replayed(&self) {
        replayed(&self.followed.app, &self.beside).await;
    }

    /// Pauses replay and compares the cache with the standby. Returns `None` if the lock of a replayed transaction
    /// keeps everybody from reading.
    pub(crate) async fn look(&self, what: &str) -> Option<Vec<serde_json::Value>> {
        let paused = self.standby.pause_replay(&self.beside).await;
        let sql = "select exists (select from pg_locks where mode = 'AccessExclusiveLock')";
        let row = self.beside.query_one(sql, &[]).await.expect("locks");
        let mut shown = None;
        if !row.get::<_, bool>(0) {
            let since = async || self.followed.cache.view().cut().as_of > paused;
            eventually(what, since).await;
            let view = self.followed.cache.view();
            let rows = oracle(&self.beside, view.cut().window_start).await;
            assert_same(&dump(&view), &rows, what);
            shown = Some(rows);
        }
        // Replay goes on at once, and may cancel this very statement.
        let resume = "select pg_wal_replay_resume()";
        eventually("replay goes on", async || {
            self.beside.batch_execute(resume).await.is_ok()
        })
        .await;
        shown
    }

    /// Does the same as `look`, but tries again until no such lock is held.
    pub(crate) async fn check(&self, what: &str) -> Vec<serde_json::Value> {
        let mut shown = None;
        eventually(what, async || {
            shown = self.look(what).await;
            shown.is_some()
        })
        .await;
        shown.expect("just seen")
    }

    /// Does the same as `check`, after the standby has replayed all writes. Then the primary must have the same rows,
    /// too.
    pub(crate) async fn check_all(&self, what: &str) -> Vec<serde_json::Value> {
        self.replayed().await;
        let expected = self.check(what).await;
        let start = self.followed.cache.view().cut().window_start;
        let now = self.followed.oracle(start).await;
        assert_same(&expected, &now, &format!("{what}: the primary"));
        expected
    }

    fn reloads(&self) -> u64 {
        self.followed.reloads()
    }
}

/// Waits until the follower has published a read that began after this call.
async fn read_again(followed: &Followed) {
    let reads = followed.cache.counters().reads;
    let two_more = |now: &Counters| now.reads >= reads + 2;
    followed.counted("two more reads", two_more).await;
}

/// A snapshot on a standby lists transactions differently than one on a primary. No commit may be missed, in any order
/// of commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_that_commit_late_and_out_of_order_are_read() {
    let behind = Behind::new(&[]).await;
    let primary = behind.primary.dsn("postgres");
    let (late, later) = (connect(&primary).await, connect(&primary).await);
    let mut before = behind.check_all("the seed").await;
    let reloads = behind.reloads();
    let mut changed = async |what: &str| {
        let after = behind.check_all(what).await;
        assert_ne!(before, after, "{what}");
        before = after;
        read_again(&behind.followed).await;
    };
    run(
        &late,
        "begin; update market_odds set line = 1 where snapshot_id = 112",
    )
    .await;
    let begin = "begin; update market_odds set line = 2 where snapshot_id = 122";
    run(&later, begin).await;
    set_line(&behind.followed.app, 222, 3).await;
    changed("beside two that are in progress").await;
    run(&later, "commit").await;
    changed("the younger first").await;
    set_line(&behind.followed.app, 222, 4).await;
    changed("one that began after it").await;
    run(&late, "commit").await;
    changed("the oldest last").await;
    // A transaction with two subtransactions, one of which is rolled back.
    run(
        &late,
        "begin; savepoint a; update market_odds set line = 5 where snapshot_id = 112; rollback to a;
         savepoint b; update market_odds set line = 6 where snapshot_id = 122; release b",
    )
    .await;
    set_line(&behind.followed.app, 222, 5).await;
    changed("beside subtransactions").await;
    run(&late, "commit").await;
    changed("with a savepoint rolled back").await;
    // A prepared transaction, which belongs to no connection.
    run(
        &late,
        "set oddscache.notify = off; begin; update market_odds set line = 7 where snapshot_id = 112; prepare transaction 'p'",
    )
    .await;
    set_line(&behind.followed.app, 222, 6).await;
    changed("beside a prepared transaction").await;
    run(&late, "commit prepared 'p'").await;
    changed("committed in two phases").await;
    // More subtransactions than the server records for one backend.
    let many: String = (0..100)
        .map(|line| {
            format!("savepoint s; update market_odds set line = {line} where snapshot_id = 112;")
        })
        .collect();
    run(&late, &format!("begin; {many}")).await;
    run(&later, &format!("begin; {}", many.replace("112", "122"))).await;
    set_line(&behind.followed.app, 222, 7).await;
    changed("beside two with a hundred subtransactions").await;
    run(&late, "rollback").await;
    run(&later, "commit").await;
    changed("one of them committed").await;
    // The follower read all of this by its rule. It never read everything again.
    assert_eq!(behind.reloads(), reloads);
    assert_eq!(behind.followed.epoch(), 1);
}

/// A standby refuses LISTEN. The follower tries again, but logs the reason only once.
#[tokio::test]
async fn a_standby_is_polled_and_the_log_says_so_once() {
    let log = Log::capture(Level::INFO);
    let behind = Behind::new(&[]).await;
    let refused = "cannot execute LISTEN during recovery";
    eventually("it has tried several times", async || {
        let log = behind.standby.socket_dir().join("log");
        let log = std::fs::read_to_string(log).expect("the server's log");
        log.matches(refused).count() >= 3
    })
    .await;
    behind.followed.polling(refused).await;
    let text = log.take();
    assert_eq!(text.matches(refused).count(), 1, "{text}");
    assert_eq!(text.matches("WARN").count(), 1, "{text}");
}

/// Replay may cancel any read of a standby. The follower reads again, and the cache stays right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_replay_cancels_are_made_again() {
    let settings = [
        "max_standby_streaming_delay = 0",
        "hot_standby_feedback = off",
    ];
    let behind = Behind::new(&settings).await;
    behind.check_all("the seed").await;
    // Replay cancels reads, for ACCESS EXCLUSIVE locks and for the removal of dead rows.
    for round in 0..30 {
        let sql = format!(
            "update market_odds set line = {round}; update odds_snapshots set last_confirmed_at = now();
             alter table market_odds alter line set statistics {round}"
        );
        for sql in [
            &*sql,
            "vacuum (freeze) market_odds",
            "vacuum oddscache.change_log",
        ] {
            behind.followed.run(sql).await;
        }
        if round % 10 == 9 {
            behind.check("amid conflicts").await;
        }
    }
    let mut held = behind.check_all("after conflicts").await;
    // A replayed lock holds up the follower. The view grows old, and is right again afterwards.
    let migration = connect(&behind.primary.dsn("postgres")).await;
    let lock = "begin; lock table events; select pg_switch_wal()";
    run(&migration, lock).await;
    behind.replayed().await;
    let view = behind.followed.cache.view();
    eventually("ages", async || view.age() > Duration::from_millis(600)).await;
    assert_eq!(dump(&behind.followed.cache.view()), held);
    let commit = "update events set kickoff = kickoff + interval '1 minute'; commit";
    run(&migration, commit).await;
    let after = behind.check_all("after the migration").await;
    assert_ne!(held, after);
    held = after;
    // TRUNCATE on the primary also locks the table on the standby.
    run(&migration, "truncate competitor_market_odds").await;
    assert_ne!(held, behind.check_all("truncated").await);
    let counters = behind.followed.cache.counters();
    println!("{counters:?}");
}

/// A promoted standby may lack commits that the primary had in progress.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_begins_one_epoch_and_keeps_the_connection() {
    let mut behind = Behind::new(&[]).await;
    behind.check_all("the seed").await;
    // This transaction is in progress on the primary, the standby knows of it, and it never commits.
    let lost = connect(&behind.primary.dsn("postgres")).await;
    let begin = "begin; update market_odds set line = 1 where snapshot_id = 112";
    run(&lost, begin).await;
    set_line(&behind.followed.app, 222, 2).await;
    behind.check_all("before").await;
    behind.primary.kill();
    behind.standby.promote();
    behind.followed.app = connect(&behind.standby.dsn("postgres")).await;
    set_line(&behind.followed.app, 222, 3).await;
    behind.followed.check_epoch(2, "promoted").await;
    behind.followed.run("checkpoint").await;
    set_line(&behind.followed.app, 222, 4).await;
    behind.followed.check_epoch(2, "after a checkpoint").await;
    behind.followed.live().await;
    let counters = behind.followed.cache.counters();
    assert_eq!(counters.failures, 0, "the connection was kept");
}

/// A standby that restarts may show an earlier state for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_restart_of_a_standby_begins_one_epoch() {
    let mut behind = Behind::new(&["hot_standby_feedback = on"]).await;
    let mut before = behind.check_all("the seed").await;
    for (epoch, way) in (2..).zip(["fast", "kill", "crash"]) {
        match way {
            "kill" => behind.standby.kill(),
            "crash" => {
                let pid = "select pg_backend_pid()::text";
                let row = behind.beside.query_one(pid, &[]).await;
                let victim: String = row.expect("a backend").get(0);
                behind.standby.crash(&victim).await;
            }
            mode => behind.standby.stop(mode).expect("stops"),
        }
        set_line(&behind.followed.app, 112, epoch as i32).await;
        if way != "crash" {
            let gone = Instant::now();
            behind.followed.ages(&before, epoch - 1, gone).await;
            behind.standby.boot().expect("starts");
        }
        behind.beside = connect(&behind.standby.dsn("postgres")).await;
        eventually(way, async || behind.followed.epoch() == epoch).await;
        let after = behind.check_all(way).await;
        assert_ne!(before, after, "{way}");
        assert_eq!(behind.followed.epoch(), epoch, "{way}");
        before = after;
    }
}

/// A standby that did not restart has lost nothing. Its log proves that, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_to_a_standby_is_resumed_if_the_log_rows_are_there() {
    let behind = Behind::new(&["hot_standby_feedback = on"]).await;
    behind.check_all("the seed").await;
    let followed = &behind.followed;
    set_line(&followed.app, 112, 1).await;
    let mut before = behind.check_all("a change").await;
    let late = connect(&behind.primary.dsn("postgres")).await;
    let begin = "begin; update market_odds set line = 2 where snapshot_id = 122";
    run(&late, begin).await;
    set_line(&followed.app, 222, 3).await;
    behind.check_all("beside one that is in progress").await;
    let allow = async |allow: bool| {
        let sql = format!("alter database postgres allow_connections {allow}");
        behind.primary.psql_ok("template1", &["-qc", &sql]);
        behind.replayed().await;
    };
    let lost_row = "delete from oddscache.change_log where (xid, id) in
        (select xid, id from oddscache.change_log order by xid desc, id desc limit 1)";
    for (sql, is_resumed) in [("select 1", true), (lost_row, false)] {
        let (resumed, reloads) = (followed.cache.counters().resumed, behind.reloads());
        let epoch = followed.epoch();
        allow(false).await;
        let end = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'oddscache follow'";
        run(&behind.beside, end).await;
        followed.disconnected().await;
        followed.run(sql).await;
        if is_resumed {
            run(&late, "commit").await;
        }
        set_line(&followed.app, 222, 4 + i32::from(is_resumed)).await;
        allow(true).await;
        let after = behind.check_all("connected again").await;
        assert_ne!(before, after, "{sql}");
        before = after;
        let now = followed.cache.counters();
        let found = (
            now.resumed - resumed,
            now.reloads - reloads,
            followed.epoch() - epoch,
        );
        let expected = if is_resumed { (1, 0, 0) } else { (0, 1, 1) };
        assert_eq!(found, expected, "{sql}");
    }
}

/// With `listen_from` the notification comes before the standby has the change. The follower must read again until the
/// standby has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_from_the_primary_waits_for_the_standby_to_replay() {
    let primary = Cluster::seeded(&[]);
    let standby = primary.standby(&["recovery_min_apply_delay = 100ms"]);
    // Only a notification can bring a change in time.
    let app = primary.dsn("postgres");
    let listen = Config::new(&app).expect("dsn");
    let config = |config| rarely(config).listen_from(listen);
    let followed = Followed::beside(&standby.dsn("postgres"), &app, config).await;
    followed.live().await;
    for line in 1..10 {
        set_line(&followed.app, 112, line).await;
        eventually("seen", async || {
            let view = followed.cache.view();
            let event = serde_json::to_value(view.event(1)).expect("JSON");
            event["betpawa"]["1"]["markets"][0]["line"] == f64::from(line)
        })
        .await;
    }
    let beside = connect(&standby.dsn("postgres")).await;
    let view = followed.cache.view();
    let expected = oracle(&beside, view.cut().window_start).await;
    assert_same(&dump(&view), &expected, "at the end");
    assert_eq!(view.epoch(), 1);
}
