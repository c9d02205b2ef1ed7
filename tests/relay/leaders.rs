//! Several publishers of one relay.

use std::time::{Duration, Instant};

use oddscache_testkit::{Database, nats::Nats};

use crate::{Publisher, Subscriber, relay};

#[tokio::test]
async fn another_publisher_leads_when_the_first_is_gone() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let database = Database::seeded();
    let first = Publisher::start(&database, relay(&nats)).await;
    let subscriber = Subscriber::ready(relay(&nats)).await;
    subscriber.equals(&first.followed.cache, "the first").await;
    let second = Publisher::start(&database, relay(&nats)).await;
    let epoch = subscriber.cache.view().epoch();
    // Without a word, as after SIGKILL: the lease is not given back.
    first.task.abort();
    let gone = Instant::now();
    second.followed.set_line(7).await;
    second.followed.caught_up("a change").await;
    subscriber
        .equals(&second.followed.cache, "the second")
        .await;
    let took = gone.elapsed();
    subscriber.fresh().await;
    assert_eq!(
        subscriber.cache.view().epoch(),
        epoch,
        "the history is the same"
    );
    println!("the second led after {took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
}
