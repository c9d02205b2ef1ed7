//! The follower waits for notifications while the database is quiet, and polls while there are many commits. It misses
//! nothing when it changes from one to the other.

use std::time::Duration;

use oddscache_testkit::{
    Database, connect, eventually,
    followed::{Followed, run},
};

async fn followed(database: &Database) -> Followed {
    Followed::by_notifications(database, "postgres").await
}

/// Notifying commits slow each other down. So while the follower polls, writers do not notify, and it still sees all
/// commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_commits_are_seen_by_polling_without_notifications() {
    let database = Database::seeded();
    let followed = followed(&database).await;
    assert_eq!(followed.waiting().await, 1);
    followed.until_awake().await;
    followed.check("awake").await;
    // The follower goes on polling while there are commits.
    let notifications = followed.cache.counters().notifications;
    for line in 1..=50 {
        followed.set_line(-line).await;
        followed.caught_up("polled").await;
    }
    assert!(followed.cache.counters().notifications <= notifications + 2);
    followed.check("still awake").await;
    // In a quiet database it waits. The next commit notifies it.
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

/// A writer notifies if a follower waits at the time of its statement. Here no follower waits at that time, so the
/// writer does not notify. By the time of the commit the follower waits. So it must find the commit by polling.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commit_of_a_writer_that_did_not_notify_is_found() {
    let database = Database::seeded();
    let followed = followed(&database).await;
    let late = connect(&database.dsn()).await;
    let mut briskly = 0;
    for _ in 1..=5 {
        followed.until_awake().await;
        let sql = "begin; update events set kickoff = kickoff + interval '1 minute' where id = 1";
        run(&late, sql).await;
        assert_eq!(followed.waiting().await, 0, "the follower waits already");
        // When the follower begins to wait again, it notifies itself.
        let notifications = followed.cache.counters().notifications;
        eventually("waiting", async || {
            followed.cache.counters().notifications > notifications && followed.waiting().await == 1
        })
        .await;
        let notifications = followed.cache.counters().notifications;
        run(&late, "commit").await;
        followed.caught_up("the late commit").await;
        // By chance a heartbeat may show the commit first. If the follower did not poll here, a heartbeat would show it
        // each time.
        briskly += u32::from(followed.cache.counters().notifications == notifications);
        followed.check("the late commit").await;
    }
    assert!(briskly > 0);
}

/// A session that holds the wait lock exclusively makes writers notify for ever, and keeps the follower from waiting.
/// So the follower polls and says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_follower_polls_while_others_hold_its_lock() {
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
    // In share mode the lock only makes writers notify, which does no harm.
    run(&mallory, &format!("select pg_advisory_lock_shared({key})")).await;
    followed.delete(122).await;
    followed.check("notified").await;
    assert_eq!(followed.epoch(), 1);
}

/// When one follower ends, the other still receives notifications.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_several_followers_is_notified() {
    let database = Database::seeded();
    let (a, b) = (followed(&database).await, followed(&database).await);
    assert_eq!(a.waiting().await, 2);
    a.set_line(7).await;
    a.check("the first").await;
    b.check("the second").await;
    drop(a);
    eventually("one follower is left", async || b.waiting().await == 1).await;
    b.set_line(8).await;
    b.check("the follower that is left").await;
}
