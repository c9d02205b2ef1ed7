//! An HTTP client with one connection, and the counts of its requests.

use std::{collections::BTreeMap, error::Error as StdError, net::SocketAddr, time::Duration};

use reqwest::{RequestBuilder, Response, StatusCode};

use super::latency::Latencies;

/// A request fails if its response takes longer than this.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

/// An error as text. Equal errors have equal texts, so that they can be counted together.
pub type Wrong = String;

pub(super) fn wrong(what: &str, error: &dyn StdError) -> Wrong {
    let cause = error.source().map(|cause| format!(": {cause}"));
    format!("{what}: {error}{}", cause.unwrap_or_default())
}

async fn send(request: RequestBuilder) -> Result<Response, Wrong> {
    let answer = request.send().await;
    answer.map_err(|error| wrong("asking", &error.without_url()))
}

impl Client {
    pub fn new(address: SocketAddr) -> Client {
        let builder = reqwest::Client::builder().pool_max_idle_per_host(1);
        Client {
            http: builder.build().expect("a client"),
            base: format!("http://{address}"),
        }
    }

    fn request(&self, path: &str, header: Option<(&str, &str)>) -> RequestBuilder {
        let request = self.http.get(format!("{}{path}", self.base));
        match header {
            Some((name, value)) => request.header(name, value),
            None => request,
        }
    }

    /// Sends a request and returns the head of the response. Read the body before the next request.
    pub async fn ask(&self, path: &str, header: Option<(&str, &str)>) -> Result<Response, Wrong> {
        send(self.request(path, header)).await
    }

    /// Reads a whole response. Returns its status, its `ETag` and its length in bytes.
    pub async fn take(
        &self,
        path: &str,
        header: Option<(&str, &str)>,
    ) -> Result<(StatusCode, Option<String>, u64), Wrong> {
        let mut answer = send(self.request(path, header).timeout(PATIENCE)).await?;
        let mut bytes = 0;
        let reading = |error: reqwest::Error| wrong("reading an answer", &error.without_url());
        while let Some(piece) = answer.chunk().await.map_err(reading)? {
            bytes += piece.len() as u64;
        }
        Ok((answer.status(), tag(&answer), bytes))
    }

    /// The body and the `ETag` of a response with status 200. Any other status is an error.
    pub async fn text(&self, path: &str) -> Result<(String, Option<String>), Wrong> {
        let answer = self.ask(path, None).await?;
        let (status, tag) = (answer.status(), tag(&answer));
        let text = answer.text().await;
        let text = text.map_err(|error| wrong("reading an answer", &error.without_url()))?;
        match status {
            StatusCode::OK => Ok((text, tag)),
            status => Err(format!("{path}: {status}: {text}")),
        }
    }
}

fn tag(answer: &Response) -> Option<String> {
    let tag = answer.headers().get("etag")?.to_str().ok()?;
    Some(tag.to_owned())
}

/// The view that a tag names: `W/"<process>-<version>..."`.
pub fn view_of(tag: &str) -> Option<(String, u64)> {
    let id = tag.trim_start_matches("W/").trim_matches('"');
    let (process, rest) = id.split_once('-')?;
    let digits = rest.split(|byte: char| !byte.is_ascii_digit()).next()?;
    Some((process.to_owned(), digits.parse().ok()?))
}

/// The results of many requests.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub latencies: Latencies,
    pub bytes: u64,
    pub statuses: BTreeMap<u16, u64>,
    /// The number of errors, by text.
    pub errors: BTreeMap<String, u64>,
}

impl Counts {
    /// Adds a result. `fine` are the statuses that are no error.
    pub fn add(
        &mut self,
        took: Duration,
        fine: &[u16],
        result: Result<(StatusCode, Option<String>, u64), Wrong>,
    ) {
        match result {
            Ok((status, _, bytes)) => {
                self.latencies.add(took);
                self.bytes += bytes;
                *self.statuses.entry(status.as_u16()).or_default() += 1;
                if !fine.contains(&status.as_u16()) {
                    *self.errors.entry(format!("status {status}")).or_default() += 1;
                }
            }
            Err(wrong) => *self.errors.entry(wrong).or_default() += 1,
        }
    }

    pub fn merge(&mut self, other: &Counts) {
        self.latencies.merge(&other.latencies);
        self.bytes += other.bytes;
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (wrong, count) in &other.errors {
            *self.errors.entry(wrong.clone()).or_default() += count;
        }
    }

    pub fn errors(&self) -> u64 {
        self.errors.values().sum()
    }
}
