//! What the messages of a relay say, and how they are written.
//!
//! A message begins with [`MAGIC`] and a number for its form. Then comes a header or an answer, written by `postcard`. A
//! delta or a part of a state ends with records, which [`crate::relay::codec`] reads and writes.

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    metrics::status::Fault,
    model::{Micros, Server},
    store::state::Cut,
};

const MAGIC: [u8; 3] = *b"oc\x01";

/// Identifies a state of a relay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Drawn at random by each publisher when it begins to lead.
    pub(crate) incarnation: u128,
    /// The version that the state has in the publisher's process.
    pub(crate) version: u64,
}

/// Begins each part of a delta or a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Grows from leader to leader. A message of an older leader is ignored.
    pub(crate) term: u64,
    pub(crate) epoch: u64,
    /// The state that the delta changes, and its digest. A state has its own identity and digest here.
    pub(crate) from: Identity,
    pub(crate) from_digest: u128,
    /// The state after the change.
    pub(crate) to: Identity,
    pub(crate) digest: u128,
    /// Counts the parts from 0.
    pub(crate) part: u32,
    /// Whether this is the last part.
    pub(crate) is_last: bool,
    pub(crate) cut: WireCut,
    pub(crate) unreadable: Vec<WireFault>,
}

/// The newest whole state, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) slot: char,
    pub(crate) parts: u32,
    pub(crate) term: u64,
    pub(crate) epoch: u64,
    pub(crate) identity: Identity,
    pub(crate) digest: u128,
    pub(crate) cut: WireCut,
    /// The sequence of the last delta that the state contains.
    pub(crate) position: u64,
}

/// What a subscriber asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Question {
    /// Whether no state is there that the subscriber can start from.
    pub(crate) needs_state: bool,
    /// Whether a reader waits for a transaction, so that the publisher should read at once.
    pub(crate) waits: bool,
    /// The greatest term that the subscriber has seen. It ignores smaller ones.
    pub(crate) term: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) term: u64,
    pub(crate) identity: Identity,
    pub(crate) digest: u128,
    /// The age of the publisher's view, in microseconds; `None` if it is not known.
    pub(crate) age: Option<u64>,
    pub(crate) cut: WireCut,
    pub(crate) unreadable: Vec<WireFault>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireCut {
    as_of: i64,
    snapshot: String,
    window_start: i64,
    standby: bool,
    server: Server,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireFault {
    what: String,
    repair: String,
}

impl WireCut {
    pub(crate) fn of(cut: &Cut) -> WireCut {
        WireCut {
            as_of: Micros::from_utc(cut.as_of).0,
            snapshot: cut.snapshot.clone(),
            window_start: Micros::from_utc(cut.window_start).0,
            standby: cut.standby,
            server: cut.server.clone(),
        }
    }

    pub(crate) fn cut(&self) -> Cut {
        Cut {
            as_of: Micros(self.as_of).to_utc(),
            snapshot: self.snapshot.clone(),
            window_start: Micros(self.window_start).to_utc(),
            standby: self.standby,
            server: self.server.clone(),
        }
    }
}

pub(crate) fn faults_to_send(faults: &[Fault]) -> Vec<WireFault> {
    let fault = |fault: &Fault| WireFault {
        what: fault.what.clone(),
        repair: fault.repair.clone(),
    };
    faults.iter().map(fault).collect()
}

pub(crate) fn received_faults(faults: &[WireFault]) -> Vec<Fault> {
    let fault = |fault: &WireFault| Fault {
        what: fault.what.clone(),
        repair: fault.repair.clone(),
    };
    faults.iter().map(fault).collect()
}

/// Writes a message. `records` follow what `value` says.
pub(crate) fn write(value: &impl Serialize, records: &[u8]) -> Bytes {
    let mut message = MAGIC.to_vec();
    // Fails only if the memory ends or a type has no known length, and none of ours is of that kind. The receiver counts
    // an empty message as malformed.
    message = postcard::to_extend(value, message).unwrap_or_default();
    message.extend_from_slice(records);
    message.into()
}

/// Reads a message, and returns the records that follow. `None` if it is malformed.
pub(crate) fn read<T: DeserializeOwned>(message: &[u8]) -> Option<(T, &[u8])> {
    let rest = message.strip_prefix(&MAGIC)?;
    postcard::take_from_bytes(rest).ok()
}
