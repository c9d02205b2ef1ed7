//! `/v1/changes`, over any number of connections.
//!
//! # Invariants
//! - HC1: Between two [`Update::ReadAll`], a subscriber gets each change of one process of the service, once and in
//!   order. If one is missing for any reason, it gets [`Update::ReadAll`] instead.
//! - HC2: Dropping the future of `next` loses nothing: what was received stays in `Changes`.

use std::{pin::Pin, time::Duration};

use chrono::{DateTime, Utc};
use http_body_util::BodyExt;
use hyper::{
    StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderName},
};
use serde::Deserialize;
use tokio::time::{Sleep, sleep, timeout};

use super::{
    answer::{failure, malformed, version},
    error::Error,
    http::Http,
    sse::{Event, Parser},
    types::Change,
};
use crate::backoff::Backoff;

/// A quiet stream sends a comment every 15 s. A connection that is silent for longer than this is lost.
const SILENCE: Duration = Duration::from_secs(45);

/// What a stream of changes says.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Update {
    /// Read all events now, and apply the changes that follow: the stream has just begun, or changes were missed. A
    /// page that is read after this may already contain some of those changes.
    ReadAll(StreamState),
    /// The next change.
    Change(Change),
}

/// The state that a stream goes on from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct StreamState {
    /// The database's clock at this state, UTC.
    pub as_of: DateTime<Utc>,
    /// Grows when the state was replaced rather than moved forward.
    pub epoch: u64,
}

/// A stream of what each publication of the service changes. It connects again by itself, after growing pauses of up
/// to 10 s, half of each random.
#[derive(Debug)]
pub struct Changes {
    http: Http,
    path: &'static str,
    /// The id of the last update that the caller got.
    last: Option<String>,
    connection: Option<Connection>,
    backoff: Backoff,
    /// The pause before the next attempt to connect.
    pause: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
struct Connection {
    body: Incoming,
    parser: Parser,
}

impl Changes {
    pub(super) fn new(http: Http, odds: bool, last: Option<String>) -> Changes {
        Changes {
            http,
            path: match odds {
                true => "/v1/changes?odds=true",
                false => "/v1/changes",
            },
            last,
            connection: None,
            backoff: Backoff::for_connections(),
            pause: None,
        }
    }

    /// The id of the last update. Give it to
    /// [`Client::changes_after`](super::Client::changes_after) to go on there, also in another process.
    pub fn last_id(&self) -> Option<&str> {
        self.last.as_deref()
    }

    /// The next update. It waits for as long as nothing changes, or the service is away, and logs the latter. Needs a
    /// tokio runtime with time and I/O. Dropping the future loses nothing.
    ///
    /// # Errors
    /// What waiting does not help against: a wrong token, an address where something else listens, an event that is
    /// larger than [`Config::most_bytes`](super::Config::most_bytes). The next call tries again.
    pub async fn next(&mut self) -> Result<Update, Error> {
        loop {
            match self.try_next().await {
                Ok(update) => {
                    self.backoff = Backoff::for_connections();
                    return Ok(update);
                }
                Err(error) => {
                    self.connection = None;
                    self.pause = Some(Box::pin(sleep(self.backoff.next())));
                    if !error.is_transient() {
                        return Err(error);
                    }
                    tracing::info!(%error, "the stream of changes was cut; connecting again");
                }
            }
        }
    }

    /// The next update of this connection, or of a new one.
    async fn try_next(&mut self) -> Result<Update, Error> {
        if let Some(pause) = &mut self.pause {
            pause.await;
            self.pause = None;
        }
        if self.connection.is_none() {
            self.connection = Some(self.connect().await?);
        }
        let Some(Connection { body, parser }) = &mut self.connection else {
            return Err(self.lost("no connection"));
        };
        loop {
            if let Some(event) = parser.next() {
                return self.take(&event);
            }
            let frame = match timeout(SILENCE, body.frame()).await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Err(self.lost("the stream ended")),
                Err(_) => return Err(self.lost("the stream is silent")),
            };
            let frame = frame.map_err(|error| self.http.unreachable(&error))?;
            let piece = frame.into_data().unwrap_or_default();
            let held = parser.push(&piece);
            held.map_err(|_| self.http.too_large(self.path))?;
        }
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let last = self.last.as_deref();
        let header = last.map(|last| (HeaderName::from_static("last-event-id"), last));
        let deadline = self.http.deadline(Duration::ZERO);
        let response = self.http.begin(self.path, header, deadline).await?;
        let kind = response.headers().get(CONTENT_TYPE);
        let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        match response.status() {
            StatusCode::OK if is_stream => {}
            StatusCode::OK => {
                return Err(malformed(self.path, "it is no stream of events"));
            }
            _ => {
                let whole = self.http.whole(self.path, response, deadline).await?;
                return Err(failure(self.path, &whole));
            }
        }
        Ok(Connection {
            body: response.into_body(),
            parser: Parser::new(self.http.most_bytes()),
        })
    }

    /// What an event says to the caller. Checks that no change is missing (HC1).
    fn take(&mut self, event: &Event) -> Result<Update, Error> {
        let wrong = |error: serde_json::Error| malformed(self.path, &error.to_string());
        let update = match &*event.name {
            "change" => {
                let change: Change = serde_json::from_str(&event.data).map_err(wrong)?;
                match self.last.as_deref() {
                    Some(last) if follows(&event.id, last) => Update::Change(change),
                    _ => Update::ReadAll(StreamState {
                        as_of: change.as_of,
                        epoch: change.epoch,
                    }),
                }
            }
            "start" | "lagged" => {
                Update::ReadAll(serde_json::from_str(&event.data).map_err(wrong)?)
            }
            // An event that only a later version knows. What it means is unknown, so nothing may be assumed.
            name => {
                return Err(malformed(
                    self.path,
                    &format!("the event {name:.40} is unknown"),
                ));
            }
        };
        self.last = Some(event.id.clone());
        Ok(update)
    }

    fn lost(&self, reason: &str) -> Error {
        self.http
            .unreachable(&std::io::Error::other(reason.to_owned()))
    }
}

/// Whether `id` is the next after `last`.
fn follows(id: &str, last: &str) -> bool {
    match (version(id), version(last)) {
        (Some((process, version)), Some((before, last))) => {
            process == before && last.checked_add(1) == Some(version)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::follows;

    #[test]
    fn only_the_next_version_of_the_same_process_follows() {
        assert!(follows("a-8", "a-7"));
        for (id, last) in [("a-9", "a-7"), ("a-7", "a-7"), ("b-8", "a-7"), ("a", "a-7")] {
            assert!(!follows(id, last), "{id} after {last}");
        }
    }
}
