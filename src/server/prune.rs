//! Keeps the change log short, where the role may: the log grows with every write, and a follower needs only its end.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, anyhow};
use oddscache::Config;
use serde::Serialize;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, types::Type};

/// No more often than this, whatever was asked for.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// How long one call may take, once connected.
const BOUND: Duration = Duration::from_secs(30);

/// What one call deletes at the most; when it does, there is more.
const MOST: i64 = 50_000;

/// A trouble that stays is told again after so many failures: about once an hour.
const TELL_AGAIN: u64 = 60;

/// Of this process, which has one pruner.
static DONE: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

/// How often it was done since the start.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Pruning {
    pub(crate) done: u64,
    pub(crate) failed: u64,
}

pub(crate) fn pruning() -> Pruning {
    Pruning {
        done: DONE.load(Ordering::Relaxed),
        failed: FAILED.load(Ordering::Relaxed),
    }
}

/// What fails, and how often it has in a row.
#[derive(Debug, Default)]
struct Trouble {
    reason: Option<String>,
    times: u64,
}

impl Trouble {
    /// Whether a failure for this reason is to be told loudly: each reason once, and again if it stays.
    fn is_news(&mut self, reason: &str) -> bool {
        if self.reason.as_deref() != Some(reason) {
            self.reason = Some(reason.to_owned());
            self.times = 0;
        }
        self.times += 1;
        self.times % TELL_AGAIN == 1
    }

    /// Whether there was any, which is over.
    fn end(&mut self) -> bool {
        std::mem::take(self).reason.is_some()
    }
}

/// The same for failures of one kind: their texts may name processes and rows.
fn reason(error: &anyhow::Error) -> String {
    let server = error.chain().find_map(|cause| {
        let error: &tokio_postgres::Error = cause.downcast_ref()?;
        error.code()
    });
    server.map_or_else(|| format!("{error:#}"), |code| code.code().to_owned())
}

/// Prunes until it is dropped. Whatever goes wrong is logged, and tried again.
pub(crate) async fn run(config: Config, cache_schema: String, keep: Duration, interval: Duration) {
    let mut told = false;
    let mut trouble = Trouble::default();
    let interval = interval.max(LEAST_INTERVAL);
    loop {
        // At random, so that many services do not come at once; those that do leave the work to the first.
        sleep(interval.mul_f64(0.5 + fastrand::f64())).await;
        match prune(&config, &cache_schema, keep).await {
            Ok(Some(rows)) => {
                DONE.fetch_add(1, Ordering::Relaxed);
                if trouble.end() {
                    tracing::info!(rows, "the change log is pruned again");
                } else {
                    tracing::debug!(rows, "pruned the change log");
                }
            }
            Ok(None) if told => {}
            Ok(None) => {
                told = true;
                tracing::info!(
                    "this role may not prune the change log: run `oddscache sql grants --prune`, or let the owner run \
                     `select {cache_schema}.prune()` now and then"
                );
            }
            Err(error) => {
                FAILED.fetch_add(1, Ordering::Relaxed);
                let (news, error) = (trouble.is_news(&reason(&error)), describe(&error));
                let failures = trouble.times;
                if news {
                    tracing::warn!(
                        error,
                        failures,
                        "the change log was not pruned: table {cache_schema}.change_log grows with every write until it is; \
                         `oddscache doctor`, as this role, says what keeps it from being pruned and what mends it"
                    );
                } else {
                    tracing::debug!(error, failures, "the change log was not pruned");
                }
            }
        }
    }
}

/// With the server's own words, which the driver's errors leave out.
fn describe(error: &anyhow::Error) -> String {
    let server = error.chain().find_map(|cause| {
        let error: &tokio_postgres::Error = cause.downcast_ref()?;
        error.as_db_error()
    });
    match server {
        Some(server) => format!(
            "{error}: {} (SQLSTATE {})",
            server.message(),
            server.code().code()
        ),
        None => format!("{error:#}"),
    }
}

/// How many rows went; `None` if the role has no right to do it.
async fn prune(config: &Config, cache_schema: &str, keep: Duration) -> anyhow::Result<Option<i64>> {
    let (client, wire) = config.open().await?;
    // Neither the role's search path nor its time-outs have a say: what bounds a call is `prune()` itself, and BOUND.
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {}SET LOCAL search_path = pg_catalog, pg_temp; \
         SET LOCAL statement_timeout = {bound}; SET LOCAL idle_in_transaction_session_timeout = {bound}",
        wire.without_transaction_timeout(),
        bound = BOUND.as_millis(),
    );
    // Ends with this, also where this is cancelled.
    tokio::select! {
        pruned = timeout(BOUND, prune_on(&client, &begin, cache_schema, keep)) => pruned.context("no answer in time")?,
        ended = wire => Err(ended.err().map_or_else(|| anyhow!("the connection ended"), Into::into)),
    }
}

/// Each call is a transaction.
async fn prune_on(
    client: &Client,
    begin: &str,
    cache_schema: &str,
    keep: Duration,
) -> anyhow::Result<Option<i64>> {
    let mut total = 0;
    loop {
        client
            .batch_execute(begin)
            .await
            .context("beginning to prune")?;
        let pruned = prune_once(client, cache_schema, keep).await?;
        client.batch_execute("COMMIT").await.context("pruning")?;
        let Some(rows) = pruned else {
            return Ok(None);
        };
        total += rows;
        if rows < MOST {
            return Ok(Some(total));
        }
    }
}

async fn prune_once(
    client: &Client,
    cache_schema: &str,
    keep: Duration,
) -> anyhow::Result<Option<i64>> {
    let sql = "SELECT has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE'), quote_ident($1) \
               FROM pg_namespace n JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = 'prune' WHERE n.nspname = $1";
    let rows = client
        .query_typed(sql, &[(&cache_schema, Type::TEXT)])
        .await
        .context("looking for the right")?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    if !row.try_get::<_, bool>(0).context("looking for the right")? {
        return Ok(None);
    }
    let sql = format!(
        "SELECT {}.prune($1 * interval '1 second')",
        row.try_get::<_, &str>(1).context("looking for the right")?
    );
    let rows = client
        .query_typed(&sql, &[(&keep.as_secs_f64(), Type::FLOAT8)])
        .await
        .context("pruning")?;
    let rows = rows.first().map_or(Ok(0), |row| row.try_get(0));
    rows.map(Some).context("pruning")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_once_and_again_if_it_stays() {
        let mut trouble = Trouble::default();
        assert!(!trouble.end());
        assert!(trouble.is_news("55000"));
        for _ in 1..TELL_AGAIN {
            assert!(!trouble.is_news("55000"));
        }
        assert!(trouble.is_news("55000"), "it stays");
        assert!(trouble.is_news("42501"), "another");
        assert!(!trouble.is_news("42501"));
        assert!(trouble.end());
        assert!(!trouble.end());
        assert!(trouble.is_news("42501"), "it is back");
    }

    #[test]
    fn without_the_servers_words_the_chain_is_told() {
        let error = anyhow!("refused").context("connecting");
        assert_eq!(describe(&error), "connecting: refused");
        assert_eq!(reason(&error), "connecting: refused");
    }
}
