//! Asks a running service, over plain HTTP/1.1.

use std::{fmt, str::FromStr, time::Duration};

use anyhow::{Context as _, bail, ensure};
use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, Request, StatusCode, Uri, header::HOST, uri::Scheme},
};
use chrono::{DateTime, Utc};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{ExplainArguments, PAUSE};

/// No answer about one event is longer.
const MOST_BYTES: usize = 64 << 20;

/// Where a service listens: scheme, host and port.
#[derive(Debug, Clone)]
pub(crate) struct Url {
    host: String,
    port: u16,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Url, String> {
        let uri: Uri = text
            .parse()
            .map_err(|error| format!("not a URL: {error}"))?;
        if uri.scheme() != Some(&Scheme::HTTP) {
            return Err("it must begin with http:// (the service does no TLS)".to_owned());
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err("only scheme, host and port: http://127.0.0.1:7979".to_owned());
        }
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or("it names no host")?;
        Ok(Url {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(80),
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)
    }
}

/// What a service says of the event and of itself.
#[derive(Debug, Serialize)]
pub(crate) struct Service {
    pub(crate) url: String,
    pub(crate) stats: Stats,
    /// As it is served; null where it is not held.
    pub(crate) event: Option<Value>,
}

/// What is read of `/v1/stats`.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Stats {
    /// The database's time at the cut, null before it is warm.
    pub(crate) as_of: Option<DateTime<Utc>>,
    pub(crate) age_ms: Option<u64>,
    pub(crate) epoch: u64,
    #[serde(default)]
    pub(crate) status: String,
}

/// What the service says once its cut is not earlier than `at`, or at the end of our patience.
pub(crate) async fn caught_up(
    url: &Url,
    at: DateTime<Utc>,
    arguments: &ExplainArguments,
) -> anyhow::Result<Service> {
    let deadline = Instant::now() + arguments.wait;
    loop {
        let service = ask(url, arguments.event, arguments.timeout).await?;
        let is_late = service.stats.as_of.is_none_or(|as_of| as_of < at);
        if !is_late || Instant::now() >= deadline {
            return Ok(service);
        }
        sleep(PAUSE).await;
    }
}

/// The stats first, so that the event is of their cut or of a later one.
async fn ask(url: &Url, event: i64, bound: Duration) -> anyhow::Result<Service> {
    let (status, body) = get(url, "/v1/stats", bound).await?;
    ensure!(status == StatusCode::OK, "/v1/stats answers {status}");
    let stats = serde_json::from_slice(&body).context("/v1/stats is not what oddscache answers")?;
    let (status, body) = get(url, &format!("/v1/events/{event}"), bound).await?;
    let event = match status {
        StatusCode::OK => {
            Some(serde_json::from_slice(&body).context("/v1/events/{id} is no JSON")?)
        }
        StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE => None,
        status => bail!("/v1/events/{event} answers {status}"),
    };
    Ok(Service {
        url: url.to_string(),
        stats,
        event,
    })
}

async fn get(url: &Url, path: &str, bound: Duration) -> anyhow::Result<(StatusCode, Bytes)> {
    timeout(bound, exchange(url, path))
        .await
        .with_context(|| format!("no answer within {} s", bound.as_secs_f32()))?
}

/// One connection, one request.
async fn exchange(url: &Url, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let bare = url.host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, url.port)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let host = HeaderValue::from_str(&format!("{}:{}", url.host, url.port))?;
    let request = Request::get(path).header(HOST, host).body(Body::empty())?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST_BYTES)
            .collect()
            .await;
        let body = body.map_err(|error| anyhow::anyhow!("reading the answer: {error}"))?;
        anyhow::Ok((status, body.to_bytes()))
    };
    // The connection moves the bytes of the answer; it ends after it.
    let (answer, _) = tokio::join!(answer, connection);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let read = |text: &str| text.parse::<Url>().map(|url| url.to_string());
        assert_eq!(
            read("http://127.0.0.1:7979").as_deref(),
            Ok("http://127.0.0.1:7979")
        );
        assert_eq!(read("http://cache/").as_deref(), Ok("http://cache:80"));
        assert_eq!(
            read("http://[::1]:7979").as_deref(),
            Ok("http://[::1]:7979")
        );
        for wrong in [
            "https://cache",
            "cache:7979",
            "http://cache/v1",
            "http://",
            "x y",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
