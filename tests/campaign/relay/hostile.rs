//! A client of NATS that may do everything, and means harm.

use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream::Config};
use fastrand::Rng;
use tokio::{
    sync::OnceCell,
    time::{sleep, timeout},
};

const DELTAS: &str = "oddscache.odds.delta";

/// NATS may be away. Then a fault has no effect.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Hostile {
    url: String,
    client: OnceCell<async_nats::Client>,
}

impl Hostile {
    pub(super) fn new(url: &str) -> Hostile {
        Hostile {
            url: url.to_owned(),
            client: OnceCell::new(),
        }
    }

    async fn client(&self) -> &async_nats::Client {
        let url = self.url.clone();
        let connect = || async move { async_nats::connect(url).await.expect("connected") };
        self.client.get_or_init(connect).await
    }

    async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client().await.clone())
    }

    /// Purges or deletes a stream.
    pub(super) async fn remove(&self, name: &str, purge: bool) {
        let jetstream = self.jetstream().await;
        let remove = async {
            if !purge {
                let _ = jetstream.delete_stream(name).await;
            } else if let Ok(stream) = jetstream.get_stream(name).await {
                let _ = stream.purge().await;
            }
        };
        let _ = timeout(PATIENCE, remove).await;
    }

    /// Changes the settings of a stream, if it exists. Returns those before.
    pub(super) async fn change(
        &self,
        name: &str,
        change: impl FnOnce(&mut Config),
    ) -> Option<Config> {
        let jetstream = self.jetstream().await;
        let changing = async {
            let stream = jetstream.get_stream(name).await.ok()?;
            let before = stream.cached_info().config.clone();
            let mut config = before.clone();
            change(&mut config);
            jetstream.update_stream(config).await.ok()?;
            Some(before)
        };
        timeout(PATIENCE, changing).await.ok()?
    }

    async fn publish(&self, subject: String, message: Vec<u8>) {
        let publish = self.client().await.publish(subject, message.into());
        let _ = timeout(PATIENCE, publish).await;
    }

    fn state(rng: &mut Rng) -> String {
        let part = ["head", "a.0", "b.0", "a.1", "c.7"][rng.usize(..5)];
        format!("oddscache.odds.state.{part}")
    }

    /// Publishes random bytes.
    pub(super) async fn garbage(&self, rng: &mut Rng, lasts: Duration) {
        let began = Instant::now();
        while began.elapsed() < lasts {
            let mut bytes: Vec<u8> = (0..rng.usize(..300)).map(|_| rng.u8(..)).collect();
            if rng.bool() {
                bytes.splice(0..0, *b"oc\x01");
            }
            let subject = match rng.u8(..3) {
                0 => Hostile::state(rng),
                1 => "oddscache.odds.ask".to_owned(),
                _ => DELTAS.to_owned(),
            };
            self.publish(subject, bytes).await;
            sleep(Duration::from_millis(rng.u64(10..400))).await;
        }
    }

    /// Publishes messages of the stream again, in any order, whole or cut off.
    pub(super) async fn repeat(&self, rng: &mut Rng, lasts: Duration) {
        let jetstream = self.jetstream().await;
        let began = Instant::now();
        while began.elapsed() < lasts {
            let get = async {
                let stream = jetstream.get_stream("oddscache_odds").await.ok()?;
                let state = &stream.cached_info().state;
                let back = rng.u64(..50);
                let sequence = state.last_sequence.checked_sub(back)?;
                let message = stream.get_raw_message(sequence).await.ok()?;
                Some(message.payload.to_vec())
            };
            if let Ok(Some(mut message)) = timeout(PATIENCE, get).await {
                if rng.u8(..4) == 0 {
                    message.truncate(rng.usize(..=message.len()));
                }
                let subject = match rng.u8(..5) {
                    0 => Hostile::state(rng),
                    _ => DELTAS.to_owned(),
                };
                self.publish(subject, message).await;
            }
            sleep(Duration::from_millis(rng.u64(10..400))).await;
        }
    }
}
