//! A reader that looks at the cache all the time during an incident, and says what it saw.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use chrono::{DateTime, Utc};
use oddscache::{OddsCache, View};
use tokio::{task::JoinHandle, time::sleep};

use crate::server::stdout::print_line;

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// What was seen so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    looks: u64,
    /// The longest that a look took: getting a view and an event of it.
    slowest: Duration,
    oldest: Duration,
    fewest_events: usize,
    /// How often a view was of an earlier state of the database than the view before.
    steps_back: u64,
    /// How often a view's snapshot could not be read.
    unread: u64,
}

/// Where in the database's history a view stands.
#[derive(Debug, Clone, Copy)]
struct Position {
    epoch: u64,
    as_of: DateTime<Utc>,
    /// The first transaction id that the snapshot knows nothing of.
    xmax: u64,
}

impl Position {
    fn of(view: &View) -> anyhow::Result<Position> {
        let cut = view.cut();
        Position::new(view.epoch(), cut.as_of, &cut.snapshot)
    }

    fn new(epoch: u64, as_of: DateTime<Utc>, snapshot: &str) -> anyhow::Result<Position> {
        let xmax = snapshot
            .split(':')
            .nth(1)
            .context("a snapshot has three parts")?;
        Ok(Position {
            epoch,
            as_of,
            xmax: xmax.parse().context("a snapshot's xmax is a number")?,
        })
    }

    /// Whether it is earlier. Within an epoch the database's clock and transaction ids only grow. A new epoch may be of
    /// another server.
    fn is_before(&self, other: &Position) -> bool {
        self.epoch < other.epoch
            || (self.epoch == other.epoch && (self.as_of < other.as_of || self.xmax < other.xmax))
    }
}

/// Looks, and prints each change of the status, until dropped.
#[derive(Debug)]
pub(super) struct Observer {
    /// Of the cache that it looks at.
    name: String,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Observer {
    pub(super) fn start(name: String, cache: &OddsCache, begun: Instant) -> Observer {
        let seen = Arc::new(Mutex::new(Seen {
            fewest_events: usize::MAX,
            ..Seen::default()
        }));
        let task = tokio::spawn(look(name.clone(), cache.clone(), begun, Arc::clone(&seen)));
        Observer { name, seen, task }
    }

    /// Ends it, and says what it saw. Fails if a view was empty or went back.
    pub(super) fn end(self) -> anyhow::Result<String> {
        let seen = self
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        ensure!(
            seen.looks > 0 && seen.fewest_events > 0,
            "readers found {} empty",
            self.name
        );
        ensure!(
            seen.unread == 0,
            "the snapshots of {} views could not be read",
            seen.unread
        );
        ensure!(
            seen.steps_back == 0,
            "readers were taken back to an older state {} times",
            seen.steps_back
        );
        Ok(format!(
            "a reader of {} looked {} times: never taken back, the slowest look {:?}, the oldest view {:.1} s",
            self.name,
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

async fn look(name: String, cache: OddsCache, begun: Instant, seen: Arc<Mutex<Seen>>) {
    let mut status = cache.status();
    let mut before: Option<Position> = None;
    loop {
        let looked = Instant::now();
        let view = cache.view();
        let found = view.events().next().is_some();
        let took = looked.elapsed();
        let position = Position::of(&view);
        {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.looks += 1;
            seen.slowest = seen.slowest.max(took);
            seen.oldest = seen.oldest.max(view.age());
            seen.fewest_events = seen.fewest_events.min(if found { view.len() } else { 0 });
            match position {
                Ok(position) => {
                    let back = before.is_some_and(|before| position.is_before(&before));
                    seen.steps_back += u64::from(back);
                    before = Some(position);
                }
                Err(_) => seen.unread += 1,
            }
        }
        let now = cache.status();
        if now.name() != status.name() {
            say(begun, format!("{name} is {now}"));
        }
        status = now;
        sleep(PAUSE).await;
    }
}

/// Prints a line of an incident, with the time since it began.
pub(super) fn say(begun: Instant, text: impl std::fmt::Display) {
    print_line!("  {:>6.2} s  {text}", begun.elapsed().as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_back_is_seen_by_epoch_clock_and_transactions() {
        let at = |epoch, seconds, snapshot: &str| {
            let as_of = DateTime::from_timestamp(seconds, 0).unwrap();
            Position::new(epoch, as_of, snapshot).unwrap()
        };
        let before = at(2, 100, "740:750:740,745");
        for (later, is_before) in [
            (at(2, 100, "740:750:740,745"), false),
            (at(2, 101, "745:751:"), false),
            // Of another server.
            (at(3, 50, "3:3:"), false),
            (at(1, 101, "745:751:"), true),
            (at(2, 99, "745:751:"), true),
            (at(2, 101, "740:749:740"), true),
        ] {
            assert_eq!(later.is_before(&before), is_before, "{later:?}");
        }
        for snapshot in ["", "740", "740:x:"] {
            assert!(Position::new(1, DateTime::UNIX_EPOCH, snapshot).is_err());
        }
    }
}
