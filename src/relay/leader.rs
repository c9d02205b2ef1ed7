//! A term of a leader: from the tail that it finds until it loses the lease.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_nats::{Client, Message, jetstream::stream::Stream};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    error::Error,
    relay::{
        message::{self, Head, Identity, Question},
        send::{Appended, Sender},
        states::States,
        streams::{Tail, newest_head, tail},
    },
    store::{publish::add, state::View},
};

/// How often a leader looks whether the streams are as it left them.
const LOOK: Duration = Duration::from_secs(1);

/// How long a new leader waits until its own view is not older than the last delta.
const CATCH_UP: Duration = Duration::from_secs(5);

/// A leader takes over no term of a question that is as great as this. So a hostile question cannot use up the numbers:
/// each later leader has one more.
const GREATEST_TERM: u64 = 1 << 62;

/// A leader takes over a term at most this often, because each time it writes to the stream.
const TERM_PAUSE: Duration = Duration::from_secs(2);

/// How the reply subjects of all clients begin. An answer goes nowhere else: the server does not check whether who asks
/// may write there.
const INBOX: &str = "_INBOX.";

/// What a process keeps from term to term.
#[derive(Default)]
pub(super) struct Past {
    /// The greatest term and the latest epoch of this process.
    term: u64,
    epoch: u64,
    /// The states that subscribers may hold now, with the identity under which they know them.
    bases: VecDeque<(Identity, View)>,
}

impl Past {
    /// Remembers what subscribers may hold, so that a new term can go on from there.
    fn remember(&mut self, appended: &Appended) {
        self.term = self.term.max(appended.term);
        self.epoch = appended.epoch;
        let last = self.bases.back();
        if last.is_none_or(|(last, _)| *last != appended.identity) {
            let base = (appended.identity, appended.view.clone());
            self.bases.push_back(base);
            if self.bases.len() > 2 {
                self.bases.pop_front();
            }
        }
    }
}

/// Leads until an error, or until the cache has no follower.
pub(super) async fn lead(
    past: &mut Past,
    client: &Client,
    sender: &Sender,
    stream: &Stream,
) -> Result<(), Error> {
    let relay = &sender.relay;
    let questions = client.subscribe(relay.questions()).await;
    let mut questions = questions.map_err(|error| relay.unreachable(error))?;
    // Subscribe before taking a view, so that no publication is missed.
    let mut changes = sender.shared.changes();
    let head = newest_head(relay, &sender.jetstream).await?;
    let (mut appended, starts) = begin(past, sender, stream, head.as_ref()).await?;
    let mut states = States::after(head.as_ref());
    if starts {
        // The stream must accept the term before a state of it shows: a state has no fence (Y1).
        sender.append_start(&mut appended).await?;
        states.send(sender, &appended);
    }
    let (term, epoch) = (appended.term, appended.epoch);
    tracing::info!(term, epoch, "publishing to the relay");
    let (mut look_at, mut term_at) = (Instant::now() + LOOK, Instant::now());
    loop {
        past.remember(&appended);
        // None of them loses anything when it is dropped.
        tokio::select! {
            changed = changes.next() => {
                // The cache has no follower any more.
                if changed.is_none() {
                    return Ok(());
                }
                let bytes = sender.append(&mut appended).await?;
                states.grow(bytes, sender, &appended);
            }
            asked = questions.next() => {
                let asked = asked.ok_or_else(|| relay.unreachable("the subscription has ended"))?;
                answer(client, sender, &mut states, &mut appended, &mut term_at, asked).await?;
            }
            sent = states.sent() => sent?,
            () = sleep_until(look_at) => {
                look_at = Instant::now() + LOOK;
                look(sender, stream, &appended).await?;
            }
        }
    }
}

/// Answers a question.
async fn answer(
    client: &Client,
    sender: &Sender,
    states: &mut States,
    appended: &mut Appended,
    term_at: &mut Instant,
    asked: Message,
) -> Result<(), Error> {
    let reply = asked.reply.filter(|reply| reply.starts_with(INBOX));
    let question = message::read::<Question>(&asked.payload);
    let (Some(reply), Some((question, _))) = (reply, question) else {
        add(&sender.shared.counters.relay_refused, 1);
        return Ok(());
    };
    if question.term > appended.term {
        let now = Instant::now();
        if question.term >= GREATEST_TERM || now < *term_at {
            add(&sender.shared.counters.relay_refused, 1);
            return Ok(());
        }
        *term_at = now + TERM_PAUSE;
        // The messages of that term are gone, or another publisher leads. Then the stream refuses this.
        appended.term = question.term + 1;
        sender.append_start(appended).await?;
    }
    if question.needs_state {
        states.send(sender, appended);
    }
    // Only a leader may say how fresh its state is (Z1).
    if sender.holds.borrow().holds() {
        add(&sender.shared.counters.relay_answers, 1);
        // Waits only while the client's buffer is full. A lost answer is asked for again.
        let _ = client.publish(reply, appended.answer()).await;
        if question.waits {
            sender.shared.request.read();
        }
    }
    Ok(())
}

/// Fails if somebody deleted or wrote to the streams, so that the next term repairs them, and if others may know more
/// than this publisher.
async fn look(sender: &Sender, stream: &Stream, appended: &Appended) -> Result<(), Error> {
    let relay = &sender.relay;
    if sender.shared.is_out_of_touch() {
        return Err(relay.unreachable("this publisher has lost its database"));
    }
    let info = stream.get_info().await;
    let info = info.map_err(|error| relay.unreachable(error))?;
    if info.state.last_sequence != appended.sequence {
        return Err(relay.unreachable("somebody else wrote to the stream"));
    }
    let states = sender.jetstream.get_stream(relay.state_stream()).await;
    states.map(drop).map_err(|error| relay.unreachable(error))
}

/// Begins a term. Returns what subscribers are known to hold, and whether they must read a new state.
async fn begin(
    past: &Past,
    sender: &Sender,
    stream: &Stream,
    head: Option<&Head>,
) -> Result<(Appended, bool), Error> {
    let counters = &sender.shared.counters;
    let Tail { sequence, last } = tail(&sender.relay, stream, head, counters).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    let seen = last.as_ref().map_or(0, |last| last.term);
    let term = now
        .max(seen.saturating_add(1))
        .max(past.term.saturating_add(1));
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
    let latest = || View(sender.shared.load_full());
    let Some(last) = last else {
        let view = latest();
        // Nothing is known of what subscribers hold, beyond what this process told them.
        let epoch = view.epoch().max(past.epoch);
        return Ok((own(view, epoch), true));
    };
    // A view of another history, or one that stays older, begins an epoch (Y3).
    let caught_up = sender
        .shared
        .wait_until(|state| state.cut().follows(&last.cut));
    let Some(state) = timeout(CATCH_UP, caught_up).await.ok().flatten() else {
        let view = latest();
        // Only a read that began after the last delta tells that the history is another one (Y3).
        if !sender.shared.is_fed() || view.age() > CATCH_UP {
            let reason = "this process has read less than the relay shows";
            return Err(sender.relay.unreachable(reason));
        }
        return Ok((own(view, last.epoch.saturating_add(1)), true));
    };
    // Subscribers can go on from a state that this process still has.
    let view = View(state);
    let base = past.bases.iter().find(|(base, _)| *base == last.identity);
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
