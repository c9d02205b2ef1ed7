//! The subscriber: keeps a cache equal to what a relay's publisher holds, without the database.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use async_nats::{
    Client,
    jetstream::{
        self,
        consumer::{AckPolicy, DeliverPolicy, push},
        stream::Stream,
    },
};
use bytes::Bytes;
use chrono::Utc;
use futures_util::{
    StreamExt,
    future::{Either, select},
    stream,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{
    backoff::Backoff,
    error::Error,
    metrics::{
        reload::ReloadReason,
        stats::WarmupStats,
        status::{Fault, Status},
    },
    relay::{
        address::{ANSWER_TIMEOUT, Relay},
        codec::Decoder,
        message::{self, Answer, Head, Header, Identity, Question, received_faults},
    },
    store::{
        draft::Draft,
        publish::{Publisher, add},
        state::{Cut, Moment},
    },
};

/// The time between two questions, give or take a fifth. The random part spreads the questions of many subscribers.
const ASK: Duration = Duration::from_millis(800);

/// The same while a reader waits for a transaction.
const ASK_SOON: Duration = Duration::from_millis(40);

/// How many quick questions a waiting reader causes at most.
const QUICK_QUESTIONS: u32 = 25;

/// The stream counts as stuck if a change that an answer names has not come after this time.
const STUCK: Duration = Duration::from_secs(2);

/// The server sends at least this often, so that a dead consumer is noticed after twice the time.
const CONSUMER_HEARTBEAT: Duration = Duration::from_secs(2);

/// Parts of a state that are fetched at a time.
const PARTS_AT_ONCE: usize = 4;

/// The most parts of a state or a delta: 64 GB.
const MOST_PARTS: u32 = 1 << 17;

/// Who has followed for this long begins again with short pauses.
const FOLLOWED: Duration = Duration::from_secs(5);

/// Without an answer for this time, the status says so.
const SILENCE: Duration = Duration::from_secs(4);

/// Follows a relay.
pub(crate) struct Subscriber {
    relay: Relay,
    publisher: Publisher,
    draft: Draft,
    /// The state that the draft holds; `None` before the first.
    held: Option<Held>,
    /// What readers see.
    shown: Option<Shown>,
    /// The greatest term seen. Messages of smaller ones are ignored.
    term: u64,
    /// Added to the relay's epochs. Grows if a relay begins anew with small ones.
    epoch_offset: u64,
    /// The latest answer that names a state which has not come yet.
    pending: Option<(Answer, Moment)>,
    /// The sequence of the head of the state that was read last.
    read_head: Option<u64>,
    last_warmup: Option<WarmupStats>,
    last_answer: Option<Instant>,
    troubled_since: Option<chrono::DateTime<Utc>>,
}

/// The state that the draft holds.
struct Held {
    identity: Identity,
    digest: u128,
    epoch: u64,
    cut: Arc<Cut>,
    unreadable: Vec<Fault>,
    /// The latest moment at which this state or an earlier one of this publisher was proven current.
    proven: Option<Moment>,
    /// The sequence of the last delta in it.
    position: u64,
}

impl Held {
    /// Takes over the proof of an answer that names this state or an earlier one of the same publisher. The age counts
    /// from before the question, whose answer may have taken any time (P4).
    fn proven_by(&mut self, answer: &Answer, asked: Moment) {
        let age = answer.age.map(Duration::from_micros);
        self.proven = age.and_then(|age| asked.before(age)).or(self.proven);
        if answer.identity == self.identity {
            self.cut = Arc::new(answer.cut.cut());
            self.unreadable = received_faults(&answer.unreadable);
        }
    }
}

struct Shown {
    epoch: u64,
    cut: Arc<Cut>,
    /// The term at which it was shown.
    term: u64,
}

/// A delta whose parts are coming.
struct Incoming {
    header: Header,
    next_part: u32,
    decoder: Decoder,
}

/// Why a session must read a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    First,
    Gap,
    Mismatch,
    Requested,
}

type Asking<'a> = Pin<Box<dyn Future<Output = (Moment, Option<Bytes>)> + Send + 'a>>;

impl Subscriber {
    pub(crate) fn new(relay: Relay, publisher: Publisher) -> Subscriber {
        Subscriber {
            relay,
            publisher,
            draft: Draft::default(),
            held: None,
            shown: None,
            term: 0,
            epoch_offset: 0,
            pending: None,
            read_head: None,
            last_warmup: None,
            last_answer: None,
            troubled_since: None,
        }
    }

    /// Follows until the future is dropped. Before the first state, an error ends it if `retry` is off.
    pub(crate) async fn run(mut self, retry: bool) -> Result<(), Error> {
        let mut backoff = Backoff::for_relays();
        loop {
            let Err(error) = self.session(&mut backoff).await;
            add(&self.publisher.counters().failures, 1);
            if self.held.is_none() && !retry {
                self.publisher.end(Some(error.clone()));
                return Err(error);
            }
            tracing::warn!(%error, "not following the relay; trying again after a pause");
            self.troubled(error);
            sleep(backoff.next()).await;
        }
    }

    fn troubled(&mut self, error: Error) {
        let since = *self.troubled_since.get_or_insert_with(Utc::now);
        let status = Status::Disconnected { since, error };
        self.publisher.set_status(status);
    }

    /// Connects, reads a state, and follows the changes until an error.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, Error> {
        let client = self.relay.connect("relay subscriber").await?;
        let jetstream = jetstream::new(client.clone());
        let mut need = self.held.is_none().then_some(Need::First);
        loop {
            if let Some(why) = need {
                let read = self.read_state(&client, &jetstream, why).await;
                if read.is_err() && why == Need::Requested {
                    // The request still stands.
                    self.publisher.request().resync();
                }
                read?;
            }
            let began = Instant::now();
            let followed = self.follow(&client, &jetstream).await;
            if began.elapsed() > FOLLOWED {
                *backoff = Backoff::for_relays();
            }
            need = followed?;
        }
    }

    async fn stream(&self, jetstream: &jetstream::Context, name: String) -> Result<Stream, Error> {
        let stream = jetstream.get_stream(name).await;
        stream.map_err(|error| {
            self.relay
                .unreachable(format!("the relay's stream: {error}"))
        })
    }

    /// Follows the changes after the held state. Returns why a state must be read again; `None` if only the consumer must
    /// be made again.
    async fn follow(
        &mut self,
        client: &Client,
        jetstream: &jetstream::Context,
    ) -> Result<Option<Need>, Error> {
        let position = self.held.as_ref().map_or(0, |held| held.position);
        let config = push::Config {
            deliver_subject: client.new_inbox(),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: position.saturating_add(1),
            },
            ack_policy: AckPolicy::None,
            max_deliver: 1,
            flow_control: true,
            idle_heartbeat: CONSUMER_HEARTBEAT,
            memory_storage: true,
            num_replicas: 1,
            ..push::Config::default()
        };
        let create = jetstream.create_consumer_on_stream(config, self.relay.stream());
        let consumer = timeout(ANSWER_TIMEOUT, create).await;
        let consumer = consumer
            .map_err(|_| self.relay.unreachable("JetStream does not answer"))?
            .map_err(|error| self.relay.unreachable(error))?;
        let messages = consumer.messages().await;
        let mut messages = messages.map_err(|error| self.relay.unreachable(error))?;
        let mut incoming = None;
        let (mut ask_at, mut quick) = (Instant::now(), 0);
        let (mut stuck_since, mut came_at) = (None, Instant::now());
        loop {
            // A question under way is not dropped by what else comes.
            let mut asking = ask(client, &self.relay, ask_at, self.question(false));
            let answered = loop {
                let shared = self.publisher.shared();
                let requested = pin!(shared.request.requested());
                let came = pin!(select(messages.next(), requested));
                match select(came, &mut asking).await {
                    Either::Left((Either::Left((message, _)), _)) => {
                        let message = message
                            .ok_or_else(|| self.relay.unreachable("the consumer has ended"))?
                            .map_err(|error| self.relay.unreachable(error));
                        let message = match message {
                            Ok(message) => message,
                            // The server forgot the consumer, or was restarted.
                            Err(error) => {
                                self.silent();
                                tracing::debug!(%error, "making the consumer again");
                                return Ok(None);
                            }
                        };
                        let sequence = message.info().map(|info| info.stream_sequence);
                        let Ok(sequence) = sequence else { continue };
                        came_at = Instant::now();
                        if let Some(need) = self.part(&mut incoming, &message.payload, sequence) {
                            return Ok(Some(need));
                        }
                    }
                    Either::Left((Either::Right(_), _)) => {
                        if self.publisher.request().take_resync() {
                            return Ok(Some(Need::Requested));
                        }
                        quick = QUICK_QUESTIONS;
                        // A question under way is kept. The next one follows soon after it.
                        if ask_at > Instant::now() {
                            ask_at = Instant::now();
                            asking = ask(client, &self.relay, ask_at, self.question(false));
                        }
                    }
                    Either::Right((answered, _)) => break answered,
                }
            };
            let wait = match quick {
                0 => ASK.mul_f64(0.8 + 0.4 * fastrand::f64()),
                _ => ASK_SOON,
            };
            quick = quick.saturating_sub(1);
            ask_at = Instant::now() + wait;
            let (asked, answer) = answered;
            let answer = answer.and_then(|answer| self.answer_in(&answer));
            let Some(answer) = answer else {
                self.silent();
                continue;
            };
            if let Some(need) = self.answered(answer, asked) {
                return Ok(Some(need));
            }
            // The stream must bring what the answer names.
            match (&self.pending, stuck_since) {
                (None, _) => stuck_since = None,
                (Some(_), None) => stuck_since = Some(Instant::now()),
                // As long as messages come, the stream is only slow.
                (Some((pending, _)), Some(since)) if since.max(came_at).elapsed() > STUCK => {
                    let is_other = self.held.as_ref().is_none_or(|held| {
                        held.identity.incarnation != pending.identity.incarnation
                    });
                    add(&self.publisher.counters().relay_gaps, 1);
                    return Ok(is_other.then_some(Need::Gap));
                }
                _ => {}
            }
        }
    }

    fn question(&self, needs_state: bool) -> Question {
        Question {
            needs_state,
            awaits: self
                .publisher
                .request()
                .awaited(self.shown.as_ref().map(|shown| &*shown.cut)),
            term: self.term,
        }
    }

    fn is_answered(&self) -> bool {
        let last = self.last_answer;
        last.is_some_and(|last| last.elapsed() < SILENCE)
    }

    /// Notes that no answer came.
    fn silent(&mut self) {
        if !self.is_answered() {
            let error = self.relay.unreachable("no publisher answers");
            self.troubled(error);
        }
    }

    fn refuse(&self) {
        add(&self.publisher.counters().relay_refused, 1);
    }

    /// Reads an answer. `None` if it is malformed, or of a publisher that no longer leads.
    fn answer_in(&mut self, answer: &[u8]) -> Option<Answer> {
        let answer = message::read::<Answer>(answer).map(|(answer, _)| answer);
        let answer = answer.filter(|answer| answer.term >= self.term);
        match answer {
            Some(answer) => {
                self.last_answer = Some(Instant::now());
                add(&self.publisher.counters().relay_answers, 1);
                Some(answer)
            }
            None => {
                self.refuse();
                None
            }
        }
    }

    /// Takes an answer to a question that was asked at `asked`. Returns whether a state must be read.
    fn answered(&mut self, answer: Answer, asked: Moment) -> Option<Need> {
        let held = self.held.as_mut()?;
        if answer.identity != held.identity {
            let is_behind = answer.identity.incarnation == held.identity.incarnation
                && answer.identity.version < held.identity.version;
            // A change overtook the answer. The next one will fit.
            if !is_behind {
                self.pending = Some((answer, asked));
            }
            return None;
        }
        self.pending = None;
        if answer.digest != self.draft.digest() {
            add(&self.publisher.counters().relay_mismatches, 1);
            tracing::error!(
                version = answer.identity.version,
                "this state differs from the publisher's; reading it again; please report this"
            );
            return Some(Need::Mismatch);
        }
        held.proven_by(&answer, asked);
        self.show(None);
        None
    }

    /// Takes a part of a delta. Returns whether a state must be read.
    fn part(
        &mut self,
        incoming: &mut Option<Incoming>,
        message: &[u8],
        sequence: u64,
    ) -> Option<Need> {
        let Some((header, records)) = message::read::<Header>(message) else {
            self.refuse();
            return None;
        };
        if header.term < self.term {
            self.refuse();
            return None;
        }
        let held = self.held.as_mut()?;
        if header.to == held.identity && header.part == 0 {
            // It is in the held state already.
            held.position = held.position.max(sequence);
            self.term = header.term;
            return None;
        }
        if header.part == 0 {
            *incoming =
                (header.from == held.identity && header.from_digest == held.digest).then(|| {
                    Incoming {
                        header: header.clone(),
                        next_part: 0,
                        decoder: Decoder::new(),
                    }
                });
        }
        let fits = incoming.as_ref().is_some_and(|incoming| {
            incoming.next_part == header.part
                && (incoming.header.to, incoming.header.from) == (header.to, header.from)
                && header.part < MOST_PARTS
        });
        let Some(mut coming) = incoming.take().filter(|_| fits) else {
            let is_old = header.to.incarnation == held.identity.incarnation
                && header.to.version <= held.identity.version;
            if is_old {
                return None;
            }
            add(&self.publisher.counters().relay_gaps, 1);
            tracing::info!("a change was missed; reading the state again beside the old view");
            return Some(Need::Gap);
        };
        self.term = header.term;
        if !records.is_empty()
            && let Err(error) = coming.decoder.decode_part(records, &mut self.draft)
        {
            self.refuse();
            tracing::warn!(%error, "a malformed change; reading the state again");
            return Some(Need::Gap);
        }
        add(&self.publisher.counters().relay_bytes, message.len());
        if !header.is_last {
            coming.next_part += 1;
            *incoming = Some(coming);
            return None;
        }
        // The rest has no await: the parts are applied when they are whole, and all at once (P1).
        let applied_at = std::time::Instant::now();
        coming.decoder.apply(&mut self.draft);
        let proven = held.proven;
        self.hold(&header, sequence, proven);
        add(&self.publisher.counters().relay_deltas, 1);
        let is_equal = self.draft.digest() == header.digest;
        if !is_equal {
            add(&self.publisher.counters().relay_mismatches, 1);
            tracing::error!(
                "a change led to another state than the publisher's; reading the state again; please report this"
            );
            return Some(Need::Mismatch);
        }
        self.show(None);
        self.publisher.timers().apply.record(applied_at.elapsed());
        None
    }

    /// Notes what the draft holds now. The latest proof of an earlier state holds for a later one, whose read began later.
    fn hold(&mut self, header: &Header, position: u64, proven: Option<Moment>) {
        let mut held = Held {
            identity: header.to,
            digest: header.digest,
            epoch: header.epoch,
            cut: Arc::new(header.cut.cut()),
            unreadable: received_faults(&header.unreadable),
            proven,
            position,
        };
        if let Some((answer, asked)) = &self.pending
            && answer.identity.incarnation == held.identity.incarnation
            && answer.identity.version <= held.identity.version
        {
            held.proven_by(answer, *asked);
            self.pending = None;
        }
        self.held = Some(held);
    }

    /// Publishes the held state, unless it would lead readers back within an epoch (P2).
    fn show(&mut self, reload: Option<ReloadReason>) {
        let Some(held) = &self.held else { return };
        let mut epoch = held.epoch.saturating_add(self.epoch_offset);
        if let Some(shown) = &self.shown {
            // A new leader goes on with the epochs of the chain. If it does not, the relay has begun anew.
            let is_other = !held.cut.server.has_run_on_since(&shown.cut.server);
            let is_anew = epoch < shown.epoch || epoch == shown.epoch && is_other;
            if is_anew && self.term > shown.term {
                let next = shown.epoch.saturating_add(1);
                self.epoch_offset = self.epoch_offset.saturating_add(next - epoch);
                epoch = next;
            }
            if epoch < shown.epoch || epoch == shown.epoch && !held.cut.follows(&shown.cut) {
                tracing::debug!("waiting until the relay is not older than the view");
                return;
            }
        }
        let cut = Arc::clone(&held.cut);
        let change = self.draft.change(Arc::clone(&cut), epoch);
        let is_new_epoch = self.shown.as_ref().is_none_or(|shown| shown.epoch != epoch);
        let differs = held.unreadable != self.publisher.published().unreadable;
        if reload.is_some() || is_new_epoch || differs || !change.is_empty() {
            let warmup = self.last_warmup.clone();
            let mut state = self
                .draft
                .state(Arc::clone(&cut), epoch, held.proven, warmup);
            state.unreadable.clone_from(&held.unreadable);
            self.publisher.publish(state, change);
        } else if let Some(proven) = held.proven {
            self.publisher.prove(Arc::clone(&cut), proven);
        }
        self.shown = Some(Shown {
            epoch,
            cut,
            term: self.term,
        });
        if self.is_answered() {
            self.troubled_since = None;
            self.publisher.set_status(Status::Live);
        }
    }

    /// Reads a whole state, beside the old view. Asks the publisher for one if none fits.
    async fn read_state(
        &mut self,
        client: &Client,
        jetstream: &jetstream::Context,
        need: Need,
    ) -> Result<(), Error> {
        if self.shown.is_none() {
            self.publisher.set_status(Status::Warming);
        } else {
            self.publisher.set_status(Status::Resyncing {
                reason: ReloadReason::Requested,
                detail: match need {
                    Need::Mismatch => "the state differed from the publisher's",
                    Need::Requested => "it was requested",
                    Need::First | Need::Gap => "a change was missed",
                }
                .to_owned(),
            });
        }
        // Many subscribers may have missed the same change.
        if need == Need::Gap {
            sleep(Duration::from_millis(fastrand::u64(0..200))).await;
        }
        let began = std::time::Instant::now();
        let states = self.stream(jetstream, self.relay.state_stream()).await?;
        // The state that was read last led to this need, so another one must come.
        let mut avoid = self.read_head.filter(|_| need != Need::First);
        let mut tries = 0;
        loop {
            let before = self.read_head;
            let read = self.try_read_state(&states, avoid).await;
            if self.read_head != before {
                avoid = self.read_head;
            }
            match read {
                true => break,
                false if tries < 20 => {
                    tries += 1;
                    let asked = ask(client, &self.relay, Instant::now(), self.question(true)).await;
                    let (at, answer) = asked;
                    if let Some(answer) = answer.and_then(|answer| self.answer_in(&answer)) {
                        self.pending = Some((answer, at));
                    }
                    sleep(Duration::from_millis(150 + fastrand::u64(0..100))).await;
                }
                false => return Err(self.relay.unreachable("it has no whole state yet")),
            }
        }
        add(&self.publisher.counters().relay_states, 1);
        add(&self.publisher.counters().reloads, 1);
        let stats = self.draft.stats();
        self.last_warmup = Some(WarmupStats {
            events: self.draft.len(),
            snapshots: stats.total_snapshots,
            markets: stats.total_markets,
            memory_bytes: stats.memory_bytes,
            seconds: began.elapsed().as_secs_f64(),
        });
        // A fresh question gives the new state its age.
        let asked = ask(client, &self.relay, Instant::now(), self.question(false)).await;
        if let (at, Some(answer)) = asked
            && let Some(answer) = self.answer_in(&answer)
            && self.answered(answer, at).is_some()
        {
            return Err(self.relay.unreachable("its state differs from its digest"));
        }
        let reason = match self.shown {
            None => ReloadReason::First,
            Some(_) => ReloadReason::Requested,
        };
        self.show(Some(reason));
        Ok(())
    }

    /// Reads the newest whole state. False if there is none, it was overwritten meanwhile, its head has the sequence
    /// `avoid`, or it is of a former publisher.
    async fn try_read_state(&mut self, states: &Stream, avoid: Option<u64>) -> bool {
        let relay = self.relay.clone();
        let get = async |subject: String| {
            let get = states.direct_get_last_for_subject(subject);
            timeout(ANSWER_TIMEOUT, get).await.ok()?.ok()
        };
        let Some(head) = get(relay.state("head")).await else {
            return false;
        };
        let sequence = head.sequence;
        let Some((head, _)) = message::read::<Head>(&head.payload) else {
            self.refuse();
            return false;
        };
        let is_usable = head.term >= self.term
            && ('a'..='b').contains(&head.slot)
            && (1..=MOST_PARTS).contains(&head.parts)
            && avoid != Some(sequence);
        if !is_usable {
            return false;
        }
        let subjects = (0..head.parts).map(|part| relay.state(&format!("{}.{part}", head.slot)));
        let mut parts = pin!(stream::iter(subjects.map(&get)).buffered(PARTS_AT_ONCE));
        let mut next = self.draft.successor();
        let mut decoder = Decoder::new();
        let mut last: Option<Header> = None;
        let mut count = 0;
        while let Some(part) = parts.next().await {
            let read = part
                .as_ref()
                .and_then(|part| message::read::<Header>(&part.payload));
            let fits = read.filter(|(header, _)| {
                header.to == head.identity
                    && header.term == head.term
                    && header.part == count
                    && header.is_last == (count + 1 == head.parts)
            });
            let decoded = match fits {
                Some((header, records)) => {
                    add(&self.publisher.counters().relay_bytes, records.len());
                    last = Some(header);
                    records.is_empty() || decoder.decode_part(records, &mut next).is_ok()
                }
                None => false,
            };
            if !decoded {
                // Give the names back, which the draft goes on with.
                self.draft.packer = std::mem::take(&mut next.packer);
                return false;
            }
            count += 1;
        }
        let Some(header) = last else {
            self.draft.packer = std::mem::take(&mut next.packer);
            return false;
        };
        // The rest has no await, so the draft changes whole (P1).
        decoder.apply(&mut next);
        next.replace(&mut self.draft);
        self.draft = next;
        self.term = head.term;
        self.read_head = Some(sequence);
        let same_publisher = self.held.as_ref().is_some_and(|held| {
            held.identity.incarnation == head.identity.incarnation
                && held.identity.version <= head.identity.version
        });
        let proven = self.held.as_ref().and_then(|held| held.proven);
        self.hold(&header, head.position, proven.filter(|_| same_publisher));
        if self.draft.digest() != header.digest {
            add(&self.publisher.counters().relay_mismatches, 1);
            tracing::error!("a state differs from what the publisher holds; please report this");
            return false;
        }
        true
    }
}

/// Asks at `at`. Returns when the question was asked, and the answer if one came in time.
fn ask<'a>(client: &'a Client, relay: &Relay, at: Instant, question: Question) -> Asking<'a> {
    let subject = relay.questions();
    let question = message::write(&question, &[]);
    Box::pin(async move {
        sleep_until(at).await;
        let asked = Moment::now();
        let answer = timeout(ANSWER_TIMEOUT, client.request(subject, question)).await;
        let answer = answer
            .ok()
            .and_then(Result::ok)
            .map(|answer| answer.payload);
        (asked, answer)
    })
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        // Has no effect if an error ended it before.
        self.publisher.end(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{BetpawaSnapshots, CompetitorSnapshots, MarketInput, OutcomeInput, SnapshotInput},
        relay::message::WireCut,
    };

    fn set_price(draft: &mut Draft, odds: f64) {
        let outcome = OutcomeInput {
            name: "1".to_owned(),
            odds: Some(odds),
            is_active: true,
            extra: serde_json::Map::new(),
        };
        let market = MarketInput {
            betpawa_market_id: "3743".to_owned(),
            outcomes: vec![outcome],
            ..MarketInput::default()
        };
        let snapshot = draft.packer.snapshot(&SnapshotInput {
            snapshot_id: 1,
            event_id: 7,
            bookmaker_id: 1,
            captured_at: chrono::DateTime::UNIX_EPOCH,
            last_confirmed_at: None,
            markets: vec![market],
        });
        let own = BetpawaSnapshots::new(vec![snapshot]);
        draft.set(7, None, own, CompetitorSnapshots::default());
    }

    /// No message can make a difference that a subscriber shows, because it compares before it shows. If one price is
    /// wrong nevertheless, the next answer finds it.
    #[test]
    fn an_answer_finds_one_wrong_price() {
        let relay = Relay::new("nats://localhost").expect("a URL");
        let mut subscriber = Subscriber::new(relay, Publisher::new(Status::Warming).1);
        set_price(&mut subscriber.draft, 1.5);
        let digest = subscriber.draft.digest();
        let identity = Identity {
            incarnation: 1,
            version: 1,
        };
        let cut = WireCut::of(&Cut::default());
        let header = Header {
            term: 1,
            epoch: 1,
            from: identity,
            from_digest: digest,
            to: identity,
            digest,
            part: 0,
            is_last: true,
            cut: cut.clone(),
            unreadable: Vec::new(),
        };
        subscriber.hold(&header, 1, None);
        let answered = |subscriber: &mut Subscriber| {
            let answer = Answer {
                term: 1,
                identity,
                digest,
                age: Some(0),
                cut: cut.clone(),
                unreadable: Vec::new(),
            };
            let need = subscriber.answered(answer, Moment::now());
            (need, subscriber.publisher.counters().get().relay_mismatches)
        };
        assert_eq!(answered(&mut subscriber), (None, 0));
        assert!(subscriber.publisher.published().event(7).is_some());
        set_price(&mut subscriber.draft, 1.51);
        assert_eq!(answered(&mut subscriber), (Some(Need::Mismatch), 1));
        set_price(&mut subscriber.draft, 1.5);
        assert_eq!(answered(&mut subscriber), (None, 1));
    }
}
