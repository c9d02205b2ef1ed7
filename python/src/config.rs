//! `Config`: how to connect, from Python's arguments.

use std::time::Duration;

use pyo3::prelude::*;

use crate::{errors, relay::Relay};

/// How to reach the database or the relay, and how to follow it. [`Cache`](crate::cache::Cache) keeps it to connect anew in a process
/// that was forked.
#[pyclass(frozen, module = "oddscache._native")]
pub(crate) struct Config(pub(crate) oddscache::Config);

/// What to follow: the connection string of a database, or a relay.
#[derive(FromPyObject)]
enum Source {
    Url(String),
    Relay(Py<Relay>),
}

/// Reads a connection string. A URL of SQLAlchemy names its driver, which is left out.
fn parse(py: Python<'_>, url: &str) -> PyResult<oddscache::Config> {
    let plain = match url.split_once("://") {
        Some((scheme, rest)) => match scheme.split_once('+') {
            Some((scheme @ ("postgres" | "postgresql"), _)) => format!("{scheme}://{rest}"),
            _ => url.to_owned(),
        },
        None => url.to_owned(),
    };
    oddscache::Config::new(&plain).map_err(|error| errors::exception(py, &error))
}

fn duration(py: Python<'_>, name: &str, seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|_| {
        errors::config(
            py,
            format!("{name} must be a number of seconds from 0 to 1e19, not {seconds}"),
        )
    })
}

#[pymethods]
impl Config {
    /// The arguments are those of `OddsCache.connect`, and mean what the methods of the same names in the Rust library
    /// mean. Durations are in seconds.
    #[new]
    #[pyo3(signature = (
        source, *, app_schema, cache_schema, lookback, poll_interval, read_timeout, warmup_timeout, warmup_connections,
        retry_unreachable, allow_row_security, audit_cycle, audit_budget, listen_url
    ))]
    #[expect(clippy::too_many_arguments, reason = "named arguments in Python")]
    fn new(
        py: Python<'_>,
        source: Source,
        app_schema: &str,
        cache_schema: &str,
        lookback: f64,
        poll_interval: f64,
        read_timeout: f64,
        warmup_timeout: f64,
        warmup_connections: usize,
        retry_unreachable: bool,
        allow_row_security: bool,
        audit_cycle: f64,
        audit_budget: f64,
        listen_url: Option<&str>,
    ) -> PyResult<Config> {
        if audit_budget.is_nan() {
            return Err(errors::config(py, "audit_budget must be a number"));
        }
        let config = match source {
            Source::Url(url) => parse(py, &url)?,
            Source::Relay(relay) => oddscache::Config::relay(relay.get().0.clone()),
        };
        let mut config = config
            .app_schema(app_schema)
            .cache_schema(cache_schema)
            .lookback(duration(py, "lookback", lookback)?)
            .poll_interval(duration(py, "poll_interval", poll_interval)?)
            .read_timeout(duration(py, "read_timeout", read_timeout)?)
            .warmup_timeout(duration(py, "warmup_timeout", warmup_timeout)?)
            .warmup_connections(warmup_connections)
            .retry_unreachable(retry_unreachable)
            .allow_row_security(allow_row_security)
            .audit_cycle(duration(py, "audit_cycle", audit_cycle)?)
            .audit_budget(audit_budget);
        if let Some(url) = listen_url {
            config = config.listen_from(parse(py, url)?);
        }
        Ok(Config(config))
    }
}
