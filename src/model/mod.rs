//! Plain data, with no I/O, no clock and no async: what a reader gets, and how it is laid out in memory.
//!
//! Odds change every few minutes, everything else about a market hardly ever does. So a snapshot's [`Body`] holds only its
//! odds, as one 32-bit word an outcome, and an interned [`Template`](template::Template): the list of its markets'
//! [`Shape`]s, which are shared with all snapshots that have the same market. A shape is a
//! [`Kind`](market::Kind) (ids, name, line, handicap, groups: of the same few hundred everywhere) and the outcomes' names
//! (of players, most of them an event's own).
//!
//! | invariant | |
//! |---|---|
//! | M1 | nothing reachable from a view is ever changed: new values are new allocations |
//! | M2 | a word's odds give back the bits they were made from, whatever those are |
//! | M3 | the interner never frees what a view can still reach (it drops only what it alone owns) |

mod event;
mod input;
mod interner;
mod market;
mod odds;
mod outcome_names;
mod packed;
mod pg_snapshot;
mod slab;
mod snapshot;
mod template;
mod time;

pub use event::{BetpawaSnapshots, CachedEvent, CompetitorSnapshots, Source};
pub use input::{MarketInput, OutcomeInput, SnapshotInput};
pub(crate) use interner::Interner;
pub(crate) use market::{MarketKey, Shape, same_bytes};
pub(crate) use odds::{MOST_THOUSANDTHS, OddsBuffer};
pub(crate) use outcome_names::{Names, NamesBuffer};
pub(crate) use packed::{Body, BodyBuilder, StagedRow};
pub(crate) use pg_snapshot::PgSnapshot;
pub use snapshot::{CachedMarket, CachedSnapshot, Markets, Outcome, Outcomes};
pub(crate) use time::Micros;
