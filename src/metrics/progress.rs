//! How far a read of everything is.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;

/// How far a running read of everything is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Reading {
    /// How many snapshots' markets have been read.
    pub snapshots_read: usize,
    /// How many snapshots' markets are to be read. `None` while the read still lists events and snapshots.
    pub snapshots: Option<usize>,
    /// How long the read has taken so far, in seconds.
    pub seconds: f64,
    /// About how long it will still take, in seconds, if the other markets come as fast. `None` before any have come.
    pub seconds_left: Option<f64>,
}

/// How often the log says how far a read is.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Notes how far the running read of everything is. The lock is held for a few instructions only.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<Option<Running>>);

#[derive(Debug, Clone, Copy)]
struct Running {
    began: Instant,
    /// When the markets were requested, and of how many snapshots.
    markets: Option<(Instant, usize)>,
    snapshots_read: usize,
    logged: Instant,
}

impl Running {
    fn reading(&self) -> Reading {
        let (snapshots, left) = match self.markets {
            Some((since, snapshots)) => {
                let left = snapshots.saturating_sub(self.snapshots_read);
                #[expect(clippy::cast_precision_loss)]
                let share =
                    (self.snapshots_read > 0).then(|| left as f64 / self.snapshots_read as f64);
                (
                    Some(snapshots),
                    share.map(|share| since.elapsed().as_secs_f64() * share),
                )
            }
            None => (None, None),
        };
        Reading {
            snapshots_read: self.snapshots_read,
            snapshots,
            seconds: self.began.elapsed().as_secs_f64(),
            seconds_left: left,
        }
    }
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        // Each change of the value is complete even if a thread panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to follow a read, until the guard is dropped.
    pub(crate) fn begin(&self) -> Follows<'_> {
        let now = Instant::now();
        *self.lock() = Some(Running {
            began: now,
            markets: None,
            snapshots_read: 0,
            logged: now,
        });
        Follows(self)
    }

    /// Notes that the markets of so many snapshots are requested, and none have come.
    pub(crate) fn expect(&self, snapshots: usize) {
        if let Some(running) = &mut *self.lock() {
            running.markets = Some((Instant::now(), snapshots));
            running.snapshots_read = 0;
        }
    }

    /// Notes that the markets of so many further snapshots were read. Logs that now and then.
    pub(crate) fn read(&self, snapshots: usize) {
        let reading = {
            let mut running = self.lock();
            let Some(running) = &mut *running else { return };
            running.snapshots_read += snapshots;
            if running.logged.elapsed() < LOG_INTERVAL {
                return;
            }
            running.logged = Instant::now();
            running.reading()
        };
        let Reading {
            snapshots_read,
            snapshots,
            seconds,
            seconds_left,
        } = reading;
        let snapshots = snapshots.unwrap_or_default();
        tracing::info!(
            snapshots_read,
            snapshots,
            seconds,
            seconds_left,
            "still reading everything"
        );
    }

    /// How far the running read is; `None` if there is none.
    pub(crate) fn get(&self) -> Option<Reading> {
        self.lock().as_ref().map(Running::reading)
    }
}

/// Follows a read of everything. Dropping it ends that, also if the read failed or was cancelled.
#[derive(Debug)]
pub(crate) struct Follows<'p>(&'p Progress);

impl Drop for Follows<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}
