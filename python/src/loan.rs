//! A list of outcomes that is handed out again and again.
//!
//! To make a list of dicts costs several times what to hand out an existing one does, and the same few markets are asked
//! for again and again. So a market keeps the list that it made last. It hands it out again if nobody else holds the list
//! or one of its dicts, and nothing in them was changed. Then it cannot be told from a new one (J2).

use std::ptr;

use oddscache::Outcomes;
use pyo3::{
    ffi, intern,
    prelude::*,
    types::{PyBool, PyList},
};

pub(crate) struct Loan {
    list: Py<PyList>,
    /// Name and odds of each outcome, as they stand in its dict.
    values: Box<[(Py<PyAny>, Py<PyAny>)]>,
}

/// What a list and its dicts take, for each outcome and for the list.
const OUTCOME_BYTES: usize = 320;
const LIST_BYTES: usize = 120;

impl Loan {
    /// Keeps a list that was just made of these outcomes. `None` if they have keys of their own, whose values could be
    /// changed in ways that [`Loan::lend`] does not see.
    pub(crate) fn new(
        list: &Bound<'_, PyList>,
        mut outcomes: Outcomes<'_>,
    ) -> PyResult<Option<Loan>> {
        if cfg!(Py_GIL_DISABLED) || outcomes.any(|outcome| outcome.has_extra()) {
            return Ok(None);
        }
        let py = list.py();
        let mut values = Vec::with_capacity(list.len());
        for dict in list {
            let value = |key| dict.get_item(key).map(Bound::unbind);
            values.push((value(intern!(py, "name"))?, value(intern!(py, "odds"))?));
        }
        Ok(Some(Loan {
            list: list.clone().unbind(),
            values: values.into(),
        }))
    }

    pub(crate) fn bytes(&self) -> usize {
        LIST_BYTES + OUTCOME_BYTES * self.values.len()
    }

    /// The list, if it cannot be told from a new one.
    pub(crate) fn lend<'py>(&self, py: Python<'py>, outcomes: Outcomes<'_>) -> Lend<'py> {
        let list = self.list.bind(py);
        // SAFETY: the list is a living object of type `list`.
        let (references, length) = unsafe {
            (
                ffi::Py_REFCNT(list.as_ptr()),
                ffi::PyList_Size(list.as_ptr()),
            )
        };
        if references != 1 {
            return Lend::Held;
        }
        if length != self.values.len() as ffi::Py_ssize_t {
            return Lend::Changed;
        }
        let keys = [
            intern!(py, "name"),
            intern!(py, "odds"),
            intern!(py, "is_active"),
        ]
        .map(Bound::as_ptr);
        let flags = [PyBool::new(py, false), PyBool::new(py, true)];
        for ((index, (name, odds)), outcome) in (0..).zip(&self.values).zip(outcomes) {
            let values = [
                name.as_ptr(),
                odds.as_ptr(),
                flags[usize::from(outcome.is_active())].as_ptr(),
            ];
            // SAFETY: `index` is within the list, whose length was compared, and which nobody changes meanwhile: this
            // thread is attached to the interpreter, and nothing here runs Python code.
            if !unsafe { same(ffi::PyList_GetItem(list.as_ptr(), index), &keys, &values) } {
                return Lend::Changed;
            }
        }
        Lend::List(list.clone())
    }
}

pub(crate) enum Lend<'py> {
    List(Bound<'py, PyList>),
    /// Somebody holds the list.
    Held,
    /// It was changed, or somebody holds a part of it.
    Changed,
}

/// Whether an object is a dict that only one list holds, with just these keys and values in this order.
///
/// # Safety
/// `object` must be a living object, and this thread attached to the interpreter. Nobody may change the object meanwhile:
/// there must be a GIL, and `Loan::new` makes nothing without one.
unsafe fn same(
    object: *mut ffi::PyObject,
    keys: &[*mut ffi::PyObject; 3],
    values: &[*mut ffi::PyObject; 3],
) -> bool {
    // SAFETY: by the contract, the object lives and stays as it is. `PyDict_Next` is called for dicts only, and lends
    // references that are only compared.
    unsafe {
        if ffi::Py_REFCNT(object) != 1
            || ffi::PyDict_CheckExact(object) == 0
            || ffi::PyDict_Size(object) != 3
        {
            return false;
        }
        let (mut position, mut key, mut value) = (0, ptr::null_mut(), ptr::null_mut());
        for (wanted_key, wanted_value) in keys.iter().zip(values) {
            if ffi::PyDict_Next(object, &mut position, &mut key, &mut value) == 0
                || key != *wanted_key
                || value != *wanted_value
            {
                return false;
            }
        }
        true
    }
}
