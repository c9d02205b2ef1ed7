//! How a subscriber reads a whole state.

use std::{pin::pin, time::Duration};

use async_nats::{
    Client,
    jetstream::{
        self,
        stream::{DirectGetErrorKind, Stream},
    },
};
use futures_util::{StreamExt, stream};
use tokio::time::{sleep, timeout};

use super::{MOST_PARTS, Need, Subscriber, questions::ask};
use crate::{
    error::Error,
    metrics::{reload::ReloadReason, stats::WarmupStats, status::Status},
    model::Bookmakers,
    relay::{
        address::ANSWER_TIMEOUT,
        codec::Decoder,
        message::{self, Head, Header},
    },
    store::publish::add,
};

/// Parts of a state that are fetched at a time.
const PARTS_AT_ONCE: usize = 4;

/// How often a subscriber tries to read a state before it connects again.
const MOST_TRIES: u32 = 20;

/// What came of reading a state.
enum ReadState {
    Done,
    /// A part does not belong to the head with this sequence. The leader has overwritten it, so a newer state is there
    /// or comes.
    Overwritten(u64),
    /// There is none, or none to start from: the leader must send one.
    Missing,
}

impl Subscriber {
    /// Reads a whole state, beside the old view. Asks the publisher for one if none fits.
    pub(super) async fn read_state(
        &mut self,
        client: &Client,
        jetstream: &jetstream::Context,
        need: Need,
    ) -> Result<(), Error> {
        let reason = match need {
            Need::First => ReloadReason::First,
            Need::Gap => ReloadReason::Pruned,
            Need::Mismatch => ReloadReason::Audit,
            Need::Requested => ReloadReason::Requested,
        };
        if self.shown.is_none() {
            self.publisher.set_status(Status::Warming);
        } else {
            let detail = match need {
                Need::Mismatch => "the state differed from the publisher's",
                Need::Requested => "it was requested",
                Need::First | Need::Gap => "a change was missed",
            };
            self.publisher.set_status(Status::Resyncing {
                reason,
                detail: detail.to_owned(),
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
        let (mut tries, mut overwritten) = (0, None);
        loop {
            let before = self.read_head;
            let read = self.try_read_state(&states, avoid).await?;
            if self.read_head != before {
                avoid = self.read_head;
            }
            let is_missing = match read {
                ReadState::Done => break,
                // If the head is still the same one, a part of it is lost.
                ReadState::Overwritten(head) => overwritten.replace(head) == Some(head),
                ReadState::Missing => true,
            };
            tries += 1;
            if tries > MOST_TRIES {
                return Err(self.relay.unreachable("it has no whole state yet"));
            }
            // Only who finds no state asks for one: each new one overwrites what others may be reading.
            if is_missing {
                let asked = ask(client, &self.relay, &self.question(true)).await;
                let (at, answer) = asked;
                if let Some(answer) = answer.and_then(|answer| self.answer_in(&answer)) {
                    self.pending = Some((answer, at));
                }
            }
            sleep(Duration::from_millis(150 + fastrand::u64(0..100))).await;
        }
        let counters = self.publisher.counters();
        add(&counters.relay_states, 1);
        add(&counters.reloads, 1);
        add(counters.reloads_by_reason.of(reason), 1);
        let stats = self.draft.stats();
        self.last_warmup = Some(WarmupStats {
            events: self.draft.len(),
            snapshots: stats.total_snapshots,
            markets: stats.total_markets,
            memory_bytes: stats.memory_bytes,
            seconds: began.elapsed().as_secs_f64(),
        });
        // A fresh question gives the new state its age.
        let asked = ask(client, &self.relay, &self.question(false)).await;
        if let (at, Some(answer)) = asked
            && let Some(answer) = self.answer_in(&answer)
            && self.answered(answer, at).is_some()
        {
            return Err(self.relay.unreachable("its state differs from its digest"));
        }
        self.show(true);
        Ok(())
    }

    /// Reads the newest whole state. One whose head has the sequence `avoid`, and one of a former publisher, count as
    /// missing.
    async fn try_read_state(
        &mut self,
        states: &Stream,
        avoid: Option<u64>,
    ) -> Result<ReadState, Error> {
        let relay = self.relay.clone();
        let get = async |subject: String| {
            let get = states.direct_get_last_for_subject(subject);
            match timeout(ANSWER_TIMEOUT, get).await {
                Ok(Ok(message)) => Ok(Some(message)),
                Ok(Err(error)) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
                Ok(Err(error)) => Err(relay.unreachable(format!("reading its state: {error}"))),
                Err(_) => Err(relay.unreachable(
                    "reading its state: no answer; the login may have no right to (oddscache doctor --relay-from)",
                )),
            }
        };
        let Some(head) = get(relay.state("head")).await? else {
            return Ok(ReadState::Missing);
        };
        let sequence = head.sequence;
        let Some((head, _)) = message::read::<Head>(&head.payload) else {
            self.refuse();
            tracing::warn!("the relay's state is malformed, or of another version of oddscache");
            return Ok(ReadState::Missing);
        };
        let is_usable = head.term >= self.term
            && ('a'..='b').contains(&head.slot)
            && (1..=MOST_PARTS).contains(&head.parts)
            && avoid != Some(sequence);
        if !is_usable {
            return Ok(ReadState::Missing);
        }
        let subjects = (0..head.parts).map(|part| relay.state(&format!("{}.{part}", head.slot)));
        let mut parts = pin!(stream::iter(subjects.map(&get)).buffered(PARTS_AT_ONCE));
        let mut next = self.draft.successor();
        let mut decoder = Decoder::new();
        let mut last: Option<Header> = None;
        let mut count = 0;
        while let Some(part) = parts.next().await {
            let part = match part {
                Ok(part) => part,
                Err(error) => {
                    self.draft.packer = std::mem::take(&mut next.packer);
                    return Err(error);
                }
            };
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
                    let decoded = match records.is_empty() {
                        true => Ok(()),
                        false => decoder.decode_part(records, &mut next),
                    };
                    if let Err(reason) = &decoded {
                        self.refuse();
                        tracing::warn!(%reason, "a part of the publisher's state cannot be read; do both run the same version?");
                    }
                    decoded.is_ok()
                }
                None => false,
            };
            if !decoded {
                // Give the names back, which the draft goes on with.
                self.draft.packer = std::mem::take(&mut next.packer);
                return Ok(ReadState::Overwritten(sequence));
            }
            count += 1;
        }
        let Some(header) = last else {
            self.draft.packer = std::mem::take(&mut next.packer);
            return Ok(ReadState::Overwritten(sequence));
        };
        // The rest has no await, so the draft changes whole (P1). A whole state tells all bookmakers.
        next.set_lookup(Bookmakers::new(), []);
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
            return Ok(ReadState::Missing);
        }
        Ok(ReadState::Done)
    }
}
