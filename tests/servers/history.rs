//! The server restarts, crashes, or comes back with another past: the connection is lost, so the state is replaced.

use std::time::Instant;

use oddscache::Error;
use oddscache_testkit::{cluster::Cluster, connect, eventually, followed::Followed};

use crate::{FORGETFUL, set_line, use_again, without_notifications};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_restart_is_one_new_epoch_beside_the_old_view() {
    let cluster = Cluster::seeded(&[]);
    let dsn = cluster.dsn("postgres");
    let mut followed = Followed::with(&dsn, |config| config).await;
    let mut before = followed.check("the seed").await;
    for (epoch, way) in (1..).zip(["fast", "immediate", "kill", "crash"]) {
        match way {
            "kill" => cluster.kill(),
            // A backend dies, and the server ends all others.
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

/// `kill`: all processes; otherwise one, and the server recovers by itself with the same postmaster.
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
    assert_eq!(left, seed, "the crash took nothing back");
    use_again(&followed.app, &lost).await;
    let after = followed.check_epoch(2, "after the crash").await;
    assert_ne!(seed, after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_a_killed_server_takes_back_are_taken_back() {
    lost_commits(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_a_crashed_server_takes_back_are_taken_back() {
    lost_commits(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_backup_on_the_same_port_replaces_the_state() {
    let cluster = Cluster::seeded(&[]);
    let dsn = cluster.dsn("postgres");
    cluster.stop("fast").expect("stops");
    let backup = cluster.backup("backup");
    cluster.boot().expect("starts");
    let mut followed = Followed::with(&dsn, |config| config).await;
    let seed = followed.check("the seed").await;
    // A few, for the follower's heartbeats take transaction ids, too.
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
    assert!(set_line(&followed.app, 222, 8).await <= lost);
    assert_ne!(followed.check("after the restore").await, seed);
    assert_eq!(followed.epoch(), 2);
}

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
    // The backup with the log of what came after it, up to the point: a new timeline begins there.
    std::fs::remove_dir_all(backup.join("pg_wal")).expect("removed");
    cluster.copy(&cluster.data().join("pg_wal"), &backup.join("pg_wal"));
    std::fs::write(backup.join("recovery.signal"), "").expect("written");
    cluster.replace_data(&backup);
    cluster.add_settings(&[
        "restore_command = 'false'",
        "recovery_target_name = 'here'",
        "recovery_target_action = 'promote'",
        // The promotion is one more epoch for a follower that is connected by then. Nobody is, before it.
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
    // The control file learns of the timeline only now; that is no other history.
    followed.run("checkpoint").await;
    set_line(&followed.app, 222, 10).await;
    followed.check("after a checkpoint").await;
    let timeline = "select timeline_id from pg_control_checkpoint()";
    assert_eq!(cluster.sql(timeline), "2");
    assert_eq!(followed.epoch(), 2);
}

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
    // While it is empty, the reason has a name.
    let is_it = |error: &Error| error.to_string().contains("does not exist");
    followed.disconnected_by(is_it).await;
    followed.ages(&before, 1, Instant::now()).await;
    cluster.seed();
    followed.app = connect(&dsn).await;
    followed.delete(112).await;
    assert_ne!(followed.check_epoch(2, "the other server").await, before);
}

/// A poll of a database in which nothing is written asks for nothing but the snapshot: it neither waits for locks nor makes
/// anybody wait. What is written then is read as ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_database_is_proven_current_without_a_lock() {
    let cluster = Cluster::seeded(&["autovacuum = off"]);
    let dsn = cluster.dsn("postgres");
    let poll = std::time::Duration::from_millis(20);
    let followed = Followed::with(&dsn, |config| config.poll_interval(poll)).await;
    let before = followed.check("the seed").await;
    // A lock alone is no transaction that the snapshot knows of, so that only a lock of the reader's would wait for it.
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
