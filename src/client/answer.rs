//! What an answer says: its view, or why there is none.

use std::time::Duration;

use chrono::{DateTime, Utc};
use hyper::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::{
    error::Error,
    http::{Whole, without_query},
};

/// An answer with what it says of the view that it was made from.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Answer<T> {
    /// What the answer holds.
    pub value: T,
    /// The database's clock at the view's state, UTC.
    pub as_of: DateTime<Utc>,
    /// How long before the answer the view was last proven current. The time on the way comes on top.
    pub age: Duration,
    /// Grows when the state was replaced rather than moved forward.
    pub epoch: u64,
    /// Names the view: the `ETag` of the answer. Answers with the same tag are of the same view.
    pub tag: String,
}

impl<T> Answer<T> {
    /// Reads the headers of an answer from `path`.
    pub(super) fn new(path: &str, headers: &HeaderMap, value: T) -> Result<Answer<T>, Error> {
        let header = |name: &str| {
            let found = headers.get(name).and_then(|value| value.to_str().ok());
            found.ok_or_else(|| malformed(path, &format!("no header {name}")))
        };
        let number = |name: &str| {
            let parsed = header(name)?.parse::<u64>();
            parsed.map_err(|_| malformed(path, &format!("{name} is no number")))
        };
        let as_of = DateTime::parse_from_rfc3339(header("oddscache-as-of")?);
        let as_of = as_of.map_err(|_| malformed(path, "oddscache-as-of is no time"))?;
        Ok(Answer {
            value,
            as_of: as_of.to_utc(),
            age: Duration::from_millis(number("oddscache-age-ms")?),
            epoch: number("oddscache-epoch")?,
            tag: header("etag")?.to_owned(),
        })
    }
}

impl<T> Answer<T> {
    /// Whether the view already contains the update of a stream whose id is
    /// [`Changes::last_id`](super::Changes::last_id). To apply that update to values of this answer could take them
    /// back. False for an update of another process of the service.
    pub fn contains(&self, id: &str) -> bool {
        let tag = self.tag.trim_start_matches("W/").trim_matches('"');
        match (version(tag), version(id)) {
            (Some((process, seen)), Some((of, version))) => process == of && version <= seen,
            _ => false,
        }
    }
}

/// The parts of `<process>-<version>`, which names a view of a process of the service.
pub(super) fn version(id: &str) -> Option<(&str, u64)> {
    let (process, version) = id.rsplit_once('-')?;
    Some((process, version.parse().ok()?))
}

/// The body of an answer that is an error.
#[derive(Deserialize)]
struct Problem {
    error: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    age_ms: Option<u64>,
}

/// The error that an answer of another status than 200 means.
pub(super) fn failure(path: &str, answer: &Whole) -> Error {
    let status = answer.status;
    let Ok(problem) = serde_json::from_slice::<Problem>(&answer.body) else {
        return match status {
            // A proxy in between says so in its own words.
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Error::Unavailable {
                reason: status.as_u16().to_string(),
                message: format!("{}: {status}", without_query(path)),
            },
            status => malformed(path, &format!("status {status}")),
        };
    };
    let message = problem.error;
    match (status, &*problem.reason) {
        (StatusCode::SERVICE_UNAVAILABLE, "too_stale") => Error::TooStale {
            age: problem.age_ms.map(Duration::from_millis),
            message,
        },
        (StatusCode::SERVICE_UNAVAILABLE, "not_shown") => Error::NotShown { message },
        (StatusCode::SERVICE_UNAVAILABLE, reason) => Error::Unavailable {
            reason: reason.to_owned(),
            message,
        },
        (StatusCode::CONFLICT, _) => Error::NotBegun { message },
        (StatusCode::UNAUTHORIZED, _) => Error::Unauthorised { message },
        (status, _) => Error::Refused {
            status: status.as_u16(),
            message,
        },
    }
}

/// An answer that the service does not give.
pub(super) fn malformed(path: &str, reason: &str) -> Error {
    Error::Unexpected {
        path: without_query(path),
        reason: reason.to_owned(),
    }
}
