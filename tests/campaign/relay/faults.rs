//! Carries the faults out.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use fastrand::Rng;
use futures_util::future::join_all;
use oddscache_testkit::proxy::{Proxy, Way, Whose};
use tokio::time::sleep;

use crate::{
    faults::network,
    plan::{Fault, Kind},
};

use super::scene::Scene;

const STREAMS: [&str; 2] = ["oddscache_odds", "oddscache_odds_state"];

/// What may happen to a connection to NATS.
const DISTURBED: [Kind; 9] = [
    Kind::BlackHole,
    Kind::HalfOpenUp,
    Kind::HalfOpenDown,
    Kind::Slow,
    Kind::Latency,
    Kind::Cut,
    Kind::Refuse,
    Kind::Reset,
    Kind::Freeze,
];

impl Scene {
    /// Carries out all lanes at once. Returns when the last is done.
    pub(super) async fn inflict(&self, lanes: &[Vec<Fault>]) {
        let lanes = lanes.iter().map(async |faults| {
            for fault in faults {
                if self.world.is_over() {
                    return;
                }
                sleep(fault.after).await;
                self.world.active.begin(fault.kind);
                self.world.report.inflicted(fault.kind);
                tracing::info!(lasts = ?fault.lasts, "FAULT {}", fault.kind.name());
                self.carry_out(fault).await;
                self.world.active.end(fault.kind);
                tracing::info!("OVER {}", fault.kind.name());
            }
        });
        join_all(lanes).await;
    }

    async fn carry_out(&self, fault: &Fault) {
        let mut rng = Rng::with_seed(fault.seed);
        // Long enough that another publisher leads, in some cases.
        let lasts = fault.lasts * rng.u32(1..6);
        let publisher = rng.usize(..2);
        let subscriber = &self.subscribers[rng.usize(..self.subscribers.len())];
        match fault.kind {
            Kind::NatsKilled | Kind::NatsEmptied => {
                let mut nats = self.nats.lock().await;
                nats.kill();
                if fault.kind == Kind::NatsEmptied {
                    nats.forget();
                }
                sleep(lasts).await;
                nats.boot().await;
            }
            Kind::Purged | Kind::Deleted => {
                let which = rng.usize(1..4);
                for (number, name) in STREAMS.iter().enumerate() {
                    if which & (1 << number) != 0 {
                        self.hostile.remove(name, fault.kind == Kind::Purged).await;
                    }
                }
                sleep(lasts).await;
            }
            Kind::BucketDeleted => {
                self.hostile.remove("KV_oddscache_odds", false).await;
                sleep(lasts).await;
            }
            Kind::Full => {
                let most = rng.i64(5_000..50_000);
                self.limit(&mut rng, lasts, most, DiscardPolicy::Old).await;
            }
            Kind::Refusing => self.limit(&mut rng, lasts, 1_000, DiscardPolicy::New).await,
            Kind::Garbage => self.hostile.garbage(&mut rng, lasts).await,
            Kind::Repeated => self.hostile.repeat(&mut rng, lasts).await,
            Kind::LeaderKilled if publisher == 0 => self.kill_publisher(lasts).await,
            Kind::LeaderKilled => {
                self.service.kill();
                sleep(lasts).await;
                self.service.spawn();
            }
            Kind::LeaderStopped if publisher == 0 => {
                self.embedded.block(lasts);
                sleep(lasts).await;
            }
            Kind::LeaderStopped => {
                self.service.signal("-STOP");
                sleep(lasts).await;
                self.service.signal("-CONT");
            }
            Kind::LeaderCutOff => {
                let way = &self.publishers[publisher].to_database;
                way.set(|setting| network(Kind::BlackHole, &mut rng, setting));
                way.set(|setting| setting.whose = Whose::All);
                sleep(lasts).await;
                way.heal();
            }
            Kind::LeaderNetwork => {
                disturb(&self.publishers[publisher].to_nats, &mut rng, lasts).await;
            }
            Kind::LeaderClock => self.service.jump(rng.i64(-200_000..200_000)),
            Kind::SubscriberNetwork => disturb(&subscriber.way, &mut rng, lasts).await,
            Kind::SubscriberSlow => {
                let slow = Way::Slow(rng.usize(200..4_000), Duration::from_millis(20));
                subscriber.way.set(|setting| setting.down = slow);
                sleep(lasts).await;
                subscriber.way.heal();
            }
            Kind::SubscriberBlocked => {
                subscriber.embedded.block(lasts);
                sleep(lasts).await;
            }
            Kind::SubscriberResync => subscriber.embedded.cache.resync(),
            kind => self.world.fail_server(kind, fault.lasts).await,
        }
    }

    /// Limits the bytes of a stream for a while.
    async fn limit(&self, rng: &mut Rng, lasts: Duration, most: i64, discard: DiscardPolicy) {
        let name = STREAMS[rng.usize(..2)];
        let limited = |config: &mut Config| (config.max_bytes, config.discard) = (most, discard);
        let Some(before) = self.hostile.change(name, limited).await else {
            return;
        };
        sleep(lasts).await;
        self.hostile.change(name, |config| *config = before).await;
    }
}

async fn disturb(way: &Proxy, rng: &mut Rng, lasts: Duration) {
    let kind = DISTURBED[rng.usize(..DISTURBED.len())];
    way.set(|setting| {
        network(kind, rng, setting);
        setting.whose = Whose::All;
    });
    sleep(lasts).await;
    way.heal();
}
