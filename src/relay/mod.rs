//! One follower, many processes: passes on what a cache publishes through NATS JetStream.
//!
//! A publisher ([`publish`]) takes views from the cache of its process and appends the differences to a stream, packed by
//! [`codec`]. [`leader`] is its term from winning the lease to losing it; [`send`] and [`states`] send deltas and whole
//! states. A subscriber ([`subscribe`]) reads a whole state, then the differences, and publishes them in its own process.
//! It does not need the database.
//!
//! | where | what |
//! |---|---|
//! | stream `oddscache_NAME`, subject `oddscache.NAME.delta` | the deltas, for ten minutes or 1 GB |
//! | stream `oddscache_NAME_state`, subjects `oddscache.NAME.state.>` | the last two whole states, and which of them is newer |
//! | bucket `oddscache_NAME`, key `leader` | the lease of the publisher that leads ([`lease`]) |
//! | subject `oddscache.NAME.ask` | questions of subscribers, which the leader answers |
//!
//! # Invariants
//! - Y1: Each part of a delta is stored only right after the message that its publisher knows as the last one
//!   (`Nats-Expected-Last-Sequence`). So the stream is one chain, whoever writes: a publisher extends only what it has
//!   read. Subscribers read the stream by a consumer, because a plain subscription also gets what the stream refused.
//! - Y2: A subscriber applies a delta only to the state that the delta names, only when all its parts have come, and all
//!   parts at once. If a delta does not fit, it reads a state again, beside the old view.
//! - Y3: Within an epoch the cut of a subscriber never goes back. A new leader goes on in the same epoch only if the
//!   server's history continues and its own cut is not older than that of the last delta.
//! - Y4: The age of a subscriber's view counts from the moment of a question whose answer names exactly that state, less
//!   the age that the answer says. No time of a message counts, so a message that lay somewhere for long does not look
//!   fresh. A later state of the chain may take over the proof, because its read began later. The first
//!   state shows once an answer has named it, because the relay's last whole state may be old.
//! - Y5: A subscriber computes the digest of what it holds itself, and compares it after each delta and with each answer.

pub(crate) mod address;
pub(crate) mod codec;
mod connect;
pub(crate) mod inspect;
mod leader;
mod lease;
mod message;
pub(crate) mod publish;
mod send;
mod states;
mod streams;
pub(crate) mod subscribe;
