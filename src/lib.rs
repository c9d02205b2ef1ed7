//! The latest betting odds of every upcoming event, held in memory and kept equal to PostgreSQL.
//!
//! An application scrapes bookmakers and writes each snapshot of their odds to PostgreSQL. This crate reads the latest
//! snapshot of every event and bookmaker once, follows the changes, and serves them inside the process. A reader always
//! sees exactly one committed state of the database, and knows how long ago that state was proven current.
//!
//! ```no_run
//! # async fn example() -> Result<(), oddscache::Error> {
//! use oddscache::{Config, OddsCache};
//!
//! let (cache, follower) = OddsCache::connect(Config::new("postgres://oddscache@localhost/odds")?);
//! tokio::spawn(follower.run());
//! cache.ready().await?;
//! let view = cache.view();
//! for (bookmaker_id, snapshot) in view.get_betpawa_snapshot(4711).iter().flat_map(|snapshots| snapshots.iter()) {
//!     for market in snapshot.markets() {
//!         let odds: Vec<Option<f64>> = market.outcomes().map(|outcome| outcome.odds()).collect();
//!         println!("{bookmaker_id}: {} {odds:?}", market.betpawa_market_name());
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The database needs the triggers of [`sql::Script::Install`] (`sql/install.sql`), and a role with the rights of
//! [`sql::Script::Grants`].
//!
//! # A tour
//!
//! ## The handle and the follower
//!
//! [`OddsCache::connect`] returns two halves. [`OddsCache`] is the shared handle: clone it for every task that looks up
//! odds. [`Follower`] fills it and keeps it equal to the database: spawn [`Follower::run`] once. Dropping that future
//! (aborting its task) is a clean stop. Its handles stay readable, and their views grow older.
//!
//! [`Config`] says where the database is and how to follow it. It accepts a function that returns a short-lived
//! password ([`Config::password_with`]), and a TLS connector of your own ([`Config::tls_connector`]). A program that
//! needs only one view calls [`warm_up`], which reads once and follows nothing.
//!
//! ## Lookups
//!
//! There are four ways to look something up, from the most flexible to the fastest. All show the latest committed
//! state:
//!
//! ```
//! # let (cache, _writer) = oddscache::OddsCache::detached();
//! let _ = cache.get_betpawa_snapshot(4711);                // to keep: counts one reference to the snapshots
//! let view = cache.view();                                 // to keep, over all events: counts one reference
//! let _ = view.event(4711);                                // each lookup in a view costs as little as in a map
//! let _ = cache.read(|state| state.event(4711).is_some()); // in place: counts nothing; borrows end with the call
//! let mut reader = cache.reader();                         // for a hot loop of one thread: remembers its state
//! let _ = reader.state().event(4711);
//! ```
//!
//! A [`CachedEvent`] has [`BetpawaSnapshots`] by bookmaker id and [`CompetitorSnapshots`] by [`Source`]. A
//! [`CachedSnapshot`] has [`Markets`], a [`CachedMarket`] has [`Outcomes`], an [`Outcome`] has a name and odds. All of
//! it is immutable and borrowed, and serialises under the names of the columns it comes from.
//!
//! The four `get_*` lookups have the names of the Python application's cache, so that its callers can be ported line by
//! line. All other names follow Rust's conventions.
//!
//! ## Views
//!
//! A [`View`] is one committed state of the database, over all events at once: every row of a transaction or none. It
//! never changes. You may hold it as long as you like, across threads and awaits. Take one view for a request that
//! makes several lookups, so that the answers agree. Two calls on the handle may see two states. A view has the methods
//! of [`State`].
//!
//! ## How fresh
//!
//! Each reader decides how old a view may be. [`State::age`] is the time since the view was last *proven* current, not
//! the time since something changed. While the database is idle, the age stays just below [`Config::poll_interval`]
//! (1 s) plus the time of a read. While the database is away, the age grows. [`State::cut`] identifies the committed
//! state of a view, by the database's clock and by its transactions.
//!
//! ```
//! use std::time::Duration;
//! use oddscache::Error;
//!
//! # let (cache, _writer) = oddscache::OddsCache::detached();
//! // No older than two seconds, or an error that says how old. Nothing was ever published here:
//! let stale = cache.view_within(Duration::from_secs(2));
//! assert!(matches!(stale, Err(Error::TooStale { age: Duration::MAX, .. })));
//! ```
//!
//! [`OddsCache::wait_for`] gives read-your-writes across processes. The writer runs `SELECT pg_current_xact_id()`
//! before it commits, and passes the number on. The call then returns a view that contains what the writer wrote.
//!
//! [`State::epoch`] changes when the state was *replaced*: after a restart of the server, a failover, a restore. Only then
//! may a view show an earlier state than the view before it. Within an epoch, cuts only move forward.
//! [`State::version`] counts publications: views with the same version have the same content.
//!
//! ## Following changes
//!
//! [`OddsCache::changes`] yields a [`Change`] for each publication: the ids of the events that differ, by source.
//! Subscribe first and take a view afterwards, so that you miss nothing. At most 256 changes are kept for a slow
//! subscriber. A subscriber that falls further behind gets [`Lagged`], and starts again from a new view.
//!
//! ```no_run
//! # async fn example(cache: oddscache::OddsCache) {
//! let mut changes = cache.changes();
//! let mut view = cache.view();
//! while let Some(change) = changes.next().await {
//!     match change {
//!         Ok(change) => println!("{:?} at {}", change.event_ids(), change.cut.as_of),
//!         Err(lagged) => println!("{lagged}"),
//!     }
//!     view = cache.view();                                 // with that change in it, or newer
//! }
//! # }
//! ```
//!
//! ## The whole list as JSON
//!
//! [`EventList`] is the event list with inline odds and margins as JSON. It writes only what changed, and copies the
//! rest. [`InlineMarkets`] writes single events of the list.
//!
//! ## Status and readiness
//!
//! [`OddsCache::ready`] and [`OddsCache::is_warm`] say whether there is something to serve. Once true, that stays true,
//! because a view stays readable. Five more calls give details:
//! - [`OddsCache::status`]: what the follower is doing ([`Status`]);
//! - [`OddsCache::stats`]: what the view holds, and how much memory that takes;
//! - [`OddsCache::counters`]: what was done;
//! - [`OddsCache::timings`]: how long commits took to become visible;
//! - [`OddsCache::change_log`]: which change feed is installed, and how far its log reaches.
//!
//! A readiness probe should ask `is_warm`; an alarm should watch the age. Do not restart a process because of either: a
//! restarted cache is empty. `ready` waits for as long as the database is away. The status and the log say what it
//! waits for. With [`Config::retry_unreachable`] off, it returns an error instead.
//!
//! ## Errors
//!
//! There is one type, [`Error`]. Each variant names the object and the way out. None carries a password or data of a
//! row. If waiting resolves an error ([`Error::is_transient`]), the follower waits, with growing pauses. Any other
//! error (a refused login; a missing table, feed or right) ends [`Follower::run`] before the first warmup, and
//! [`OddsCache::ready`] returns the same error. After the first warmup no error ends the follower. Lookups do not fail.
//!
//! Two kinds of trouble are no error but a status, [`Status::Degraded`]: a feed that does not log every change, and a
//! row that the server cannot send. The follower follows everything else meanwhile.
//!
//! ## Without PostgreSQL
//!
//! [`OddsCache::detached`] returns the handle and a [`Writer`] in the follower's place. It is for a process that gets
//! the odds from elsewhere, and for tests of code that reads from a cache. Changes show only after [`Writer::publish`],
//! and then all at once.
//!
//! ```
//! use chrono::{Duration, Utc};
//! use oddscache::{MarketInput, OddsCache, OutcomeInput, SnapshotInput};
//!
//! let (cache, mut writer) = OddsCache::detached();
//! let market = MarketInput {
//!     betpawa_market_id: "3743".to_owned(),
//!     betpawa_market_name: "1X2".to_owned(),
//!     outcomes: vec![OutcomeInput::new("1", 2.1), OutcomeInput::new("X", 3.4), OutcomeInput::new("2", 3.65)],
//!     ..MarketInput::default()
//! };
//! let snapshot = SnapshotInput {
//!     snapshot_id: 1, event_id: 7, bookmaker_id: 1, captured_at: Utc::now(), last_confirmed_at: None,
//!     markets: vec![market],
//! };
//! writer.put_betpawa_snapshot(&snapshot, Some(Utc::now() + Duration::hours(1)));
//! writer.publish();
//! let odds = cache.read(|state| {
//!     let snapshot = state.event(7)?.betpawa().get(1)?;
//!     snapshot.market("3743", None)?.outcomes().next()?.odds()
//! });
//! assert_eq!(odds, Some(2.1));
//! ```
//!
//! # What a call costs
//!
//! No call blocks a thread on I/O or on the follower. A call that waits is a future, which may be dropped at any time.
//!
//! | call | locks | allocates | waits |
//! |---|---|---|---|
//! | every lookup in a [`View`] or [`State`], and in the values found there, except those below | no | no | no |
//! | [`OddsCache::read`], [`Reader::state`], [`is_warm`](OddsCache::is_warm), [`kickoff`](OddsCache::kickoff) | no | no | no |
//! | [`OddsCache::view`], [`event`](OddsCache::event), [`get_betpawa_snapshot`](OddsCache::get_betpawa_snapshot), [`get_competitor_snapshot`](OddsCache::get_competitor_snapshot), [`reader`](OddsCache::reader), [`State::cut`], clones of these | no, but they count a reference | no | no |
//! | [`OddsCache::view_within`] | only for its error | only its error | no |
//! | [`OddsCache::stats`], [`counters`](OddsCache::counters), [`change_log`](OddsCache::change_log), [`audit`](OddsCache::audit) | no | no | no |
//! | [`OddsCache::timings`] | no | a short list each | no |
//! | `get_betpawa_snapshots`, `get_competitor_snapshots`, `event_ids` of handle and view; [`Change::event_ids`] | no | what they return | no |
//! | [`Outcome::extra`] | no | parses, if there is any | no |
//! | [`Cut::shows`] | no | parses the cut's snapshot | no |
//! | [`OddsCache::status`] | one, held only for moments | the texts it returns | no |
//! | [`OddsCache::changes`], [`resync`](OddsCache::resync) | the same one | no | no |
//! | [`Changes::next`] | the same one | no | for the next change |
//! | [`OddsCache::ready`] | the same one | its error | for the first warmup |
//! | [`OddsCache::wait_for`] | the same one | what [`Cut::shows`] does, its error | for the view, or its `timeout` |
//! | [`InlineMarkets::write_event`] | no | the bytes it adds | no |
//! | [`EventList::render`] | no, takes `&mut self` | the list, unless it can use old memory again | no: about 1 ms for 1,100 events |
//! | [`Writer`]'s calls | no, take `&mut self` | what is put, pages that changed | no |
//!
//! A thread's first lookup registers the thread, which allocates once. The follower or the writer frees states that
//! nobody uses any more; readers never do. Times and ratios are in the README.
//!
//! # What it mirrors
//!
//! The same thing has the same name here, in SQL and in JSON. Times are UTC to the microsecond; `timestamp` without
//! time zone is read as UTC. Ids have 64 bits. Odds keep every bit of the number in the column. The cache never writes
//! to the application's tables.
//!
//! | here | in SQL |
//! |---|---|
//! | [`CachedEvent`] | a row of `events` with a `kickoff` after now less [`Config::lookback`], and at least one snapshot |
//! | [`CachedEvent::name`], `home_team`, `away_team`, `sportradar_id` | the columns of that row, where the table has them |
//! | [`CachedEvent::tournament`] | the row of `tournaments` that `events.tournament_id` names, with the name of its sport in `sports` |
//! | [`CachedEvent::bookmaker`] | a row of `bookmakers` |
//! | [`CachedEvent::betpawa`] | per `bookmaker_id` the row of `odds_snapshots` with the greatest `id` |
//! | [`CachedEvent::competitors`] | per `competitor_events.source` the row of `competitor_odds_snapshots` with the greatest `id`, over those whose competitor event is linked to the event and not deleted |
//! | [`CachedMarket`] | a row of `market_odds` or `competitor_market_odds`, in the order of `id` |
//! | [`Outcome`] | an element of the column `outcomes` |
//!
//! # Runtime
//!
//! The follower, [`Config::open`], [`check_notifications`] and [`warm_up`] need a tokio runtime with time and I/O;
//! [`OddsCache::wait_for`] needs one with time. Everything else needs none: [`Changes`] and [`OddsCache::ready`] run on
//! any. All types and futures are `Send`, and shared types are `Sync`.
//!
//! The crate logs with [`tracing`](https://docs.rs/tracing), and never logs data of a row. The follower's work has
//! spans:
//!
//! | span | level | fields |
//! |---|---|---|
//! | `warmup`: reading everything | info | `reason` ([`ReloadReason::name`]), `epoch`; at its end `rows` read and `events` held |
//! | `read`: reading changes | debug | `reason` (`notification`, `time`, `request`, `audit`, `resync`, `reload`), `epoch`; at its end `log_rows` and `rows` |
//! | `publish`, below one of these: making the next state visible | debug | `epoch`, `events` that changed |
//! | `history`: a question to `History` | debug | `event_id`, `betpawa_market_id` |
//!
//! # Cargo features
//!
//! | feature | default | brings |
//! |---|---|---|
//! | `service` | yes | the dependencies of the `oddscache` binary, and `tls` |
//! | `demo` | yes | the command `oddscache demo`. A production build leaves it out: `--no-default-features --features service` |
//! | `otlp` | no | `--otlp-endpoint` of the `oddscache` binary: traces for an OpenTelemetry collector |
//! | `zstd` | no | zstd beside gzip for the answers of the `oddscache` binary; needs a C compiler |
//! | `nats` | by `service` | `Relay`: one process follows the database, any number follow that process, by NATS JetStream |
//! | `client` | by `service` | `client`: a typed HTTP client of the service, for programs that hold no cache of their own; and `tls` |
//! | `history` | by `service` | `History`: how the prices of one market moved, read from the database on demand |
//! | `tls` | by `service` | TLS to the database, by rustls with ring. Without it, `sslmode=prefer` connects without TLS, and `require` and stricter need a connector of your own ([`Config::tls_connector`]) |
//!
//! To embed the library: `default-features = false`, and `features = ["tls"]` unless the database is on this machine.
//!
//! # Versions
//!
//! [Semantic versioning](https://semver.org/) as cargo reads it: before 1.0 a breaking change raises the minor version,
//! and any other change the patch version. The interface consists of the public names, the JSON that types serialise
//! to, and the crates that show in signatures: `bytes`, `chrono`, `futures-core`, `serde`, `serde_json`, and
//! [`tokio_postgres`], which is re-exported. Types that may gain fields or variants are `#[non_exhaustive]`. The inputs
//! of [`Writer`] are not, so that programs can construct them; a new field there is a breaking change. The texts of
//! errors, statuses and log lines are for people and may change.
//!
//! The change feed has a version of its own, [`sql::FEED_VERSION`]. A follower works with that version and the one
//! before ([`sql::FEED_VERSIONS`]), so the feed and the caches can be upgraded in either order. With the older one it
//! warns once, and [`ChangeLog::feed_version`] shows it. Running `install.sql` again upgrades the feed under running
//! caches.
//!
//! The oldest supported Rust is the `rust-version` of `Cargo.toml`; all tests run with it. Raising it counts as a
//! breaking change.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(
    missing_debug_implementations,
    missing_docs,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::return_self_not_must_use
)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod backoff;
mod cache;
#[cfg(feature = "client")]
pub mod client;
mod config;
mod decode;
mod error;
mod event_list;
mod follow;
mod follower;
#[cfg(feature = "history")]
mod history;
mod metrics;
mod model;
mod postgres;
mod read;
mod reader;
#[cfg(feature = "nats")]
mod relay;
pub mod sql;
mod store;
mod writer;

pub use tokio_postgres;

pub use cache::OddsCache;
pub use config::Config;
pub use error::Error;
pub use event_list::{EventList, InlineMarkets};
pub use follow::{listener::check_notifications, warm_up};
pub use follower::Follower;
#[cfg(feature = "history")]
pub use history::{History, HistoryError, HistoryQuery, MarketHistory, PastSnapshot};
pub use metrics::{
    histogram::{Timing, TimingBucket},
    progress::Reading,
    reload::{ReloadReason, Reloads},
    stats::{MemoryStats, Stats, WarmupStats},
    status::{AuditPass, AuditPasses, ChangeLog, Counters, Fault, Status},
    timing::Timings,
};
pub use model::{
    BetpawaSnapshots, Bookmaker, CachedEvent, CachedMarket, CachedSnapshot, CompetitorSnapshots,
    MarketInput, Markets, NamesInput, Outcome, OutcomeInput, Outcomes, SnapshotInput, Source,
    Tournament, TournamentInput,
};
pub use postgres::{
    connect::Connection,
    conninfo::without_password,
    password::Login,
    server_version::SERVER_VERSIONS,
    tls::{SslMode, Tls},
};
pub use reader::Reader;
#[cfg(feature = "nats")]
pub use relay::{
    address::Relay,
    inspect::{RelayInspection, RelayLeader, RelayStream, RelayStreamFacts},
    publish::RelayPublisher,
};
pub use store::{
    changes::{Change, Changes, Lagged},
    state::{Cut, State, View},
};
pub use writer::Writer;

/// The README's examples, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
