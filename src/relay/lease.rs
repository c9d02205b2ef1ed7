//! The lease: at most one publisher leads. Expiry is the server's, so no clocks are compared.
//!
//! # Invariants
//! - Z1: A publisher leads only within [`LEASE`] after it *sent* its last successful renewal. The server keeps the key for
//!   as long after it *received* that, so nobody else can have created it meanwhile.
//!   A machine that was suspended may believe for a moment longer that it leads, which harms nothing (Z2).
//! - Z2: The lease decides only who tries. Two leaders harm nothing, because the stream takes one chain of changes (Y1 of
//!   [`crate::relay`]).

use std::time::Duration;

use async_nats::jetstream::{
    self, kv,
    stream::{self, StorageType},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    error::Error,
    relay::{
        address::{ANSWER_TIMEOUT, Relay},
        streams::is_missing,
    },
};

/// How long the key of a leader that does not renew it stays.
pub(super) const LEASE: Duration = Duration::from_secs(3);

/// The time between two renewals.
const RENEW: Duration = Duration::from_millis(800);

/// The time between two attempts of those who do not lead, give or take a half.
const TRY: Duration = Duration::from_millis(400);

pub(super) const KEY: &str = "leader";

pub(super) struct Lease {
    store: kv::Store,
    holder: String,
}

/// A lease that was won.
pub(super) struct Held {
    revision: u64,
    /// When the request that won or renewed it was sent.
    sent: Instant,
}

impl Lease {
    /// Opens the bucket, and creates it if there is none.
    pub(super) async fn open(
        relay: &Relay,
        jetstream: &jetstream::Context,
        storage: StorageType,
        holder: u128,
    ) -> Result<Lease, Error> {
        let bucket = relay.stream();
        let name = format!("KV_{bucket}");
        let missing = |error| relay.unreachable(format!("the bucket of the lease: {error}"));
        if let Err(error) = jetstream.get_stream(&name).await {
            if !is_missing(&error) {
                return Err(missing(error.to_string()));
            }
            // As `create_key_value` does, which first asks for the limits of the account in a form that nats-server 2.9
            // does not know.
            let config = stream::Config {
                name,
                description: Some("who publishes to the relay".to_owned()),
                subjects: vec![format!("$KV.{bucket}.>")],
                max_messages_per_subject: 1,
                max_age: LEASE,
                storage,
                discard: stream::DiscardPolicy::New,
                allow_rollup: true,
                deny_delete: true,
                allow_direct: true,
                ..stream::Config::default()
            };
            let create = jetstream.create_stream(config).await;
            create.map_err(|error| missing(error.to_string()))?;
        }
        let store = jetstream.get_key_value(bucket).await;
        let store = store.map_err(|error| missing(error.to_string()))?;
        let holder = format!("{holder:032x}");
        Ok(Lease { store, holder })
    }

    /// Tries, whenever it may, until the lease is won.
    ///
    /// # Errors
    /// Anything but that another publisher has it: the bucket may be gone, or the server may refuse this client, so the
    /// caller must connect again.
    pub(super) async fn win(&self, may: impl Fn() -> bool) -> Result<Held, String> {
        loop {
            if may() {
                let sent = Instant::now();
                let create = self.store.create(KEY, self.holder.clone().into());
                match timeout(ANSWER_TIMEOUT, create).await {
                    Ok(Ok(revision)) => return Ok(Held { revision, sent }),
                    Ok(Err(error)) if error.kind() != kv::CreateErrorKind::AlreadyExists => {
                        return Err(error.to_string());
                    }
                    Ok(Err(_)) => {}
                    // The server may have lost the bucket, or may serve it no longer.
                    Err(_) => return Err("no answer".to_owned()),
                }
            }
            sleep(TRY.mul_f64(0.5 + fastrand::f64())).await;
        }
    }

    /// Renews the lease until that fails. `held` always tells until when it holds.
    pub(super) async fn keep(&self, held: &tokio::sync::watch::Sender<Held>) {
        loop {
            let (revision, until) = {
                let held = held.borrow();
                (held.revision, held.until())
            };
            let sent = Instant::now();
            let update = self.store.update(KEY, self.holder.clone().into(), revision);
            match tokio::time::timeout_at(until, update).await {
                Ok(Ok(revision)) => {
                    held.send_replace(Held { revision, sent });
                }
                // Somebody else has it, or the server is away. A lost answer also ends it: the revision is unknown then.
                Ok(Err(_)) | Err(_) => return,
            }
            sleep(RENEW).await;
        }
    }

    /// Gives the lease back, so that another publisher need not wait.
    pub(super) async fn give_back(&self, revision: u64) {
        let delete = self.store.delete_expect_revision(KEY, Some(revision));
        let _ = timeout(ANSWER_TIMEOUT, delete).await;
    }
}

impl Held {
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    fn until(&self) -> Instant {
        self.sent + LEASE
    }

    /// Whether the lease still holds (Z1).
    pub(super) fn holds(&self) -> bool {
        Instant::now() < self.until()
    }
}
