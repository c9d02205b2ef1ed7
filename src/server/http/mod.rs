//! The HTTP side: read-only, JSON, under `/v1`. Each answer is made from one view.

mod api;
pub(crate) mod auth;
mod cut;
pub(crate) mod guard;
pub(crate) mod health;
pub(crate) mod io_timeout;
pub(crate) mod limits;
pub(crate) mod listener;
pub(crate) mod metrics;
mod page;
mod problem;
pub(crate) mod router;
pub(crate) mod tls;

pub(crate) use api::changes::Hub;
