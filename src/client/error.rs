//! What can go wrong when a program asks the service.

use std::time::Duration;

/// An error of the client. Variants are for programs, texts for people. None contains a token.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL, the token or the certificates cannot be used.
    #[error("the client's settings: {0}")]
    Config(String),
    /// No connection, or it broke before the answer was whole. Worth trying again.
    #[error(
        "cannot reach the service at {url}: {reason}; check that it runs, and its address and certificate"
    )]
    Unreachable {
        /// Scheme, host and port.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// There is no TLS connection to the service, and waiting does not help: its certificate is not trusted, has expired
    /// or is for another host; or it speaks no TLS.
    #[error("no TLS connection to the service at {url}: {reason}; check the URL, and Config::ca")]
    Tls {
        /// Scheme, host and port.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The answer was not whole in time. Worth trying again.
    #[error("no whole answer from {url}{path} within {} ms; raise Config::timeout if the network is slow", timeout.as_millis())]
    TimedOut {
        /// Scheme, host and port.
        url: String,
        /// The path, without the query.
        path: String,
        /// How long the client waited.
        timeout: Duration,
    },
    /// The answer has more bytes than [`Config::most_bytes`](super::Config::most_bytes) allows.
    #[error(
        "the answer from {path} has more than {most} bytes; ask for fewer events, or raise Config::most_bytes"
    )]
    TooLarge {
        /// The path, without the query.
        path: String,
        /// The bound.
        most: usize,
    },
    /// The service's view is older than [`Query::max_age`](super::Query::max_age) allows. Another service, or this one
    /// later, may have a younger one.
    #[error("{message}")]
    TooStale {
        /// The age of the newest view; `None` if it was never proven current.
        age: Option<Duration>,
        /// What the service said.
        message: String,
    },
    /// The view did not contain the transaction of [`Query::wait_for`](super::Query::wait_for) in time. Worth trying
    /// again.
    #[error("{message}")]
    NotShown {
        /// What the service said.
        message: String,
    },
    /// No transaction of the service's database has had the id of [`Query::wait_for`](super::Query::wait_for) so far.
    #[error("{message}")]
    NotBegun {
        /// What the service said.
        message: String,
    },
    /// The service has no answer now: it is not warm yet, overloaded, or ending. Worth trying again.
    #[error("{message}")]
    Unavailable {
        /// `warming`, `overloaded`, or another reason of a later version.
        reason: String,
        /// What the service said.
        message: String,
    },
    /// The service requires a token, and this one is none of its tokens.
    #[error("{message}")]
    Unauthorised {
        /// What the service said.
        message: String,
    },
    /// The service refuses the request: a wrong value, or a query that is too long.
    #[error("{message}")]
    Refused {
        /// The status of the answer.
        status: u16,
        /// What the service said.
        message: String,
    },
    /// The answer is none that the service gives. Something else may listen there, or a later version.
    #[error(
        "the answer from {path} is not one of oddscache: {reason}; check the URL, and the versions of service and client"
    )]
    Unexpected {
        /// The path, without the query.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Error::Unreachable { .. }
                | Error::TimedOut { .. }
                | Error::TooStale { .. }
                | Error::NotShown { .. }
                | Error::Unavailable { .. }
        )
    }
}
