//! The streams of a relay: how they are made, and what their end says.

use std::time::Duration;

use async_nats::jetstream::{
    self, ErrorCode,
    context::{GetStreamError, GetStreamErrorKind},
    stream::{Config, DiscardPolicy, LastRawMessageErrorKind, StorageType, Stream},
};

use crate::{
    error::Error,
    relay::{
        address::Relay,
        message::{self, Head, Header, Identity},
    },
    store::{
        publish::{Counting, add},
        state::Cut,
    },
};

/// Deltas stay in the stream for this time.
pub(super) const KEEP: Duration = Duration::from_secs(10 * 60);

/// The most bytes of deltas in the stream.
pub(super) const KEEP_BYTES: i64 = 1 << 30;

/// Where the stream ends.
pub(super) struct Tail {
    pub(super) sequence: u64,
    /// What subscribers may hold; `None` if nothing was ever published.
    pub(super) last: Option<Last>,
}

/// The last whole delta, or the newest state.
pub(super) struct Last {
    pub(super) term: u64,
    pub(super) epoch: u64,
    pub(super) identity: Identity,
    pub(super) digest: u128,
    pub(super) cut: Cut,
}

/// Creates the streams if they are missing. Returns that of the deltas.
pub(super) async fn open(
    relay: &Relay,
    jetstream: &jetstream::Context,
    storage: StorageType,
) -> Result<Stream, Error> {
    let create = async |config: Config| {
        let stream = match jetstream.get_stream(&config.name).await {
            Err(error) if is_missing(&error) => {
                let created = jetstream.create_stream(config).await;
                created.map_err(|error| error.to_string())
            }
            stream => stream.map_err(|error| error.to_string()),
        };
        stream.map_err(|error| relay.unreachable(format!("the relay's stream: {error}")))
    };
    let common = Config {
        storage,
        discard: DiscardPolicy::Old,
        allow_direct: true,
        ..Config::default()
    };
    create(Config {
        name: relay.state_stream(),
        subjects: vec![relay.state(">")],
        max_messages_per_subject: 1,
        ..common.clone()
    })
    .await?;
    create(Config {
        name: relay.stream(),
        subjects: vec![relay.deltas()],
        max_age: KEEP,
        max_bytes: KEEP_BYTES,
        ..common
    })
    .await
}

/// What the stream's end says. If the stream was purged, the newest state says it, which `head` names.
pub(super) async fn tail(
    relay: &Relay,
    stream: &Stream,
    head: Option<&Head>,
    counters: &Counting,
) -> Result<Tail, Error> {
    let info = stream.get_info().await;
    let info = info.map_err(|error| relay.unreachable(error))?;
    let sequence = info.state.last_sequence;
    if info.state.messages > 0 {
        // The stream's leader answers this, so it is the last message.
        let last = stream.get_raw_message(sequence).await;
        let last = last.map_err(|error| relay.unreachable(error))?;
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
        add(&counters.relay_refused, 1);
    }
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

/// What names the newest whole state.
pub(super) async fn newest_head(
    relay: &Relay,
    jetstream: &jetstream::Context,
) -> Result<Option<Head>, Error> {
    let states = jetstream.get_stream(relay.state_stream()).await;
    let states = states.map_err(|error| relay.unreachable(error))?;
    let subject = relay.state("head");
    match states.get_last_raw_message_by_subject(&subject).await {
        Ok(head) => Ok(message::read::<Head>(&head.payload).map(|(head, _)| head)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(relay.unreachable(error)),
    }
}

/// Whether the server says that there is no such stream. Anything else may be a missing right, or a slow server.
pub(super) fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}
