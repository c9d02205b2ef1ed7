//! Whether the process is alive, and whether it is ready: for `/livez`, `/readyz`, and the service manager's watchdog.
//!
//! *Alive* means that the follower makes progress. A follower without its database makes progress: it fails, pauses and
//! tries again. A follower that does nothing for longer than any of its steps can take is stuck, and only a restart
//! helps.
//!
//! *Ready* means warm, not ending, and either following or proven current within `--ready-max-age`.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use oddscache::{OddsCache, ReloadReason, Status};

/// Whether changes of the database arrive. A reload on a connection that never broke counts as following, because the
/// view was current when it began. A reload after an outage does not: only its end proves that the outage is over.
pub(crate) fn follows(status: &Status) -> bool {
    match status {
        Status::Live | Status::PollingOnly { .. } | Status::Degraded { .. } | Status::Detached => {
            true
        }
        Status::Resyncing { reason, .. } => *reason != ReloadReason::ConnectionLost,
        _ => false,
    }
}

/// Signs of life. Each step of a follower changes at least one of them.
#[derive(Debug, Clone, PartialEq)]
struct Signs {
    reads: u64,
    failures: u64,
    version: u64,
    state: &'static str,
    /// The status's text, with its reason.
    status: String,
}

/// How long the follower's steps may go without a sign of life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// While it follows: enough for a wait, and a read with an audit step.
    pub(crate) following: Duration,
    /// While it reads everything, connects or pauses.
    pub(crate) otherwise: Duration,
}

/// For steps without a time-out of their own: pauses, name lookups, connecting.
const MARGIN: Duration = Duration::from_secs(60);

impl Patience {
    /// For a follower with these time-outs. A read may lead to a reload, which may be repeated on one connection.
    pub(crate) fn new(poll_interval: Duration, read: Duration, warmup: Duration) -> Patience {
        let following = poll_interval + read * 4 + MARGIN;
        Patience {
            following,
            otherwise: following + warmup * 2,
        }
    }
}

impl Default for Patience {
    fn default() -> Patience {
        Patience::new(
            Duration::from_secs(1),
            Duration::from_secs(10),
            Duration::from_secs(300),
        )
    }
}

/// When the follower last showed a sign of life.
#[derive(Debug)]
struct Progress {
    signs: Option<Signs>,
    since: Instant,
}

impl Progress {
    /// How long there has been no sign of life, and whether that is too long.
    fn observe(
        &mut self,
        now: Instant,
        age: Option<Duration>,
        signs: Signs,
        patience: Patience,
    ) -> (Duration, bool) {
        let bound = match signs.state {
            "live" | "polling_only" => patience.following,
            _ => patience.otherwise,
        };
        if self.signs.as_ref() != Some(&signs) {
            self.signs = Some(signs);
            self.since = now;
        }
        // A read without changes may change nothing but the view's age.
        let proven = age.and_then(|age| now.checked_sub(age));
        if let Some(proven) = proven {
            self.since = self.since.max(proven);
        }
        let quiet = now.saturating_duration_since(self.since);
        (quiet, quiet > bound)
    }
}

/// Answers questions about the health of a cache and its follower.
#[derive(Debug)]
pub(crate) struct Health {
    ready_max_age: Duration,
    patience: Patience,
    ending: AtomicBool,
    progress: Mutex<Progress>,
}

/// The default of `--ready-max-age`.
pub(crate) const READY_MAX_AGE: Duration = Duration::from_secs(30);

impl Default for Health {
    fn default() -> Health {
        Health::new(READY_MAX_AGE, Patience::default())
    }
}

impl Health {
    pub(crate) fn new(ready_max_age: Duration, patience: Patience) -> Health {
        Health {
            ready_max_age,
            patience,
            ending: AtomicBool::new(false),
            progress: Mutex::new(Progress {
                signs: None,
                since: Instant::now(),
            }),
        }
    }

    /// Makes it not ready from now on.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// Says for how long the follower has done nothing.
    pub(crate) fn alive(&self, cache: &OddsCache) -> Result<(), String> {
        let (status, counters, view) = (cache.status(), cache.counters(), cache.view());
        // Without a follower there is nothing that can be stuck.
        if matches!(status, Status::Ended { .. } | Status::Detached) {
            return Ok(());
        }
        let signs = Signs {
            reads: counters.reads,
            failures: counters.failures,
            version: view.version(),
            state: status.name(),
            status: status.to_string(),
        };
        let age = cache.is_warm().then(|| view.age());
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        match progress.observe(Instant::now(), age, signs, self.patience) {
            (_, false) => Ok(()),
            (quiet, true) => Err(format!(
                "the follower has done nothing for {} s ({status}): only a restart helps",
                quiet.as_secs()
            )),
        }
    }

    /// # Errors
    /// Says why it is not ready.
    pub(crate) fn ready(&self, cache: &OddsCache) -> Result<(), String> {
        let status = cache.status();
        if !cache.is_warm() {
            return Err(format!("not warm yet: {status}"));
        }
        if self.ending.load(Ordering::Relaxed) {
            return Err("the service is ending".to_owned());
        }
        let age = cache.view().age();
        if age <= self.ready_max_age {
            return Ok(());
        }
        if !follows(&status) {
            return Err(format!(
                "the view was last proven current {:.1} s ago, longer than --ready-max-age: {status}",
                age.as_secs_f64()
            ));
        }
        self.alive(cache)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn signs(state: &'static str, reads: u64) -> Signs {
        Signs {
            reads,
            failures: 0,
            version: 1,
            state,
            status: state.to_owned(),
        }
    }

    #[test]
    fn a_follower_is_stuck_that_does_nothing_for_longer_than_its_steps_take() {
        let patience = Patience::new(SECOND, 10 * SECOND, 300 * SECOND);
        assert_eq!(
            (patience.following, patience.otherwise),
            (101 * SECOND, 701 * SECOND)
        );
        let begun = Instant::now();
        let mut progress = Progress {
            signs: None,
            since: begun,
        };
        let mut stuck = |after: u32, state, reads| {
            let now = begun + SECOND * after;
            progress.observe(now, None, signs(state, reads), patience).1
        };
        assert!(!stuck(0, "warming", 0));
        // Reading everything has a longer bound.
        assert!(!stuck(701, "warming", 0));
        assert!(stuck(702, "warming", 0));
        assert!(!stuck(703, "live", 1));
        assert!(!stuck(804, "live", 1));
        assert!(stuck(805, "live", 1));
        // A read is a sign of life, and so is another state.
        assert!(!stuck(806, "live", 2));
        assert!(!stuck(907, "disconnected", 2));
        assert!(!stuck(1600, "disconnected", 2));
        assert!(stuck(1700, "disconnected", 2));
    }

    #[test]
    fn a_database_that_is_away_makes_no_follower_stuck() {
        let patience = Patience::default();
        let begun = Instant::now();
        let mut progress = Progress {
            signs: None,
            since: begun,
        };
        for attempt in 0..1000 {
            let mut signs = signs("disconnected", 7);
            signs.failures = attempt;
            let now = begun + SECOND * 60 * u32::try_from(attempt).unwrap();
            assert!(!progress.observe(now, None, signs, patience).1, "{attempt}");
        }
    }

    #[test]
    fn a_proof_is_a_sign_of_life() {
        let patience = Patience::default();
        let begun = Instant::now();
        let mut progress = Progress {
            signs: None,
            since: begun,
        };
        let mut stuck = |after: u32, age: u32| {
            let now = begun + SECOND * after;
            progress
                .observe(now, Some(SECOND * age), signs("live", 1), patience)
                .1
        };
        for after in (1..10_000).step_by(100) {
            assert!(!stuck(after, 1));
        }
        assert!(stuck(10_200, 299));
    }

    #[test]
    fn a_cache_without_a_follower_is_alive_and_ready_once_warm() {
        let (cache, mut writer) = OddsCache::detached();
        let health = Health::default();
        assert_eq!(health.alive(&cache), Ok(()));
        writer.publish();
        assert_eq!(health.ready(&cache), Ok(()));
        health.end();
        assert!(health.ready(&cache).unwrap_err().contains("ending"));
    }
}
