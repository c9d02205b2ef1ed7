//! Subscribers follow a publisher that follows a database.

use std::time::{Duration, Instant};

use oddscache::{Config, OddsCache, ReloadReason};
use oddscache_testkit::{Database, eventually, followed::shows, nats::Nats, xid};

use crate::{Publisher, Subscriber, relay};

#[tokio::test]
async fn a_subscriber_shows_each_commit() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay(&nats)).await;
    let early = Subscriber::ready(relay(&nats)).await;
    early
        .equals(&publisher.followed.cache, "the first state")
        .await;
    for line in 1..30 {
        early.follows(&publisher.followed, line, "a change").await;
    }
    let late = Subscriber::ready(relay(&nats)).await;
    late.equals(&publisher.followed.cache, "a state after changes")
        .await;
    late.fresh().await;
    let counters = early.cache.counters();
    assert!(counters.relay_deltas > 0, "{counters:?}");
    assert_eq!((counters.relay_mismatches, counters.relay_gaps), (0, 0));
    assert_eq!(early.cache.view().epoch(), publisher.followed.epoch());
}

/// The relay keeps a whole state that is older than the last changes. A reader must not see it first.
#[tokio::test]
async fn a_subscriber_is_ready_with_what_is_committed() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay(&nats)).await;
    for line in 1..=10 {
        publisher.followed.set_line(line).await;
        publisher.followed.caught_up("a change").await;
        let committed = publisher.followed.committed().await;
        publisher.followed.caught_up("all other databases").await;
        let subscriber = Subscriber::ready(relay(&nats)).await;
        let view = subscriber.cache.view();
        assert!(shows(&view, &committed), "{:?}", view.cut());
    }
    // Without a publisher nothing proves that the state is current.
    publisher.task.abort();
    let config = Config::relay(relay(&nats)).retry_unreachable(false);
    let (cache, follower) = OddsCache::connect(config);
    let error = follower.run().await.expect_err("nobody answers");
    assert!(
        error.to_string().contains("no publisher answers"),
        "{error}"
    );
    assert!(cache.ready().await.is_err() && !cache.is_warm());
}

#[tokio::test]
async fn a_reader_waits_for_its_own_write() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay(&nats)).await;
    let subscriber = Subscriber::ready(relay(&nats)).await;
    let app = &publisher.followed.app;
    app.batch_execute("BEGIN").await.expect("begun");
    let xid = xid(app).await;
    app.batch_execute("CREATE TABLE nothing_that_is_followed (); COMMIT")
        .await
        .expect("done");
    let view = subscriber
        .cache
        .wait_for(xid, Duration::from_secs(10))
        .await;
    assert!(view.expect("shown").cut().shows(xid));
    // A reader that waits in vain makes the publisher read twice, and not again and again.
    let never = xid + 1_000_000_000;
    let before = publisher.followed.cache.counters().requested_reads;
    let view = subscriber
        .cache
        .wait_for(never, Duration::from_secs(4))
        .await;
    assert!(view.is_err());
    let reads = publisher.followed.cache.counters().requested_reads - before;
    assert!((1..=3).contains(&reads), "{reads}");
}

/// A publisher that can no longer read must not look fresh through its subscribers.
#[tokio::test]
async fn a_subscriber_grows_old_with_its_publisher() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay(&nats)).await;
    let subscriber = Subscriber::ready(relay(&nats)).await;
    subscriber.fresh().await;
    publisher.followed.follower.abort();
    let gone = Instant::now();
    eventually("the view is old", async || {
        subscriber.cache.view().age() > Duration::from_secs(4)
    })
    .await;
    assert!(
        gone.elapsed() >= Duration::from_secs(2),
        "no view was four seconds old before"
    );
    let age = publisher.followed.cache.view().age();
    let seen = subscriber.cache.view().age();
    assert!(
        seen + Duration::from_millis(50) >= age,
        "{seen:?} is younger than {age:?}"
    );
    // A probe of the process sees that it is not stuck.
    let failures = subscriber.cache.counters().failures;
    eventually("more questions without an answer", async || {
        subscriber.cache.counters().failures > failures + 1
    })
    .await;
    let reasons = subscriber.cache.counters().reloads_by_reason;
    assert_eq!(reasons.of(ReloadReason::First), 1, "{reasons:?}");
}
