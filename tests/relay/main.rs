//! A subscriber of a relay holds what its publisher holds, through every fault of NATS.

mod access;
mod doctor;
mod faults;
mod following;
mod leaders;
mod service;
mod tls;

use std::time::Duration;

use async_nats::jetstream;
use oddscache::{Config, OddsCache, Relay, View};
use oddscache_testkit::{Database, assert_same, dump, eventually, followed::Followed, nats::Nats};

/// A subscriber with its follower's task.
struct Subscriber {
    cache: OddsCache,
    task: tokio::task::JoinHandle<()>,
}

impl Subscriber {
    fn start(relay: Relay) -> Subscriber {
        let (cache, follower) = OddsCache::connect(Config::relay(relay));
        let task = tokio::spawn(async move { drop(follower.run().await) });
        Subscriber { cache, task }
    }

    async fn ready(relay: Relay) -> Subscriber {
        let subscriber = Subscriber::start(relay);
        let ready = tokio::time::timeout(Duration::from_secs(60), subscriber.cache.ready());
        ready.await.expect("ready in time").expect("warm");
        subscriber
    }

    /// Waits until it shows what the publisher shows, and compares all they hold.
    async fn equals(&self, publisher: &OddsCache, what: &str) -> View {
        eventually(what, async || {
            let (own, other) = (self.cache.view(), publisher.view());
            *own.cut() == *other.cut() && dump(&own) == dump(&other)
        })
        .await;
        let view = self.cache.view();
        assert_same(&dump(&view), &dump(&publisher.view()), what);
        view
    }

    /// Changes the database of a publisher, and waits until the subscriber shows that.
    async fn follows(&self, publisher: &Followed, line: i32, what: &str) -> View {
        publisher.set_line(line).await;
        publisher.caught_up(what).await;
        self.equals(&publisher.cache, what).await
    }

    /// Waits until its view was proven current within the last two seconds.
    async fn fresh(&self) {
        eventually("the view is fresh", async || {
            self.cache.view_within(Duration::from_secs(2)).is_ok()
        })
        .await;
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A cache that follows a database of its own, and publishes to a relay.
struct Publisher {
    followed: Followed,
    task: tokio::task::JoinHandle<()>,
}

impl Publisher {
    async fn start(database: &Database, relay: Relay) -> Publisher {
        let followed = Followed::new(database).await;
        let task = tokio::spawn(followed.cache.relay_to(relay).run());
        Publisher { followed, task }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn jetstream(nats: &Nats) -> jetstream::Context {
    let client = async_nats::connect(nats.url()).await.expect("connected");
    jetstream::new(client)
}

fn relay(nats: &Nats) -> Relay {
    Relay::new(&nats.url()).expect("a URL")
}

/// The error of a connection that must fail.
async fn refusal(relay: Relay) -> String {
    let config = Config::relay(relay).retry_unreachable(false);
    let (cache, follower) = OddsCache::connect(config);
    let error = follower.run().await.expect_err("must not connect");
    assert!(!cache.is_warm());
    assert!(error.is_transient(), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("the relay at 127.0.0.1:"), "{text}");
    format!("{text} {error:?}")
}

/// Fails the test unless the relay cannot be reached, for a reason with these words.
#[track_caller]
fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
}

/// Publishes, and follows, as these.
async fn assert_follows(publisher: Relay, subscriber: Relay) {
    let database = Database::seeded();
    let publisher = Publisher::start(&database, publisher).await;
    let subscriber = Subscriber::ready(subscriber).await;
    subscriber.follows(&publisher.followed, 7, "a change").await;
    subscriber.fresh().await;
}
