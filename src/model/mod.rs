//! Plain data: what a reader gets, and how it is laid out in memory. No I/O, no clock, no async.
//!
//! Odds change every few minutes; everything else about a market hardly ever changes. The two are therefore kept apart:
//!
//! - [`PackedMarkets`] holds the packed markets of one snapshot: one 32-bit word of odds per outcome, and a snapshot
//!   template.
//! - [`SnapshotTemplate`](template::SnapshotTemplate) lists the market templates of a snapshot. Interned.
//! - [`MarketTemplate`] holds the names of a market's outcomes and points to its kind. Interned; all snapshots with the
//!   same market share it. Many names are those of players, so most templates belong to one event.
//! - [`MarketKind`](market::MarketKind) holds a market's id, name, line, handicap and groups. Interned; a few hundred
//!   kinds serve all events.
//!
//! # Invariants
//! - M1: Nothing that a view reaches ever changes: a new value is a new allocation.
//! - M2: Odds survive packing bit for bit, whatever their bits are.
//! - M3: The interner never frees what a view still reaches: it drops only what it alone owns.

pub(crate) mod digest;
mod event;
mod input;
mod interner;
mod market;
mod names;
mod odds;
mod outcome_names;
mod packed;
mod pg_snapshot;
#[cfg(feature = "nats")]
pub(crate) mod relayed;
mod server;
mod slab;
mod snapshot;
mod template;
mod time;

pub use event::{BetpawaSnapshots, CachedEvent, CompetitorSnapshots, Source};
pub use input::{MarketInput, NamesInput, OutcomeInput, SnapshotInput, TournamentInput};
pub(crate) use interner::Interner;
pub(crate) use market::{MarketKey, MarketTemplate, same_bytes};
pub use names::{Bookmaker, Tournament};
pub(crate) use names::{Bookmakers, EventHeader, EventNames, Lookup, MOST_CHARACTERS};
pub(crate) use odds::{MOST_THOUSANDTHS, OddsBuffer};
pub(crate) use outcome_names::{Names, NamesBuffer};
pub(crate) use packed::{MarketsBuilder, PackedMarkets, StagedRow};
pub(crate) use pg_snapshot::PgSnapshot;
pub(crate) use server::Server;
pub use snapshot::{CachedMarket, CachedSnapshot, Markets, Outcome, Outcomes};
pub(crate) use time::Micros;
