//! Counts how HTTP connections and requests ended.

use std::sync::atomic::AtomicU64;

/// Counters that only grow. `/metrics` shows them.
#[derive(Debug, Default)]
pub(crate) struct HttpCounters {
    /// Connections accepted.
    pub(crate) accepted: AtomicU64,
    /// Connections beyond the most that may be open.
    pub(crate) turned_away: AtomicU64,
    /// Silent connections that were closed to make room for new ones.
    pub(crate) evicted: AtomicU64,
    /// Connections ended because no request came, or not all of its head.
    pub(crate) silent: AtomicU64,
    /// Connections, and streams of HTTP/2, ended because the client did not take its answer.
    pub(crate) stalled: AtomicU64,
    /// HTTP/2 connections ended because the client cancelled too many requests.
    pub(crate) flooding: AtomicU64,
    /// Requests over HTTP/2 beyond the most that may be under way.
    pub(crate) refused: AtomicU64,
    /// Requests without a valid token.
    pub(crate) unauthorized: AtomicU64,
    /// Requests whose answer did not begin in time.
    pub(crate) overdue: AtomicU64,
}
