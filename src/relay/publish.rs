//! The publisher: passes on to a relay what this process publishes.
//!
//! It takes views from the cache as any reader does, so it never delays the follower. While NATS is slow, several
//! publications become one delta.

use std::{fmt, pin::pin, sync::Arc, time::Duration};

use async_nats::jetstream::{self, stream::StorageType};
use futures_util::future::{Either, select};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    backoff::Backoff,
    error::Error,
    relay::{
        address::Relay,
        codec::Encoder,
        leader::{Past, lead},
        lease::Lease,
        send::{LARGEST_PART, Sender},
        streams,
    },
    store::publish::{Shared, add},
};

/// What a message has beside its records.
const HEADER_BYTES: usize = 16 * 1024;

/// Who has led for this long begins again with short pauses.
const LED: Duration = Duration::from_secs(10);

/// Publishes what a cache holds to a relay. [`RelayPublisher::run`] does so until it is dropped.
///
/// Several processes may publish to one relay. One of them leads, and another takes its place within seconds if it is
/// lost.
pub struct RelayPublisher {
    relay: Relay,
    shared: Arc<Shared>,
    storage: StorageType,
    past: Past,
}

impl RelayPublisher {
    pub(crate) fn new(relay: Relay, shared: Arc<Shared>) -> RelayPublisher {
        RelayPublisher {
            relay,
            shared,
            storage: StorageType::File,
            past: Past::default(),
        }
    }

    /// Keeps the relay's streams in the memory of the NATS server. By default they are in files. They are created when
    /// the first publisher finds none; after that this changes nothing.
    #[must_use]
    pub fn in_memory(mut self) -> RelayPublisher {
        self.storage = StorageType::Memory;
        self
    }

    /// Publishes until the future is dropped, or until the follower of the cache has ended. Whatever happens to NATS, it
    /// tries again, with pauses of up to 5 s. Needs a tokio runtime with time and I/O.
    pub async fn run(mut self) {
        let mut backoff = Backoff::for_relays();
        while self.shared.is_fed() {
            let Err(error) = self.session(&mut backoff).await else {
                return;
            };
            add(&self.shared.counters.failures, 1);
            tracing::warn!(%error, "not publishing to the relay; trying again after a pause");
            sleep(backoff.next()).await;
        }
    }

    /// Connects, and leads whenever the lease is won. `Ok` once the cache has no follower any more.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<(), Error> {
        let client = self.relay.connect("relay publisher").await?;
        let jetstream = jetstream::new(client.clone());
        let own: u128 = fastrand::u128(..);
        let lease = Lease::open(&self.relay, &jetstream, self.storage, own).await?;
        let stream = streams::open(&self.relay, &jetstream, self.storage).await?;
        loop {
            let warm = self.shared.wait_until(|state| state.epoch > 0);
            if warm.await.is_none() {
                return Ok(());
            }
            // Who has lost its database leaves the lead to others.
            let may_lead = || !self.shared.is_out_of_touch() || !self.shared.is_fed();
            let won = lease.win(may_lead).await;
            let won = won.map_err(|error| self.relay.unreachable(format!("the lease: {error}")))?;
            if !self.shared.is_fed() {
                lease.give_back(won.revision()).await;
                return Ok(());
            }
            let began = Instant::now();
            let (held, holds) = watch::channel(won);
            let limit = client.server_info().max_payload.min(LARGEST_PART);
            let sender = Sender {
                relay: self.relay.clone(),
                jetstream: jetstream.clone(),
                shared: Arc::clone(&self.shared),
                encoder: Encoder::new(limit.saturating_sub(HEADER_BYTES).max(1024)),
                holds,
            };
            let lead = pin!(lead(&mut self.past, &client, &sender, &stream));
            let keep = pin!(lease.keep(&held));
            let ended = match select(lead, keep).await {
                Either::Left((result, _)) => Some(result),
                Either::Right(_) => None,
            };
            if began.elapsed() > LED {
                *backoff = Backoff::for_relays();
            }
            match ended {
                None => tracing::warn!("another publisher may lead the relay now"),
                Some(result) => {
                    let revision = held.borrow().revision();
                    lease.give_back(revision).await;
                    result?;
                    return Ok(());
                }
            }
        }
    }
}

impl fmt::Debug for RelayPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayPublisher")
            .field("relay", &self.relay)
            .finish_non_exhaustive()
    }
}
