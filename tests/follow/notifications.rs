//! When the follower waits for notifications, when it looks by itself, and that nothing goes unseen between the two.
//!
//! The poll interval is an hour where only a notification, or reading briskly, can bring a change.

use std::time::Duration;

use oddscache_testkit::{
    Database, connect, eventually,
    followed::{Followed, run},
};

async fn followed(database: &Database) -> Followed {
    Followed::by_notifications(database, "postgres").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_commits_are_not_notified_of_and_all_are_seen() {
    let database = Database::seeded();
    let followed = followed(&database).await;
    assert_eq!(followed.waiting().await, 1);
    followed.until_awake().await;
    followed.check("awake").await;
    // As long as there is news it stays so.
    let notifications = followed.cache.counters().notifications;
    for line in 1..=50 {
        followed.set_line(-line).await;
        followed.caught_up("polled").await;
    }
    assert!(followed.cache.counters().notifications <= notifications + 2);
    followed.check("still awake").await;
    // Once it is quiet it waits, and what then changes notifies.
    eventually("asleep", async || followed.waiting().await == 1).await;
    eventually("no more reads", async || {
        let reads = followed.cache.counters().reads;
        let heartbeats = followed.cache.counters().heartbeats;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = followed.cache.counters();
        now.reads == reads && now.heartbeats == heartbeats
    })
    .await;
    let before = followed.cache.counters();
    followed.set_line(1000).await;
    followed.check("notified").await;
    let after = followed.cache.counters();
    assert!(after.notifications > before.notifications);
    assert_eq!((after.reloads, followed.epoch()), (1, 1));
}

/// The writer looks while nobody waits, and commits, silently, after the follower has taken the lock again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_looked_too_early_is_looked_for() {
    let database = Database::seeded();
    let followed = followed(&database).await;
    let late = connect(&database.dsn()).await;
    let mut briskly = 0;
    for _ in 1..=5 {
        followed.until_awake().await;
        let sql = "begin; update events set kickoff = kickoff + interval '1 minute' where id = 1";
        run(&late, sql).await;
        assert_eq!(followed.waiting().await, 0, "it was to look too early");
        // The follower notifies itself, for it waits again.
        let notifications = followed.cache.counters().notifications;
        eventually("waiting", async || {
            followed.cache.counters().notifications > notifications && followed.waiting().await == 1
        })
        .await;
        let notifications = followed.cache.counters().notifications;
        run(&late, "commit").await;
        followed.caught_up("the late commit").await;
        // A heartbeat may have come first, by chance; without brisk reads it would each time.
        briskly += u32::from(followed.cache.counters().notifications == notifications);
        followed.check("the late commit").await;
    }
    assert!(briskly > 0);
}

/// A session that holds the lock exclusively makes writers notify for ever and keeps the follower from waiting: it polls,
/// says why, and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_held_by_others_is_not_waited_for() {
    let database = Database::seeded();
    let mallory = connect(&database.dsn()).await;
    let key = "hashtextextended('oddscache listener oddscache', 0)";
    run(&mallory, &format!("select pg_advisory_lock({key})")).await;
    let followed = Followed::new(&database).await;
    followed.polling("advisory lock").await;
    followed
        .changes("delete from odds_snapshots where id = 112")
        .await;
    run(&mallory, &format!("select pg_advisory_unlock({key})")).await;
    followed.live().await;
    // In share mode it makes writers notify, which is no harm.
    run(&mallory, &format!("select pg_advisory_lock_shared({key})")).await;
    followed.delete(122).await;
    followed.check("notified").await;
    assert_eq!(followed.epoch(), 1);
}

/// Each waits for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_followers_each_is_notified() {
    let database = Database::seeded();
    let (a, b) = (followed(&database).await, followed(&database).await);
    assert_eq!(a.waiting().await, 2);
    a.set_line(7).await;
    a.check("the first").await;
    b.check("the second").await;
    drop(a);
    eventually("one is left", async || b.waiting().await == 1).await;
    b.set_line(8).await;
    b.check("the one that is left").await;
}
