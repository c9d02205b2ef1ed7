//! The HTTP server: read-only, JSON, under `/v1`. Each answer is made from one view.

mod access_log;
mod activity;
pub(crate) mod address;
mod api;
pub(crate) mod auth;
mod checks;
pub(crate) mod cors;
mod counters;
mod cut;
pub(crate) mod health;
mod http2;
mod io_timeout;
pub(crate) mod limits;
mod listener;
pub(crate) mod metrics;
mod page;
mod pool;
mod problem;
pub(crate) mod router;
pub(crate) mod server;
mod shared;
mod socket;
pub(crate) mod tls;
#[cfg(feature = "otlp")]
mod trace;
mod unix_socket;
mod watched;
