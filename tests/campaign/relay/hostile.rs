//! A client of NATS that may do everything, and means harm.

use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream::Config};
use fastrand::Rng;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
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

    /// Publishes a message, and waits until its stream has it.
    async fn store(&self, subject: String, message: Vec<u8>) -> Option<()> {
        let jetstream = self.jetstream().await;
        let stored = async {
            jetstream
                .publish(subject, message.into())
                .await
                .ok()?
                .await
                .ok()
        };
        timeout(PATIENCE, stored).await.ok()?.map(drop)
    }

    /// Publishes random bytes.
    pub(super) async fn garbage(&self, rng: &mut Rng, lasts: Duration) {
        let began = Instant::now();
        while began.elapsed() < lasts {
            let mut bytes: Vec<u8> = (0..rng.usize(..300)).map(|_| rng.u8(..)).collect();
            if rng.bool() {
                bytes.splice(0..0, MAGIC);
            }
            let subjects = [
                DELTAS,
                "oddscache.odds.ask",
                &state(SUBJECTS[rng.usize(..5)]),
            ];
            self.publish(subjects[rng.usize(..3)].to_owned(), bytes)
                .await;
            sleep(Duration::from_millis(rng.u64(10..400))).await;
        }
    }

    /// Publishes messages again: changes in any order, whole or cut off, and states where others should be.
    pub(super) async fn repeat(&self, rng: &mut Rng, lasts: Duration) {
        let began = Instant::now();
        while began.elapsed() < lasts {
            if rng.u8(..5) == 0 {
                let (from, to) = (SUBJECTS[rng.usize(..5)], SUBJECTS[rng.usize(..5)]);
                if let Some((_, message)) = self.last(STATES, &state(from)).await {
                    self.publish(state(to), message).await;
                }
            } else if let Some((last, _)) = self.last(CHANGES, DELTAS).await
                && let Some(mut message) = self.message(last.saturating_sub(rng.u64(..50))).await
            {
                if rng.u8(..4) == 0 {
                    message.truncate(rng.usize(..=message.len()));
                }
                self.publish(DELTAS.to_owned(), message).await;
            }
            sleep(Duration::from_millis(rng.u64(10..400))).await;
        }
    }

    /// The last message of a subject, and its sequence.
    async fn last(&self, stream: &str, subject: &str) -> Option<(u64, Vec<u8>)> {
        let jetstream = self.jetstream().await;
        let get = async {
            let stream = jetstream.get_stream(stream).await.ok()?;
            let message = stream.get_last_raw_message_by_subject(subject).await.ok()?;
            Some((message.sequence, message.payload.to_vec()))
        };
        timeout(PATIENCE, get).await.ok()?
    }

    /// The message of this sequence in the stream of changes.
    async fn message(&self, sequence: u64) -> Option<Vec<u8>> {
        let jetstream = self.jetstream().await;
        let get = async {
            let stream = jetstream.get_stream(CHANGES).await.ok()?;
            let message = stream.get_raw_message(sequence).await.ok()?;
            Some(message.payload.to_vec())
        };
        timeout(PATIENCE, get).await.ok()?
    }

    /// Appends the last change once more, as a change from the state after it. If it changed a price, it changes that price
    /// again, but its digest is still that of the state before. `None` if there is no such change.
    pub(super) async fn forge_change(&self) -> Option<()> {
        let (_, last) = self.last(CHANGES, DELTAS).await?;
        let (header, records) = read::<Header>(&last)?;
        if records.is_empty() || !header.is_last || header.part > 0 {
            return None;
        }
        let to = Identity {
            version: header.to.version + 1,
            ..header.to
        };
        let forged = Header {
            from: header.to,
            from_digest: header.digest,
            to,
            ..header
        };
        self.store(DELTAS.to_owned(), write(&forged, records)).await
    }

    /// Publishes the records of an older state as the state after the last change. `None` if there is no older state.
    pub(super) async fn forge_state(&self) -> Option<()> {
        let (position, last) = self.last(CHANGES, DELTAS).await?;
        let (newest, _) = read::<Header>(&last)?;
        let (_, head) = self.last(STATES, &state("head")).await?;
        let (head, _) = read::<Head>(&head)?;
        if head.identity == newest.to || !newest.is_last {
            return None;
        }
        for part in 0..head.parts {
            let subject = state(&format!("{}.{part}", head.slot));
            let (_, message) = self.last(STATES, &subject).await?;
            let (header, records) = read::<Header>(&message)?;
            let forged = Header {
                from: newest.to,
                from_digest: newest.digest,
                part,
                is_last: header.is_last,
                ..newest.clone()
            };
            self.store(subject, write(&forged, records)).await?;
        }
        let forged = Head {
            term: newest.term,
            epoch: newest.epoch,
            identity: newest.to,
            digest: newest.digest,
            cut: newest.cut,
            position,
            ..head
        };
        self.store(state("head"), write(&forged, &[])).await
    }
}

const CHANGES: &str = "oddscache_odds";
const STATES: &str = "oddscache_odds_state";
const SUBJECTS: [&str; 5] = ["head", "a.0", "b.0", "a.1", "c.7"];
const MAGIC: [u8; 3] = *b"oc\x01";

fn state(part: &str) -> String {
    format!("oddscache.odds.state.{part}")
}

fn read<T: DeserializeOwned>(message: &[u8]) -> Option<(T, &[u8])> {
    postcard::take_from_bytes(message.strip_prefix(&MAGIC)?).ok()
}

fn write(value: &impl Serialize, records: &[u8]) -> Vec<u8> {
    let message = postcard::to_extend(value, MAGIC.to_vec());
    [&message.expect("it has a length"), records].concat()
}

// The messages as `src/relay/message.rs` has them.

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    incarnation: u128,
    version: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Header {
    term: u64,
    epoch: u64,
    from: Identity,
    from_digest: u128,
    to: Identity,
    digest: u128,
    part: u32,
    is_last: bool,
    cut: Cut,
    unreadable: Vec<(String, String)>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    slot: char,
    parts: u32,
    term: u64,
    epoch: u64,
    identity: Identity,
    digest: u128,
    cut: Cut,
    position: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Cut {
    as_of: i64,
    snapshot: String,
    window_start: i64,
    standby: bool,
    server: (String, Option<String>, Option<String>),
}
