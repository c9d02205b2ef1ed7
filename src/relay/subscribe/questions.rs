//! The questions of a subscriber, one at a time.

use std::{pin::Pin, time::Duration};

use async_nats::Client;
use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    relay::{
        address::{ANSWER_TIMEOUT, Relay},
        message::{self, Question},
    },
    store::state::Moment,
};

/// The time between two questions, give or take a fifth. The random part spreads the questions of many subscribers.
const ASK: Duration = Duration::from_millis(800);

/// The same while a reader waits for a transaction.
const ASK_SOON: Duration = Duration::from_millis(40);

/// How many quick questions a waiting reader causes at most.
const QUICK_QUESTIONS: u32 = 25;

/// For how many of them the publisher reads at once.
const READS: u32 = 2;

/// When a question was asked, and the answer if one came in time.
pub(super) type Answered = (Moment, Option<Bytes>);

pub(super) struct Questions {
    client: Client,
    relay: Relay,
    next_at: Instant,
    quick: u32,
    asking: Pin<Box<dyn Future<Output = Answered> + Send>>,
}

impl Questions {
    /// Asks at once.
    pub(super) fn new(client: &Client, relay: &Relay, question: &Question) -> Questions {
        let now = Instant::now();
        Questions {
            client: client.clone(),
            relay: relay.clone(),
            next_at: now,
            quick: 0,
            asking: Box::pin(ask_at(now, client.clone(), relay.clone(), question)),
        }
    }

    /// Waits for the answer to the question under way. It may be dropped, and called again. Once it has returned,
    /// [`Questions::plan`] must follow.
    pub(super) async fn answered(&mut self) -> Answered {
        (&mut self.asking).await
    }

    /// Plans the next question.
    pub(super) fn plan(&mut self, question: &Question) {
        let wait = match self.quick {
            0 => ASK.mul_f64(0.8 + 0.4 * fastrand::f64()),
            _ => ASK_SOON,
        };
        self.quick = self.quick.saturating_sub(1);
        self.ask(Instant::now() + wait, question);
    }

    /// Asks soon and often, because a reader waits. A question under way is kept, and the next one follows soon after it.
    pub(super) fn hurry(&mut self, question: &Question) {
        self.quick = QUICK_QUESTIONS;
        let now = Instant::now();
        if self.next_at > now {
            self.ask(now, question);
        }
    }

    fn ask(&mut self, at: Instant, question: &Question) {
        self.next_at = at;
        // The publisher reads for each of these. What it has not seen then, it sees as soon as it is committed.
        let waits = question.waits && self.quick + READS > QUICK_QUESTIONS;
        let question = &Question {
            waits,
            ..question.clone()
        };
        let (client, relay) = (self.client.clone(), self.relay.clone());
        self.asking = Box::pin(ask_at(at, client, relay, question));
    }
}

/// Asks now.
pub(super) async fn ask(client: &Client, relay: &Relay, question: &Question) -> Answered {
    ask_at(Instant::now(), client.clone(), relay.clone(), question).await
}

fn ask_at(
    at: Instant,
    client: Client,
    relay: Relay,
    question: &Question,
) -> impl Future<Output = Answered> + Send + use<> {
    let question = message::write(question, &[]);
    async move {
        sleep_until(at).await;
        let asked = Moment::now();
        let answer = timeout(ANSWER_TIMEOUT, client.request(relay.questions(), question)).await;
        let answer = answer.ok().and_then(Result::ok);
        (asked, answer.map(|answer| answer.payload))
    }
}
