//! `View`, and the lookups that a cache and a view share.

use std::{sync::Arc, time::Duration};

use pyo3::{
    exceptions::{PyOverflowError, PyTypeError},
    intern,
    prelude::*,
    types::{PyDict, PyInt, PyString},
};

use crate::{
    change::Cut,
    errors,
    kept::{Kept, Lent},
    times,
};

/// A view of a cache. A process that was forked counts epochs and versions on from where its parent was.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) view: oddscache::View,
    pub(crate) epoch: u64,
    pub(crate) version: u64,
}

/// One committed state of the database, over all events at once. It never changes.
#[pyclass(frozen, module = "oddscache")]
pub(crate) struct View {
    shown: Shown,
    kept: Arc<Kept>,
}

/// An age in seconds, infinite before the first warmup.
pub(crate) fn seconds(age: Duration) -> f64 {
    if age == Duration::MAX {
        f64::INFINITY
    } else {
        age.as_secs_f64()
    }
}

/// The id that a Python integer holds. `None` if it has more than 64 bits: then no event has it.
pub(crate) fn event_id(id: &Bound<'_, PyAny>) -> PyResult<Option<i64>> {
    match id.extract::<i64>() {
        Ok(id) => Ok(Some(id)),
        Err(error) if error.is_instance_of::<PyOverflowError>(id.py()) => Ok(None),
        Err(error) if error.is_instance_of::<PyTypeError>(id.py()) => {
            Err(errors::wrong_type("an event id", "an int", id))
        }
        Err(error) => Err(error),
    }
}

/// Calls `each` with every event id and the object it came as.
pub(crate) fn for_each_id<'py>(
    ids: &Bound<'py, PyAny>,
    mut each: impl FnMut(i64, &Bound<'py, PyAny>) -> PyResult<()>,
) -> PyResult<()> {
    let iterator = if ids.is_instance_of::<PyString>() {
        None
    } else {
        ids.try_iter().ok()
    };
    let Some(iterator) = iterator else {
        return Err(errors::wrong_type("event_ids", "an iterable of int", ids));
    };
    for id in iterator {
        let id = id?;
        if let Some(number) = event_id(&id)? {
            each(number, &id)?;
        }
    }
    Ok(())
}

/// One of the two sides of an event: its snapshots as a dict. `None` if there is none.
pub(crate) type Side = for<'py> fn(
    &mut Lent<'_>,
    Python<'py>,
    &oddscache::State,
    i64,
) -> PyResult<Option<Bound<'py, PyDict>>>;

pub(crate) fn betpawa<'py>(
    kept: &mut Lent<'_>,
    py: Python<'py>,
    state: &oddscache::State,
    event_id: i64,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    let snapshots = state.get_betpawa_snapshot(event_id);
    snapshots
        .map(|snapshots| kept.betpawa(py, event_id, snapshots))
        .transpose()
}

pub(crate) fn competitors<'py>(
    kept: &mut Lent<'_>,
    py: Python<'py>,
    state: &oddscache::State,
    event_id: i64,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    let snapshots = state.get_competitor_snapshot(event_id);
    snapshots
        .map(|snapshots| kept.competitors(py, event_id, snapshots))
        .transpose()
}

/// The snapshots of several events, from one state. Events without one are absent.
pub(crate) fn many<'py>(
    kept: &Kept,
    side: Side,
    state: &oddscache::State,
    event_ids: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let py = event_ids.py();
    let found = PyDict::new(py);
    let mut kept = kept.lend();
    for_each_id(event_ids, |event_id, object| {
        match side(&mut kept, py, state, event_id)? {
            // The caller's own int costs less than a new one. An object that only stands for an int is no key.
            Some(snapshots) if object.is_exact_instance_of::<PyInt>() => {
                found.set_item(object, snapshots)
            }
            Some(snapshots) => found.set_item(event_id, snapshots),
            None => Ok(()),
        }
    })?;
    Ok(found)
}

/// The snapshots of one event.
pub(crate) fn one<'py>(
    kept: &Kept,
    side: Side,
    state: &oddscache::State,
    id: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    match event_id(id)? {
        Some(event_id) => side(&mut kept.lend(), id.py(), state, event_id),
        None => Ok(None),
    }
}

pub(crate) fn kickoff(
    py: Python<'_>,
    state: &oddscache::State,
    id: &Bound<'_, PyAny>,
    naive_times: bool,
) -> PyResult<Option<Py<PyAny>>> {
    let kickoff = event_id(id)?.and_then(|event_id| state.kickoff(event_id));
    kickoff
        .map(|kickoff| times::to_python(py, kickoff, naive_times))
        .transpose()
}

/// The names of an event as a dict, with the keys of the service's JSON. `None` if the state does not hold the event.
pub(crate) fn names<'py>(
    state: &oddscache::State,
    id: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    let py = id.py();
    let Some(event) = event_id(id)?.and_then(|event_id| state.event(event_id)) else {
        return Ok(None);
    };
    let names = PyDict::new(py);
    names.set_item(intern!(py, "name"), event.name())?;
    names.set_item(intern!(py, "home_team"), event.home_team())?;
    names.set_item(intern!(py, "away_team"), event.away_team())?;
    names.set_item(intern!(py, "sportradar_id"), event.sportradar_id())?;
    let tournament = event.tournament().map(|tournament| {
        let names = PyDict::new(py);
        names.set_item(intern!(py, "id"), tournament.id())?;
        names.set_item(intern!(py, "name"), tournament.name())?;
        names.set_item(intern!(py, "country"), tournament.country())?;
        names.set_item(intern!(py, "sport"), tournament.sport())?;
        Ok::<_, PyErr>(names)
    });
    names.set_item(intern!(py, "tournament"), tournament.transpose()?)?;
    let bookmakers = PyDict::new(py);
    for (bookmaker_id, bookmaker) in event.bookmakers() {
        let names = PyDict::new(py);
        names.set_item(intern!(py, "slug"), bookmaker.slug())?;
        names.set_item(intern!(py, "name"), bookmaker.name())?;
        bookmakers.set_item(bookmaker_id, names)?;
    }
    names.set_item(intern!(py, "bookmakers"), bookmakers)?;
    Ok(Some(names))
}

impl View {
    pub(crate) fn new(shown: Shown, kept: Arc<Kept>) -> View {
        View { shown, kept }
    }
}

#[pymethods]
impl View {
    /// Event id -> bookmaker id -> the latest snapshot of `odds_snapshots`. Events without one are absent.
    fn get_betpawa_snapshots<'py>(
        &self,
        event_ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        many(&self.kept, betpawa, &self.shown.view, event_ids)
    }

    /// Event id -> source -> the latest snapshot of `competitor_odds_snapshots`. Events without one are absent.
    fn get_competitor_snapshots<'py>(
        &self,
        event_ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        many(&self.kept, competitors, &self.shown.view, event_ids)
    }

    /// Bookmaker id -> the latest snapshot of `odds_snapshots`. `None` if there is none.
    fn get_betpawa_snapshot<'py>(
        &self,
        event_id: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        one(&self.kept, betpawa, &self.shown.view, event_id)
    }

    /// Source -> the latest snapshot of `competitor_odds_snapshots`. `None` if there is none.
    fn get_competitor_snapshot<'py>(
        &self,
        event_id: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        one(&self.kept, competitors, &self.shown.view, event_id)
    }

    /// The ids of all events, ascending.
    fn event_ids(&self) -> Vec<i64> {
        self.shown.view.event_ids()
    }

    /// When an event begins. `None` if the view does not hold it.
    fn kickoff(&self, py: Python<'_>, event_id: &Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>> {
        kickoff(py, &self.shown.view, event_id, self.kept.naive_times)
    }

    /// The names of an event, as a dict of its own. `None` if the view does not hold it.
    fn names<'py>(&self, event_id: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyDict>>> {
        names(&self.shown.view, event_id)
    }

    fn __len__(&self) -> usize {
        self.shown.view.len()
    }

    /// Seconds since this view was last proven to equal the database; infinite before the first warmup.
    #[getter]
    fn age(&self) -> f64 {
        seconds(self.shown.view.age())
    }

    /// Counts how often the state was replaced instead of changes moving it forward.
    #[getter]
    fn epoch(&self) -> u64 {
        self.shown.epoch
    }

    /// Counts the states that were published.
    #[getter]
    fn version(&self) -> u64 {
        self.shown.version
    }

    /// The latest committed state of the database that was found to equal this view.
    #[getter]
    fn cut(&self) -> Cut {
        Cut::new(self.shown.view.cut(), self.kept.naive_times)
    }

    fn __repr__(&self) -> String {
        format!(
            "<oddscache.View of {} events, epoch {}, version {}, {:.3} s old>",
            self.shown.view.len(),
            self.shown.epoch,
            self.shown.version,
            self.age()
        )
    }
}
