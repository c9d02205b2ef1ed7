//! Compares the cache with the database, by a query that shares nothing with how the cache reads.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use oddscache::{OddsCache, View};
use serde_json::Value;
use tokio_postgres::{Client, types::Type};

use crate::server::commands::explain::{compare::differences, oracle::ORACLE};

/// How long the cache may take to show what was committed before.
const CATCH_UP: Duration = Duration::from_secs(10);

/// Waits until the cache shows all that is committed now, and compares it with the tables. Nobody may change them
/// meanwhile. Returns how many events were equal.
pub(crate) async fn verify(cache: &OddsCache, client: &Client) -> anyhow::Result<usize> {
    const READING: &str = "reading the oracle's answer";
    let view = caught_up(cache, client).await?;
    let window_start = view.cut().window_start.to_rfc3339();
    // The parameter's type must be named, and text needs no conversion in the driver.
    let sql = ORACLE.replace("$1", "($1::text)");
    let rows = client
        .query_typed(&sql, &[(&window_start, Type::TEXT)])
        .await
        .context("asking the oracle")?;
    for row in &rows {
        let event_id: i64 = row.try_get(0).context(READING)?;
        let line: &str = row.try_get(1).context(READING)?;
        let expected: Value = serde_json::from_str(line).context(READING)?;
        let Some(event) = view.event(event_id) else {
            bail!("event {event_id} is missing from the cache")
        };
        let held = serde_json::to_value(event).context("writing an event as JSON")?;
        if let Some(difference) = differences(&held, &expected).first() {
            bail!("event {event_id} differs from the database: {difference}");
        }
    }
    ensure!(
        view.len() == rows.len(),
        "the cache holds {} events, the database has {}",
        view.len(),
        rows.len()
    );
    Ok(rows.len())
}

/// A view that shows everything committed so far. To get it, this begins a transaction, and waits for a view that
/// contains it. A view that contains this transaction contains all that committed before.
async fn caught_up(cache: &OddsCache, client: &Client) -> anyhow::Result<View> {
    const DOING: &str = "asking for a transaction id";
    let rows = client
        .query_typed("SELECT pg_current_xact_id()::text", &[])
        .await
        .context(DOING)?;
    let xid: String = rows.first().context(DOING)?.try_get(0).context(DOING)?;
    let view = cache.wait_for(xid.parse().context(DOING)?, CATCH_UP).await;
    view.context("the cache did not catch up")
}
