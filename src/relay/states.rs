//! Whole states: when a leader sends one, and how. It goes on with deltas and answers meanwhile.

use std::{
    future::{self, Future},
    pin::Pin,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    error::Error,
    relay::{
        message::{self, Head},
        send::{Appended, LARGEST_PART, Sender, header, messages},
    },
    store::publish::add,
};

/// Between two states pass at least this time, and [`REST`] times what sending the last one took. So who reads as fast
/// as the leader sends has read a state before the second one after it overwrites it.
const PAUSE: Duration = Duration::from_secs(2);
const REST: u32 = 4;

type Sending = Pin<Box<dyn Future<Output = Result<usize, Error>> + Send>>;

/// When to send a state, and where.
pub(super) struct States {
    next_is_a: bool,
    /// The bytes of the last state, and of the deltas since it was taken.
    bytes: usize,
    since: usize,
    /// The state that is being sent, and since when.
    sending: Option<(Sending, Instant)>,
    next_at: Instant,
}

impl States {
    /// `head` names the newest state of former leaders. The first one goes where the older one is.
    pub(super) fn after(head: Option<&Head>) -> States {
        let parts = head.map_or(0, |head| head.parts as usize);
        States {
            next_is_a: head.is_none_or(|head| head.slot != 'a'),
            // About: all parts but the last one are full.
            bytes: parts * LARGEST_PART,
            since: 0,
            sending: None,
            next_at: Instant::now(),
        }
    }

    /// Notes a delta. A state is due when the deltas since the last one are more bytes than it: a new subscriber should
    /// have to read no more deltas than state.
    pub(super) fn grow(&mut self, bytes: usize, sender: &Sender, appended: &Appended) {
        self.since += bytes;
        if self.since > self.bytes {
            self.send(sender, appended);
        }
    }

    /// Begins to send a state, unless one is being sent or was sent just now. [`States::sent`] goes on with it.
    pub(super) fn send(&mut self, sender: &Sender, appended: &Appended) {
        let now = Instant::now();
        if self.sending.is_some() || now < self.next_at {
            return;
        }
        let slot = if self.next_is_a { 'a' } else { 'b' };
        self.next_is_a = !self.next_is_a;
        self.since = 0;
        let sending = send(sender.clone(), appended.clone(), slot);
        self.sending = Some((Box::pin(sending), now));
    }

    /// Ends when a state was sent: never if none is being sent. May be dropped and called again at any time.
    pub(super) async fn sent(&mut self) -> Result<(), Error> {
        let Some((sending, begun_at)) = &mut self.sending else {
            return future::pending().await;
        };
        let sent = sending.await;
        self.next_at = Instant::now() + PAUSE.max(begun_at.elapsed() * REST);
        self.sending = None;
        self.bytes = sent?;
        Ok(())
    }
}

/// Sends a state, and then the head that names it. Returns how many bytes that were.
async fn send(sender: Sender, appended: Appended, slot: char) -> Result<usize, Error> {
    let (view, encoder) = (appended.view.clone(), sender.encoder);
    let parts = sender.aside(move || encoder.encode_state(&view)).await?;
    let (mut bytes, mut count) = (0, 0);
    let header = header(&appended, appended.identity, &appended.view);
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
    Ok(bytes)
}
