//! Looks at a relay from outside, for `oddscache doctor`. Changes nothing.

use std::time::{Duration, Instant};

use async_nats::{
    Client, RequestErrorKind,
    header::NATS_EXPECTED_LAST_SEQUENCE,
    jetstream::{
        self,
        context::{GetStreamErrorKind, PublishErrorKind},
        stream::{
            Config as StreamConfig, DirectGetErrorKind, DiscardPolicy, RetentionPolicy,
            StorageType, Stream,
        },
    },
};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::future::{join, join_all};
use tokio::time::timeout;

use crate::{
    error::Error,
    relay::{
        address::{ANSWER_TIMEOUT, Relay},
        lease::{self, LEASE},
        message::{self, Answer, Question},
        streams::{KEEP, KEEP_BYTES, is_missing},
    },
};

/// What a NATS server has of a relay. See [`Relay::inspect`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RelayInspection {
    /// The server's version, such as `2.9.10`.
    pub server_version: String,
    /// The most bytes that the server accepts in a message.
    pub max_payload: usize,
    /// Whether the server has JetStream.
    pub has_jetstream: bool,
    /// Whether the server is one of several of a cluster.
    pub is_in_cluster: bool,
    /// The streams of the changes, of the states and of the lease, in this order.
    pub streams: Vec<RelayStream>,
    /// Whether some publisher has the lease. `None` if this login may not see that.
    pub has_leader: Option<bool>,
    /// What the leader answers, or why there is no answer.
    pub leader: Result<RelayLeader, String>,
    /// With `as_publisher`: the subjects that this login cannot publish to, and why. Streams that are missing are left
    /// out.
    pub unwritable: Vec<(String, String)>,
}

/// A stream of a relay.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RelayStream {
    /// Its name on the server.
    pub name: String,
    /// What it holds, in words.
    pub holds: &'static str,
    /// `Ok(None)` if there is no such stream; an error if this login may not see it.
    pub found: Result<Option<RelayStreamFacts>, String>,
}

/// The state and the settings of a stream of a relay.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RelayStreamFacts {
    /// The number of messages in it.
    pub messages: u64,
    /// How large it is, and how large it may be. `None` if it has no limit.
    pub bytes: u64,
    /// See `bytes`.
    pub max_bytes: Option<u64>,
    /// How many servers have a copy.
    pub replicas: usize,
    /// Whether it is lost when the server restarts.
    pub is_in_memory: bool,
    /// Settings with which the relay does not work, each with the value that it needs.
    pub faults: Vec<String>,
    /// Settings with which it works, but makes subscribers read whole states more often.
    pub small_limits: Vec<String>,
}

/// What the publisher that leads says of itself.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RelayLeader {
    /// Since when it leads, by its own clock. UTC.
    pub since: DateTime<Utc>,
    /// How long ago its view was proven current; `None` if it does not know that.
    pub age: Option<Duration>,
    /// The version of its view.
    pub version: u64,
    /// How long the answer took.
    pub answered_within: Duration,
}

impl Relay {
    /// Looks at what the server has of this relay, as `oddscache doctor` does: the streams and their settings, the lease,
    /// and what the leader answers. Takes up to about 15 s if the server does not answer, and needs a tokio runtime.
    ///
    /// `as_publisher` also tries to write, with a condition that no stream can fulfil. So nothing is written, and the
    /// server's refusal tells whether the login has the right.
    ///
    /// # Errors
    /// [`Error::Relay`] if the server cannot be reached, or refuses the login.
    pub async fn inspect(&self, as_publisher: bool) -> Result<RelayInspection, Error> {
        let client = self.connect("doctor").await?;
        let info = client.server_info();
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(ANSWER_TIMEOUT);
        let bucket = format!("KV_{}", self.stream());
        let streams = [
            (self.stream(), "the changes"),
            (self.state_stream(), "the states"),
            (bucket, "the lease"),
        ];
        let key = format!("$KV.{}.{}", self.stream(), lease::KEY);
        let look = streams.map(|(name, holds)| self.stream_of(&jetstream, name, holds));
        let (streams, leader) = join(join_all(look), self.ask(&client)).await;
        let mut has_leader = None;
        if let Some(Ok(bucket)) = streams.last().map(|(_, stream)| stream) {
            has_leader = match bucket.direct_get_last_for_subject(key.clone()).await {
                // A publisher that gives the lease back leaves an empty message.
                Ok(message) => Some(!message.payload.is_empty()),
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => Some(false),
                Err(_) => None,
            };
        }
        let mut unwritable = Vec::new();
        if as_publisher {
            let subjects = [self.deltas(), self.state("doctor"), key];
            let there = subjects.into_iter().zip(&streams);
            let there = there.filter(|(_, (_, stream))| stream.is_ok());
            let tries = there.map(|(subject, _)| try_to_write(&jetstream, subject));
            unwritable = join_all(tries).await.into_iter().flatten().collect();
        }
        Ok(RelayInspection {
            server_version: info.version,
            max_payload: info.max_payload,
            has_jetstream: info.jetstream,
            is_in_cluster: info.cluster.is_some(),
            streams: streams.into_iter().map(|(stream, _)| stream).collect(),
            has_leader,
            leader,
            unwritable,
        })
    }

    async fn stream_of(
        &self,
        jetstream: &jetstream::Context,
        name: String,
        holds: &'static str,
    ) -> (RelayStream, Result<Stream, ()>) {
        let stream = jetstream.get_stream(&name).await;
        let found = match &stream {
            Ok(stream) => {
                let info = stream.cached_info();
                let config = &info.config;
                Ok(Some(RelayStreamFacts {
                    messages: info.state.messages,
                    bytes: info.state.bytes,
                    max_bytes: u64::try_from(config.max_bytes).ok(),
                    replicas: config.num_replicas,
                    is_in_memory: config.storage == StorageType::Memory,
                    faults: self.faults(&name, config),
                    small_limits: match name == self.stream() {
                        true => small_limits(config),
                        false => Vec::new(),
                    },
                }))
            }
            Err(error) if is_missing(error) => Ok(None),
            Err(error) => match error.kind() {
                // A server gives no answer where the login has no right to ask.
                GetStreamErrorKind::Request if error.to_string().contains("timed out") => {
                    Err("no answer".to_owned())
                }
                _ => Err(error.to_string()),
            },
        };
        let stream = stream.map_err(drop);
        (RelayStream { name, holds, found }, stream)
    }

    /// The settings with which the relay does not work.
    fn faults(&self, name: &str, config: &StreamConfig) -> Vec<String> {
        let mut faults = Vec::new();
        let mut need = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let (is_changes, is_states) = (name == self.stream(), name == self.state_stream());
        let subject = match (is_changes, is_states) {
            (true, _) => self.deltas(),
            (_, true) => self.state(">"),
            _ => format!("$KV.{}.>", self.stream()),
        };
        need(
            config.subjects == [&*subject],
            format!("its subjects are {:?}, not {subject}", config.subjects),
        );
        need(
            config.retention == RetentionPolicy::Limits,
            "its retention is not `limits`".to_owned(),
        );
        need(
            !config.no_ack && !config.sealed,
            "it acknowledges nothing, or is sealed".to_owned(),
        );
        need(
            config.mirror.is_none() && config.sources.as_ref().is_none_or(Vec::is_empty),
            "it is a copy of other streams".to_owned(),
        );
        let per_subject = config.max_messages_per_subject;
        let max_age = config.max_age;
        if is_changes {
            need(
                per_subject <= 0,
                format!("it keeps {per_subject} messages of a subject, and needs no such limit"),
            );
            need(
                config.discard == DiscardPolicy::Old,
                "when it is full it refuses new messages, and must drop old ones".to_owned(),
            );
            return faults;
        }
        need(
            config.allow_direct,
            "it does not allow direct get".to_owned(),
        );
        if is_states {
            need(
                per_subject == 1,
                format!("it keeps {per_subject} messages of a subject, not 1"),
            );
            need(
                max_age.is_zero(),
                format!(
                    "it forgets messages after {} s, and must keep them",
                    max_age.as_secs()
                ),
            );
        } else {
            need(
                max_age == LEASE,
                format!(
                    "the lease lasts {:.1} s, not {:.1} s",
                    max_age.as_secs_f64(),
                    LEASE.as_secs_f64()
                ),
            );
        }
        faults
    }

    /// Asks the leader, as a subscriber does.
    async fn ask(&self, client: &Client) -> Result<RelayLeader, String> {
        let asked = Instant::now();
        let question = message::write(&Question::default(), &[]);
        let answer = timeout(ANSWER_TIMEOUT, client.request(self.questions(), question)).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) if error.kind() != RequestErrorKind::TimedOut => {
                return Err(error.to_string());
            }
            Ok(Err(_)) | Err(_) => return Err("no answer".to_owned()),
        };
        let answered_within = asked.elapsed();
        let (answer, _) = message::read::<Answer>(&answer.payload)
            .ok_or("the answer is malformed, or of another version of oddscache")?;
        let since = i64::try_from(answer.term).ok();
        let since = since.and_then(DateTime::from_timestamp_millis);
        Ok(RelayLeader {
            since: since.unwrap_or(DateTime::UNIX_EPOCH),
            age: answer.age.map(Duration::from_micros),
            version: answer.identity.version,
            answered_within,
        })
    }
}

/// The limits of the stream of the changes that are smaller than those that a publisher gives it.
fn small_limits(config: &StreamConfig) -> Vec<String> {
    let (max_age, max_bytes) = (config.max_age, config.max_bytes);
    let mut small = Vec::new();
    if !max_age.is_zero() && max_age < KEEP {
        let (now, full) = (max_age.as_secs(), KEEP.as_secs());
        small.push(format!("it keeps messages for {now} s, not for {full} s"));
    }
    if (1..KEEP_BYTES).contains(&max_bytes) {
        small.push(format!("it keeps {max_bytes} bytes, not {KEEP_BYTES}"));
    }
    small
}

/// Publishes with a condition that no stream fulfils. Returns the subject and the error, unless the stream refused it
/// because of that condition.
async fn try_to_write(jetstream: &jetstream::Context, subject: String) -> Option<(String, String)> {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(NATS_EXPECTED_LAST_SEQUENCE, i64::MAX.to_string().as_str());
    let publish = jetstream.publish_with_headers(subject.clone(), headers, Bytes::new());
    let error = match publish.await {
        Ok(sent) => match timeout(ANSWER_TIMEOUT, sent.into_future()).await {
            Ok(Ok(_)) => "the stream ignores the condition of a message".to_owned(),
            Ok(Err(error)) if error.kind() == PublishErrorKind::WrongLastSequence => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        },
        Err(error) => error.to_string(),
    };
    Some((subject, error))
}
