//! A pause: nobody writes, no fault is active, and all subscribers must equal the oracle.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use oddscache::{OddsCache, Status};
use oddscache_testkit::{dump, oracle, same};
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use crate::{
    pause::{CATCH_UP, Wrong, at_rest, caught_up, itself},
    plan::{Fault, Kind},
    world::QUIET,
};

use super::scene::{Scene, Subscriber};

/// A difference between a subscriber and its publisher is found within this time.
const FOUND: Duration = Duration::from_secs(3);

impl Scene {
    /// Waits until each subscriber shows a view that was proven current after the end of all faults.
    pub(super) async fn recovered(&self) {
        let world = &self.world;
        let ended = Instant::now();
        while world.violation().is_none() {
            let proven = |cache: &OddsCache| {
                let asked = Instant::now();
                let live = cache.status() == Status::Live;
                let age = cache.view().age();
                asked.checked_sub(age).filter(|_| live)
            };
            let all: Option<Vec<Instant>> = self.caches().map(proven).collect();
            // A recovery counts once all have seen it.
            let oldest = all.and_then(|all| all.into_iter().min());
            if let Some(oldest) = oldest {
                for (kind, took) in world.active.recover(oldest) {
                    world.report.recovery(kind, took);
                }
                if oldest > ended {
                    return;
                }
            }
            if ended.elapsed() > CATCH_UP {
                let states = self
                    .caches()
                    .map(|cache| format!("{:?}; {}", cache.view(), cache.status()));
                let states: Vec<String> = states.collect();
                let what = format!("not all were proven current within {CATCH_UP:?}: {states:#?}");
                world.violate("recovery", what);
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs a pause. `forged` is a message that only its digest shows to be wrong.
    pub(super) async fn pause(&self, forged: Option<&Fault>) {
        let mut result = Ok(());
        if self.world.violation().is_none() {
            result = self.compare().await;
        }
        if let Some(fault) = forged.filter(|_| result.is_ok() && self.world.violation().is_none()) {
            self.world.active.begin(fault.kind);
            result = self.forge(fault).await;
            self.world.active.end(fault.kind);
            self.world.report.inflicted(fault.kind);
            self.recovered().await;
        }
        if let Err((check, what)) = result {
            self.world.violate(check, what);
        }
    }

    async fn compare(&self) -> Result<(), Wrong> {
        let client = at_rest(&self.world).await?;
        for subscriber in &self.subscribers {
            let cache = &subscriber.embedded.cache;
            self.equals(cache, &client).await?;
            let replica = subscriber.replica.equals(cache).await;
            replica.map_err(|what| ("a replica fed by changes equals the cache", what))?;
        }
        let late = self.late();
        warm(&late.cache).await?;
        self.equals(&late.cache, &client).await
    }

    async fn equals(&self, cache: &OddsCache, client: &Client) -> Result<(), Wrong> {
        let view = caught_up(cache, client).await?;
        let expected = oracle(client, view.cut().window_start).await;
        let result = same(&dump(&view), &expected);
        result.map_err(|what| ("each subscriber equals the oracle", what))?;
        self.world.report.figures().comparisons += 1;
        Ok(())
    }

    /// Sends a forged message. Each subscriber must find the difference, show it to nobody, and repair it.
    async fn forge(&self, fault: &Fault) -> Result<(), Wrong> {
        let client = at_rest(&self.world).await?;
        let began = Instant::now();
        let found = |subscriber: &Subscriber| subscriber.embedded.cache.counters().relay_mismatches;
        let before: Vec<u64> = self.subscribers.iter().map(found).collect();
        for subscriber in &self.subscribers {
            subscriber.mismatches.store(u64::MAX, Ordering::Relaxed);
        }
        loop {
            // The last change must be one of a price. It rises, so that twice the change is a price as well.
            let cents = 200 + self.prices.fetch_add(1, Ordering::Relaxed);
            self.world.admin(&change_price(cents)).await;
            for cache in self.caches().chain([&self.embedded.cache]) {
                caught_up(cache, &client).await?;
            }
            let forged = match fault.kind {
                Kind::ForgedChange => self.hostile.forge_change().await,
                _ => self.hostile.forge_state().await,
            };
            if forged.is_some() {
                break;
            }
            if began.elapsed() > CATCH_UP {
                return Err(itself("nothing could be forged"));
            }
        }
        let forged = Instant::now();
        // Nobody writes, so the event must not change, whatever the message says.
        let shown =
            |cache: &OddsCache| serde_json::to_string(&cache.view().event(QUIET)).expect("JSON");
        let expected = shown(&self.embedded.cache);
        if fault.kind == Kind::ForgedState {
            self.caches().for_each(OddsCache::resync);
        }
        loop {
            for cache in self.caches() {
                let now = shown(cache);
                if now != expected {
                    let what = format!("{now} instead of {expected}");
                    return Err(("a wrong price is shown to nobody", what));
                }
            }
            let mut all = self.subscribers.iter().zip(&before);
            if all.all(|(subscriber, before)| found(subscriber) > *before) {
                break;
            }
            if forged.elapsed() > FOUND {
                let what = format!("not all found it within {FOUND:?}");
                return Err(("a difference is found by its digest", what));
            }
            sleep(Duration::from_millis(10)).await;
        }
        self.recovered().await;
        for subscriber in &self.subscribers {
            self.equals(&subscriber.embedded.cache, &client).await?;
        }
        let mut figures = self.world.report.figures();
        figures.forged += 1;
        for (subscriber, before) in self.subscribers.iter().zip(before) {
            let found = found(subscriber);
            figures.found += found - before;
            subscriber.mismatches.store(found, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Waits until a new subscriber is warm.
pub(super) async fn warm(cache: &OddsCache) -> Result<(), Wrong> {
    match timeout(CATCH_UP, cache.ready()).await {
        Ok(Ok(_)) => Ok(()),
        _ => {
            let what = format!("not after {CATCH_UP:?}: {}", cache.status());
            Err(("a new subscriber becomes warm", what))
        }
    }
}

/// Changes the price of one event.
fn change_price(cents: u64) -> String {
    let price = cents as f64 / 100.0;
    format!(
        "update market_odds set outcomes = '[{{\"name\": \"1\", \"odds\": {price:.2}}}]' where snapshot_id = \
         (select max(id) from odds_snapshots where event_id = {QUIET} and bookmaker_id = 1)"
    )
}
