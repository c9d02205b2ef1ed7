//! Keeps a copy of the event list of a running service, and prints how the number of offers changes.
//!
//! ```sh
//! ODDSCACHE_URL=http://127.0.0.1:7979 cargo run --release --example use_the_service
//! ```
//!
//! `cargo run --release -- demo` starts a service in which odds move.

use std::{collections::BTreeMap, env};

use oddscache::client::{Answer, Client, Config, ListedEvent, Query, Update};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = env::var("ODDSCACHE_URL").unwrap_or_else(|_| "http://127.0.0.1:7979".to_owned());
    let mut config = Config::new(&url)?;
    if let Ok(token) = env::var("ODDSCACHE_TOKEN") {
        config = config.token(&token)?;
    }
    let client = Client::new(config)?;

    let mut changes = client.changes(true);
    let mut copy: BTreeMap<i64, ListedEvent> = BTreeMap::new();
    let mut read: Option<Answer<_>> = None;
    loop {
        match changes.next().await? {
            // The stream has begun, or this program was away for too long.
            Update::ReadAll(_) => {
                let mut list = client.list(&Query::default(), None).await?;
                let events = list.value.take().into_iter().flatten();
                copy = events.map(|event| (event.event_id, event)).collect();
                println!("read {} events, {:?} old", copy.len(), list.age);
                read = Some(list);
            }
            Update::Change(change) => {
                // The list was read after the stream began, so it may contain the first changes already.
                let id = changes.last_id().unwrap_or_default();
                if read.as_ref().is_some_and(|list| list.contains(id)) {
                    continue;
                }
                for id in change.event_ids() {
                    copy.remove(&id);
                }
                copy.extend(change.odds.into_iter().map(|event| (event.event_id, event)));
                let offers: usize = copy.values().map(|event| event.odds.len()).sum();
                println!(
                    "at {}: {} events, {offers} offers",
                    change.as_of,
                    copy.len()
                );
            }
            _ => {}
        }
    }
}
