//! The server restarts, crashes, or comes back with another history. The follower loses its connection. Nothing proves
//! that the server still has what was read, so it replaces the state.

use std::time::Instant;

use oddscache::{Error, ReloadReason};
use oddscache_testkit::{
    cluster::Cluster, connect, eventually, followed::Followed, proxy::Proxy, servers::timeless,
};

use crate::{FORGETFUL, set_line, use_again, without_notifications};

/// A server that restarted may have lost commits, so the follower reads everything again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_restart_begins_one_epoch_and_the_old_view_stays() {
    let cluster = Cluster::seeded(&[]);
    let dsn = cluster.dsn("postgres");
    let mut followed = Followed::with(&dsn, |config| config).await;
    let mut before = followed.check("the seed").await;
    for (epoch, way) in (1..).zip(["fast", "immediate", "kill", "crash"]) {
        match way {
            "kill" => cluster.kill(),
            // One backend dies, and the server ends all others.
            "crash" => {
                let victim = connect(&dsn).await;
                let row = victim.query_one("select pg_backend_pid()::text", &[]).await;
                cluster.crash(row.expect("a backend").get(0)).await;
            }
            mode => cluster.stop(mode).expect("stops"),
        }
        if way != "crash" {
            followed.ages(&before, epoch, Instant::now()).await;
            cluster.boot().expect("starts");
        }
        followed.app = connect(&dsn).await;
        set_line(&followed.app, 112, epoch as i32).await;
        let after = followed.check_epoch(epoch + 1, way).await;
        assert_ne!(before, after, "{way}");
        before = after;
    }
    followed.live().await;
}

/// `kill` ends all processes. Otherwise only one process dies, and the server recovers with the same postmaster.
async fn lost_commits(kill: bool) {
    let cluster = Cluster::seeded(&FORGETFUL);
    let _silent = without_notifications(&cluster).await;
    let dsn = cluster.dsn("postgres");
    let mut followed = Followed::with(&dsn, |config| config).await;
    let seed = followed.check("the seed").await;
    cluster.stop_writing_ahead();
    let mut lost = Vec::new();
    for line in 1..10 {
        lost.push(set_line(&followed.app, 112, line).await);
    }
    let read = followed.check("before the crash").await;
    assert_ne!(seed, read);
    if kill {
        cluster.kill();
        cluster.boot().expect("starts");
    } else {
        cluster.crash(&cluster.process("walwriter")).await;
    }
    followed.app = connect(&dsn).await;
    let start = followed.cache.view().cut().window_start;
    let left = followed.oracle(start).await;
    assert_eq!(
        left, seed,
        "the crash lost no commit, so this proves nothing"
    );
    use_again(&followed.app, &lost).await;
    let after = followed.check_epoch(2, "after the crash").await;
    assert_ne!(seed, after);
}

/// A view must not keep commits that the server has lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_loses_the_commits_that_a_killed_server_lost() {
    lost_commits(true).await;
}

/// The same after a crash of one process, which leaves the postmaster running.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_loses_the_commits_that_a_crashed_server_lost() {
    lost_commits(false).await;
}

/// A restored backup looks like the same server, but lacks commits and assigns their transaction ids again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_backup_on_the_same_port_replaces_the_state() {
    let cluster = Cluster::seeded(&[]);
    let dsn = cluster.dsn("postgres");
    cluster.stop("fast").expect("stops");
    let backup = cluster.backup("backup");
    cluster.boot().expect("starts");
    let mut followed = Followed::with(&dsn, |config| config).await;
    let seed = followed.check("the seed").await;
    // Write several times, because others take transaction ids, too.
    for line in 20..40 {
        set_line(&followed.app, 112, line).await;
    }
    let lost = set_line(&followed.app, 112, 7).await;
    let later = followed.check("after the backup").await;
    assert_ne!(seed, later);
    cluster.stop("fast").expect("stops");
    followed.ages(&later, 1, Instant::now()).await;
    cluster.replace_data(&backup);
    cluster.boot().expect("starts");
    followed.app = connect(&dsn).await;
    assert_eq!(followed.check_epoch(2, "restored").await, seed);
    // It has also restarted, but operators must learn that it went back.
    let reloads = followed.cache.counters().reloads_by_reason;
    assert_eq!(reloads.of(ReloadReason::WentBack), 1);
    assert!(set_line(&followed.app, 222, 8).await <= lost);
    assert_ne!(followed.check("after the restore").await, seed);
    assert_eq!(followed.epoch(), 2);
}

/// A machine is put back to a snapshot with its memory. Its processes go on: the server says that it has never stopped.
/// Then it assigns the ids of the lost transactions again, and more. Only the log rows that are gone tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_was_put_back_with_its_memory_replaces_the_state() {
    let cluster = Cluster::seeded(&[]);
    timeless(&cluster);
    cluster.stop("fast").expect("stops");
    let backup = cluster.backup("backup");
    cluster.boot().expect("starts");
    let proxy = Proxy::before(&cluster).await;
    let port = proxy.address.port();
    let dsn = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=disable");
    let mut followed = Followed::beside(&dsn, &cluster.dsn("postgres"), |config| config).await;
    followed.check("the seed").await;
    let mut lost = 0;
    for line in 1..10 {
        lost = set_line(&followed.app, 112, line).await;
    }
    let before = followed.check("what will be lost").await;
    let position = "select pg_current_wal_lsn()";
    let reached = cluster.sql(position);
    proxy.set(|setting| (setting.refuse, setting.resets) = (true, 1));
    followed.disconnected().await;
    cluster.kill();
    cluster.replace_data(&backup);
    cluster.boot().expect("starts");
    followed.app = connect(&cluster.dsn("postgres")).await;
    // Neither the ids nor the write-ahead log seem to go back.
    let is_beyond = format!("select pg_current_wal_lsn() > '{reached}'");
    eventually("more history than before", async || {
        let xid = set_line(&followed.app, 222, 5).await;
        xid > lost + 10 && cluster.sql(&is_beyond) == "t"
    })
    .await;
    proxy.heal();
    assert_ne!(followed.check_epoch(2, "put back").await, before);
    assert_eq!(followed.cache.counters().resumed, 0);
}

/// Recovery to a point in time loses the commits after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_to_a_point_in_time_replaces_the_state() {
    let cluster = Cluster::seeded(&[]);
    let dsn = cluster.dsn("postgres");
    cluster.stop("fast").expect("stops");
    let backup = cluster.backup("backup");
    cluster.boot().expect("starts");
    let mut followed = Followed::with(&dsn, |config| config).await;
    followed.check("the seed").await;
    set_line(&followed.app, 112, 7).await;
    let kept = followed.check("before the point").await;
    followed.run("select pg_create_restore_point('here')").await;
    set_line(&followed.app, 112, 8).await;
    assert_ne!(followed.check("after the point").await, kept);
    cluster.stop("fast").expect("stops");
    // Start the backup and replay the log up to the chosen point. A new timeline begins there.
    std::fs::remove_dir_all(backup.join("pg_wal")).expect("removed");
    cluster.copy(&cluster.data().join("pg_wal"), &backup.join("pg_wal"));
    std::fs::write(backup.join("recovery.signal"), "").expect("written");
    cluster.replace_data(&backup);
    cluster.add_settings(&[
        "restore_command = 'false'",
        "recovery_target_name = 'here'",
        "recovery_target_action = 'promote'",
        // A follower that connected before the promotion would begin one more epoch at the promotion. So let none
        // connect before it.
        "hot_standby = off",
    ]);
    cluster.boot().expect("starts");
    eventually("promoted", async || {
        let connected = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await;
        connected.is_ok()
    })
    .await;
    followed.app = connect(&dsn).await;
    assert_eq!(followed.check_epoch(2, "recovered").await, kept);
    set_line(&followed.app, 222, 9).await;
    assert_ne!(followed.check("on the new timeline").await, kept);
    // Only now does the control file contain the new timeline. That must not look like another history.
    followed.run("checkpoint").await;
    set_line(&followed.app, 222, 10).await;
    followed.check("after a checkpoint").await;
    let timeline = "select timeline_id from pg_control_checkpoint()";
    assert_eq!(cluster.sql(timeline), "2");
    assert_eq!(followed.epoch(), 2);
}

/// The address stays the same, and the database is another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_on_the_same_port_replaces_the_state() {
    let cluster = Cluster::seeded(&[]);
    let dsn = cluster.dsn("postgres");
    let mut followed = Followed::with(&dsn, |config| config).await;
    let before = followed.check("the seed").await;
    cluster.stop("fast").expect("stops");
    let other = cluster.socket_dir().join("other");
    cluster.init(&other).expect("another cluster");
    cluster.replace_data(&other);
    cluster.boot().expect("starts");
    // While the other server is empty, the status says what is missing.
    let is_it = |error: &Error| error.to_string().contains("does not exist");
    followed.disconnected_by(is_it).await;
    followed.ages(&before, 1, Instant::now()).await;
    cluster.seed();
    followed.app = connect(&dsn).await;
    followed.delete(112).await;
    assert_ne!(followed.check_epoch(2, "the other server").await, before);
}

/// In a quiet database a poll reads only the snapshot. It waits for no lock and takes none. A later change is read as
/// usual.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_database_is_proven_current_without_a_lock() {
    let cluster = Cluster::seeded(&["autovacuum = off"]);
    let dsn = cluster.dsn("postgres");
    let poll = std::time::Duration::from_millis(20);
    let followed = Followed::with(&dsn, |config| config.poll_interval(poll)).await;
    let before = followed.check("the seed").await;
    // A lock alone does not appear in a snapshot. So a poll waits for it only if it takes a lock itself.
    let migration = connect(&dsn).await;
    let lock = "begin; lock table events in access exclusive mode";
    migration.batch_execute(lock).await.expect("locks");
    let locked = followed.cache.view().cut().as_of;
    eventually("proven again", async || {
        followed.cache.view().cut().as_of > locked + chrono::Duration::milliseconds(100)
    })
    .await;
    migration.batch_execute("commit").await.expect("unlocks");
    set_line(&followed.app, 112, 77).await;
    assert_ne!(before, followed.check("written").await);
}
