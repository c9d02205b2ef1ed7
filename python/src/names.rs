//! Python strings and dicts for the texts that many markets share, so that each exists once.
//!
//! The tables are bounded: a full one is cleared. A text that is missing is made anew.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use hashbrown::HashMap;
use oddscache::{Outcome, Outcomes};
use pyo3::{
    intern,
    prelude::*,
    types::{PyBool, PyDict, PyList, PyString},
};

use crate::json;

/// Texts up to this length are kept: ids, sources, "Over". Longer ones are mostly names of players and teams.
const LONGEST: usize = 16;
/// How many texts are kept, at about 120 bytes each.
const TEXTS: usize = 1024;
/// How many outcomes are kept, at about 300 bytes each.
const OUTCOMES: usize = 128;

pub(crate) struct Names {
    texts: HashMap<Box<str>, Py<PyString>>,
    /// Dicts of an active outcome without odds, by its name. A copy of one costs less than a new dict.
    outcomes: HashMap<Box<str>, Py<PyDict>>,
}

static NAMES: Mutex<Option<Names>> = Mutex::new(None);

/// The tables, or nothing while they are in use: the collector may run Python code, which may come here again (J3).
pub(crate) struct Lent(Option<MutexGuard<'static, Option<Names>>>);

pub(crate) fn lend() -> Lent {
    Lent(match NAMES.try_lock() {
        Ok(names) => Some(names),
        Err(TryLockError::Poisoned(poisoned)) => Some(PoisonError::into_inner(poisoned)),
        Err(TryLockError::WouldBlock) => None,
    })
}

impl Lent {
    fn names(&mut self) -> Option<&mut Names> {
        let names = self.0.as_deref_mut()?;
        Some(names.get_or_insert_with(|| Names {
            texts: HashMap::new(),
            outcomes: HashMap::new(),
        }))
    }

    /// A Python string of this text.
    pub(crate) fn text<'py>(&mut self, py: Python<'py>, text: &str) -> Bound<'py, PyString> {
        let Some(names) = self.names().filter(|_| text.len() <= LONGEST) else {
            return PyString::new(py, text);
        };
        if let Some(known) = names.texts.get(text) {
            return known.bind(py).clone();
        }
        if names.texts.len() >= TEXTS {
            names.texts.clear();
        }
        let new = PyString::new(py, text);
        names.texts.insert(text.into(), new.clone().unbind());
        new
    }

    /// A new list of new dicts: `name`, `odds`, `is_active`, and the other keys.
    pub(crate) fn outcomes<'py>(
        &mut self,
        py: Python<'py>,
        outcomes: Outcomes<'_>,
    ) -> PyResult<Bound<'py, PyList>> {
        let mut dicts = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            dicts.push(self.outcome(py, outcome)?);
        }
        PyList::new(py, dicts)
    }

    fn outcome<'py>(
        &mut self,
        py: Python<'py>,
        outcome: Outcome<'_>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let dict = self.named(py, outcome.name())?;
        if let Some(odds) = outcome.odds() {
            dict.set_item(intern!(py, "odds"), odds)?;
        }
        if !outcome.is_active() {
            dict.set_item(intern!(py, "is_active"), PyBool::new(py, false))?;
        }
        if outcome.has_extra() {
            for (key, value) in outcome.extra() {
                dict.set_item(key, json::to_python(py, &value)?)?;
            }
        }
        Ok(dict)
    }

    /// A new dict of an active outcome with this name and no odds.
    fn named<'py>(&mut self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyDict>> {
        let known = self.names().and_then(|names| names.outcomes.get(name));
        if let Some(known) = known {
            return known.bind(py).copy();
        }
        let text = self.text(py, name);
        let dict = PyDict::new(py);
        dict.set_item(intern!(py, "name"), text)?;
        dict.set_item(intern!(py, "odds"), py.None())?;
        dict.set_item(intern!(py, "is_active"), PyBool::new(py, true))?;
        if name.len() <= LONGEST
            && let Some(names) = self.names()
        {
            if names.outcomes.len() >= OUTCOMES {
                names.outcomes.clear();
            }
            names.outcomes.insert(name.into(), dict.copy()?.unbind());
        }
        Ok(dict)
    }
}
