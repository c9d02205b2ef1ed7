//! The HTTP server: read-only, JSON, under `/v1`. Each answer is made from one view.

mod api;
pub(crate) mod auth;
mod checks;
mod counters;
mod cut;
pub(crate) mod health;
mod io_timeout;
pub(crate) mod limits;
mod listener;
pub(crate) mod metrics;
mod page;
mod pool;
mod problem;
pub(crate) mod router;
pub(crate) mod server;
mod socket;
pub(crate) mod tls;
