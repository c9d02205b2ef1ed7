//! Several publishers of one relay.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use oddscache::Relay;
use oddscache_testkit::{
    Database, cluster, eventually,
    followed::Followed,
    nats::Nats,
    proxy::{Proxy, Setting, Way},
};
use tokio::time::timeout;

use crate::{Publisher, Subscriber, jetstream, relay};

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
    subscriber.follows(&second.followed, 7, "the second").await;
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

#[tokio::test]
async fn a_leader_without_its_database_lets_another_one_lead() {
    let cut = |setting: &mut Setting| (setting.refuse, setting.resets) = (true, setting.resets + 1);
    lets_another_one_lead(cut).await;
}

/// Nothing says that the connection is lost. The leader notices it from its age, before its read times out.
#[tokio::test]
async fn a_leader_whose_database_falls_silent_lets_another_one_lead() {
    let freeze = |setting: &mut Setting| (setting.up, setting.down) = (Way::Freeze, Way::Freeze);
    lets_another_one_lead(freeze).await;
}

async fn lets_another_one_lead(lose: fn(&mut Setting)) {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let database = Database::seeded();
    let proxy = Proxy::before(cluster()).await;
    let dsn = proxied(&proxy, &database);
    let first = Followed::beside(&dsn, &database.dsn(), |config| config).await;
    let leads = tokio::spawn(first.cache.relay_to(relay(&nats)).run());
    let subscriber = Subscriber::ready(relay(&nats)).await;
    subscriber.equals(&first.cache, "the first").await;
    let second = Publisher::start(&database, relay(&nats)).await;
    let epoch = subscriber.cache.view().epoch();
    proxy.set(lose);
    let gone = Instant::now();
    subscriber.follows(&second.followed, 8, "the second").await;
    let took = gone.elapsed();
    println!("the second led after {took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    subscriber.fresh().await;
    assert_eq!(
        subscriber.cache.view().epoch(),
        epoch,
        "the history is the same"
    );
    // Once the first has its database again, it only stands by.
    proxy.heal();
    eventually("the first follows again", async || {
        first.cache.view_within(Duration::from_secs(1)).is_ok()
    })
    .await;
    subscriber
        .follows(&second.followed, 9, "still the second")
        .await;
    leads.abort();
}

/// A publisher that waits for the lease notices that the bucket is gone.
#[tokio::test]
async fn another_publisher_leads_when_the_bucket_is_gone_as_well() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let database = Database::seeded();
    // In memory: nats-server 2.9.10 spoils a stream in files that is created while its former one is being deleted.
    let publisher = async || {
        let followed = Followed::new(&database).await;
        let run = followed.cache.relay_to(relay(&nats)).in_memory().run();
        let task = tokio::spawn(run);
        Publisher { followed, task }
    };
    let first = publisher().await;
    let subscriber = Subscriber::ready(relay(&nats)).await;
    let second = publisher().await;
    subscriber.fresh().await;
    let jetstream = jetstream(&nats).await;
    first.task.abort();
    jetstream
        .delete_stream("KV_oddscache_odds")
        .await
        .expect("deleted");
    let gone = Instant::now();
    subscriber.follows(&second.followed, 7, "the second").await;
    let took = gone.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
}

/// A publisher whose clock was ahead has gone, and its streams with it. So no message tells the next publisher how great
/// the terms were, and its own clock makes smaller ones.
#[tokio::test]
async fn subscribers_accept_a_leader_that_has_forgotten_the_greatest_term() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let database = Database::seeded();
    let first = Publisher::start(&database, relay(&nats)).await;
    let subscriber = Subscriber::ready(relay(&nats)).await;
    subscriber.equals(&first.followed.cache, "before").await;
    let jetstream = jetstream(&nats).await;
    let stream = jetstream
        .get_stream("oddscache_odds")
        .await
        .expect("the stream");
    let last = stream
        .get_last_raw_message_by_subject("oddscache.odds.delta")
        .await
        .expect("a change");
    drop(first);
    // The term comes right after the three bytes that begin each message: here that of a clock in far future.
    let rest = &last.payload[3..];
    let length = 1 + rest.iter().take_while(|byte| **byte >= 0x80).count();
    let term: Vec<u8> = [0x80 | 0x7f; 7].into_iter().chain([0x7f]).collect();
    let message = [&last.payload[..3], &term, &rest[length..]].concat();
    let client = async_nats::connect(nats.url()).await.expect("connected");
    let mut questions = client
        .subscribe("oddscache.odds.ask")
        .await
        .expect("subscribed");
    let publish = jetstream.publish("oddscache.odds.delta", message.into());
    publish.await.expect("sent").await.expect("stored");
    // A question ends with the greatest term that the subscriber has seen.
    eventually("the subscriber has seen the great term", async || {
        let asked = timeout(Duration::from_secs(30), questions.next()).await;
        asked
            .ok()
            .flatten()
            .expect("a question")
            .payload
            .ends_with(&term)
    })
    .await;
    for stream in ["oddscache_odds", "oddscache_odds_state"] {
        jetstream.delete_stream(stream).await.expect("deleted");
    }
    let second = Publisher::start(&database, relay(&nats)).await;
    subscriber.follows(&second.followed, 5, "after").await;
    subscriber.fresh().await;
}

fn proxied(proxy: &Proxy, database: &Database) -> String {
    let (port, name) = (proxy.address.port(), &database.name);
    format!("host=127.0.0.1 port={port} user=postgres dbname={name} sslmode=disable")
}

/// Nothing says that the connection is lost: neither to the leader nor to NATS. The lease ends by itself.
#[tokio::test]
async fn a_leader_that_nats_hears_no_more_lets_another_one_lead() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let database = Database::seeded();
    let proxy = Proxy::before_address(nats.address()).await;
    let through = Relay::new(&format!("nats://{}", proxy.address)).expect("a URL");
    let first = Publisher::start(&database, through).await;
    let subscriber = Subscriber::ready(relay(&nats)).await;
    subscriber.equals(&first.followed.cache, "the first").await;
    let second = Publisher::start(&database, relay(&nats)).await;
    let epoch = subscriber.cache.view().epoch();
    proxy.set(|setting| (setting.up, setting.down) = (Way::Freeze, Way::Freeze));
    let gone = Instant::now();
    subscriber.follows(&second.followed, 6, "the second").await;
    println!("the second led after {:?}", gone.elapsed());
    subscriber.fresh().await;
    // What the first one sent meanwhile comes late, and changes nothing.
    proxy.heal();
    subscriber
        .follows(&second.followed, 7, "still the second")
        .await;
    assert_eq!(
        subscriber.cache.view().epoch(),
        epoch,
        "the history is the same"
    );
}
