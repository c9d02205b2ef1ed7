//! Compares what the cache holds with what the database says, by a query that has nothing in common with the cache's own.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use oddscache::{OddsCache, View};
use serde_json::Value;
use tokio::time::sleep;
use tokio_postgres::{Client, types::Type};

use crate::server::commands::explain::oracle::{ORACLE, normal};

/// How long the cache may take to show what was committed before.
const CATCH_UP: Duration = Duration::from_secs(10);

/// Waits until the cache shows all that is committed now, and compares it with the tables, which nobody may change
/// meanwhile. Returns how many events were equal.
pub(crate) async fn verify(cache: &OddsCache, client: &Client) -> anyhow::Result<usize> {
    let view = caught_up(cache, client).await?;
    let window_start = view.cut().window_start.to_rfc3339();
    let sql = ORACLE.replace("$1", "($1::text)");
    let rows = client
        .query_typed(&sql, &[(&window_start, Type::TEXT)])
        .await
        .context("asking the oracle")?;
    let ids = view.event_ids();
    let mut expected_ids = Vec::with_capacity(ids.len());
    for row in &rows {
        let event_id: i64 = row.try_get(0).context("reading the oracle's answer")?;
        let expected: Value =
            serde_json::from_str(row.try_get(1).context("reading the oracle's answer")?)
                .context("reading the oracle's JSON")?;
        let Some(event) = view.event(event_id) else {
            bail!("event {event_id} is missing from the cache")
        };
        let held = serde_json::to_value(event).context("writing an event as JSON")?;
        if let Some(difference) = difference(&normal(held), &normal(expected)) {
            bail!("event {event_id} differs from the database (cache, database): {difference}");
        }
        expected_ids.push(event_id);
    }
    ensure!(
        ids == expected_ids,
        "the cache holds {} events, the database has {}",
        ids.len(),
        expected_ids.len()
    );
    Ok(ids.len())
}

async fn caught_up(cache: &OddsCache, client: &Client) -> anyhow::Result<View> {
    const DOING: &str = "asking for the current snapshot";
    let rows = client
        .query_typed("SELECT pg_current_snapshot()::text", &[])
        .await
        .context(DOING)?;
    let now: String = rows.first().context(DOING)?.try_get(0).context(DOING)?;
    let deadline = Instant::now() + CATCH_UP;
    loop {
        let view = cache.view();
        if shows_all_of(&view.cut().snapshot, &now) == Some(true) {
            return Ok(view);
        }
        ensure!(
            Instant::now() < deadline,
            "the cache did not catch up within {} s",
            CATCH_UP.as_secs()
        );
        sleep(Duration::from_millis(5)).await;
    }
}

/// Whether all that the snapshot `now` shows is shown by `cut` too; `None` if one of them is no snapshot.
fn shows_all_of(cut: &str, now: &str) -> Option<bool> {
    let parts = |snapshot: &str| -> Option<(u64, Vec<u64>)> {
        let mut parts = snapshot.split(':').skip(1);
        let xmax = parts.next()?.parse().ok()?;
        let in_progress = parts
            .next()?
            .split(',')
            .filter(|xid| !xid.is_empty())
            .map(str::parse);
        Some((xmax, in_progress.collect::<Result<_, _>>().ok()?))
    };
    let ((cut_xmax, cut_in_progress), (now_xmax, now_in_progress)) = (parts(cut)?, parts(now)?);
    // The same xmax is not enough: what was in progress at the cut may have been committed since.
    let still_open = |xid: &u64| *xid >= now_xmax || now_in_progress.contains(xid);
    Some(cut_xmax >= now_xmax && cut_in_progress.iter().all(still_open))
}

/// Where two values differ first, and how.
fn difference(held: &Value, expected: &Value) -> Option<String> {
    let within =
        |key: String, held: Option<&Value>, expected: Option<&Value>| match (held, expected) {
            (Some(held), Some(expected)) => {
                difference(held, expected).map(|rest| format!("{key}.{rest}"))
            }
            (held, expected) => Some(format!("{key}: {} {}", json(held), json(expected))),
        };
    match (held, expected) {
        _ if held == expected => None,
        (Value::Object(held), Value::Object(expected)) => {
            let keys: BTreeSet<&String> = held.keys().chain(expected.keys()).collect();
            keys.into_iter()
                .find_map(|key| within(key.clone(), held.get(key), expected.get(key)))
        }
        (Value::Array(held), Value::Array(expected)) => {
            let most = held.len().max(expected.len());
            (0..most)
                .find_map(|index| within(index.to_string(), held.get(index), expected.get(index)))
        }
        _ => Some(format!("{} {}", json(Some(held)), json(Some(expected)))),
    }
}

fn json(value: Option<&Value>) -> String {
    value.map_or_else(
        || "nothing".to_owned(),
        |value| value.to_string().chars().take(300).collect(),
    )
}
