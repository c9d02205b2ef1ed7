//! A client that keeps a copy of all events over HTTP. It reads all events once, and afterwards each event that a
//! change names.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use oddscache_testkit::load::{client::Client, subscriber::Shared};
use serde_json::Value;
use tokio::time::sleep;

/// The JSON of each event as the service serves it, by event id.
pub(crate) type Copy = BTreeMap<i64, Value>;

fn event_id(event: &Value) -> i64 {
    event["event_id"].as_i64().expect("an event has an id")
}

pub(crate) async fn all(client: &mut Client) -> Result<Copy, String> {
    let (text, _) = client.text("/v1/dump").await?;
    let parse = |line| serde_json::from_str::<Value>(line).map_err(|error| error.to_string());
    let events = text.lines().map(parse);
    events
        .map(|event| event.map(|event| (event_id(&event), event)))
        .collect()
}

/// Reads the events that changed since the last call. Returns whether there were any.
pub(crate) async fn catch_up(
    client: &mut Client,
    seen: &Shared,
    copy: &mut Copy,
) -> Result<bool, String> {
    let (lost, changed) = {
        let mut seen = seen.lock().expect("a lock");
        (
            std::mem::take(&mut seen.lost),
            std::mem::take(&mut seen.changed),
        )
    };
    if lost {
        *copy = all(client).await?;
        return Ok(true);
    }
    let changed: Vec<i64> = changed.into_iter().collect();
    for ids in changed.chunks(100) {
        let list: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let (text, _) = client
            .text(&format!("/v1/events?ids={}", list.join(",")))
            .await?;
        let events: Vec<Value> = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        for id in ids {
            copy.remove(id);
        }
        copy.extend(events.into_iter().map(|event| (event_id(&event), event)));
    }
    Ok(!changed.is_empty())
}

/// Keeps the copy up to date until the task is aborted. After an error it prints the error and reads all events again.
pub(crate) async fn follow(
    address: SocketAddr,
    seen: Shared,
    copy: std::sync::Arc<tokio::sync::Mutex<Copy>>,
) {
    let mut client = Client::new(address);
    loop {
        if let Err(wrong) = catch_up(&mut client, &seen, &mut *copy.lock().await).await {
            eprintln!("the copy: {wrong}");
            seen.lock().expect("a lock").lost = true;
            client = Client::new(address);
        }
        sleep(Duration::from_millis(50)).await;
    }
}
