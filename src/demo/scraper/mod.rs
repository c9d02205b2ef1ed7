//! The simulated application. It scrapes all events in a cycle, and makes every other kind of change now and then.
//!
//! `control.rs` pauses it, `counters.rs` counts, `changes.rs` has the kinds of change, `scrape.rs` and `partitions.rs`
//! the longer ones.

use std::{
    error::Error as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use deadpool_postgres::{Pool, PoolError};
use fastrand::Rng;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_postgres::error::SqlState;

pub(crate) mod changes;
mod control;
mod counters;
pub(crate) mod effect;
pub(crate) mod partitions;
mod scrape;

pub(crate) use control::Control;
pub(crate) use counters::Counters;

use changes::Kind;
use effect::{Effect, Target};
use scrape::{BATCH, CONFIRMED_AT_ONCE};

/// How fast the application writes.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// The time for all events once. The real application takes 300 s.
    pub(crate) cycle: Duration,
    /// How many transactions may run at the same time.
    pub(crate) workers: usize,
    /// The share of events whose odds moved since the last cycle.
    pub(crate) changed: f64,
    /// How long a long transaction stays open; a pause ends it early.
    pub(crate) long: Duration,
    /// How many of the other kinds of change there are, relative to [`Kind::RATES`].
    pub(crate) mishaps: f64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            cycle: Duration::from_secs(60),
            workers: 4,
            changed: 0.3,
            long: Duration::from_secs(5),
            mishaps: 1.0,
        }
    }
}

/// A failed transaction. The next one may succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScraperError {
    /// No connection to be had.
    #[error("no connection to the database; is the server up?")]
    Pool(#[from] PoolError),
    /// A statement failed, and with it its transaction.
    #[error("a statement failed; its transaction is rolled back")]
    Statement(#[from] tokio_postgres::Error),
}

impl ScraperError {
    /// Whether the server is away, so that trying at once is pointless.
    fn is_connection(&self) -> bool {
        match self {
            ScraperError::Pool(_) => true,
            ScraperError::Statement(error) => error.is_closed() || error.code().is_none(),
        }
    }

    /// Whether it only gave way to another transaction, which happens in every application now and then.
    fn is_conflict(&self) -> bool {
        let ScraperError::Statement(error) = self else {
            return false;
        };
        let code = error.code();
        code == Some(&SqlState::LOCK_NOT_AVAILABLE)
            || code == Some(&SqlState::T_R_DEADLOCK_DETECTED)
    }

    /// The whole chain of causes, because the outermost says next to nothing.
    fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// One transaction to come.
#[derive(Debug)]
struct Job {
    kind: Kind,
    ids: Vec<i64>,
}

/// The simulated application. Clones share the pool, the counters and the random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Scraper {
    pool: Pool,
    pace: Pace,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    counters: Arc<Counters>,
    rng: Mutex<Rng>,
    /// Snapshots found unchanged and not confirmed yet: ours, competitors'.
    unchanged: Mutex<(Vec<i64>, Vec<i64>)>,
    /// Held by transactions that lock whole tables.
    ddl: tokio::sync::Mutex<()>,
}

impl Scraper {
    /// An application that writes over `pool`. The same seed gives the same choices, as far as concurrency allows.
    pub(crate) fn new(pool: Pool, seed: u64, pace: Pace) -> Scraper {
        let shared = Shared {
            counters: Arc::default(),
            rng: Mutex::new(Rng::with_seed(seed)),
            unchanged: Mutex::default(),
            ddl: tokio::sync::Mutex::default(),
        };
        Scraper {
            pool,
            pace,
            shared: Arc::new(shared),
        }
    }

    /// The counters, which can be read while it runs.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared.counters)
    }

    /// Writes until `control` stops it. Failures of single transactions are counted and logged; while the server is
    /// away it tries again every second.
    pub(crate) async fn run(&self, control: Control) {
        let workers = Arc::new(Semaphore::new(self.pace.workers.max(1)));
        let mut running = JoinSet::new();
        // Reading the plan is a transaction, too.
        while let Some(permit) = control.permit().await {
            let begun = Instant::now();
            let plan = self.plan().await;
            drop(permit);
            let jobs = match plan {
                Ok(jobs) => jobs,
                Err(error) => {
                    self.failed("plan of a cycle", &error);
                    self.recover(&control).await;
                    continue;
                }
            };
            let interval = self.pace.cycle / u32::try_from(jobs.len().max(1)).unwrap_or(u32::MAX);
            for (n, job) in (1u32..).zip(jobs) {
                let Ok(worker) = Arc::clone(&workers).acquire_owned().await else {
                    return;
                };
                let (scraper, control_of_job) = (self.clone(), control.clone());
                running.spawn(async move {
                    scraper.job(job, &control_of_job).await;
                    drop(worker);
                });
                while running.try_join_next().is_some() {}
                tokio::select! {
                    () = sleep_until(begun + interval * n) => {}
                    () = control.stopped() => break,
                }
            }
        }
        while running.join_next().await.is_some() {}
    }

    /// Carries out one transaction of a kind, on rows chosen at random, now. Says whether there were such rows.
    #[allow(dead_code)] // The demo has no use for it, the tests have.
    pub(crate) async fn once(&self, kind: Kind) -> Result<bool, ScraperError> {
        let job = Job {
            kind,
            ids: Vec::new(),
        };
        Ok(self.transact(job, None).await?.rows > 0)
    }

    /// The jobs of a cycle: every event in batches, with the other kinds of change in between, and the confirmations
    /// last.
    async fn plan(&self) -> Result<Vec<Job>, ScraperError> {
        let client = self.pool.get().await?;
        let window = "kickoff > now() at time zone 'UTC' - interval '2 hours'";
        let mut jobs = Vec::new();
        for (kind, statement) in [
            (
                Kind::Scrape,
                format!("select id::bigint from events where {window} order by id"),
            ),
            (
                Kind::CompetitorScrape,
                format!(
                    "select id::bigint from competitor_events where {window} and deleted_at is null order by source, id"
                ),
            ),
        ] {
            let rows = client.query(&statement, &[]).await?;
            let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
            jobs.extend(ids.chunks(BATCH).map(|ids| Job {
                kind,
                ids: ids.to_vec(),
            }));
        }
        // One retention job covers a hundred events of either side. So this many delete as much as scraping adds.
        let retentions = jobs.len() / 5 + 1;
        let mut rng = self.fork();
        for (kind, rate) in Kind::RATES {
            let times = match kind {
                Kind::Retention => retentions,
                Kind::Confirm | Kind::CompetitorConfirm => 0,
                _ => (rate * self.pace.mishaps + rng.f64()) as usize,
            };
            jobs.extend((0..times).map(|_| Job {
                kind,
                ids: Vec::new(),
            }));
        }
        rng.shuffle(&mut jobs);
        for kind in [Kind::Confirm, Kind::CompetitorConfirm] {
            jobs.push(Job {
                kind,
                ids: Vec::new(),
            });
        }
        Ok(jobs)
    }

    /// One job of a cycle, with the confirmations that it leads to.
    async fn job(&self, job: Job, control: &Control) {
        let Some(_permit) = control.permit().await else {
            return;
        };
        let kind = job.kind;
        let job = match kind {
            Kind::Confirm | Kind::CompetitorConfirm => match self.take_unchanged(kind, 1) {
                Some(confirm) => confirm,
                None => return,
            },
            _ => job,
        };
        match self.transact(job, Some(control)).await {
            Ok(done) => {
                let confirm = self.remember_unchanged(kind, done.unchanged);
                let Some(confirm) = self.take_unchanged(confirm, CONFIRMED_AT_ONCE) else {
                    return;
                };
                if let Err(error) = self.transact(confirm, Some(control)).await {
                    self.failed("confirmation", &error);
                }
            }
            Err(error) => {
                self.failed(&format!("{kind:?}"), &error);
                if error.is_connection() {
                    // A pause waits for all permits, so do not keep this one while waiting.
                    drop(_permit);
                    self.recover(control).await;
                }
            }
        }
    }

    async fn transact(&self, job: Job, control: Option<&Control>) -> Result<Effect, ScraperError> {
        let Job { kind, ids } = job;
        let _one_at_a_time = match kind.is_ddl() {
            true => Some(self.shared.ddl.lock().await),
            false => None,
        };
        let mut rng = self.fork();
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        // Do not wait for a lock without limit, because others wait behind us. Turn jit off, because it would take
        // longer than the statements themselves.
        tx.batch_execute(&format!(
            "set local lock_timeout = '2s'; set local jit = off; select setseed({})",
            rng.f64()
        ))
        .await?;
        let target = Target {
            ids,
            changed: self.pace.changed,
        };
        let done = match changes::apply(kind, &tx, target, &mut rng).await {
            Ok(done) => done,
            Err(error) => {
                // The first error says more than a failed ROLLBACK.
                let _ = tx.rollback().await;
                return Err(error.into());
            }
        };
        match kind {
            Kind::LongTransaction => {
                match control {
                    Some(control) => tokio::select! {
                        () = sleep(self.pace.long) => {}
                        () = control.interrupted() => {}
                    },
                    None => sleep(self.pace.long).await,
                }
                tx.commit().await?;
            }
            Kind::RolledBack => tx.rollback().await?,
            _ => tx.commit().await?,
        }
        self.shared.counters.add(kind, &done);
        Ok(done)
    }

    /// Keeps what a scrape found unchanged, and returns the kind of confirmation for it.
    fn remember_unchanged(&self, kind: Kind, ids: Vec<i64>) -> Kind {
        let mut unchanged = self.unchanged();
        match kind {
            Kind::Scrape => unchanged.0.extend(ids),
            Kind::CompetitorScrape => unchanged.1.extend(ids),
            _ => {}
        }
        match kind {
            Kind::CompetitorScrape => Kind::CompetitorConfirm,
            _ => Kind::Confirm,
        }
    }

    /// A confirmation of all unchanged snapshots, if there are at least `at_least`.
    fn take_unchanged(&self, kind: Kind, at_least: usize) -> Option<Job> {
        let mut unchanged = self.unchanged();
        let ids = match kind {
            Kind::CompetitorConfirm => &mut unchanged.1,
            _ => &mut unchanged.0,
        };
        (ids.len() >= at_least).then(|| Job {
            kind,
            ids: std::mem::take(ids),
        })
    }

    fn unchanged(&self) -> std::sync::MutexGuard<'_, (Vec<i64>, Vec<i64>)> {
        self.shared
            .unchanged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn fork(&self) -> Rng {
        self.shared
            .rng
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fork()
    }

    fn failed(&self, what: &str, error: &ScraperError) {
        let conflict = error.is_conflict();
        let away = error.is_connection();
        self.shared.counters.add_failed(conflict);
        let error = error.chain();
        if away {
            // Each worker sees this once a second. The cache's own message is enough.
            tracing::debug!(what, error, "scraper: the server is away");
        } else if conflict {
            tracing::info!(what, error, "scraper: a transaction gave way to another");
        } else {
            tracing::warn!(what, error, "scraper: a transaction failed");
        }
    }

    /// Waits a second, or until stopped.
    async fn recover(&self, control: &Control) {
        tokio::select! {
            () = sleep(Duration::from_secs(1)) => {}
            () = control.stopped() => {}
        }
    }
}
