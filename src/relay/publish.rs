//! The publisher: passes on to a relay what this process publishes.
//!
//! It takes views from the cache as any reader does, so it never delays the follower. While NATS is slow, several
//! publications become one delta.

use std::{
    collections::VecDeque,
    fmt,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_nats::{
    Client,
    header::NATS_EXPECTED_LAST_SEQUENCE,
    jetstream::{
        self,
        context::PublishAckFuture,
        stream::{
            Config as StreamConfig, DiscardPolicy, LastRawMessageErrorKind, StorageType, Stream,
        },
    },
};
use bytes::Bytes;
use futures_util::{
    StreamExt,
    future::{Either, select},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout, timeout_at},
};

use crate::{
    backoff::Backoff,
    error::Error,
    relay::{
        address::{ANSWER_TIMEOUT, Relay},
        codec::Encoder,
        lease::{Held, Lease},
        message::{self, Answer, Head, Header, Identity, Question, WireCut, faults_to_send},
    },
    store::{
        changes::Changes,
        publish::{Shared, add},
        state::{Cut, View},
    },
};

/// Deltas stay in the stream for this time.
pub(super) const KEEP: Duration = Duration::from_secs(10 * 60);

/// The most bytes of deltas in the stream.
pub(super) const KEEP_BYTES: i64 = 1 << 30;

/// The most bytes of a part, if the server allows as much.
const LARGEST_PART: usize = 512 * 1024;

/// What a message has beside its records.
const HEADER_BYTES: usize = 16 * 1024;

/// From this number of changed events on, packing takes more than a millisecond.
const MANY_EVENTS: usize = 500;

/// The most messages that are sent before the stream has acknowledged them.
const MOST_UNACKNOWLEDGED: usize = 256;

/// How often a publisher that has lost its database looks for it.
const CUT_OFF_PAUSE: Duration = Duration::from_millis(200);

/// A leader that has lost its database for this long lets others lead.
const CUT_OFF: Duration = Duration::from_secs(4);

/// How often a leader looks whether the streams are as it left them.
const LOOK: Duration = Duration::from_secs(1);

/// A state is published again at most this often.
const STATE_PAUSE: Duration = Duration::from_secs(2);

/// How long a new leader waits until its own view is not older than the last delta.
const CATCH_UP: Duration = Duration::from_secs(5);

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
    /// The greatest term and the latest epoch of this process.
    term: u64,
    epoch: u64,
    /// The states that subscribers may hold now, with the identity under which they know them.
    bases: VecDeque<(Identity, View)>,
}

/// What a leader has appended last.
struct Appended {
    view: View,
    identity: Identity,
    term: u64,
    epoch: u64,
    sequence: u64,
}

/// Where the stream ends.
struct Tail {
    sequence: u64,
    /// What subscribers may hold; `None` if nothing was ever published.
    last: Option<Last>,
}

/// The last whole delta, or the newest state.
struct Last {
    term: u64,
    epoch: u64,
    identity: Identity,
    digest: u128,
    cut: Cut,
}

impl RelayPublisher {
    pub(crate) fn new(relay: Relay, shared: Arc<Shared>) -> RelayPublisher {
        RelayPublisher {
            relay,
            shared,
            storage: StorageType::File,
            term: 0,
            epoch: 0,
            bases: VecDeque::new(),
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
        loop {
            if self
                .shared
                .wait_until(|state| state.epoch > 0)
                .await
                .is_none()
            {
                return Ok(());
            }
            // Another publisher may have the database.
            while self.shared.is_cut_off() && self.shared.is_fed() {
                sleep(CUT_OFF_PAUSE).await;
            }
            let won = lease.win().await;
            let won = won.map_err(|error| self.relay.unreachable(format!("the lease: {error}")))?;
            let began = tokio::time::Instant::now();
            let (held, holds) = watch::channel(won);
            let lead = pin!(self.lead(&client, &jetstream, &holds));
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

    /// Leads until an error, or until the cache has no follower.
    async fn lead(
        &mut self,
        client: &Client,
        jetstream: &jetstream::Context,
        holds: &watch::Receiver<Held>,
    ) -> Result<(), Error> {
        let stream = self.streams(jetstream).await?;
        let mut questions = client
            .subscribe(self.relay.questions())
            .await
            .map_err(|error| self.relay.unreachable(error))?;
        // Subscribe before taking a view, so that no publication is missed.
        let mut changes = self.shared.changes();
        let limit = client.server_info().max_payload.min(LARGEST_PART);
        let sender = Sender {
            relay: self.relay.clone(),
            jetstream: jetstream.clone(),
            shared: Arc::clone(&self.shared),
            encoder: Encoder::new(limit.saturating_sub(HEADER_BYTES).max(1024)),
            holds: holds.clone(),
        };
        let (mut appended, start) = self.begin(&sender, &stream).await?;
        let mut states = States::new();
        if start {
            // The stream must accept the term before a state of it shows: a state has no fence (Y1).
            sender.append_start(&mut appended).await?;
            states.publish(&sender, &appended).await?;
        }
        tracing::info!(
            term = appended.term,
            epoch = appended.epoch,
            "publishing to the relay"
        );
        let mut look_at = tokio::time::Instant::now() + LOOK;
        loop {
            self.remember(&appended);
            let asked = pin!(questions.next());
            let changed = pin!(timeout_at(look_at, next_change(&mut changes)));
            match select(changed, asked).await {
                Either::Left((Ok(false), _)) => return Ok(()),
                Either::Left((Err(_), _)) => {
                    look_at = tokio::time::Instant::now() + LOOK;
                    self.look(jetstream, &stream, &appended).await?;
                }
                Either::Left((Ok(true), _)) => {
                    let bytes = sender.append(&mut appended).await?;
                    states.grow(bytes);
                    if states.is_due() {
                        states.publish(&sender, &appended).await?;
                    }
                }
                Either::Right((None, _)) => {
                    return Err(self.relay.unreachable("the subscription has ended"));
                }
                Either::Right((Some(asked), _)) => {
                    let Some(reply) = asked.reply else { continue };
                    let Some((question, _)) = message::read::<Question>(&asked.payload) else {
                        add(&self.shared.counters.relay_refused, 1);
                        continue;
                    };
                    if question.needs_state && states.may_publish() {
                        states.publish(&sender, &appended).await?;
                    }
                    // Only a leader may say how fresh its state is (Z1).
                    if !holds.borrow().holds() {
                        continue;
                    }
                    add(&self.shared.counters.relay_answers, 1);
                    let answer = appended.answer();
                    // Never waits for the network: the client has a buffer. A lost answer is asked for again.
                    let _ = client.publish(reply, answer).await;
                    if question.awaits.is_some() {
                        self.shared.request.read();
                    }
                }
            }
        }
    }

    /// Fails if somebody deleted or wrote to the streams, so that the next term repairs them, and if others may know
    /// more than this publisher.
    async fn look(
        &self,
        jetstream: &jetstream::Context,
        stream: &Stream,
        appended: &Appended,
    ) -> Result<(), Error> {
        if self.shared.is_cut_off() && appended.view.age() > CUT_OFF {
            return Err(self
                .relay
                .unreachable("this publisher has lost its database"));
        }
        let info = stream.get_info().await;
        let info = info.map_err(|error| self.relay.unreachable(error))?;
        if info.state.last_sequence != appended.sequence {
            return Err(self.relay.unreachable("somebody else wrote to the stream"));
        }
        let states = jetstream.get_stream(self.relay.state_stream()).await;
        states
            .map(drop)
            .map_err(|error| self.relay.unreachable(error))
    }

    /// Remembers what subscribers may hold, so that a new term can go on from there.
    fn remember(&mut self, appended: &Appended) {
        self.term = self.term.max(appended.term);
        self.epoch = appended.epoch;
        if self
            .bases
            .back()
            .is_none_or(|(last, _)| *last != appended.identity)
        {
            self.bases
                .push_back((appended.identity, appended.view.clone()));
            if self.bases.len() > 2 {
                self.bases.pop_front();
            }
        }
    }

    /// Creates the streams if they are missing. Returns that of the deltas.
    async fn streams(&self, jetstream: &jetstream::Context) -> Result<Stream, Error> {
        let create = async |config: StreamConfig| {
            let stream = jetstream.get_stream(&config.name).await;
            match stream {
                Ok(stream) => Ok(stream),
                Err(_) => jetstream.create_stream(config).await.map_err(|error| {
                    self.relay
                        .unreachable(format!("the relay's stream: {error}"))
                }),
            }
        };
        let common = StreamConfig {
            storage: self.storage,
            discard: DiscardPolicy::Old,
            allow_direct: true,
            ..StreamConfig::default()
        };
        create(StreamConfig {
            name: self.relay.state_stream(),
            subjects: vec![self.relay.state(">")],
            max_messages_per_subject: 1,
            ..common.clone()
        })
        .await?;
        create(StreamConfig {
            name: self.relay.stream(),
            subjects: vec![self.relay.deltas()],
            max_age: KEEP,
            max_bytes: KEEP_BYTES,
            ..common
        })
        .await
    }

    /// What the stream's end says. If the stream was purged, the newest state says it.
    async fn tail(&self, jetstream: &jetstream::Context, stream: &Stream) -> Result<Tail, Error> {
        let info = stream.get_info().await;
        let info = info.map_err(|error| self.relay.unreachable(error))?;
        let sequence = info.state.last_sequence;
        if info.state.messages > 0 {
            // The stream's leader answers this, so it is the last message.
            let last = stream.get_raw_message(sequence).await;
            let last = last.map_err(|error| self.relay.unreachable(error))?;
            if let Some((header, _)) = message::read::<Header>(&last.payload) {
                // A half delta was never applied, so what it starts from counts.
                let (identity, digest) = match header.is_last {
                    true => (header.to, header.digest),
                    false => (header.from, header.from_digest),
                };
                let last = Some(Last {
                    term: header.term,
                    epoch: header.epoch,
                    identity,
                    digest,
                    cut: header.cut.cut(),
                });
                return Ok(Tail { sequence, last });
            }
            // Somebody else wrote to the stream.
            add(&self.shared.counters.relay_refused, 1);
        }
        let states = jetstream.get_stream(self.relay.state_stream()).await;
        let states = states.map_err(|error| self.relay.unreachable(error))?;
        let subject = self.relay.state("head");
        let head = match states.get_last_raw_message_by_subject(&subject).await {
            Ok(head) => message::read::<Head>(&head.payload).map(|(head, _)| head),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => None,
            Err(error) => return Err(self.relay.unreachable(error)),
        };
        let last = head.map(|head| {
            // Each forgotten delta may have begun an epoch.
            let forgotten = sequence.saturating_sub(head.position);
            Last {
                term: head.term.saturating_add(forgotten),
                epoch: head
                    .epoch
                    .saturating_add(forgotten)
                    .saturating_add(u64::from(forgotten > 0)),
                identity: head.identity,
                digest: head.digest,
                cut: head.cut.cut(),
            }
        });
        Ok(Tail { sequence, last })
    }

    /// Begins a term. Returns what subscribers are known to hold, and whether they must read a new state.
    async fn begin(&mut self, sender: &Sender, stream: &Stream) -> Result<(Appended, bool), Error> {
        let Tail { sequence, last } = self.tail(&sender.jetstream, stream).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let seen = last.as_ref().map_or(0, |last| last.term);
        let term = now
            .max(seen.saturating_add(1))
            .max(self.term.saturating_add(1));
        let own = |view: View, epoch| Appended {
            identity: Identity {
                incarnation: fastrand::u128(..),
                version: view.version(),
            },
            view,
            term,
            epoch,
            sequence,
        };
        let latest = || View(self.shared.load_full());
        let Some(last) = last else {
            let view = latest();
            // Nothing is known of what subscribers hold, beyond what this process told them.
            let epoch = view.epoch().max(self.epoch);
            return Ok((own(view, epoch), true));
        };
        // A view of another history, or one that stays older, begins an epoch (Y3).
        let caught_up = self
            .shared
            .wait_until(|state| state.cut().follows(&last.cut));
        let Some(state) = timeout(CATCH_UP, caught_up).await.ok().flatten() else {
            let view = latest();
            // Only a read that began after the last delta tells that the history is another one (Y3).
            if !self.shared.is_fed() || view.age() > CATCH_UP {
                let reason = "this process has read less than the relay shows";
                return Err(self.relay.unreachable(reason));
            }
            return Ok((own(view, last.epoch.saturating_add(1)), true));
        };
        // Subscribers can go on from a state that this process still has.
        let view = View(state);
        let base = self.bases.iter().find(|(base, _)| *base == last.identity);
        let is_new_epoch = base.is_some_and(|(_, base)| base.epoch() != view.epoch());
        let epoch = last.epoch.saturating_add(u64::from(is_new_epoch));
        let same = (view.digest == last.digest).then_some(&view);
        let Some(base) = base.map(|(_, base)| base).or(same).cloned() else {
            return Ok((own(view, epoch), true));
        };
        let mut appended = Appended {
            identity: last.identity,
            ..own(base, epoch)
        };
        sender
            .append_as(&mut appended, fastrand::u128(..), view)
            .await?;
        Ok((appended, false))
    }
}

/// Waits until the cache publishes something. False once it has no follower.
async fn next_change(changes: &mut Changes) -> bool {
    changes.next().await.is_some()
}

/// Sends messages.
struct Sender {
    relay: Relay,
    jetstream: jetstream::Context,
    shared: Arc<Shared>,
    encoder: Encoder,
    holds: watch::Receiver<Held>,
}

impl Sender {
    /// Appends what the cache has published since. Returns how many bytes that were.
    async fn append(&self, appended: &mut Appended) -> Result<usize, Error> {
        let view = View(self.shared.load_full());
        if view.version() == appended.view.version() {
            return Ok(0);
        }
        let incarnation = appended.identity.incarnation;
        self.append_as(appended, incarnation, view).await
    }

    /// Appends a delta that leads to `view`.
    async fn append_as(
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
            true => tokio::task::spawn_blocking(pack).await,
            false => Ok(pack()),
        };
        let parts = parts.map_err(|_| self.relay.unreachable("packing was interrupted"))?;
        let parts = parts.map_err(|error| self.relay.unreachable(error))?;
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

    /// Appends an empty delta from the state to itself. Whoever holds another state learns from it that it must read the
    /// state.
    async fn append_start(&self, appended: &mut Appended) -> Result<(), Error> {
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
            if !self.holds.borrow().holds() {
                return Err(self.relay.unreachable("the lease was lost"));
            }
            if sent.len() >= MOST_UNACKNOWLEDGED
                && let Some(oldest) = sent.pop_front()
            {
                self.acknowledged(oldest).await?;
            }
            bytes += message.len();
            let mut headers = async_nats::HeaderMap::new();
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

    async fn put(&self, subject: String, message: Bytes) -> Result<(), Error> {
        let publish = self.jetstream.publish(subject, message).await;
        let sent = publish.map_err(|error| self.relay.unreachable(error))?;
        self.acknowledged(sent).await
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
fn header(appended: &Appended, to: Identity, view: &View) -> Header {
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
fn messages(header: Header, mut parts: Vec<Vec<u8>>) -> impl Iterator<Item = Bytes> {
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

impl Appended {
    fn answer(&self) -> Bytes {
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

/// When to publish a state, and where.
struct States {
    next_is_a: bool,
    /// The bytes of the last state, and of the deltas since.
    bytes: usize,
    since: usize,
    last: Option<tokio::time::Instant>,
}

impl States {
    fn new() -> States {
        States {
            next_is_a: fastrand::bool(),
            bytes: 0,
            since: 0,
            last: None,
        }
    }

    fn grow(&mut self, bytes: usize) {
        self.since += bytes;
    }

    fn may_publish(&self) -> bool {
        self.last.is_none_or(|last| last.elapsed() > STATE_PAUSE)
    }

    /// A new subscriber should have to read no more deltas than state.
    fn is_due(&self) -> bool {
        self.since > self.bytes && self.may_publish()
    }

    async fn publish(&mut self, sender: &Sender, appended: &Appended) -> Result<(), Error> {
        let slot = if self.next_is_a { 'a' } else { 'b' };
        self.next_is_a = !self.next_is_a;
        let view = appended.view.clone();
        let encoder = sender.encoder;
        // Packing a whole state takes long enough to delay others of this thread.
        let parts = tokio::task::spawn_blocking(move || encoder.encode_state(&view)).await;
        let parts = parts.map_err(|_| sender.relay.unreachable("packing was interrupted"))?;
        let parts = parts.map_err(|error| sender.relay.unreachable(error))?;
        let (mut bytes, mut count) = (0, 0);
        let header = header(appended, appended.identity, &appended.view);
        for message in messages(header.clone(), parts) {
            bytes += message.len();
            let subject = sender.relay.state(&format!("{slot}.{count}"));
            sender.put(subject, message).await?;
            count += 1;
        }
        let head = Head {
            slot,
            parts: count,
            term: header.term,
            epoch: header.epoch,
            identity: header.to,
            digest: header.digest,
            cut: header.cut,
            position: appended.sequence,
        };
        let head = message::write(&head, &[]);
        sender.put(sender.relay.state("head"), head).await?;
        add(&sender.shared.counters.relay_states, 1);
        add(&sender.shared.counters.relay_bytes, bytes);
        (self.bytes, self.since) = (bytes, 0);
        self.last = Some(tokio::time::Instant::now());
        Ok(())
    }
}

impl fmt::Debug for RelayPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayPublisher")
            .field("relay", &self.relay)
            .finish_non_exhaustive()
    }
}
