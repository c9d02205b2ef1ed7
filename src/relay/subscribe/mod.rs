//! The subscriber: keeps a cache equal to what a relay's publisher holds, without the database.

mod questions;
mod read_state;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use async_nats::{
    Client,
    jetstream::{
        self,
        consumer::{AckPolicy, DeliverPolicy, push},
        stream::Stream,
    },
};
use chrono::Utc;
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use self::questions::{Answered, Questions};
use crate::{
    backoff::Backoff,
    error::Error,
    metrics::{
        stats::WarmupStats,
        status::{Fault, Status},
    },
    relay::{
        address::{ANSWER_TIMEOUT, Relay},
        codec::Decoder,
        message::{self, Answer, Header, Identity, Question, received_faults},
    },
    store::{
        draft::Draft,
        publish::{Publisher, add},
        state::{Cut, Moment},
    },
};

/// The stream counts as stuck if a change that an answer names has not come after this time.
const STUCK: Duration = Duration::from_secs(2);

/// The server sends at least this often, so that a dead consumer is noticed after twice the time.
const CONSUMER_HEARTBEAT: Duration = Duration::from_secs(2);

/// The most parts of a state or a delta: 64 GB.
const MOST_PARTS: u32 = 1 << 17;

/// Who has followed for this long begins again with short pauses.
const FOLLOWED: Duration = Duration::from_secs(5);

/// Without an answer for this time, the status says so.
const SILENCE: Duration = Duration::from_secs(4);

const NO_ANSWER: &str =
    "no publisher answers: start one (oddscache serve --relay-to) with the same --relay-name";

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
    /// Whether the last consumer brought nothing of what an answer named.
    was_stuck: bool,
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
    /// Whether an answer has named this state, or an earlier one of this publisher.
    is_confirmed: bool,
    /// The sequence of the last delta in it.
    position: u64,
}

impl Held {
    /// Takes over the proof of an answer that names this state or an earlier one of the same publisher. The age counts
    /// from before the question, whose answer may have taken any time (P4).
    fn proven_by(&mut self, answer: &Answer, asked: Moment) {
        let age = answer.age.map(Duration::from_micros);
        self.proven = age.and_then(|age| asked.before(age)).or(self.proven);
        self.is_confirmed = true;
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

/// What a subscriber waits for.
enum Event<M> {
    Message(Option<M>),
    /// A reader waits, or wants everything to be read again.
    Requested,
    Answered(Answered),
}

/// Why a session must read a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    First,
    Gap,
    Mismatch,
    Requested,
}

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
            was_stuck: false,
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
            if self.shown.is_none() && !retry {
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
        let mut questions = Questions::new(client, &self.relay, &self.question(false));
        let (mut stuck_since, mut came_at) = (None, Instant::now());
        loop {
            let shared = self.publisher.shared();
            // None of them loses anything when it is dropped.
            let event = tokio::select! {
                message = messages.next() => Event::Message(message),
                () = shared.request.requested() => Event::Requested,
                answered = questions.answered() => Event::Answered(answered),
            };
            match event {
                Event::Message(message) => {
                    let message =
                        message.ok_or_else(|| self.relay.unreachable("the consumer has ended"))?;
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
                Event::Requested => {
                    if self.publisher.request().take_resync() {
                        return Ok(Some(Need::Requested));
                    }
                    questions.hurry(&self.question(false));
                }
                Event::Answered((asked, answer)) => {
                    let answer = answer.and_then(|answer| self.answer_in(&answer));
                    let need = match answer {
                        Some(answer) => self.answered(answer, asked),
                        None => {
                            self.silent();
                            if self.shown.is_none() {
                                return Err(self.relay.unreachable(NO_ANSWER));
                            }
                            None
                        }
                    };
                    if need.is_some() {
                        return Ok(need);
                    }
                    questions.plan(&self.question(false));
                    let Some((pending, _)) = &self.pending else {
                        stuck_since = None;
                        continue;
                    };
                    // The stream must bring what the answer names. As long as messages come, it is only slow.
                    let since = *stuck_since.get_or_insert_with(Instant::now);
                    if since.max(came_at).elapsed() > STUCK {
                        let is_other = self.held.as_ref().is_none_or(|held| {
                            held.identity.incarnation != pending.identity.incarnation
                        });
                        add(&self.publisher.counters().relay_gaps, 1);
                        // The stream may have forgotten the change. A second consumer that brings nothing shows it.
                        let is_forgotten = std::mem::replace(&mut self.was_stuck, true);
                        return Ok((is_other || is_forgotten).then_some(Need::Gap));
                    }
                }
            }
        }
    }

    fn question(&self, needs_state: bool) -> Question {
        let shown = self.shown.as_ref().map(|shown| &*shown.cut);
        Question {
            needs_state,
            waits: self.publisher.request().waits(shown),
            term: self.term,
        }
    }

    fn is_answered(&self) -> bool {
        let last = self.last_answer;
        last.is_some_and(|last| last.elapsed() < SILENCE)
    }

    /// Notes that no answer came. The counter also tells who watches this process that it is not stuck.
    fn silent(&mut self) {
        add(&self.publisher.counters().failures, 1);
        if !self.is_answered() {
            let error = self.relay.unreachable(NO_ANSWER);
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
            // An earlier answer of the same publisher is kept: otherwise nothing would ever be proven of a subscriber
            // that is always a little behind. If a change overtook the answer, the next one will fit.
            let is_kept = self.pending.as_ref().is_some_and(|(pending, _)| {
                pending.identity.incarnation == answer.identity.incarnation
            });
            if !is_behind && !is_kept {
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
        self.show(false);
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
        self.was_stuck = false;
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
        self.show(false);
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
            is_confirmed: proven.is_some(),
            position,
        };
        if let Some((answer, asked)) = &self.pending
            && answer.identity.incarnation == held.identity.incarnation
            && answer.identity.version <= held.identity.version
        {
            // An answer that names this very state must agree with it (Y5).
            if answer.identity != held.identity || answer.digest == held.digest {
                held.proven_by(answer, *asked);
            }
            self.pending = None;
        }
        self.held = Some(held);
    }

    /// Publishes the held state, unless it would lead readers back within an epoch (P2).
    fn show(&mut self, is_reload: bool) {
        let Some(held) = &self.held else { return };
        // The relay's last whole state may be old. Nobody sees it before an answer has proven that the changes since have
        // come.
        if self.shown.is_none() && !held.is_confirmed {
            return;
        }
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
        if is_reload || is_new_epoch || differs || !change.is_empty() {
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
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        // Has no effect if an error ended it before.
        self.publisher.end(None);
    }
}
