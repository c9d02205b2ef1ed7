//! The compiled part of the Python package `oddscache`: the handle of the Rust library, and its values as Python
//! objects. What needs no speed is written in Python, in `oddscache/`.
//!
//! # Invariants
//! - J1: A thread that this crate or the library starts never touches Python. So it never waits for the GIL, and nothing
//!   of it can run while the interpreter ends.
//! - J2: Nothing of the cache is reachable for a change through a returned object: lists and dicts are made anew for each
//!   caller, everything else is immutable.
//! - J3: A lock that is taken while attached to the interpreter is held for moments, and only tried where Python code
//!   could run meanwhile (the collector may call finalizers whenever a list or dict is made).

mod cache;
mod change;
mod config;
mod errors;
mod handle;
mod input;
mod json;
mod kept;
mod lists;
mod loan;
mod logging;
mod market;
mod memory;
mod names;
mod relay;
mod snapshot;
mod times;
mod view;
mod wait;

/// Imported by the package's Python part.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use super::{
        cache::{Cache, Waiting},
        change::{Change, Cut, Events},
        config::Config,
        logging::{LogReader, log_level, log_renew},
        market::CachedMarket,
        relay::Relay,
        snapshot::CachedSnapshot,
        view::View,
    };
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::script;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::check_interpreter()?;
        super::logging::install();
        module.add("SCRIPTS", super::script_names())
    }
}

use oddscache::sql::Script;
use pyo3::{
    exceptions::{PyImportError, PyValueError},
    ffi,
    prelude::*,
};

/// Refuses a sub-interpreter. The statics of this crate hold objects of the interpreter that made them.
fn check_interpreter() -> PyResult<()> {
    // SAFETY: the caller is a module that is being imported, so this thread is attached to an interpreter.
    let id = unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) };
    match id {
        0 => Ok(()),
        _ => Err(PyImportError::new_err(
            "oddscache does not work in a sub-interpreter; import it in the main one, or use processes",
        )),
    }
}

fn script_names() -> Vec<&'static str> {
    Script::ALL
        .iter()
        .map(|script| script.file_name().trim_end_matches(".sql"))
        .collect()
}

/// The text of one of the SQL scripts, with these settings in place of its defaults.
#[pyfunction]
#[pyo3(signature = (name, settings = Vec::new()))]
fn script(name: &str, settings: Vec<(String, String)>) -> PyResult<String> {
    let found = Script::ALL
        .into_iter()
        .find(|script| script.file_name().trim_end_matches(".sql") == name);
    let script =
        found.ok_or_else(|| PyValueError::new_err(format!("there is no script {name:?}")))?;
    let settings: Vec<(&str, &str)> = settings
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    script
        .fill(&settings)
        .map_err(|error| PyValueError::new_err(error.to_string()))
}
