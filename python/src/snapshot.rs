//! `CachedSnapshot`.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use pyo3::{
    prelude::*,
    sync::PyOnceLock,
    types::{PyTuple, PyType},
};

use crate::{
    market::{markets, refuse_own, repr},
    times,
};

/// A snapshot of a cache. Its markets refer to it.
#[pyclass(frozen, module = "oddscache._native", name = "_Held")]
pub(crate) struct Held {
    pub(crate) snapshot: oddscache::CachedSnapshot,
    pub(crate) naive_times: bool,
    /// Counts the bytes of the objects that were made for this snapshot. `None` if it is not
    /// [kept](crate::kept::Kept).
    pub(crate) made: Option<Arc<AtomicUsize>>,
}

impl Held {
    pub(crate) fn count(&self, bytes: usize) {
        if let Some(made) = &self.made {
            made.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

/// What a market object and its place in a tuple take.
const MARKET_BYTES: usize = 72 + size_of::<usize>();

/// Holds what makes `CachedSnapshot` look like a dataclass: see the fields of a market.
#[pyclass(
    frozen,
    subclass,
    module = "oddscache._native",
    name = "_SnapshotFields"
)]
pub(crate) struct Fields;

/// The latest snapshot of an event and bookmaker, with its markets. It behaves as a frozen dataclass of the six fields
/// does.
#[pyclass(frozen, extends = Fields, module = "oddscache")]
pub(crate) struct CachedSnapshot {
    rest: Rest,
    /// The markets, once somebody has asked for them.
    markets: PyOnceLock<Py<PyTuple>>,
}

enum Rest {
    /// A snapshot of a cache.
    Held(Py<Held>),
    /// A snapshot that a program constructed.
    Given(Box<Given>),
}

struct Given {
    snapshot_id: Py<PyAny>,
    event_id: Py<PyAny>,
    bookmaker_id: Py<PyAny>,
    captured_at: Py<PyAny>,
    last_confirmed_at: Py<PyAny>,
}

const FIELDS: [&str; 6] = [
    "snapshot_id",
    "event_id",
    "bookmaker_id",
    "captured_at",
    "last_confirmed_at",
    "markets",
];

impl CachedSnapshot {
    /// The object of a snapshot. It takes over the market objects of `before`, if that shows the same markets.
    pub(crate) fn of(
        py: Python<'_>,
        held: Held,
        before: Option<&CachedSnapshot>,
    ) -> PyResult<Py<CachedSnapshot>> {
        let same = before.filter(|before| {
            before
                .held()
                .is_some_and(|before| before.snapshot.shares_markets(&held.snapshot))
        });
        let markets = PyOnceLock::new();
        if let Some(made) = same.and_then(|before| before.markets.get(py)) {
            // The lock is new, so it is empty.
            let _ = markets.set(py, made.clone_ref(py));
        }
        let rest = Rest::Held(Py::new(py, held)?);
        let snapshot = CachedSnapshot { rest, markets };
        Py::new(py, PyClassInitializer::from(Fields).add_subclass(snapshot))
    }

    pub(crate) fn held(&self) -> Option<&Held> {
        match &self.rest {
            Rest::Held(held) => Some(held.get()),
            Rest::Given(_) => None,
        }
    }

    /// The bytes of the market objects, if they exist.
    pub(crate) fn made_bytes(&self, py: Python<'_>) -> usize {
        self.markets
            .get(py)
            .map_or(0, |markets| markets.bind(py).len() * MARKET_BYTES)
    }

    fn field<'py>(
        &self,
        py: Python<'py>,
        held: impl FnOnce(&Held) -> PyResult<Py<PyAny>>,
        given: impl FnOnce(&Given) -> &Py<PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Ok(match &self.rest {
            Rest::Held(from) => held(from.get())?,
            Rest::Given(from) => given(from).clone_ref(py),
        }
        .into_bound(py))
    }

    fn fields<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(
            py,
            [
                self.snapshot_id(py)?,
                self.event_id(py)?,
                self.bookmaker_id(py)?,
                self.captured_at(py)?,
                self.last_confirmed_at(py)?,
                self.markets(py)?.into_any(),
            ],
        )
    }
}

fn id(py: Python<'_>, id: i64) -> PyResult<Py<PyAny>> {
    Ok(id.into_pyobject(py)?.into_any().unbind())
}

#[pymethods]
impl CachedSnapshot {
    #[new]
    #[pyo3(signature = (snapshot_id, event_id, bookmaker_id, captured_at, last_confirmed_at, markets = None))]
    fn new(
        py: Python<'_>,
        snapshot_id: Py<PyAny>,
        event_id: Py<PyAny>,
        bookmaker_id: Py<PyAny>,
        captured_at: Py<PyAny>,
        last_confirmed_at: Py<PyAny>,
        markets: Option<Bound<'_, PyAny>>,
    ) -> PyResult<PyClassInitializer<CachedSnapshot>> {
        let markets = match markets {
            Some(markets) => match markets.cast_into::<PyTuple>() {
                Ok(markets) => markets,
                Err(other) => PyTuple::new(
                    py,
                    other
                        .into_inner()
                        .try_iter()?
                        .collect::<PyResult<Vec<_>>>()?,
                )?,
            },
            None => PyTuple::empty(py),
        };
        let scalars = [
            &snapshot_id,
            &event_id,
            &bookmaker_id,
            &captured_at,
            &last_confirmed_at,
        ];
        refuse_own(py, scalars.map(Some))?;
        let lock = PyOnceLock::new();
        // The lock is new, so it is empty.
        let _ = lock.set(py, markets.unbind());
        let given = Given {
            snapshot_id,
            event_id,
            bookmaker_id,
            captured_at,
            last_confirmed_at,
        };
        let snapshot = CachedSnapshot {
            rest: Rest::Given(Box::new(given)),
            markets: lock,
        };
        Ok(PyClassInitializer::from(Fields).add_subclass(snapshot))
    }

    #[getter]
    fn snapshot_id<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(
            py,
            |held| id(py, held.snapshot.snapshot_id()),
            |given| &given.snapshot_id,
        )
    }

    #[getter]
    fn event_id<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(
            py,
            |held| id(py, held.snapshot.event_id()),
            |given| &given.event_id,
        )
    }

    #[getter]
    fn bookmaker_id<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(
            py,
            |held| id(py, held.snapshot.bookmaker_id()),
            |given| &given.bookmaker_id,
        )
    }

    #[getter]
    fn captured_at<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(
            py,
            |held| times::to_python(py, held.snapshot.captured_at(), held.naive_times),
            |given| &given.captured_at,
        )
    }

    #[getter]
    fn last_confirmed_at<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(
            py,
            |held| times::to_python(py, held.snapshot.last_confirmed_at(), held.naive_times),
            |given| &given.last_confirmed_at,
        )
    }

    #[getter]
    fn markets<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        if let Some(markets) = self.markets.get(py) {
            return Ok(markets.bind(py).clone());
        }
        let Rest::Held(held) = &self.rest else {
            // Those of a constructed snapshot were set with it.
            return Ok(PyTuple::empty(py));
        };
        // Made outside of the lock: the collector may run Python code meanwhile, which may come here again (J3).
        let made = markets(py, held.bind(py))?;
        if self.markets.set(py, made.clone().unbind()).is_ok() {
            let bytes = made.len() * MARKET_BYTES;
            held.get().count(bytes);
        }
        let markets = self.markets.get(py);
        Ok(markets.map_or(made, |markets| markets.bind(py).clone()))
    }

    fn __eq__(&self, py: Python<'_>, other: &CachedSnapshot) -> PyResult<bool> {
        if std::ptr::eq(self, other) {
            return Ok(true);
        }
        self.fields(py)?.eq(other.fields(py)?)
    }

    /// As for a frozen dataclass: raises `TypeError` if there are markets, because their lists have no hash.
    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        self.fields(py)?.hash()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        repr("CachedSnapshot", &FIELDS, &self.fields(py)?)
    }

    fn __reduce__<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyType>, Bound<'py, PyTuple>)> {
        Ok((py.get_type::<CachedSnapshot>(), self.fields(py)?))
    }
}
