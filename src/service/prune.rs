//! Keeps the change log short, where the role may: the log grows with every write, and a follower needs only its end.

use std::time::Duration;

use anyhow::{Context, anyhow};
use oddscache::Config;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, types::Type};

/// How often.
const INTERVAL: Duration = Duration::from_secs(60);

/// How long one call may take, once connected.
const BOUND: Duration = Duration::from_secs(30);

/// What one call deletes at the most; when it does, there is more.
const MOST: i64 = 50_000;

/// Prunes until it is dropped. Whatever goes wrong is logged, and tried again.
pub(crate) async fn run(config: Config, cache_schema: String, keep: Duration) {
    let mut told = false;
    loop {
        // At random, so that many services do not come at once; those that do leave the work to the first.
        sleep(INTERVAL.mul_f64(0.5 + fastrand::f64())).await;
        match prune(&config, &cache_schema, keep).await {
            Ok(Some(rows)) => tracing::debug!(rows, "pruned the change log"),
            Ok(None) if told => {}
            Ok(None) => {
                told = true;
                tracing::info!(
                    "this role may not prune the change log: run sql/grants.sql with -v prune=on, or let the owner run \
                     `select {cache_schema}.prune()` now and then"
                );
            }
            Err(error) => tracing::debug!(
                error = format!("{error:#}"),
                "the change log was not pruned"
            ),
        }
    }
}

/// How many rows went; `None` if the role has no right to do it.
async fn prune(config: &Config, cache_schema: &str, keep: Duration) -> anyhow::Result<Option<i64>> {
    let (client, wire) = config.open().await?;
    // Ends with this, also where this is cancelled.
    tokio::select! {
        pruned = timeout(BOUND, prune_on(&client, cache_schema, keep)) => pruned.context("no answer in time")?,
        ended = wire => Err(ended.err().map_or_else(|| anyhow!("the connection ended"), Into::into)),
    }
}

/// Each call is a transaction in which the role's search path has no say in what names mean.
async fn prune_on(
    client: &Client,
    cache_schema: &str,
    keep: Duration,
) -> anyhow::Result<Option<i64>> {
    let mut total = 0;
    loop {
        client
            .batch_execute("BEGIN; SET LOCAL search_path = pg_catalog, pg_temp")
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
