//! Requests and answers over HTTP/1.1: one connection pool, bounded answers, time-outs.

use std::{error::Error as StdError, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    HeaderMap, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::{Instant, timeout_at};

use super::{config::Config, error::Error};
use crate::postgres::{
    rustls::{cause, explain, https},
    tls::Verify,
};

/// The service closes idle connections after 75 s by default.
const IDLE: Duration = Duration::from_secs(30);

/// Cheap to clone. Clones share their connections.
#[derive(Debug, Clone)]
pub(super) struct Http {
    config: Config,
    pool: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

/// An answer with its whole body.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Http {
    pub(super) fn new(config: Config) -> Result<Http, Error> {
        let any = config.accepts_any_certificate;
        if any && config.authorization.is_some() {
            let sentence = "a token goes only to a service whose certificate is checked";
            return Err(Error::Config(sentence.to_owned()));
        }
        // Without https there is no need for certificates, which the system may lack.
        let verify = match any || !config.base.is_https() {
            true => Verify::Nothing,
            false => Verify::ChainAndHost,
        };
        let tls = https(config.roots.as_deref(), verify);
        let tls = tls.map_err(|error| Error::Config(error.to_string()))?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        let pool = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Http { config, pool })
    }

    pub(super) fn most_bytes(&self) -> usize {
        self.config.most_bytes
    }

    /// Sends a request for `path`, which has its query, and returns the head of the answer.
    pub(super) async fn begin(
        &self,
        path: &str,
        header: Option<(HeaderName, &str)>,
        deadline: Deadline,
    ) -> Result<Response<Incoming>, Error> {
        let base = &self.config.base;
        let uri = Uri::builder()
            .scheme(base.scheme.clone())
            .authority(base.authority.clone())
            .path_and_query(path)
            .build();
        let wrong = |what: &str| Error::Config(format!("{what} cannot be sent"));
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri.map_err(|_| wrong("this path"))?;
        if let Some(authorization) = &self.config.authorization {
            let headers = request.headers_mut();
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        if let Some((name, value)) = header {
            let value = HeaderValue::try_from(value).map_err(|_| wrong("this header"))?;
            request.headers_mut().insert(name, value);
        }
        match timeout_at(deadline.at, self.pool.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.unreachable(&error)),
            Err(_) => Err(self.overdue(path, deadline)),
        }
    }

    /// Sends a request for `path`, and reads the whole answer. It may take `more` than the usual time.
    pub(super) async fn ask(
        &self,
        path: &str,
        header: Option<(HeaderName, &str)>,
        more: Duration,
    ) -> Result<Whole, Error> {
        let deadline = self.deadline(more);
        let response = self.begin(path, header, deadline).await?;
        self.whole(path, response, deadline).await
    }

    /// The rest of an answer.
    pub(super) async fn whole(
        &self,
        path: &str,
        response: Response<Incoming>,
        deadline: Deadline,
    ) -> Result<Whole, Error> {
        let (head, mut rest) = response.into_parts();
        let mut body = Vec::new();
        loop {
            let frame = timeout_at(deadline.at, rest.frame()).await;
            let frame = match frame.map_err(|_| self.overdue(path, deadline))? {
                None => break,
                Some(frame) => frame.map_err(|error| self.unreachable(&error))?,
            };
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            if body.len() + piece.len() > self.config.most_bytes {
                return Err(self.too_large(path));
            }
            body.extend_from_slice(&piece);
        }
        Ok(Whole {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    /// When an answer is late that begins now.
    pub(super) fn deadline(&self, more: Duration) -> Deadline {
        let timeout = self.config.timeout.saturating_add(more);
        // A time-out of years means none.
        let bounded = timeout.min(Duration::from_secs(365 * 86_400));
        Deadline {
            at: Instant::now() + bounded,
            timeout,
        }
    }

    pub(super) fn overdue(&self, path: &str, deadline: Deadline) -> Error {
        Error::TimedOut {
            url: self.config.base.to_string(),
            path: without_query(path),
            timeout: deadline.timeout,
        }
    }

    pub(super) fn too_large(&self, path: &str) -> Error {
        Error::TooLarge {
            path: without_query(path),
            most: self.config.most_bytes,
        }
    }

    pub(super) fn unreachable(&self, error: &(dyn StdError + 'static)) -> Error {
        let tls = cause(error).filter(|error| explain(error).is_some());
        if let Some(error) = tls {
            return Error::Tls {
                url: self.config.base.to_string(),
                reason: error.to_string(),
            };
        }
        // The last cause says most: "connection refused" rather than "client error".
        let mut last: &dyn StdError = error;
        while let Some(source) = last.source() {
            last = source;
        }
        Error::Unreachable {
            url: self.config.base.to_string(),
            reason: last.to_string(),
        }
    }
}

/// When an answer must be there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    timeout: Duration,
}

pub(super) fn without_query(path: &str) -> String {
    path.split('?').next().unwrap_or(path).to_owned()
}
