//! `Cache`: what `OddsCache` of the Python part is made of.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use oddscache::{Error, OddsCache, Writer};
use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyBytes, PyDict, PyString},
};

use serde_json::Value;
use tokio::task::{JoinError, JoinHandle};

use crate::{
    change::{Base, Change, Events},
    config::Config,
    errors,
    handle::{Feed, Handle},
    input, json,
    kept::Kept,
    lists::Lists,
    times,
    view::{self, Shown, View, betpawa, competitors, seconds},
    wait::wait,
};

/// The longest time-out: longer than anybody waits, and short enough to add to a time.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

#[pyclass(frozen, subclass, module = "oddscache._native")]
pub(crate) struct Cache {
    handle: ArcSwap<Handle>,
    /// How to connect. `None` for a cache that a program fills.
    config: Option<Py<Config>>,
    /// Set in a process that was forked from the one that connected. The next call connects anew.
    forked: AtomicBool,
    closed: Arc<AtomicBool>,
    kept: Arc<Kept>,
    lists: ArcSwap<Lists>,
}

impl Cache {
    fn open(&self, py: Python<'_>) -> PyResult<Guard<Arc<Handle>>> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(errors::closed(py));
        }
        if self.forked.load(Ordering::Relaxed) {
            self.reconnect(py)?;
        }
        Ok(self.handle.load())
    }

    fn shown(&self, py: Python<'_>) -> PyResult<Shown> {
        Ok(self.open(py)?.shown())
    }

    /// Connects anew in a process that was forked. Its parent's handle has no thread here, and a thread that is not here
    /// may have locked something of it. So only its state is read, which takes no lock. Its memory is never freed.
    fn reconnect(&self, py: Python<'_>) -> PyResult<()> {
        let Some(config) = &self.config else {
            self.forked.store(false, Ordering::Relaxed);
            return Ok(());
        };
        // One thread connects. Until it has, the others see the old handle, which shows the same state.
        if !self.forked.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let before = self.handle.load_full();
        let inherited = before.shown();
        let inherited = (inherited.epoch > 0).then_some(inherited);
        let handle = match Handle::connect(py, config.get().0.clone(), inherited) {
            Ok(handle) => handle,
            Err(error) => {
                self.forked.store(true, Ordering::Relaxed);
                return Err(error);
            }
        };
        std::mem::forget(self.handle.swap(Arc::new(handle)));
        std::mem::forget(before);
        // The Python part starts its threads again.
        PyModule::import(py, "oddscache._cache")?.call_method0("_reconnected")?;
        Ok(())
    }

    /// If the handle is the parent's (see `reconnect`), sees to it that it is never dropped here. Returns whether it is.
    fn leave_to_parent(&self) -> bool {
        let is_parents = self.config.is_some() && self.forked.load(Ordering::Relaxed);
        if is_parents {
            std::mem::forget(self.handle.load_full());
        }
        is_parents
    }

    /// What is added to the numbers of the library's handle.
    fn base(&self, handle: &Handle) -> Base {
        let (epoch, version) = handle.inherited();
        Base {
            epoch,
            version,
            naive_times: self.kept.naive_times,
        }
    }

    /// Lets the writer do something and publishes it. Nothing for a connected cache.
    fn write<R>(
        &self,
        py: Python<'_>,
        change: impl FnOnce(&mut Writer) -> R,
    ) -> PyResult<Option<(R, Py<Change>)>> {
        let handle = self.open(py)?;
        // The writer runs no Python code and waits for nothing. An exception is made without the lock (J3).
        let written = match &mut *handle.feed() {
            Some(Feed::Writer(writer)) => Some((change(writer), writer.publish())),
            Some(Feed::Follower(_)) => return Ok(None),
            None => None,
        };
        let (result, change) = written.ok_or_else(|| errors::closed(py))?;
        let change = Change::new(change, self.base(&handle));
        Ok(Some((result, Py::new(py, change)?)))
    }

    /// The runtime of a connected cache, and the library's handle.
    fn following(&self, py: Python<'_>) -> PyResult<(tokio::runtime::Handle, OddsCache)> {
        let handle = self.open(py)?;
        // An exception is made without the lock (J3).
        let runtime = match &*handle.feed() {
            Some(Feed::Follower(following)) => Some(following.runtime.handle().clone()),
            Some(Feed::Writer(_)) | None => None,
        };
        match runtime {
            Some(runtime) => Ok((runtime, handle.cache.clone())),
            None if self.closed.load(Ordering::Relaxed) => Err(errors::closed(py)),
            None => Err(errors::other(
                py,
                "this cache follows nothing, so there is nothing to wait for",
            )),
        }
    }

    /// An error of the library, or `Closed` if somebody closed the cache meanwhile.
    fn failed(&self, py: Python<'_>, error: &Error) -> PyErr {
        if self.closed.load(Ordering::Relaxed) {
            errors::closed(py)
        } else {
            errors::exception(py, error)
        }
    }
}

/// A wait that ends when it is dropped.
#[pyclass(frozen, module = "oddscache._native")]
pub(crate) struct Waiting(
    #[expect(dead_code, reason = "ends the wait when it is dropped")] AbortOnDrop<()>,
);

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

fn timeout(py: Python<'_>, seconds: Option<f64>) -> PyResult<Duration> {
    match seconds {
        None => Ok(FOREVER),
        Some(seconds) if seconds >= 0.0 => Ok(Duration::try_from_secs_f64(seconds)
            .unwrap_or(FOREVER)
            .min(FOREVER)),
        Some(seconds) => Err(errors::config(
            py,
            format!("a time-out must be a number of seconds from 0 on, not {seconds}"),
        )),
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.leave_to_parent();
    }
}

#[pymethods]
impl Cache {
    #[new]
    #[pyo3(signature = (config, naive_times))]
    fn new(py: Python<'_>, config: Option<Py<Config>>, naive_times: bool) -> PyResult<Cache> {
        let handle = match &config {
            Some(config) => Handle::connect(py, config.get().0.clone(), None)?,
            None => Handle::detached(),
        };
        Ok(Cache {
            handle: ArcSwap::from_pointee(handle),
            config,
            forked: AtomicBool::new(false),
            closed: Arc::default(),
            kept: Arc::new(Kept::new(naive_times)),
            lists: ArcSwap::default(),
        })
    }

    /// Event id -> bookmaker id -> the latest snapshot of `odds_snapshots`. Events without one are absent.
    fn get_betpawa_snapshots<'py>(
        &self,
        event_ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        view::many(
            &self.kept,
            betpawa,
            &self.shown(event_ids.py())?.view,
            event_ids,
        )
    }

    /// Event id -> source -> the latest snapshot of `competitor_odds_snapshots`. Events without one are absent.
    fn get_competitor_snapshots<'py>(
        &self,
        event_ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        view::many(
            &self.kept,
            competitors,
            &self.shown(event_ids.py())?.view,
            event_ids,
        )
    }

    /// Bookmaker id -> the latest snapshot of `odds_snapshots`. `None` if there is none.
    fn get_betpawa_snapshot<'py>(
        &self,
        event_id: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        view::one(
            &self.kept,
            betpawa,
            &self.shown(event_id.py())?.view,
            event_id,
        )
    }

    /// Source -> the latest snapshot of `competitor_odds_snapshots`. `None` if there is none.
    fn get_competitor_snapshot<'py>(
        &self,
        event_id: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        view::one(
            &self.kept,
            competitors,
            &self.shown(event_id.py())?.view,
            event_id,
        )
    }

    /// The ids of all events, ascending.
    fn event_ids(&self, py: Python<'_>) -> PyResult<Vec<i64>> {
        Ok(self.shown(py)?.view.event_ids())
    }

    /// When an event begins. `None` if the cache does not hold it.
    fn kickoff(&self, py: Python<'_>, event_id: &Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>> {
        view::kickoff(py, &self.shown(py)?.view, event_id, self.kept.naive_times)
    }

    /// The names of an event, as a dict of its own. `None` if the cache does not hold it.
    fn names<'py>(&self, event_id: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyDict>>> {
        view::names(&self.shown(event_id.py())?.view, event_id)
    }

    /// The latest state, if it was proven current within `max_age` seconds.
    #[pyo3(signature = (max_age = None))]
    fn view(&self, py: Python<'_>, max_age: Option<f64>) -> PyResult<View> {
        let handle = self.open(py)?;
        let shown = handle.shown();
        if let Some(max_age) = max_age {
            let max_age = timeout(py, Some(max_age))?;
            let age = shown.view.age();
            if age > max_age {
                let status = handle.cache.status().to_string();
                return Err(errors::exception(
                    py,
                    &oddscache::Error::TooStale {
                        age,
                        max_age,
                        status,
                    },
                ));
            }
        }
        Ok(View::new(shown, Arc::clone(&self.kept)))
    }

    /// The event list as JSON.
    #[pyo3(signature = (event_ids, markets))]
    fn event_list_json(
        &self,
        py: Python<'_>,
        event_ids: Option<&Bound<'_, PyAny>>,
        markets: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyBytes>> {
        let shown = self.shown(py)?;
        match event_ids {
            None => self.lists.load().all(py, &shown, markets),
            Some(event_ids) => self.lists.load().some(py, &shown, markets, event_ids),
        }
    }

    /// Seconds since the latest state was last proven current.
    #[getter]
    fn age(&self, py: Python<'_>) -> PyResult<f64> {
        Ok(seconds(self.shown(py)?.view.age()))
    }

    #[getter]
    fn epoch(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.shown(py)?.epoch)
    }

    #[getter]
    fn version(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.shown(py)?.version)
    }

    #[getter]
    fn is_warm(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.shown(py)?.epoch > 0)
    }

    /// Whether a program fills this cache.
    #[getter]
    fn is_detached(&self) -> bool {
        self.config.is_none()
    }

    #[getter]
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Name, sentence, since when, faults as pairs of what and repair, and the bound in seconds.
    #[expect(
        clippy::type_complexity,
        reason = "taken apart at once by the Python part"
    )]
    fn _status(
        &self,
        py: Python<'_>,
    ) -> PyResult<(
        &'static str,
        String,
        Option<Py<PyAny>>,
        Vec<(String, String)>,
        Option<f64>,
    )> {
        let status = self.open(py)?.cache.status();
        let (since, faults, bound) = match &status {
            oddscache::Status::Degraded {
                since,
                faults,
                bound,
            } => (
                Some(*since),
                faults.as_slice(),
                bound.map(|bound| bound.as_secs_f64()),
            ),
            oddscache::Status::Disconnected { since, .. } => (Some(*since), &[][..], None),
            _ => (None, &[][..], None),
        };
        let faults = faults
            .iter()
            .map(|fault| (fault.what.clone(), fault.repair.clone()));
        let since = since
            .map(|since| times::to_python(py, since, self.kept.naive_times))
            .transpose()?;
        Ok((
            status.name(),
            status.to_string(),
            since,
            faults.collect(),
            bound,
        ))
    }

    /// The library's stats, counters and progress of a read as dicts; the age, epoch and version of the same state.
    #[expect(
        clippy::type_complexity,
        reason = "taken apart at once by the Python part"
    )]
    fn _stats<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(
        Bound<'py, PyAny>,
        Bound<'py, PyAny>,
        Bound<'py, PyAny>,
        f64,
        u64,
        u64,
    )> {
        let handle = self.open(py)?;
        let shown = handle.shown();
        let stats = serde_json::to_value(shown.view.stats());
        let counters = serde_json::to_value(handle.cache.counters());
        let reading = serde_json::to_value(handle.cache.reading());
        let dict = |value: serde_json::Result<Value>| match value {
            Ok(value) => json::to_python(py, &value),
            Err(error) => Err(errors::other(py, error.to_string())),
        };
        let age = seconds(shown.view.age());
        Ok((
            dict(stats)?,
            dict(counters)?,
            dict(reading)?,
            age,
            shown.epoch,
            shown.version,
        ))
    }

    /// Waits until the cache is warm.
    #[pyo3(signature = (timeout = None))]
    fn ready(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let limit = self::timeout(py, timeout)?;
        let cache = self.open(py)?.cache.clone();
        match wait(py, Some(Instant::now() + limit), true, cache.ready())? {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(self.failed(py, &error)),
            None => Err(errors::not_ready(py, limit, &cache.status().to_string())),
        }
    }

    /// Waits for a view that contains what a transaction wrote.
    #[pyo3(signature = (xid, timeout))]
    fn wait_for(&self, py: Python<'_>, xid: u64, timeout: f64) -> PyResult<View> {
        let limit = self::timeout(py, Some(timeout))?;
        let (handle, cache) = self.following(py)?;
        // A task of the runtime, because the library's time-out needs one. It ends with the runtime.
        let task = AbortOnDrop(handle.spawn(async move { cache.wait_for(xid, limit).await }));
        match wait(py, None, true, task)? {
            Some(Ok(Ok(view))) => Ok(View::new(
                self.handle.load().numbered(view),
                Arc::clone(&self.kept),
            )),
            Some(Ok(Err(error))) => Err(self.failed(py, &error)),
            Some(Err(_)) | None => Err(errors::closed(py)),
        }
    }

    /// Subscribes to changes and to the ends of waits.
    fn _events(&self, py: Python<'_>) -> PyResult<Events> {
        let handle = self.open(py)?;
        Ok(Events::new(
            handle.cache.clone(),
            self.base(&handle),
            Arc::clone(&self.closed),
        ))
    }

    /// Starts to wait until the cache is warm. The end comes as an event with this number.
    fn _start_ready(&self, py: Python<'_>, events: &Events, number: u64) -> PyResult<Waiting> {
        let (handle, cache) = self.following(py)?;
        let sender = events.sender();
        Ok(Waiting(AbortOnDrop(handle.spawn(async move {
            // Fails if nobody takes events any more. Then nobody waits.
            let _ = sender.send((number, cache.ready().await.err()));
        }))))
    }

    /// Starts to wait for a transaction. The end comes as an event with this number.
    fn _start_wait_for(
        &self,
        py: Python<'_>,
        events: &Events,
        number: u64,
        xid: u64,
        timeout: f64,
    ) -> PyResult<Waiting> {
        let limit = self::timeout(py, Some(timeout))?;
        let (handle, cache) = self.following(py)?;
        let sender = events.sender();
        Ok(Waiting(AbortOnDrop(handle.spawn(async move {
            let _ = sender.send((number, cache.wait_for(xid, limit).await.err()));
        }))))
    }

    // The four below change a cache that a program fills, and return what changed. They return `None` for a connected
    // cache, and change nothing there.

    fn put_betpawa_snapshot(
        &self,
        py: Python<'_>,
        event_id: &Bound<'_, PyAny>,
        bookmaker_id: &Bound<'_, PyAny>,
        snapshot: &Bound<'_, PyAny>,
        kickoff: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<Py<Change>>> {
        let event_id = input::id("event_id", event_id)?;
        let bookmaker_id = input::id("bookmaker_id", bookmaker_id)?;
        let snapshot = input::snapshot(event_id, bookmaker_id, snapshot)?;
        let kickoff = kickoff
            .map(|kickoff| times::from_python("kickoff", kickoff))
            .transpose()?;
        let written = self.write(py, |writer| writer.put_betpawa_snapshot(&snapshot, kickoff))?;
        Ok(written.map(|(_, change)| change))
    }

    fn put_competitor_snapshot(
        &self,
        py: Python<'_>,
        event_id: &Bound<'_, PyAny>,
        source: &Bound<'_, PyAny>,
        snapshot: &Bound<'_, PyAny>,
        kickoff: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<Py<Change>>> {
        let event_id = input::id("event_id", event_id)?;
        let source = source
            .cast::<PyString>()
            .map_err(|_| PyTypeError::new_err("source must be a str"))?;
        let source = source.extract::<String>()?;
        let snapshot = input::snapshot(event_id, 0, snapshot)?;
        let kickoff = kickoff
            .map(|kickoff| times::from_python("kickoff", kickoff))
            .transpose()?;
        let written = self.write(py, |writer| {
            writer.put_competitor_snapshot(&source, &snapshot, kickoff)
        })?;
        Ok(written.map(|(_, change)| change))
    }

    /// How many events were removed, and the change.
    fn evict_expired(
        &self,
        py: Python<'_>,
        cutoff: &Bound<'_, PyAny>,
    ) -> PyResult<Option<(usize, Py<Change>)>> {
        let cutoff = times::from_python("cutoff", cutoff)?;
        self.write(py, |writer| writer.evict_expired(cutoff))
    }

    fn clear(&self, py: Python<'_>) -> PyResult<Option<Py<Change>>> {
        let written = self.write(py, Writer::clear)?;
        Ok(written.map(|((), change)| change))
    }

    /// Ends the follower. All waits raise `Closed`.
    fn close(&self, py: Python<'_>) {
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        if !self.leave_to_parent() {
            self.handle.load().close(py);
        }
        self.kept.clear();
        self.lists.load().clear();
    }

    /// Tells the cache that this process was forked.
    fn _forked(&self) {
        self.forked.store(true, Ordering::Relaxed);
        // A thread that is not here may have locked a list to render it.
        std::mem::forget(self.lists.swap(Arc::default()));
    }
}
