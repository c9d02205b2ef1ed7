//! The event list as JSON, one list for each choice of markets.

use std::sync::{Arc, Mutex, PoisonError};

use oddscache::{EventList, InlineMarkets};
use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyBytes, PyString},
};

use crate::view::{Shown, for_each_id};

/// How many choices of markets have a list at a time. A further one takes the place of the oldest.
const CHOICES: usize = 4;

/// Markets to show: `betpawa_market_id`, and the line if there are several.
type Choice = Vec<(String, Option<f64>)>;

#[derive(Default)]
pub(crate) struct Lists(Mutex<Vec<(Choice, Arc<Mutex<List>>)>>);

struct List {
    list: EventList,
    /// The last list, and the version of its view: an unchanged view costs nothing.
    last: Option<(u64, Py<PyBytes>)>,
}

fn choice(markets: &Bound<'_, PyAny>) -> PyResult<Choice> {
    let wanted = || {
        PyTypeError::new_err(
            "markets must be an iterable of market ids, or of pairs of id and line",
        )
    };
    if markets.is_instance_of::<PyString>() {
        return Err(wanted());
    }
    let mut choice = Choice::new();
    for market in markets.try_iter().map_err(|_| wanted())? {
        let market = market?;
        choice.push(match market.extract::<String>() {
            Ok(id) => (id, None),
            Err(_) => market.extract().map_err(|_| wanted())?,
        });
    }
    Ok(choice)
}

impl Lists {
    /// All events of the state.
    pub(crate) fn all(
        &self,
        py: Python<'_>,
        shown: &Shown,
        markets: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyBytes>> {
        let list = self.list(choice(markets)?);
        // A thread renders without the GIL, and holds the lock. So a thread waits for the lock without the GIL, too (J3).
        let json = {
            let known = list.try_lock().ok();
            if let Some((version, bytes)) = known.as_deref().and_then(|list| list.last.as_ref())
                && *version == shown.version
            {
                return Ok(bytes.clone_ref(py));
            }
            drop(known);
            py.detach(|| {
                let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
                list.list.render(&shown.view)
            })
        };
        let bytes = PyBytes::new(py, &json).unbind();
        let before = match list.try_lock() {
            Ok(mut list) => list.last.replace((shown.version, bytes.clone_ref(py))),
            Err(_) => None,
        };
        drop(before);
        Ok(bytes)
    }

    /// These events, in this order. Absent ones are left out.
    pub(crate) fn some(
        &self,
        py: Python<'_>,
        shown: &Shown,
        markets: &Bound<'_, PyAny>,
        event_ids: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyBytes>> {
        let inline = InlineMarkets::new(choice(markets)?);
        let mut ids = Vec::new();
        for_each_id(event_ids, |id, _| {
            ids.push(id);
            Ok(())
        })?;
        let json = py.detach(|| {
            let mut json = vec![b'['];
            for event in ids.iter().filter_map(|id| shown.view.event(*id)) {
                if json.len() > 1 {
                    json.push(b',');
                }
                inline.write_event(event, &mut json);
            }
            json.push(b']');
            json
        });
        Ok(PyBytes::new(py, &json).unbind())
    }

    fn list(&self, choice: Choice) -> Arc<Mutex<List>> {
        // Nothing in here runs Python code, and no holder waits for anything.
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, list)) = lists.iter().find(|(known, _)| *known == choice) {
            return Arc::clone(list);
        }
        if lists.len() >= CHOICES {
            lists.remove(0);
        }
        let list = List {
            list: EventList::new(choice.clone()),
            last: None,
        };
        let list = Arc::new(Mutex::new(list));
        lists.push((choice, Arc::clone(&list)));
        list
    }

    pub(crate) fn clear(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}
