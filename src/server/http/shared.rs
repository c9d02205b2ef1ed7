//! What all connections of an address share.

use std::sync::Arc;

use axum::Router;
use tokio::sync::{Semaphore, watch};

use super::{counters::HttpCounters, limits::Limits, tls::Tls};

/// How many headers a request may have.
pub(super) const MOST_HEADERS: usize = 64;

/// What every connection needs.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) limits: Arc<Limits>,
    pub(crate) counters: Arc<HttpCounters>,
    pub(crate) tls: Option<Tls>,
    /// Answers on connections within the limit.
    pub(crate) router: Router,
    /// Answers on connections beyond it.
    pub(crate) turned_away: Router,
    /// One permit for each request over HTTP/2 that may be under way, on all connections together.
    pub(crate) http2_requests: Arc<Semaphore>,
    /// Becomes true when the server is to end.
    pub(crate) ending: watch::Receiver<bool>,
}
