//! When the follower waits for notifications, and when it polls. No change goes unseen when it changes from one to the
//! other.
//!
//! The poll interval is an hour where a change must come by a notification, or by polling every few milliseconds.

use std::time::Duration;

use oddscache::Status;
use oddscache_testkit::{
    Database, connect, eventually,
    followed::{Followed, run},
};

const HOUR: Duration = Duration::from_secs(3600);

async fn followed(database: &Database) -> Followed {
    let followed = Followed::with(&database.dsn(), |config| {
        config
            .poll_interval(HOUR)
            .audit_cycle(Duration::from_secs(600_000))
    })
    .await;
    eventually("live", async || followed.cache.status() == Status::Live).await;
    followed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_commits_are_polled_for_without_notifications() {
    let database = Database::seeded();
    let followed = followed(&database).await;
    assert_eq!(followed.waiting().await, 1);
    followed.until_awake().await;
    followed.check("polling").await;
    // It goes on polling as long as it finds changes.
    let notifications = followed.cache.counters().notifications;
    for line in 1..=50 {
        followed.set_line(-line).await;
        followed.caught_up("polled").await;
    }
    assert!(followed.cache.counters().notifications <= notifications + 2);
    followed.check("still polling").await;
    // Without changes it waits for notifications again, and the next change sends one.
    eventually("waiting for notifications", async || {
        followed.waiting().await == 1
    })
    .await;
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
    assert_eq!((after.reloads, followed.cache.view().epoch()), (1, 1));
}

/// The writer looks for the wait lock while nobody holds it. It commits, without a notification, after the follower has
/// taken the lock again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_seen_whose_writer_looked_for_the_lock_too_early() {
    let database = Database::seeded();
    let followed = followed(&database).await;
    let late = connect(&database.dsn()).await;
    let mut polled = 0;
    for odds in 1..=5 {
        followed.until_awake().await;
        run(
            &late,
            &format!(
                "begin; update events set name = 'late {odds}', kickoff = kickoff + interval '1 minute' where id = 1"
            ),
        )
        .await;
        assert_eq!(followed.waiting().await, 0, "somebody holds the lock");
        // The listener wakes the follower once it holds the lock again.
        let notifications = followed.cache.counters().notifications;
        eventually("waiting", async || {
            followed.cache.counters().notifications > notifications && followed.waiting().await == 1
        })
        .await;
        let notifications = followed.cache.counters().notifications;
        run(&late, "commit").await;
        followed.caught_up("the late commit").await;
        // Now and then a heartbeat comes first by chance. If the follower did not poll, one would come first each time.
        polled += u32::from(followed.cache.counters().notifications == notifications);
        followed.check("the late commit").await;
    }
    assert!(polled > 0);
}

/// A session that holds the wait lock exclusively keeps the follower from waiting for notifications. The follower polls
/// and says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_polls_while_another_session_holds_the_lock_exclusively() {
    let database = Database::seeded();
    let mallory = connect(&database.dsn()).await;
    let key = "hashtextextended('oddscache bell oddscache', 0)";
    run(&mallory, &format!("select pg_advisory_lock({key})")).await;
    let followed = Followed::new(&database).await;
    eventually("polling, and why", async || {
        matches!(followed.cache.status(), Status::PollingOnly { reason } if reason.contains("advisory lock"))
    })
    .await;
    let before = followed.check("the seed").await;
    followed
        .run("delete from odds_snapshots where id = 112")
        .await;
    assert_ne!(before, followed.check("polled").await);
    run(&mallory, &format!("select pg_advisory_unlock({key})")).await;
    eventually("live", async || followed.cache.status() == Status::Live).await;
    // In share mode a foreign lock only makes writers notify.
    run(&mallory, &format!("select pg_advisory_lock_shared({key})")).await;
    followed
        .run("delete from odds_snapshots where id = 122")
        .await;
    followed.check("notified").await;
    assert_eq!(followed.cache.view().epoch(), 1);
}

/// Each follower holds the lock in share mode.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_several_followers_is_notified() {
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
