//! `Change`, `Cut`, and the events of a cache that a Python thread waits for.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use oddscache::{Changes, OddsCache};
use pyo3::{
    prelude::*,
    types::{PyAny, PyDict},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::{errors, times, wait::wait};

/// Which committed state of the database a view equals.
#[pyclass(frozen, module = "oddscache")]
pub(crate) struct Cut {
    cut: Arc<oddscache::Cut>,
    naive_times: bool,
}

impl Cut {
    pub(crate) fn new(cut: Arc<oddscache::Cut>, naive_times: bool) -> Cut {
        Cut { cut, naive_times }
    }
}

#[pymethods]
impl Cut {
    /// The database's clock in the transaction that read the state.
    #[getter]
    fn as_of(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        times::to_python(py, self.cut.as_of, self.naive_times)
    }

    /// `pg_current_snapshot()` of that transaction.
    #[getter]
    fn snapshot(&self) -> &str {
        &self.cut.snapshot
    }

    /// The view holds only events with a kickoff after this time.
    #[getter]
    fn window_start(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        times::to_python(py, self.cut.window_start, self.naive_times)
    }

    /// Whether the server was a standby, which may lag behind its primary.
    #[getter]
    fn standby(&self) -> bool {
        self.cut.standby
    }

    /// Whether this state certainly contains what transaction `xid` wrote, if it committed.
    fn shows(&self, xid: u64) -> bool {
        self.cut.shows(xid)
    }

    fn __repr__(&self) -> String {
        format!(
            "<oddscache.Cut {} as of {}>",
            self.cut.snapshot, self.cut.as_of
        )
    }
}

/// What a publication changed: ids of events, by source.
#[pyclass(frozen, module = "oddscache")]
pub(crate) struct Change {
    change: Arc<oddscache::Change>,
    base: Base,
}

/// What a process that was forked adds to epochs and versions.
#[derive(Clone, Copy, Default)]
pub(crate) struct Base {
    pub(crate) epoch: u64,
    pub(crate) version: u64,
    pub(crate) naive_times: bool,
}

impl Change {
    pub(crate) fn new(change: Arc<oddscache::Change>, base: Base) -> Change {
        Change { change, base }
    }
}

#[pymethods]
impl Change {
    /// The ids of all events that differ in any way, ascending.
    #[getter]
    fn event_ids(&self) -> Vec<i64> {
        self.change.event_ids()
    }

    /// Events whose snapshots of `odds_snapshots` are new, changed or gone, ascending.
    #[getter]
    fn betpawa(&self) -> Vec<i64> {
        self.change.betpawa.clone()
    }

    /// The same for `competitor_odds_snapshots`, by source.
    #[getter]
    fn competitors<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let lists: BTreeMap<&str, &Vec<i64>> = self
            .change
            .competitors
            .iter()
            .map(|(source, ids)| (source.as_str(), ids))
            .collect();
        lists.into_pyobject(py)
    }

    /// Events whose kickoff moved, ascending. Events that are new or gone are only in the other lists.
    #[getter]
    fn kickoffs(&self) -> Vec<i64> {
        self.change.kickoffs.clone()
    }

    /// Events whose names changed: their own, or those of their tournament or of a bookmaker. Ascending.
    #[getter]
    fn names(&self) -> Vec<i64> {
        self.change.names.clone()
    }

    /// Which committed state of the database was published.
    #[getter]
    fn cut(&self) -> Cut {
        Cut::new(Arc::clone(&self.change.cut), self.base.naive_times)
    }

    /// The epoch of that state.
    #[getter]
    fn epoch(&self) -> u64 {
        self.base.epoch + self.change.epoch
    }

    /// The version of that state.
    #[getter]
    fn version(&self) -> u64 {
        self.base.version + self.change.version
    }

    fn __repr__(&self) -> String {
        let ids = self.change.event_ids();
        format!(
            "<oddscache.Change of {} events, version {}>",
            ids.len(),
            self.version()
        )
    }
}

/// A wait that has ended: its number, and the error if it failed.
pub(crate) type Done = (u64, Option<oddscache::Error>);

/// What happens to a cache: changes, and waits that have ended. One Python thread takes them.
#[pyclass(frozen, module = "oddscache._native")]
pub(crate) struct Events {
    changes: Mutex<Changes>,
    done: Mutex<UnboundedReceiver<Done>>,
    sender: UnboundedSender<Done>,
    base: Base,
    cache: OddsCache,
    closed: Arc<AtomicBool>,
}

enum Happened {
    Change(Option<Result<Arc<oddscache::Change>, oddscache::Lagged>>),
    Done(Done),
}

impl Events {
    pub(crate) fn new(cache: OddsCache, base: Base, closed: Arc<AtomicBool>) -> Events {
        let (sender, done) = unbounded_channel();
        Events {
            changes: Mutex::new(cache.changes()),
            done: Mutex::new(done),
            sender,
            base,
            cache,
            closed,
        }
    }

    /// An error of the library, or `Closed` if somebody closed the cache meanwhile.
    fn failed(&self, py: Python<'_>, error: &oddscache::Error) -> PyErr {
        if self.closed.load(Ordering::Relaxed) {
            errors::closed(py)
        } else {
            errors::exception(py, error)
        }
    }

    /// Where to send the end of a wait.
    pub(crate) fn sender(&self) -> UnboundedSender<Done> {
        self.sender.clone()
    }
}

#[pymethods]
impl Events {
    /// Why nothing more can happen: `Closed`, or the error that ended the follower.
    fn ended(&self, py: Python<'_>) -> Py<PyAny> {
        let error = match self.cache.status() {
            oddscache::Status::Ended { error: Some(error) } => error,
            _ => oddscache::Error::FollowerStopped,
        };
        self.failed(py, &error).into_value(py).into_any()
    }

    /// Waits for the next event: a `Change`; an exception `Lagged`; the number of a wait that has ended with its
    /// exception or `None`; or `None` when nothing more can happen: see `ended`.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let happened = {
            // Only one thread takes events. A second one must not wait for it while it holds the GIL.
            let (Ok(mut changes), Ok(mut done)) = (self.changes.try_lock(), self.done.try_lock())
            else {
                return Err(errors::other(
                    py,
                    "another thread takes the events of this cache",
                ));
            };
            let mut next = pin!(changes.next());
            let happened = poll_fn(|context| {
                // The sender is held here, so the channel never closes.
                if let Poll::Ready(Some(done)) = done.poll_recv(context) {
                    return Poll::Ready(Happened::Done(done));
                }
                next.as_mut().poll(context).map(Happened::Change)
            });
            wait(py, None, false, happened)?
        };
        Ok(match happened {
            Some(Happened::Change(Some(Ok(change)))) => {
                let change = Change {
                    change,
                    base: self.base,
                };
                Some(Py::new(py, change)?.into_any())
            }
            Some(Happened::Change(Some(Err(lagged)))) => {
                Some(errors::lagged(py, lagged).into_value(py).into_any())
            }
            Some(Happened::Done((number, error))) => {
                let exception = error.map(|error| self.failed(py, &error).into_value(py));
                Some((number, exception).into_pyobject(py)?.into_any().unbind())
            }
            Some(Happened::Change(None)) | None => None,
        })
    }
}
