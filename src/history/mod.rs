//! How the prices of a market moved: read from the database on demand, not from the cache, which holds the latest
//! snapshots alone.
//!
//! # Invariants
//! - HI1: A question never uses the follower's connections. At most [`History::new`]'s `connections` are open, also while
//!   the server still works on questions that nobody waits for, and a bounded number of questions waits for one. Each
//!   question has its answer or an error within its time limit.
//! - HI2: Rows are found by an index alone. If one is missing, the question is refused before it reads a row. Which
//!   indexes there are is looked up once a minute for each connection.
//! - HI3: A connection is used again only if its transaction has ended well. Otherwise it is closed, when the server has
//!   ended the statement.
//! - HI4: A question gives way to a lock before the server looks for a deadlock, as a read does (`read/schema.rs`).

mod error;
mod index;
mod pool;
mod statement;
mod types;

use std::{sync::Arc, time::Duration};

use deadpool::managed::{Object, Pool};
use tokio::{sync::Semaphore, time::timeout};
use tracing::Instrument;

use crate::{config::Config, error::Error};

use self::pool::Manager;
pub use self::{
    error::HistoryError,
    types::{HistoryQuery, MarketHistory, PastSnapshot},
};

/// How many questions may wait for each connection, with the one that uses it.
const QUESTIONS_PER_CONNECTION: usize = 8;

/// The most connections. A server has a few hundred for everybody.
const MOST_CONNECTIONS: usize = 100;

/// The server ends each statement within the time of a question. How many times that time a connection may be in use.
const STATEMENTS_BOUND: u32 = 4;

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

impl History {
    /// Opens no connection yet. Up to `connections`, 1 to 100, are open at once. A question may take `within`, with the
    /// time that it waits for a connection.
    ///
    /// The connections reach the server of `config` as its follower's do, and their role needs the same rights
    /// (`sql/grants.sql`). If row security hides rows from the role, the history lacks them.
    ///
    /// # Errors
    /// [`HistoryError::Database`] if `config` is a relay's, which leads to no database, or if a number is out of range.
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
        if !(1..=MOST_CONNECTIONS).contains(&connections) || within.is_zero() {
            let reason = format!(
                "{connections} connections and {within:?} for the history: 1 to {MOST_CONNECTIONS} connections, and \
                 more than no time"
            );
            return Err(Error::Config(reason).into());
        }
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

    /// The history of one market. Runs one transaction in the database, in a task of its own, and allocates the answer.
    /// Needs a tokio runtime. Safe to drop at any time: the server may then work on it until its time is over.
    ///
    /// # Errors
    /// See [`HistoryError`].
    pub async fn read(&self, query: &HistoryQuery) -> Result<MarketHistory, HistoryError> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| HistoryError::Busy { most: self.most })?;
        let (pool, asked) = (self.pool.clone(), query.clone());
        // The server works on after the caller has gone. So the task keeps its place and its connection until then.
        let bound = self.within * STATEMENTS_BOUND;
        let read = async move {
            let _place = place;
            let mut session = pool.get().await.map_err(pool::reason)?;
            let late = "the server has not ended a statement in its time";
            let read = timeout(bound, session.read(&asked)).await;
            let answer = read.unwrap_or_else(|_| Err(Error::unexpected(pool::DOING, late).into()));
            if answer.is_err() {
                // Out of the pool: its connection is closed, and the server rolls back.
                drop(Object::take(session));
            }
            answer
        };
        let span = tracing::debug_span!(
            "history",
            event_id = query.event_id,
            betpawa_market_id = query.betpawa_market_id
        );
        let read = tokio::spawn(read.instrument(span));
        let late = HistoryError::TimedOut {
            seconds: self.within.as_secs_f64(),
        };
        match timeout(self.within, read).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(ended)) => Err(Error::unexpected(pool::DOING, ended.to_string()).into()),
            Err(_) => Err(late),
        }
    }
}
