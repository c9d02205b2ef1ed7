//! The follower waits for notifications while the database is quiet, and polls while there are many commits. It misses
//! nothing when it changes from one to the other.

use std::time::Duration;

use oddscache::{Config, Counters, Status};
use oddscache_testkit::{
    Database, connect, eventually,
    followed::{Followed, rarely, run},
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
    // The follower goes on polling while there are commits. The server makes them itself, so that a slow client does not
    // let the follower fall asleep between them.
    let before = followed.cache.counters();
    let commits = "do $$ begin for n in 1..500 loop
        update market_odds set line = -n where snapshot_id = 112; commit; end loop; end $$";
    followed.run(commits).await;
    followed.check("polled").await;
    let after = followed.cache.counters();
    assert!(
        after.notifications <= before.notifications + 50,
        "{after:?}"
    );
    // In a quiet database it waits. The next commit notifies it.
    eventually("asleep", async || followed.waiting().await == 1).await;
    eventually("no more reads", async || {
        let reads = followed.cache.counters().reads;
        tokio::time::sleep(Duration::from_millis(300)).await;
        followed.cache.counters().reads == reads
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
    for _ in 1..=5 {
        followed.until_awake().await;
        let sql = "begin; update events set kickoff = kickoff + interval '1 minute' where id = 1";
        run(&late, sql).await;
        assert_eq!(followed.waiting().await, 0, "the follower waits already");
        eventually("waiting", async || followed.waiting().await == 1).await;
        run(&late, "commit").await;
        // Without polling, nothing would show the commit within the time of a test.
        followed.check("the late commit").await;
    }
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

/// The names of the follower's connections.
async fn connections(followed: &Followed) -> Vec<String> {
    let sql = "select application_name from pg_stat_activity
        where datname = current_database() and application_name like 'oddscache%' order by 1";
    let rows = followed.app.query(sql, &[]).await.expect("sessions");
    rows.iter().map(|row| row.get(0)).collect()
}

/// A follower took three connections. At rest it takes one, which reads and listens, also after it has read everything
/// again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_takes_one_connection_and_goes_on_listening() {
    let database = Database::seeded();
    let followed = followed(&database).await;
    for line in 1..=3 {
        eventually("one connection", async || {
            connections(&followed).await == ["oddscache follow"]
        })
        .await;
        followed.set_line(line).await;
        followed.check("notified").await;
        let reloads = followed.reloads();
        followed.cache.resync();
        let again = |now: &Counters| now.reloads > reloads;
        followed.counted("read again", again).await;
    }
    followed.follows_by_notifications().await;
}

/// With `listen_from` a second connection listens. If it is lost, the follower polls, and listens again by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listening_connection_that_is_lost_is_opened_again() {
    let database = Database::seeded();
    let listen = Config::new(&database.dsn()).expect("dsn");
    let config = |config| rarely(config).listen_from(listen);
    let followed = Followed::with(&database.dsn(), config).await;
    for line in 1..=2 {
        followed.live().await;
        eventually("two connections", async || {
            connections(&followed).await == ["oddscache follow", "oddscache listen"]
        })
        .await;
        followed.set_line(line).await;
        followed.check("notified").await;
        followed.terminate("listen").await;
        eventually("noticed", async || followed.cache.status() != Status::Live).await;
    }
    let counters = followed.cache.counters();
    assert_eq!((counters.reconnects, counters.reloads), (0, 1));
}

/// A poll that finds a change without its notification proves that notifications are lost. The next one that arrives
/// proves the opposite.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_notification_is_found_by_a_poll() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    for losses in 1..=2 {
        // Notifications that arrive are never taken for lost.
        for line in 1..=10 {
            followed.listening().await;
            followed.set_line(line).await;
            followed.check("notified").await;
        }
        assert_eq!(followed.cache.counters().lost_notifications, losses - 1);
        for line in -2..=-1 {
            eventually("waiting", async || followed.waiting().await == 1).await;
            let reads = followed.cache.counters().reads;
            let two_more = |now: &Counters| now.reads > reads + 1;
            followed.counted("two reads", two_more).await;
            let silent = "begin; set local oddscache.notify = off";
            let sql = format!("update market_odds set line = {line} where snapshot_id = 112");
            followed.run(&format!("{silent}; {sql}; commit")).await;
            followed.check("polled").await;
            followed.polling("did not arrive").await;
            assert_eq!(followed.cache.counters().lost_notifications, losses);
        }
        followed.set_line(0).await;
        followed.live().await;
    }
    let counters = followed.cache.counters();
    assert_eq!((counters.reconnects, counters.reloads), (0, 1));
}
