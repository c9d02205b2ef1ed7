//! A client of the service, for programs that hold no cache of their own.
//!
//! `oddscache serve` answers over HTTP from its cache. This client asks it, and returns owned values. It follows the
//! service's changes over lost connections, and says when a program must read all events again.
//!
//! ```no_run
//! # async fn example() -> Result<(), oddscache::client::Error> {
//! use std::time::Duration;
//! use oddscache::client::{Client, Config, Error, Query};
//!
//! let client = Client::new(Config::new("http://127.0.0.1:7979")?)?;
//! let fresh = Query::default().max_age(Duration::from_secs(2));
//! match client.event(4711, &fresh).await {
//!     Ok(Some(answer)) => println!("{:?}, {:?} old", answer.value.kickoff, answer.age),
//!     Ok(None) => println!("not held"),
//!     Err(Error::TooStale { age, .. }) => println!("the service is {age:?} behind"),
//!     Err(error) => return Err(error),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Each call sends one request, which [`Config::timeout`] bounds, and allocates its answer, which
//! [`Config::most_bytes`] bounds. The client follows no redirect and uses no proxy, so the token reaches only the
//! service. It needs a tokio runtime with time and I/O.

mod answer;
mod changes;
mod config;
mod error;
mod http;
mod query;
mod sse;
mod types;

use std::time::Duration;

use hyper::{
    StatusCode,
    header::{HeaderName, IF_NONE_MATCH},
};
use serde::de::DeserializeOwned;

pub use self::{
    answer::Answer,
    changes::{Changes, StreamState, Update},
    config::Config,
    error::Error,
    query::Query,
    types::{
        Bookmaker, Change, Event, History, ListedEvent, ListedMarket, ListedOutcome, Market, Offer,
        Outcome, PastSnapshot, Snapshot, Tournament,
    },
};
use self::{
    answer::{failure, malformed},
    http::{Http, Whole},
};

/// How many events a page has.
const PAGE: usize = 100;

/// Asks one service. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Client(Http);

impl Client {
    /// Connects with the first request. Blocks while it reads certificates, for `https` only.
    ///
    /// # Errors
    /// [`Error::Config`] names the file that cannot be read.
    pub fn new(config: Config) -> Result<Client, Error> {
        Http::new(config).map(Client)
    }

    /// One event with all its markets; `None` if the service's view does not hold it, or it has no snapshot that the
    /// query wants.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn event(
        &self,
        event_id: i64,
        query: &Query,
    ) -> Result<Option<Answer<Event>>, Error> {
        let path = query.of(&format!("/v1/events/{event_id}"));
        let answer = self.0.ask(&path, None, query.wait()).await?;
        // A path that does not exist has a 404 without a view.
        let has_view = answer.headers.contains_key("oddscache-epoch");
        match answer.status {
            StatusCode::OK => parsed(&path, &answer).map(Some),
            StatusCode::NOT_FOUND if has_view => Ok(None),
            _ => Err(failure(&path, &answer)),
        }
    }

    /// Events with all their markets, by kickoff, then id. Each page is of one view, but two pages may be of different
    /// ones: compare their [`tag`](Answer::tag).
    pub fn events(&self, query: Query) -> Pages {
        Pages {
            http: self.0.clone(),
            query,
            after: None,
            is_over: false,
            limit: PAGE,
        }
    }

    /// The event list. `known` is the tag of an earlier answer to the same query: the value is `None` if nothing has
    /// changed since.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(
        &self,
        query: &Query,
        known: Option<&str>,
    ) -> Result<Answer<Option<Vec<ListedEvent>>>, Error> {
        let path = query.of("/v1/list");
        let header: Option<(HeaderName, &str)> = known.map(|known| (IF_NONE_MATCH, known));
        let answer = self.0.ask(&path, header, query.wait()).await?;
        match answer.status {
            StatusCode::OK => parsed(&path, &answer),
            StatusCode::NOT_MODIFIED => Answer::new(&path, &answer.headers, None),
            _ => Err(failure(&path, &answer)),
        }
    }

    /// How the prices of a market moved: the latest snapshots of an event, up to 1,000. The service reads them from its
    /// database. The query may choose a line, a bookmaker, a source and a time, and nothing else.
    ///
    /// # Errors
    /// See [`Error`]. [`Error::Refused`] with the status 501 if the service reads no history.
    pub async fn history(
        &self,
        event_id: i64,
        betpawa_market_id: &str,
        query: &Query,
    ) -> Result<History, Error> {
        let query = query.market(betpawa_market_id);
        let path = query.of(&format!("/v1/events/{event_id}/history"));
        let answer = self.0.ask(&path, None, query.wait()).await?;
        match answer.status {
            StatusCode::OK => value(&path, &answer),
            _ => Err(failure(&path, &answer)),
        }
    }

    /// What changes from now on. The first update is [`Update::ReadAll`]. With `odds`, each change has the new odds, as
    /// the event list has them. Sends nothing before [`Changes::next`] is called.
    pub fn changes(&self, odds: bool) -> Changes {
        Changes::new(self.0.clone(), odds, None)
    }

    /// The same, from the update on whose id was [`Changes::last_id`]. If the service no longer knows what came after
    /// it, the first update is [`Update::ReadAll`].
    pub fn changes_after(&self, last_id: &str, odds: bool) -> Changes {
        Changes::new(self.0.clone(), odds, Some(last_id.to_owned()))
    }

    /// Status and body of the answer to `GET path`, such as `/v1/stats`, also of an error.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::TimedOut`] and [`Error::TooLarge`].
    pub async fn get(&self, path: &str) -> Result<(u16, Vec<u8>), Error> {
        let answer = self.0.ask(path, None, Duration::ZERO).await?;
        Ok((answer.status.as_u16(), answer.body))
    }
}

/// The pages of a list of events. It holds no page: [`next`](Pages::next) returns each.
#[derive(Debug)]
pub struct Pages {
    http: Http,
    query: Query,
    /// The place of the last event.
    after: Option<String>,
    is_over: bool,
    limit: usize,
}

impl Pages {
    /// How many events a page has at most: 100 by default, 1,000 at most. A page is held in memory as a whole, as JSON
    /// and as values.
    #[must_use]
    pub fn of(mut self, events: usize) -> Pages {
        self.limit = events.clamp(1, 1_000);
        self
    }

    /// The next page; `None` after the last. After an error the next call asks for the same page again.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next(&mut self) -> Result<Option<Answer<Vec<Event>>>, Error> {
        if self.is_over {
            return Ok(None);
        }
        let query = self.query.page(self.limit, self.after.as_deref());
        let path = query.of("/v1/events");
        let answer = self.http.ask(&path, None, query.wait()).await?;
        if answer.status != StatusCode::OK {
            return Err(failure(&path, &answer));
        }
        let page = parsed(&path, &answer)?;
        let next = answer.headers.get("oddscache-next");
        let next = next.map(|next| next.to_str().map(str::to_owned));
        self.after = next
            .transpose()
            .map_err(|_| malformed(&path, "oddscache-next is no text"))?;
        self.is_over = self.after.is_none();
        Ok(Some(page))
    }
}

/// The value in the JSON of an answer.
fn value<T: DeserializeOwned>(path: &str, answer: &Whole) -> Result<T, Error> {
    let value = serde_json::from_slice(&answer.body);
    value.map_err(|error| malformed(path, &error.to_string()))
}

/// The same, with the view that the answer was made from.
fn parsed<T: DeserializeOwned>(path: &str, answer: &Whole) -> Result<Answer<T>, Error> {
    Answer::new(path, &answer.headers, value(path, answer)?)
}
