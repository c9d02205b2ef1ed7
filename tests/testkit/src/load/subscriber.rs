//! A client of `/v1/changes` that trusts nothing: it counts what comes, and finds gaps by itself.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http_body_util::BodyExt;
use serde_json::Value;
use tokio::time::sleep;

use super::client::Client;

/// What one of them has seen. Read while it goes on.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// The id told last.
    pub last: String,
    pub changes: u64,
    /// `lagged`: the service told of a gap.
    pub lagged: u64,
    /// Gaps that it did not tell of, and ids that went back: never right.
    pub untold: u64,
    /// Connections after the first.
    pub reconnects: u64,
    /// What was wrong last.
    pub wrong: Option<String>,
    /// Events that differ since somebody last took them from here, if anybody does.
    pub changed: BTreeSet<i64>,
    /// All must be taken anew.
    pub lost: bool,
}

pub type Shared = Arc<Mutex<Seen>>;

/// Reads changes for ever, with the new odds if asked to, and comes back with the last id when the stream ends.
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
    let path = match odds {
        true => "/v1/changes?odds=true",
        false => "/v1/changes",
    };
    let last = seen.lock().expect("a lock").last.clone();
    let mut client = Client::new(address);
    let header = (!last.is_empty()).then_some(("last-event-id", last.as_str()));
    let answer = client.ask(path, header).await?;
    if answer.status() != 200 {
        return Err(format!("{path}: {}", answer.status()));
    }
    let (mut body, mut text, mut looked) = (answer.into_body(), Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("reading changes: {error}"))?;
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = text[looked..].windows(2).position(|pair| pair == b"\n\n") {
            let end = std::mem::take(&mut looked) + end;
            let event = String::from_utf8_lossy(&text[..end]).into_owned();
            text.drain(..end + 2);
            take(&event, &mut seen.lock().expect("a lock"), collect)?;
        }
        looked = text.len().saturating_sub(1);
    }
    Ok(())
}

fn take(event: &str, seen: &mut Seen, collect: bool) -> Result<(), String> {
    let field = |name: &str| {
        let mut lines = event.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    // A comment, to keep the connection alive.
    let Some(name) = field("event") else {
        return Ok(());
    };
    let id = field("id").ok_or("an event without an id")?;
    let number = |id: &str| id.split_once('-')?.1.parse::<u64>().ok();
    let version = number(id).ok_or_else(|| format!("an id of another form: {id}"))?;
    match name {
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
                let data = field("data").ok_or("a change without data")?;
                let data: Value = serde_json::from_str(data).map_err(|error| error.to_string())?;
                let lists = data["competitors"]
                    .as_object()
                    .into_iter()
                    .flat_map(|map| map.values());
                for list in lists.chain([&data["betpawa"], &data["kickoffs"]]) {
                    let ids = list.as_array().into_iter().flatten();
                    seen.changed.extend(ids.filter_map(Value::as_i64));
                }
            }
        }
        other => return Err(format!("an unknown event: {other}")),
    }
    seen.last = id.to_owned();
    Ok(())
}
