//! Errors of the library as exceptions of the package, which Python code defines.

use std::time::Duration;

use oddscache::Error;
use pyo3::{
    call::PyCallArgs, exceptions::PyTypeError, prelude::*, sync::PyOnceLock, types::PyType,
};

use crate::view::seconds;

/// An exception class of `oddscache._errors`.
fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyType>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = MODULE.get_or_try_init(py, || {
        PyModule::import(py, "oddscache._errors").map(Bound::unbind)
    })?;
    Ok(module.bind(py).getattr(name)?.cast_into::<PyType>()?)
}

fn new<'py>(py: Python<'py>, name: &str, arguments: impl PyCallArgs<'py>) -> PyErr {
    class(py, name)
        .and_then(|class| class.call1(arguments))
        .map_or_else(|error| error, PyErr::from_value)
}

/// The exception of an error.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyErr {
    // The scripts are at hand here without the binary.
    let text = error
        .to_string()
        .replace(
            "`oddscache sql install --apply`",
            "`python -m oddscache sql install | psql`",
        )
        .replace(
            "`oddscache sql grants --apply`",
            "`python -m oddscache sql grants | psql`",
        );
    match error {
        Error::TooStale {
            age,
            max_age,
            status,
        } => new(
            py,
            "TooStale",
            (text, seconds(*age), seconds(*max_age), status),
        ),
        Error::NotShown { xid, .. } | Error::NotBegun { xid, .. } => {
            new(py, "NotShown", (text, *xid))
        }
        Error::Config(_) => new(py, "ConfigError", (text,)),
        _ => new(py, "Error", (text,)),
    }
}

/// The cache is not warm after this time.
pub(crate) fn not_ready(py: Python<'_>, timeout: Duration, status: &str) -> PyErr {
    let text = format!(
        "the cache is not ready after {} s: {status}",
        timeout.as_secs_f64()
    );
    new(py, "NotReady", (text,))
}

pub(crate) fn lagged(py: Python<'_>, lagged: oddscache::Lagged) -> PyErr {
    new(py, "Lagged", (lagged.to_string(), lagged.missed))
}

pub(crate) fn closed(py: Python<'_>) -> PyErr {
    new(py, "Closed", ("the cache is closed",))
}

pub(crate) fn other(py: Python<'_>, text: impl Into<String>) -> PyErr {
    new(py, "Error", (text.into(),))
}

pub(crate) fn config(py: Python<'_>, text: impl Into<String>) -> PyErr {
    new(py, "ConfigError", (text.into(),))
}

/// A value has another type than the one that is wanted.
pub(crate) fn wrong_type(what: &str, wanted: &str, value: &Bound<'_, PyAny>) -> PyErr {
    let found = value
        .get_type()
        .name()
        .map_or_else(|_| "another type".to_owned(), |name| name.to_string());
    PyTypeError::new_err(format!("{what} must be {wanted}, not {found}"))
}
