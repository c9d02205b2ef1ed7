//! The latest betting odds of every upcoming event, held in memory and kept equal to PostgreSQL.
#![warn(missing_docs)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod apply;
mod bell;
mod cache;
mod catalog;
mod config;
mod connection;
mod decode;
mod draft;
mod error;
mod feed;
mod fetch;
mod follower;
mod model;
mod pack;
mod preflight;
mod publish;
mod read;
pub mod sql;
mod stats;
mod status;
mod view;
mod writer;

pub use cache::OddsCache;
pub use config::Config;
pub use error::Error;
pub use follower::{Follower, warm_up};
pub use model::{
    BetpawaSnapshots, CachedEvent, CachedMarket, CachedSnapshot, CompetitorSnapshots, MarketInput,
    Markets, Outcome, OutcomeInput, Outcomes, SnapshotInput, Source,
};
pub use stats::{Stats, WarmupStats};
pub use status::{Counters, Status};
pub use view::{Cut, View};
pub use writer::Writer;

/// The README's examples, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
