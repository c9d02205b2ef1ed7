//! Keeps the change log short, if the role may: the log grows with every write, and a follower needs only its end.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use oddscache::Config;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::session::{Session, Trouble, identifier, literal};

/// The shortest interval, whatever `--prune-interval` says.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// How long the server may take for one call. `prune()` stops by itself sooner.
const BOUND: Duration = Duration::from_secs(30);

/// The most rows that one call deletes. If a call deletes this many, there may be more.
const MOST: i64 = 50_000;

/// If pruning keeps failing for the same reason, every so many failures bring one more warning: about one an hour.
const WARN_AGAIN: u64 = 60;

/// Overrides the role's defaults, because `prune()` writes, and refuses to run in a serializable transaction.
pub(crate) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
    SET LOCAL search_path = pg_catalog, pg_temp";

/// Counted for the process, which has one pruner.
static DONE: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

/// How often pruning was done, and how often it failed, since the start.
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

/// Failures in a row, for the same reason.
#[derive(Debug, Default)]
struct Failures {
    reason: Option<String>,
    times: u64,
}

impl Failures {
    /// Counts a failure. Returns whether to warn of it: true for the first failure for a reason, then once in
    /// [`WARN_AGAIN`].
    fn is_news(&mut self, reason: &str) -> bool {
        if self.reason.as_deref() != Some(reason) {
            self.reason = Some(reason.to_owned());
            self.times = 0;
        }
        self.times += 1;
        self.times % WARN_AGAIN == 1
    }

    /// Forgets the failures. Returns whether there were any.
    fn end(&mut self) -> bool {
        std::mem::take(self).reason.is_some()
    }
}

/// Prunes until it is dropped. It logs what goes wrong, and tries again.
pub(crate) async fn run(config: Config, cache_schema: String, keep: Duration, interval: Duration) {
    let mut is_reported = false;
    let mut failures = Failures::default();
    let interval = interval.max(LEAST_INTERVAL);
    loop {
        // The pause is random. So if many services start together, the first one to wake does the work of all.
        sleep(interval.mul_f64(0.5 + fastrand::f64())).await;
        match prune(&config, &cache_schema, keep).await {
            Ok(Some(rows)) => {
                DONE.fetch_add(1, Ordering::Relaxed);
                if failures.end() {
                    tracing::info!(rows, "the change log is pruned again");
                } else {
                    tracing::debug!(rows, "pruned the change log");
                }
            }
            Ok(None) if is_reported => {}
            Ok(None) => {
                is_reported = true;
                tracing::info!(
                    "this role may not prune the change log: run `oddscache sql grants --prune`, or let the owner run \
                     `select {cache_schema}.prune()` now and then"
                );
            }
            Err(Trouble { text, sqlstate }) => {
                FAILED.fetch_add(1, Ordering::Relaxed);
                // Compare failures by SQLSTATE, because the text may name processes and rows.
                let is_news = failures.is_news(sqlstate.as_ref().unwrap_or(&text));
                let (error, failures) = (text, failures.times);
                if is_news {
                    tracing::warn!(
                        error,
                        failures,
                        "the change log was not pruned: table {cache_schema}.change_log grows with every write until it is; \
                         `oddscache doctor`, as this role, says what keeps it from being pruned and how to fix it"
                    );
                } else {
                    tracing::debug!(error, failures, "the change log was not pruned");
                }
            }
        }
    }
}

/// Whether the session's role may call `prune()`; `None` if there is no such function.
pub(crate) async fn is_allowed(
    session: &Session,
    cache_schema: &str,
) -> Result<Option<bool>, Trouble> {
    #[derive(Deserialize)]
    struct Right {
        may: bool,
    }
    let sql = format!(
        "SELECT has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE') AS may \
         FROM pg_namespace AS n JOIN pg_proc AS p ON p.pronamespace = n.oid AND p.proname = 'prune' \
           AND p.proargtypes = '1186' WHERE n.nspname = {}",
        literal(cache_schema)
    );
    let rights = session.rows(&sql).await?;
    Ok(rights.first().map(|Right { may }| *may))
}

/// The rows that a call of `prune()` deleted.
#[derive(Deserialize)]
pub(crate) struct Pruned {
    pub(crate) rows: i64,
}

/// Prunes once. Returns how many rows were deleted; `None` if the role may not prune.
async fn prune(
    config: &Config,
    cache_schema: &str,
    keep: Duration,
) -> Result<Option<i64>, Trouble> {
    let session = Session::open(config, "prune", BOUND).await?;
    if is_allowed(&session, cache_schema).await? != Some(true) {
        return Ok(None);
    }
    let call = format!(
        "SELECT {}.prune({} * interval '1 second') AS rows",
        identifier(cache_schema),
        keep.as_secs_f64()
    );
    let mut total = 0;
    loop {
        let pruned: Vec<Pruned> = session.commit_after(BEGIN, &call).await?;
        let rows: i64 = pruned.iter().map(|pruned| pruned.rows).sum();
        total += rows;
        if rows < MOST {
            return Ok(Some(total));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_once_and_again_if_it_stays() {
        let mut failures = Failures::default();
        assert!(!failures.end());
        assert!(failures.is_news("55000"));
        for _ in 1..WARN_AGAIN {
            assert!(!failures.is_news("55000"));
        }
        assert!(failures.is_news("55000"), "it stays");
        assert!(failures.is_news("42501"), "another");
        assert!(!failures.is_news("42501"));
        assert!(failures.end());
        assert!(!failures.end());
        assert!(failures.is_news("42501"), "it is back");
    }
}
