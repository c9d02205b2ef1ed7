//! A client of `/v1/changes` that does not trust the service. It counts the changes and finds gaps by itself.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tokio::time::sleep;

use super::{
    client::Client,
    events::{Event, Events},
};

/// What a subscriber has seen so far. Others read it while the subscriber runs.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// The id of the last event.
    pub last: String,
    pub changes: u64,
    /// Gaps that the service reported as `lagged`.
    pub lagged: u64,
    /// Gaps that the service did not report, and ids that went back. This must stay 0.
    pub untold: u64,
    /// Connections after the first.
    pub reconnects: u64,
    /// The last error.
    pub wrong: Option<String>,
    /// Events that changed since they were last taken from here. Filled only with `collect`.
    pub changed: BTreeSet<i64>,
    /// Whether changes were lost, so that all events must be read again.
    pub lost: bool,
}

pub type Shared = Arc<Mutex<Seen>>;

/// Reads changes for ever, and connects again with the last id when the stream ends. `collect` collects the changed
/// events, and `odds` requests their new odds.
pub async fn run(address: SocketAddr, seen: Shared, collect: bool, odds: bool) {
    let mut first = true;
    loop {
        if !first {
            seen.lock().expect("a lock").reconnects += 1;
            sleep(Duration::from_millis(200)).await;
        }
        first = false;
        if let Err(wrong) = read(address, &seen, collect, odds).await {
            seen.lock().expect("a lock").wrong = Some(wrong);
        }
    }
}

async fn read(address: SocketAddr, seen: &Shared, collect: bool, odds: bool) -> Result<(), String> {
    let path = format!("/v1/changes?odds={odds}");
    let last = seen.lock().expect("a lock").last.clone();
    let header = (!last.is_empty()).then_some(("last-event-id", last.as_str()));
    let client = Client::new(address);
    let answer = client.ask(&path, header).await?;
    if answer.status() != 200 {
        return Err(format!("{path}: {}", answer.status()));
    }
    let mut events = Events::of(answer);
    while let Some(event) = events.next().await? {
        take(&event, &mut seen.lock().expect("a lock"), collect)?;
    }
    Ok(())
}

fn take(event: &Event, seen: &mut Seen, collect: bool) -> Result<(), String> {
    let number = |id: &str| id.split_once('-')?.1.parse::<u64>().ok();
    let version = number(&event.id).ok_or_else(|| format!("an id of another form: {event:?}"))?;
    match event.name.as_str() {
        "start" => seen.lost = true,
        "lagged" => {
            seen.lagged += 1;
            seen.lost = true;
        }
        "change" => {
            seen.changes += 1;
            if number(&seen.last).is_none_or(|last| version != last + 1) {
                seen.untold += 1;
            }
            if collect {
                let data = event.data()?;
                let sources = data["competitors"].as_object().into_iter();
                let lists = sources.flat_map(|map| map.values());
                let lists = lists.chain([&data["betpawa"], &data["kickoffs"]]);
                let ids = lists.flat_map(|list| list.as_array().into_iter().flatten());
                seen.changed.extend(ids.filter_map(Value::as_i64));
            }
        }
        other => return Err(format!("an unknown event: {other}")),
    }
    seen.last.clone_from(&event.id);
    Ok(())
}
