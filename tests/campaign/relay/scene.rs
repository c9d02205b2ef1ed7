//! Who takes part: NATS, two publishers, and the subscribers.

use std::{
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use oddscache::{Config, OddsCache, Relay};
use oddscache_testkit::{nats::Nats, proxy::Proxy};
use tokio::task::JoinHandle;

use crate::{
    followers::{Embedded, Network, Service},
    subscribers::Replica,
    world::World,
};

use super::{hostile::Hostile, pause::warm};

/// The number of subscribers.
const SUBSCRIBERS: u64 = 4;

/// So small that states and many changes have several parts.
const SMALL: &str = "max_payload: 4096";

/// A subscriber, and its way to NATS.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) embedded: Embedded,
    pub(super) way: Proxy,
    pub(super) replica: Replica,
    /// How many differences it may find, because the campaign made them.
    pub(super) mismatches: Arc<AtomicU64>,
}

/// A publisher's ways to NATS and to its database.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) to_nats: Proxy,
    pub(super) to_database: Network,
}

/// Everything that a fault can act on.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) world: Arc<World>,
    pub(super) nats: tokio::sync::Mutex<Nats>,
    /// Without proxies in between.
    pub(super) url: String,
    /// The publisher in this process, and the one in a process of its own.
    pub(super) publishers: [Publisher; 2],
    pub(super) embedded: Embedded,
    publishing: Mutex<JoinHandle<()>>,
    pub(super) service: Service,
    pub(super) subscribers: Vec<Subscriber>,
    pub(super) hostile: Hostile,
    /// How many prices the pauses have written.
    pub(super) prices: AtomicU64,
}

fn relay(way: &Proxy) -> Relay {
    Relay::new(&format!("nats://{}", way.address)).expect("a URL")
}

impl Scene {
    /// `None` without nats-server.
    pub(super) async fn start(world: &Arc<World>) -> Option<Scene> {
        let nats = Nats::start(SMALL).await?;
        let publisher = async || Publisher {
            to_nats: Proxy::before_address(nats.address()).await,
            to_database: Network::before(&world.cluster()).await,
        };
        let publishers = [publisher().await, publisher().await];
        let embedded = Embedded::start(&publishers[0].to_database).await;
        let publishing = publish(world, &embedded.cache, &publishers[0].to_nats);
        let mut subscribers = Vec::new();
        for number in 0..SUBSCRIBERS {
            let way = Proxy::before_address(nats.address()).await;
            let embedded = Embedded::of(Config::relay(relay(&way)));
            if let Err((check, what)) = warm(&embedded.cache).await {
                world.violate(check, what);
            }
            let replica = Replica::spawn(&embedded.cache, world.seed ^ number);
            let mismatches = Arc::default();
            subscribers.push(Subscriber {
                embedded,
                way,
                replica,
                mismatches,
            });
        }
        // The streams exist, in the way that the first publisher created them.
        let service = Service::with(
            world,
            publishers[1].to_database.dsn(),
            vec![
                "--relay-to".to_owned(),
                format!("nats://{}", publishers[1].to_nats.address),
            ],
        );
        let first = subscribers[0].embedded.cache.clone();
        world.cache.set(first).expect("set once");
        Some(Scene {
            world: Arc::clone(world),
            url: nats.url(),
            hostile: Hostile::new(&nats.url()),
            nats: tokio::sync::Mutex::new(nats),
            publishers,
            embedded,
            publishing: Mutex::new(publishing),
            service,
            subscribers,
            prices: AtomicU64::new(0),
        })
    }

    pub(super) fn caches(&self) -> impl Iterator<Item = &OddsCache> {
        self.subscribers
            .iter()
            .map(|subscriber| &subscriber.embedded.cache)
    }

    /// A subscriber that begins now.
    pub(super) fn late(&self) -> Embedded {
        Embedded::of(Config::relay(Relay::new(&self.url).expect("a URL")))
    }

    /// Ends the publisher of this process at any point, for this time.
    pub(super) async fn kill_publisher(&self, lasts: Duration) {
        let publishing = || self.publishing.lock().expect("not poisoned");
        publishing().abort();
        tokio::time::sleep(lasts).await;
        *publishing() = publish(
            &self.world,
            &self.embedded.cache,
            &self.publishers[0].to_nats,
        );
    }

    /// Adds up the figures of the subscribers.
    pub(super) fn count(&self) {
        let mut figures = self.world.report.figures();
        for cache in self.caches() {
            let counters = cache.counters();
            figures.shown += counters.published;
            figures.most_shown = figures.most_shown.max(counters.published);
            figures.epochs = figures.epochs.max(cache.view().epoch());
            let counters = serde_json::to_value(counters).expect("JSON");
            for (name, count) in counters.as_object().into_iter().flatten() {
                let count = count.as_u64().unwrap_or_default();
                *figures.counters.entry(name.clone()).or_default() += count;
            }
        }
        figures.counters.retain(|_, count| *count > 0);
    }
}

/// Publishes what a cache holds. Half of all campaigns keep the streams in memory.
fn publish(world: &World, cache: &OddsCache, way: &Proxy) -> JoinHandle<()> {
    let mut publisher = cache.relay_to(relay(way));
    if world.seed.is_multiple_of(2) {
        publisher = publisher.in_memory();
    }
    tokio::spawn(publisher.run())
}
