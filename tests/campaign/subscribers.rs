//! Subscribers of `changes()`: a replica that has no other source, and a subscriber that takes no change until the end.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use fastrand::Rng;
use oddscache::{Changes, OddsCache};
use oddscache_testkit::replica;
use tokio::time::{sleep, timeout};

use crate::{
    pause::CATCH_UP,
    world::{UNSEEN, World},
};

/// A copy of all events. For each change, it copies the named events from the view of that time.
#[derive(Debug, Clone)]
pub(crate) struct Replica(Arc<Mutex<replica::Replica>>);

impl Replica {
    /// Follows the changes until the follower ends. Sometimes it sleeps, so that it misses changes.
    pub(crate) fn spawn(cache: &OddsCache, seed: u64) -> Replica {
        let (mut changes, cache) = (cache.changes(), cache.clone());
        let held = Arc::new(Mutex::new(replica::Replica::of(&cache.view())));
        let mine = Arc::clone(&held);
        tokio::spawn(async move {
            let mut rng = Rng::with_seed(seed);
            while let Some(change) = changes.next().await {
                let view = cache.view();
                {
                    let mut held = mine.lock().expect("not poisoned");
                    match change {
                        Ok(change) => held.apply(&change, &view),
                        Err(_) => *held = replica::Replica::of(&view),
                    }
                }
                if rng.u8(..60) == 0 {
                    sleep(Duration::from_millis(400)).await;
                }
            }
        });
        Replica(held)
    }

    /// Waits until the copy equals the cache.
    pub(crate) async fn equals(&self, cache: &OddsCache) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let held = self.0.lock().expect("not poisoned").clone();
            let result = held.equals(&cache.view());
            if result.is_ok() || began.elapsed() > Duration::from_secs(20) {
                return result;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Slightly more publications than the cache keeps for a slow subscriber.
const MORE_THAN_KEPT: u32 = 280;

/// A subscriber that takes no change before the end. It must then learn how many were dropped.
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

    /// Publishes enough states that the cache drops some changes. Then takes all changes and compares their number.
    pub(crate) async fn wake(mut self, world: &World, cache: &OddsCache) -> Result<(), String> {
        let client = world.connect().await;
        let wrong = |error: &dyn Debug| format!("{error:?}");
        let insert =
            format!("insert into odds_snapshots (event_id, bookmaker_id) values ({UNSEEN}, 1)");
        let inserted = client.batch_execute(&insert).await;
        inserted.map_err(|error| wrong(&error))?;
        for _ in 0..MORE_THAN_KEPT {
            // Wait for each write, so that each becomes a published state of its own.
            let write = format!(
                "with moved as (update events set kickoff = kickoff + interval '1 second' where id = {UNSEEN}) \
                 select pg_current_xact_id()::text"
            );
            let row = client.query_one(&write, &[]).await;
            let xid: String = row.map_err(|error| wrong(&error))?.get(0);
            let xid = xid.parse().expect("a transaction id");
            let shown = cache.wait_for(xid, CATCH_UP).await;
            shown.map_err(|error| wrong(&error))?;
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
