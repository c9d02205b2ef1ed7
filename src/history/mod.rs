//! How the prices of a market moved: read from the database on demand, not from the cache, which holds the latest
//! snapshots alone.
//!
//! # Invariants
//! - HI1: A question never uses the follower's connections. At most [`History::new`]'s `connections` are open, a bounded
//!   number of questions waits for one, and each question ends within its time limit.
//! - HI2: Rows are found by an index alone. If one is missing, the question is refused before it reads a row.
//! - HI3: A connection is used again only if its transaction has ended. After an error, a time-out or a cancelled
//!   question it is closed.

mod error;
mod index;
mod pool;
mod statement;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use deadpool::managed::Pool;
use serde::{Serialize, Serializer};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    config::Config,
    error::Error,
    model::{CachedSnapshot, Source},
};

pub use self::error::HistoryError;
use self::pool::Manager;

/// How many questions may wait for each connection, with the one that uses it.
const QUESTIONS_PER_CONNECTION: usize = 8;

/// Reads the history of markets from the database. Cheap to clone; clones share their connections.
///
/// It opens a connection when a question needs one, and keeps it for later ones.
///
/// ```no_run
/// # async fn example() -> Result<(), oddscache::HistoryError> {
/// use std::time::Duration;
/// use oddscache::{Config, History, HistoryQuery};
///
/// let config = Config::new("postgres://oddscache@localhost/odds")?;
/// let history = History::new(config, 2, Duration::from_secs(5))?;
/// let moved = history.read(&HistoryQuery::new(4711, "3743")).await?;
/// for past in &moved.snapshots {
///     for outcome in past.snapshot.markets().flat_map(|market| market.outcomes()) {
///         println!("{} {} {}: {:?}", past.snapshot.captured_at(), past.source, outcome.name(), outcome.odds());
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct History {
    pool: Pool<Manager>,
    places: Arc<Semaphore>,
    most: usize,
    within: Duration,
}

/// Which snapshots of which market to read.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HistoryQuery {
    /// `events.id`, held by the cache or not.
    pub event_id: i64,
    /// `betpawa_market_id`.
    pub betpawa_market_id: String,
    /// Only this line, such as 2.5; `None` for all lines.
    pub line: Option<f64>,
    /// Only this bookmaker of `odds_snapshots`; `None` for all.
    pub bookmaker_id: Option<i64>,
    /// `betpawa` for `odds_snapshots`, or the source of a competitor; `None` for all.
    pub source: Option<String>,
    /// Only snapshots captured at or after this time; `None` for no limit.
    pub from: Option<DateTime<Utc>>,
    /// Only snapshots captured before this time; `None` for no limit.
    pub to: Option<DateTime<Utc>>,
    /// At most so many snapshots, the latest ones.
    pub limit: usize,
}

/// The source that stands for the snapshots of `odds_snapshots`.
const OWN: &str = "betpawa";

impl HistoryQuery {
    /// All bookmakers, competitors and lines at all times, up to 1,000 snapshots.
    pub fn new(event_id: i64, betpawa_market_id: impl Into<String>) -> HistoryQuery {
        HistoryQuery {
            event_id,
            betpawa_market_id: betpawa_market_id.into(),
            line: None,
            bookmaker_id: None,
            source: None,
            from: None,
            to: None,
            limit: 1_000,
        }
    }

    /// Whether it wants snapshots of `odds_snapshots`.
    fn wants_own(&self) -> bool {
        self.source.as_ref().is_none_or(|source| source == OWN)
    }

    /// Whether it wants snapshots of `competitor_odds_snapshots`.
    fn wants_competitors(&self) -> bool {
        let is_theirs = |source: &String| source != OWN && !source.contains('\0');
        self.bookmaker_id.is_none() && self.source.as_ref().is_none_or(is_theirs)
    }
}

/// The history of a market.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct MarketHistory {
    /// The database's clock when it was read, UTC. It shows what was committed before.
    pub as_of: DateTime<Utc>,
    /// The snapshots of the event in the order of `captured_at`, then of their ids. A snapshot has all rows of the
    /// market that it was asked for. It has none if the bookmaker did not offer the market then.
    pub snapshots: Vec<PastSnapshot>,
    /// If there are older snapshots: ask again with this as `to`. The answer repeats those that were captured at the
    /// earliest time of this one.
    pub next_to: Option<DateTime<Utc>>,
}

/// A snapshot of the past, with the rows of one market.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PastSnapshot {
    /// `betpawa` for `odds_snapshots`, else the competitor's source.
    #[serde(serialize_with = "as_text")]
    pub source: Source,
    /// The snapshot.
    pub snapshot: CachedSnapshot,
}

fn as_text<S: Serializer>(source: &Source, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(source.as_str())
}

impl History {
    /// Opens no connection yet. Up to `connections` are open at once; at least one. A question may take `within`,
    /// with the time that it waits for a connection.
    ///
    /// The connections reach the server of `config` as its follower's do, and their role needs the same rights
    /// (`sql/grants.sql`).
    ///
    /// # Errors
    /// [`HistoryError::Database`] if `config` is a relay's, which leads to no database.
    pub fn new(
        config: Config,
        connections: usize,
        within: Duration,
    ) -> Result<History, HistoryError> {
        #[cfg(feature = "nats")]
        if config.relay.is_some() {
            let reason = "a relay has no history: ask where the database is followed";
            return Err(Error::Config(reason.to_owned()).into());
        }
        let connections = connections.max(1);
        let pool = Pool::builder(Manager { config, within })
            .max_size(connections)
            .build()
            .map_err(|error| Error::Config(error.to_string()))?;
        let most = connections * QUESTIONS_PER_CONNECTION;
        Ok(History {
            pool,
            places: Arc::new(Semaphore::new(most)),
            most,
            within,
        })
    }

    /// The history of one market. Holds no lock in this process, allocates the answer, and reads one transaction of the
    /// database. Safe to drop at any time.
    ///
    /// # Errors
    /// See [`HistoryError`].
    pub async fn read(&self, query: &HistoryQuery) -> Result<MarketHistory, HistoryError> {
        let place = self.places.try_acquire();
        let _place = place.map_err(|_| HistoryError::Busy { most: self.most })?;
        let read = async {
            let session = self.pool.get().await;
            pool::Lease::new(session.map_err(pool::reason)?)
                .read(query)
                .await
        };
        let late = Err(HistoryError::TimedOut {
            seconds: self.within.as_secs_f64(),
        });
        timeout(self.within, read).await.unwrap_or(late)
    }
}
