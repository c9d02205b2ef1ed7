//! What a running service says about an event.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use chrono::{DateTime, Utc};
use oddscache::client::Client;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::arguments::ExplainArguments;
use crate::server::client::{Url, client};

/// How often the service is asked whether it has caught up.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// What a service says about the event and itself.
#[derive(Debug, Serialize)]
pub(crate) struct Service {
    pub(crate) url: String,
    pub(crate) stats: Stats,
    /// As the service prints it; null if it does not hold it.
    pub(crate) event: Option<Value>,
}

/// The part of `/v1/stats` that is read.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Stats {
    /// The database's time at the cut, null before it is warm.
    pub(crate) as_of: Option<DateTime<Utc>>,
    pub(crate) age_ms: Option<u64>,
    pub(crate) epoch: u64,
    #[serde(default)]
    pub(crate) status: String,
}

/// Asks until the service's cut is not earlier than `at`, or until `--wait` has passed. Returns the last answer.
pub(crate) async fn caught_up(
    url: &Url,
    at: DateTime<Utc>,
    arguments: &ExplainArguments,
) -> anyhow::Result<Service> {
    let deadline = Instant::now() + arguments.wait;
    let client = client(
        url,
        arguments.ca.as_deref(),
        arguments.token.as_ref(),
        arguments.timeout,
    )?;
    loop {
        let service = ask(url, arguments.event, &client).await?;
        let is_late = service.stats.as_of.is_none_or(|as_of| as_of < at);
        if !is_late || Instant::now() >= deadline {
            return Ok(service);
        }
        sleep(PAUSE).await;
    }
}

/// Asks for the stats first, so that the event is of their cut or of a later one.
async fn ask(url: &Url, event: i64, client: &Client) -> anyhow::Result<Service> {
    let (status, body) = client.get("/v1/stats").await?;
    ensure!(
        status != 401,
        "it requires a token: --token or ODDSCACHE_TOKEN"
    );
    ensure!(status == 200, "/v1/stats answers {status}");
    let stats = serde_json::from_slice(&body).context("/v1/stats is not what oddscache answers")?;
    let (status, body) = client.get(&format!("/v1/events/{event}")).await?;
    let event = match status {
        200 => Some(serde_json::from_slice(&body).context("/v1/events/{id} is no JSON")?),
        404 | 503 => None,
        status => bail!("/v1/events/{event} answers {status}"),
    };
    Ok(Service {
        url: url.to_string(),
        stats,
        event,
    })
}
