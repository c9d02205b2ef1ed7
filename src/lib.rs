//! The latest betting odds of every upcoming event, held in memory and kept equal to PostgreSQL.
//!
//! - [`OddsCache`] is the shared handle: clone it wherever odds are looked up.
//! - [`View`] is one committed state of the database, over all events at once, that can be held; it knows its
//!   [age](State::age), its [cut](State::cut) and its [epoch](State::epoch).
//! - [`CachedEvent`], [`CachedSnapshot`], [`CachedMarket`] and [`Outcome`] are what is looked up: immutable, borrowed, and
//!   serialisable under the names of the columns they come from.
//! - [`EventList`] is the event list with inline odds as JSON, of which only what changed is written anew.
//! - [`Follower`] fills the cache and keeps it equal: spawn [`Follower::run`]. It needs the triggers of [`sql::Script::Install`].
//! - [`Writer`] takes its place where a process has the odds at hand, and in tests.
//!
//! ```no_run
//! # async fn example() -> Result<(), oddscache::Error> {
//! use oddscache::{Config, OddsCache};
//!
//! let (cache, follower) = OddsCache::connect(Config::new("postgres://oddscache@localhost/odds")?);
//! tokio::spawn(follower.run());
//! cache.ready().await?;
//! for market in cache.get_betpawa_snapshot(4711).iter().flat_map(|found| found.iter()).flat_map(|(_, s)| s.markets()) {
//!     println!("{} {:?}", market.betpawa_market_name(), market.outcomes().map(|o| o.odds()).collect::<Vec<_>>());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Times are UTC, ids 64-bit. Lookups take no lock and do no I/O, and allocate only the maps they return. The library needs
//! a tokio runtime with time and I/O for the follower, and none for lookups. Feature `service` (on by default) brings the
//! dependencies of the `oddscache` binary; switch default features off to use the library alone, and `tls` on where the
//! database is reached by TLS.
#![warn(missing_docs)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod apply;
mod audit;
mod backoff;
mod begin;
mod bell;
mod cache;
mod catalog;
mod change;
mod config;
mod connect;
mod connection;
mod decode;
mod doze;
mod draft;
mod dsn;
mod error;
mod feed;
mod fetch;
mod follower;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod gather;
#[cfg(feature = "tls")]
mod handshake;
mod helpers;
mod list;
mod model;
mod owners;
mod pace;
mod pack;
mod passfile;
mod preflight;
mod publish;
mod read;
mod reader;
pub mod sql;
mod statement;
mod stats;
mod status;
mod table;
mod target;
mod tls;
mod view;
mod watch;
mod writer;

pub use hashbrown;
pub use tokio_postgres;

pub use cache::OddsCache;
pub use change::{Change, Changes, Lagged};
pub use config::Config;
pub use connect::Wire;
pub use error::Error;
pub use follower::{Follower, warm_up};
pub use list::{EventList, InlineMarkets};
pub use model::{
    BetpawaSnapshots, CachedEvent, CachedMarket, CachedSnapshot, CompetitorSnapshots, MarketInput,
    Markets, Outcome, OutcomeInput, Outcomes, SnapshotInput, Source,
};
pub use reader::Reader;
pub use stats::{Stats, WarmupStats};
pub use status::{Counters, Status};
pub use tls::{SslMode, Tls};
pub use view::{Cut, State, View};
pub use writer::Writer;

/// The README's examples, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
