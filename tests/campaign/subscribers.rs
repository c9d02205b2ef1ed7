//! Who takes `changes()`: a replica that is fed by nothing else, and somebody who takes nothing until the end.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use fastrand::Rng;
use oddscache::{Changes, OddsCache, View};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::common::{dump, normal};

/// Holds the events that the changes named, as the view said them when the change came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Replica(Arc<Mutex<BTreeMap<i64, Value>>>);

impl Replica {
    /// Follows until the follower is gone, now and then too slow on purpose.
    pub(crate) fn spawn(cache: &OddsCache, seed: u64) -> Replica {
        let replica = Replica::default();
        let (mut changes, cache, mine) = (cache.changes(), cache.clone(), replica.clone());
        mine.fill(&cache.view());
        tokio::spawn(async move {
            let mut rng = Rng::with_seed(seed);
            while let Some(change) = changes.next().await {
                let view = cache.view();
                match change {
                    Ok(change) => change
                        .event_ids()
                        .iter()
                        .for_each(|id| mine.take(&view, *id)),
                    Err(_) => mine.fill(&view),
                }
                if rng.u8(..60) == 0 {
                    sleep(Duration::from_millis(400)).await;
                }
            }
        });
        replica
    }

    fn events(&self) -> std::sync::MutexGuard<'_, BTreeMap<i64, Value>> {
        self.0.lock().expect("not poisoned")
    }

    fn take(&self, view: &View, id: i64) {
        let event = view.event(id).map(serde_json::to_value);
        match event {
            Some(event) => self.events().insert(id, normal(event.expect("JSON"))),
            None => self.events().remove(&id),
        };
    }

    fn fill(&self, view: &View) {
        self.events().clear();
        for id in view.event_ids() {
            self.take(view, id);
        }
    }

    /// Waits until it equals the cache.
    pub(crate) async fn equals(&self, cache: &OddsCache) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let expected = dump(&cache.view());
            let found: Vec<Value> = self.events().values().cloned().collect();
            if found == expected {
                return Ok(());
            }
            if began.elapsed() > Duration::from_secs(20) {
                let differing: Vec<&Value> = expected
                    .iter()
                    .filter(|event| !found.contains(event))
                    .map(|event| &event["event_id"])
                    .collect();
                return Err(format!(
                    "{} events instead of {}; these differ: {differing:?}",
                    found.len(),
                    expected.len()
                ));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Takes no change before the end, and must then be told of each that was dropped.
#[derive(Debug)]
pub(crate) struct Sleeper {
    changes: Changes,
    published: u64,
}

impl Sleeper {
    /// While nothing is published.
    pub(crate) fn new(cache: &OddsCache) -> Sleeper {
        Sleeper {
            changes: cache.changes(),
            published: cache.counters().published,
        }
    }

    pub(crate) async fn wake(mut self, cache: &OddsCache) -> Result<(), String> {
        let (mut taken, mut missed) = (0, 0);
        while let Ok(Some(change)) = timeout(Duration::from_millis(300), self.changes.next()).await
        {
            match change {
                Ok(_) => taken += 1,
                Err(lagged) => missed += lagged.missed,
            }
        }
        let published = cache.counters().published - self.published;
        if taken + missed == published {
            return Ok(());
        }
        Err(format!(
            "{published} states were published, {taken} changes taken, {missed} said to be missed"
        ))
    }
}
