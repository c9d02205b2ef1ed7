//! An HTTP client of one connection, and what came of its requests.

use std::{collections::BTreeMap, error::Error as StdError, net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::latency::Latencies;

/// Whoever waits longer has given up.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Client {
    address: SocketAddr,
    sender: Option<SendRequest<Empty<Bytes>>>,
}

/// What went wrong, in words that are the same each time.
pub type Wrong = String;

fn wrong(what: &str, error: &dyn StdError) -> Wrong {
    let cause = error.source().map(|cause| format!(": {cause}"));
    format!("{what}: {error}{}", cause.unwrap_or_default())
}

impl Client {
    pub fn new(address: SocketAddr) -> Client {
        Client {
            address,
            sender: None,
        }
    }

    async fn sender(&mut self) -> Result<&mut SendRequest<Empty<Bytes>>, Wrong> {
        let broken = self.sender.as_ref().is_none_or(SendRequest::is_closed);
        if broken {
            let stream = TcpStream::connect(self.address).await;
            let stream = stream.map_err(|error| wrong("connecting", &error))?;
            stream
                .set_nodelay(true)
                .map_err(|error| wrong("connecting", &error))?;
            let shaken = http1::handshake(TokioIo::new(stream)).await;
            let (sender, connection) = shaken.map_err(|error| wrong("connecting", &error))?;
            tokio::spawn(connection);
            self.sender = Some(sender);
        }
        Ok(self.sender.as_mut().expect("just made"))
    }

    /// The head of the answer, whose body must be read before the next request.
    pub async fn ask(
        &mut self,
        path: &str,
        header: Option<(&str, &str)>,
    ) -> Result<Response<Incoming>, Wrong> {
        let host = self.address.to_string();
        let sender = self.sender().await?;
        let ready = sender.ready().await;
        ready.map_err(|error| wrong("waiting for the connection", &error))?;
        let mut request = Request::get(path).header("host", host);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request.body(Empty::new()).expect("a request");
        let answer = sender.send_request(request).await;
        answer.map_err(|error| wrong("asking", &error))
    }

    /// Takes the whole answer; returns its status, its tag and how long it was.
    pub async fn take(
        &mut self,
        path: &str,
        header: Option<(&str, &str)>,
    ) -> Result<(StatusCode, Option<String>, u64), Wrong> {
        let taken = timeout(PATIENCE, async {
            let answer = self.ask(path, header).await?;
            let (status, tag) = (answer.status(), tag(&answer));
            let (mut body, mut bytes) = (answer.into_body(), 0);
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| wrong("reading an answer", &error))?;
                bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            Ok((status, tag, bytes))
        });
        let taken = taken
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
        if taken.is_err() {
            self.sender = None;
        }
        taken
    }

    /// The whole answer, which must be 200, and its tag.
    pub async fn text(&mut self, path: &str) -> Result<(String, Option<String>), Wrong> {
        let answer = self.ask(path, None).await?;
        let (status, tag) = (answer.status(), tag(&answer));
        let body = answer.into_body().collect().await;
        let body = body.map_err(|error| wrong("reading an answer", &error))?;
        let text =
            String::from_utf8(body.to_bytes().to_vec()).map_err(|error| wrong(path, &error))?;
        match status {
            StatusCode::OK => Ok((text, tag)),
            status => Err(format!("{path}: {status}: {text}")),
        }
    }
}

fn tag(answer: &Response<Incoming>) -> Option<String> {
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

/// What came of many requests.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub latencies: Latencies,
    pub bytes: u64,
    pub statuses: BTreeMap<u16, u64>,
    /// How often, by what was wrong.
    pub errors: BTreeMap<String, u64>,
}

impl Tally {
    /// `fine`: the statuses that are no error.
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

    pub fn merge(&mut self, other: &Tally) {
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
