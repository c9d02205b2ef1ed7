//! Faults of NATS.

use oddscache_testkit::{Database, nats::Nats};

use crate::{Publisher, Subscriber, jetstream, relay};

async fn purge(nats: &Nats) {
    let jetstream = jetstream(nats).await;
    let stream = jetstream
        .get_stream("oddscache_odds")
        .await
        .expect("the stream");
    stream.purge().await.expect("purged");
}

async fn delete(nats: &Nats) {
    let jetstream = jetstream(nats).await;
    for stream in ["oddscache_odds", "oddscache_odds_state"] {
        jetstream.delete_stream(stream).await.expect("deleted");
    }
}

/// Breaks something, and then sees the next change arrive.
async fn after(what: &str, break_it: impl AsyncFnOnce(&mut Nats)) {
    let Some(mut nats) = Nats::start("").await else {
        return;
    };
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay(&nats)).await;
    let subscriber = Subscriber::ready(relay(&nats)).await;
    let before = subscriber.follows(&publisher.followed, 1, "before").await;
    break_it(&mut nats).await;
    let after = subscriber.follows(&publisher.followed, 2, what).await;
    assert!(after.epoch() >= before.epoch());
    subscriber.fresh().await;
    let late = Subscriber::ready(relay(&nats)).await;
    late.equals(&publisher.followed.cache, what).await;
    assert_eq!(subscriber.cache.counters().relay_mismatches, 0);
}

#[tokio::test]
async fn nats_is_killed_and_comes_back() {
    after("restarted with its files", async |nats| {
        nats.kill();
        nats.boot().await;
    })
    .await;
}

#[tokio::test]
async fn nats_comes_back_empty() {
    after("restarted without its files", async |nats| {
        nats.kill();
        nats.forget();
        nats.boot().await;
    })
    .await;
}

#[tokio::test]
async fn the_stream_is_purged() {
    after("purged", async |nats| purge(nats).await).await;
}

#[tokio::test]
async fn the_streams_are_deleted() {
    after("deleted", async |nats| delete(nats).await).await;
}

/// Nobody writes to the database, so only the publisher itself can notice.
#[tokio::test]
async fn nats_comes_back_empty_while_nothing_happens() {
    let Some(mut nats) = Nats::start("").await else {
        return;
    };
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay(&nats)).await;
    let subscriber = Subscriber::ready(relay(&nats)).await;
    subscriber.equals(&publisher.followed.cache, "before").await;
    nats.kill();
    nats.forget();
    nats.boot().await;
    let late = Subscriber::ready(relay(&nats)).await;
    late.equals(&publisher.followed.cache, "after").await;
    late.fresh().await;
    subscriber.fresh().await;
    // Both go on.
    subscriber.follows(&publisher.followed, 3, "a change").await;
    late.equals(&publisher.followed.cache, "a change").await;
}

/// The stream keeps changes for ten minutes. In a quiet database the last ones may be gone, and too few for another whole
/// state.
#[tokio::test]
async fn a_late_subscriber_finds_a_change_that_the_stream_has_forgotten() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay(&nats)).await;
    let early = Subscriber::ready(relay(&nats)).await;
    early.follows(&publisher.followed, 4, "early").await;
    purge(&nats).await;
    let late = Subscriber::ready(relay(&nats)).await;
    late.equals(&publisher.followed.cache, "late").await;
}
