//! Times between chrono and `datetime`.

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, Utc};
use pyo3::{
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{IntoPyDict, PyDateTime, PyTzInfo},
};

use crate::errors;

/// A time as a `datetime` in UTC, aware or naive. A time outside of its years (PostgreSQL has `infinity` and years before
/// 1) becomes its first or last moment.
pub(crate) fn to_python(py: Python<'_>, time: DateTime<Utc>, naive: bool) -> PyResult<Py<PyAny>> {
    let naive_time = match time.year() {
        ..1 => NaiveDate::from_ymd_opt(1, 1, 1).and_then(|date| date.and_hms_opt(0, 0, 0)),
        1..=9999 => Some(time.naive_utc()),
        _ => NaiveDate::from_ymd_opt(9999, 12, 31)
            .and_then(|date| date.and_hms_micro_opt(23, 59, 59, 999_999)),
    };
    let clamped = naive_time.unwrap_or_default();
    let object = if naive {
        clamped.into_pyobject(py)?.into_any()
    } else {
        clamped.and_utc().into_pyobject(py)?.into_any()
    };
    Ok(object.unbind())
}

/// The time of a `datetime`. A naive one is UTC.
pub(crate) fn from_python(what: &str, value: &Bound<'_, PyAny>) -> PyResult<DateTime<Utc>> {
    let py = value.py();
    let time = value
        .cast::<PyDateTime>()
        .map_err(|_| errors::wrong_type(what, "a datetime", value))?;
    if time.getattr(intern!(py, "tzinfo"))?.is_none() {
        return Ok(time.extract::<NaiveDateTime>()?.and_utc());
    }
    static UTC: PyOnceLock<Py<PyTzInfo>> = PyOnceLock::new();
    let utc = UTC.get_or_try_init(py, || PyTzInfo::utc(py).map(|utc| utc.to_owned().unbind()))?;
    let time = time.call_method1(intern!(py, "astimezone"), (utc,))?;
    let time = time.call_method(
        intern!(py, "replace"),
        (),
        Some(&[("tzinfo", py.None())].into_py_dict(py)?),
    )?;
    Ok(time.extract::<NaiveDateTime>()?.and_utc())
}
