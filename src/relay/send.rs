//! Sends deltas and parts of states to the streams.

use std::{collections::VecDeque, fmt, sync::Arc};

use async_nats::{
    HeaderMap,
    header::NATS_EXPECTED_LAST_SEQUENCE,
    jetstream::{self, context::PublishAckFuture},
};
use bytes::Bytes;
use tokio::{sync::watch, time::timeout};

use crate::{
    error::Error,
    relay::{
        address::{ANSWER_TIMEOUT, Relay},
        codec::Encoder,
        lease::Held,
        message::{self, Answer, Header, Identity, WireCut, faults_to_send},
    },
    store::{
        publish::{Shared, add},
        state::View,
    },
};

/// The most bytes of a part, if the server allows as much.
pub(super) const LARGEST_PART: usize = 512 * 1024;

/// From this number of changed events on, packing takes more than a millisecond.
const MANY_EVENTS: usize = 500;

/// The most messages that are sent before the stream has acknowledged them.
const MOST_UNACKNOWLEDGED: usize = 256;

/// What a leader has appended last.
#[derive(Clone)]
pub(super) struct Appended {
    pub(super) view: View,
    pub(super) identity: Identity,
    pub(super) term: u64,
    pub(super) epoch: u64,
    pub(super) sequence: u64,
}

impl Appended {
    pub(super) fn answer(&self) -> Bytes {
        let age = self.view.age();
        let answer = Answer {
            term: self.term,
            identity: self.identity,
            digest: self.view.digest,
            age: u64::try_from(age.as_micros()).ok(),
            cut: WireCut::of(&self.view.cut()),
            unreadable: faults_to_send(self.view.unreadable()),
        };
        message::write(&answer, &[])
    }
}

/// Sends messages.
#[derive(Clone)]
pub(super) struct Sender {
    pub(super) relay: Relay,
    pub(super) jetstream: jetstream::Context,
    pub(super) shared: Arc<Shared>,
    pub(super) encoder: Encoder,
    pub(super) holds: watch::Receiver<Held>,
}

impl Sender {
    /// Appends what the cache has published since. Returns how many bytes that were.
    pub(super) async fn append(&self, appended: &mut Appended) -> Result<usize, Error> {
        let view = View(self.shared.load_full());
        if view.version() == appended.view.version() {
            return Ok(0);
        }
        let incarnation = appended.identity.incarnation;
        self.append_as(appended, incarnation, view).await
    }

    /// Appends a delta that leads to `view`.
    pub(super) async fn append_as(
        &self,
        appended: &mut Appended,
        incarnation: u128,
        view: View,
    ) -> Result<usize, Error> {
        let ids = differing(&appended.view, &view);
        let is_long = ids.len() >= MANY_EVENTS;
        let (before, after, encoder) = (appended.view.clone(), view.clone(), self.encoder);
        let pack = move || encoder.encode_changes(&before, &after, &ids);
        // Packing very much would delay the lease and the answers.
        let parts = match is_long {
            true => self.aside(pack).await?,
            false => pack().map_err(|error| self.relay.unreachable(error))?,
        };
        let to = Identity {
            incarnation,
            version: view.version(),
        };
        let is_new_epoch =
            view.epoch() != appended.view.epoch() && incarnation == appended.identity.incarnation;
        let epoch = appended.epoch.saturating_add(u64::from(is_new_epoch));
        let header = Header {
            epoch,
            from_digest: appended.view.digest,
            ..header(appended, to, &view)
        };
        let bytes = self
            .send(messages(header, parts), &mut appended.sequence)
            .await?;
        add(&self.shared.counters.relay_deltas, 1);
        appended.view = view;
        appended.identity = to;
        appended.epoch = epoch;
        Ok(bytes)
    }

    /// Packs on a thread of its own, because it takes long enough to delay others of this one.
    pub(super) async fn aside<E: fmt::Display + Send + 'static>(
        &self,
        pack: impl FnOnce() -> Result<Vec<Vec<u8>>, E> + Send + 'static,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let parts = tokio::task::spawn_blocking(pack).await;
        let parts = parts.map_err(|_| self.relay.unreachable("packing was interrupted"))?;
        parts.map_err(|error| self.relay.unreachable(error))
    }

    /// Appends an empty delta from the state to itself. A subscriber with another state learns from it that it must read
    /// the state.
    pub(super) async fn append_start(&self, appended: &mut Appended) -> Result<(), Error> {
        let header = header(appended, appended.identity, &appended.view);
        let messages = messages(header, Vec::new());
        self.send(messages, &mut appended.sequence).await.map(drop)
    }

    /// Sends the messages of a delta, and waits until the stream has them (Y1). Moves the sequence on if it has all.
    async fn send(
        &self,
        messages: impl Iterator<Item = Bytes>,
        sequence: &mut u64,
    ) -> Result<usize, Error> {
        let (mut sent, mut bytes, mut after) = (VecDeque::new(), 0, *sequence);
        for message in messages {
            self.must_hold()?;
            if sent.len() >= MOST_UNACKNOWLEDGED
                && let Some(oldest) = sent.pop_front()
            {
                self.acknowledged(oldest).await?;
            }
            bytes += message.len();
            let mut headers = HeaderMap::new();
            headers.insert(NATS_EXPECTED_LAST_SEQUENCE, after.to_string().as_str());
            after += 1;
            let subject = self.relay.deltas();
            let publish = self
                .jetstream
                .publish_with_headers(subject, headers, message);
            let publish = publish
                .await
                .map_err(|error| self.relay.unreachable(error))?;
            sent.push_back(publish);
        }
        for unacknowledged in sent {
            self.acknowledged(unacknowledged).await?;
        }
        *sequence = after;
        add(&self.shared.counters.relay_bytes, bytes);
        Ok(bytes)
    }

    /// Puts a part of a state, or its head, where the next state of the slot overwrites it.
    pub(super) async fn put(&self, subject: String, message: Bytes) -> Result<(), Error> {
        self.must_hold()?;
        let publish = self.jetstream.publish(subject, message).await;
        let sent = publish.map_err(|error| self.relay.unreachable(error))?;
        self.acknowledged(sent).await
    }

    /// Only a leader may write (Z1).
    fn must_hold(&self) -> Result<(), Error> {
        match self.holds.borrow().holds() {
            true => Ok(()),
            false => Err(self.relay.unreachable("the lease was lost")),
        }
    }

    /// Waits until the stream has a message.
    async fn acknowledged(&self, sent: PublishAckFuture) -> Result<(), Error> {
        let stored = timeout(ANSWER_TIMEOUT, sent.into_future()).await;
        let stored = stored.map_err(|_| self.relay.unreachable("the stream does not answer"))?;
        stored
            .map(drop)
            .map_err(|error| self.relay.unreachable(error))
    }
}

/// The header of a delta from what was appended to `view`.
pub(super) fn header(appended: &Appended, to: Identity, view: &View) -> Header {
    Header {
        term: appended.term,
        epoch: appended.epoch,
        from: appended.identity,
        from_digest: appended.view.digest,
        to,
        digest: view.digest,
        part: 0,
        is_last: true,
        cut: WireCut::of(&view.cut()),
        unreadable: faults_to_send(view.unreadable()),
    }
}

/// The messages of a delta or a state, one for each part, and at least one.
pub(super) fn messages(header: Header, mut parts: Vec<Vec<u8>>) -> impl Iterator<Item = Bytes> {
    if parts.is_empty() {
        parts.push(Vec::new());
    }
    let count = parts.len();
    (0..).zip(parts).map(move |(part, records)| {
        let header = Header {
            part,
            is_last: part as usize + 1 == count,
            ..header.clone()
        };
        message::write(&header, &records)
    })
}

/// The ids of the events that two views of one cache do not share.
fn differing(before: &View, after: &View) -> Vec<i64> {
    let mut ids = before.table.differing(&after.table);
    ids.sort_unstable();
    ids.dedup();
    ids
}
