//! Takes turns with the other caches of a database. After a restart of the server, all of them want to read everything;
//! after a change of a trigger, all of them look at all rows.
//!
//! # Invariants
//! - RE1: At most [`READERS`] caches do so at once, except those that have waited for [`LONGEST_WAIT`].
//! - RE2: A turn ends with the transaction, whatever becomes of the cache.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::{error::Error, postgres::quote::literal, read::schema::Names};

/// How many caches of a database may read everything at once. Each keeps about one core of the server busy.
const READERS: u32 = 2;

/// Any role can take the locks, and keep them. So nobody waits for longer.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

const DOING: &str = "waiting for the turn to read everything";

/// Whether this cache waits for its turn, and since when.
#[derive(Debug, Default)]
pub(crate) struct Turn(Option<Instant>);

impl Turn {
    /// Takes a turn, which ends with the current transaction. Returns how long to pause before the next attempt if there
    /// is none; the caller must end the transaction first.
    pub(crate) async fn take(
        &mut self,
        client: &Client,
        names: &Names,
    ) -> Result<Option<Duration>, Error> {
        let waits_since = match self.0 {
            Some(since) if since.elapsed() > LONGEST_WAIT => {
                tracing::warn!("reading everything, though other caches still do");
                self.0 = None;
                return Ok(None);
            }
            since => since,
        };
        let lock = |reader| {
            let name = format!("oddscache reader {reader} {}", names.cache_schema);
            let name = literal(&name);
            format!("pg_try_advisory_xact_lock(hashtextextended({name}, 0))")
        };
        let locks: Vec<String> = (0..READERS).map(lock).collect();
        let sql = format!("SELECT {}", locks.join(" OR "));
        let rows = client.query_typed(&sql, &[]).await;
        let rows = rows.map_err(Error::database(DOING))?;
        let taken = rows.first().map(|row| row.try_get(0)).transpose();
        if taken.map_err(Error::database(DOING))? == Some(true) {
            self.0 = None;
            return Ok(None);
        }
        if waits_since.is_none() {
            tracing::info!("waiting until other caches have read everything");
            self.0 = Some(Instant::now());
        }
        // Random, so that those who wait do not all come at once.
        Ok(Some(Duration::from_millis(fastrand::u64(50..500))))
    }
}
