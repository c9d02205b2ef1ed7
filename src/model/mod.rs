//! Plain data, with no I/O, no clock and no async: what a reader gets, and how it is laid out in memory.
//!
//! Odds change every few minutes, everything else about a market hardly ever does. So a snapshot's [`Body`] holds only its
//! odds, as one 32-bit word an outcome, and shares an interned [`Template`](shape::Template) (the list of its markets' [`Shape`](shape::Shape)s: ids, names,
//! lines, handicaps, groups, outcome names) with every other snapshot that lists the same markets.
//!
//! | invariant | |
//! |---|---|
//! | M1 | nothing reachable from a view is ever changed: new values are new allocations |
//! | M2 | a word's odds give back the bits they were made from, whatever those are |
//! | M3 | the interner never frees what a view can still reach (it drops only what it alone owns) |

mod event;
mod input;
mod interner;
mod shape;
mod snapshot;
mod time;

pub use event::{BetpawaSnapshots, CachedEvent, CompetitorSnapshots, Source};
pub use input::{MarketInput, OutcomeInput, SnapshotInput};
pub(crate) use interner::Interner;
pub(crate) use shape::{MarketKey, OutcomeKey};
pub(crate) use snapshot::{Body, BodyBuilder, OutcomeValue};
pub use snapshot::{CachedMarket, CachedSnapshot, Markets, Outcome, Outcomes};
pub(crate) use time::Micros;
