//! A reader that never stops looking while something happens to the cache, and says what it saw.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::ensure;
use oddscache::OddsCache;
use tokio::{task::JoinHandle, time::sleep};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// What was seen so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    looks: u64,
    /// The longest that a look took: getting a view and an event of it.
    slowest: Duration,
    oldest: Duration,
    fewest_events: usize,
    /// Times that a view was of an earlier version than one before.
    steps_back: u64,
}

/// Looks and prints each change of the status, until dropped.
#[derive(Debug)]
pub(super) struct Observer {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Observer {
    pub(super) fn start(cache: &OddsCache, begun: Instant) -> Observer {
        let seen = Arc::new(Mutex::new(Seen {
            fewest_events: usize::MAX,
            ..Seen::default()
        }));
        let task = tokio::spawn(look(cache.clone(), begun, Arc::clone(&seen)));
        Observer { seen, task }
    }

    /// Ends it, and says what readers saw; fails if they were left with nothing, or taken back.
    pub(super) fn end(self) -> anyhow::Result<String> {
        let seen = self
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        ensure!(
            seen.looks > 0 && seen.fewest_events > 0,
            "readers found the cache empty"
        );
        ensure!(
            seen.steps_back == 0,
            "readers were taken back to an older view {} times",
            seen.steps_back
        );
        Ok(format!(
            "a reader looked {} times: never taken back, the slowest look {:?}, the oldest view {:.1} s",
            seen.looks,
            seen.slowest,
            seen.oldest.as_secs_f64()
        ))
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look(cache: OddsCache, begun: Instant, seen: Arc<Mutex<Seen>>) {
    let mut status = cache.status();
    let mut version = 0;
    loop {
        let looked = Instant::now();
        let view = cache.view();
        let found = view.events().next().is_some();
        let took = looked.elapsed();
        {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.looks += 1;
            seen.slowest = seen.slowest.max(took);
            seen.oldest = seen.oldest.max(view.age());
            seen.fewest_events = seen.fewest_events.min(if found { view.len() } else { 0 });
            seen.steps_back += u64::from(view.version() < version);
        }
        version = view.version();
        let now = cache.status();
        if now.name() != status.name() {
            say(begun, format!("the cache is {now}"));
        }
        status = now;
        sleep(PAUSE).await;
    }
}

/// A line of an incident.
pub(super) fn say(begun: Instant, text: impl std::fmt::Display) {
    println!("  {:>6.2} s  {text}", begun.elapsed().as_secs_f64());
}
