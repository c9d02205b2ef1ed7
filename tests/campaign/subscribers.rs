//! Subscribers of `changes()`: a replica that has no other source, and a subscriber that takes no change until the end.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use fastrand::Rng;
use oddscache::{Changes, OddsCache, View};
use oddscache_testkit::{dump, normal};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::{
    pause::CATCH_UP,
    world::{UNSEEN, World},
};

/// A copy of all events. For each change it copies the events that the change names from the view of that time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Replica(Arc<Mutex<BTreeMap<i64, Value>>>);

impl Replica {
    /// Follows the changes until the follower ends. Sometimes it sleeps, so that it misses changes.
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

    /// Waits until the copy equals the cache.
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

/// A few more publications than the cache keeps for a subscriber that does not take them.
const MORE_THAN_KEPT: u32 = 280;

/// A subscriber that takes no change before the end. It must then be told how many were dropped.
#[derive(Debug)]
pub(crate) struct Sleeper {
    changes: Changes,
    published: u64,
}

impl Sleeper {
    /// Must be called while nothing is published.
    pub(crate) fn new(cache: &OddsCache) -> Sleeper {
        Sleeper {
            changes: cache.changes(),
            published: cache.counters().published,
        }
    }

    /// Publishes so many more states that some changes must have been dropped. Then takes all changes and compares the
    /// count.
    pub(crate) async fn wake(mut self, world: &World, cache: &OddsCache) -> Result<(), String> {
        let client = world.connect().await;
        let wrong = |error: &dyn Debug| format!("{error:?}");
        let insert =
            format!("insert into odds_snapshots (event_id, bookmaker_id) values ({UNSEEN}, 1)");
        client
            .batch_execute(&insert)
            .await
            .map_err(|error| wrong(&error))?;
        for _ in 0..MORE_THAN_KEPT {
            // Waiting for each write makes each a published state of its own.
            let write = format!(
                "with moved as (update events set kickoff = kickoff + interval '1 second' where id = {UNSEEN}) \
                 select pg_current_xact_id()::text"
            );
            let row = client
                .query_one(&write, &[])
                .await
                .map_err(|error| wrong(&error))?;
            let xid = row
                .get::<_, String>(0)
                .parse()
                .map_err(|error| wrong(&error))?;
            cache
                .wait_for(xid, CATCH_UP)
                .await
                .map_err(|error| wrong(&error))?;
        }
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
            "{published} states were published, but {taken} changes were taken and {missed} reported as missed"
        ))
    }
}
