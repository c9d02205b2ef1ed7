//! Sends a request to the collector.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Chain, Context, bail};
use axum::http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::{runtime::Handle, time::timeout};

/// A collector that takes longer has failed. It is the default of OTLP.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// An idle connection is closed after this time. A batch comes every second while there are spans.
const IDLE: Duration = Duration::from_secs(30);

/// An answer says which spans were refused.
const MOST_BYTES: usize = 1 << 20;

/// Cheap to clone. Clones share their connections.
#[derive(Clone)]
pub(super) struct Collector {
    runtime: Handle,
    pool: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    failure: Arc<Mutex<Option<String>>>,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

impl Collector {
    pub(super) fn new(runtime: Handle, roots: RootCertStore) -> anyhow::Result<Collector> {
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("starting TLS")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        let pool = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Collector {
            runtime,
            pool,
            failure: Arc::default(),
        })
    }

    /// Why the last request failed.
    pub(super) fn take_failure(&self) -> Option<String> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.take()
    }
}

/// The certificates in `trusted`, a PEM file, or else those of the system. Reads the latter for https only.
pub(super) fn roots(is_https: bool, trusted: Option<Vec<u8>>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(pem) = trusted else {
        if is_https {
            // Without any, requests fail, and say so.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        return Ok(roots);
    };
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate?)?;
    }
    if roots.is_empty() {
        bail!("there is no certificate in the file");
    }
    Ok(roots)
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (pool, request) = (self.pool.clone(), request.map(Full::new));
        // The thread of the SDK is outside the runtime, where connections do not work.
        let answer = self.runtime.spawn(async move {
            let answer = async {
                let (head, body) = pool.request(request).await?.into_parts();
                let body = Limited::new(body, MOST_BYTES).collect().await?;
                Ok::<_, HttpError>(Response::from_parts(head, body.to_bytes()))
            };
            match timeout(TIMEOUT, answer).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs()).into()),
            }
        });
        let answer = answer.await.map_err(HttpError::from).flatten();
        let answer = answer.map(without_body_unless_taken);
        let failure = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answered {}", answer.status())),
            // The last cause says most: "connection refused" rather than "client error".
            Err(error) => Chain::new(error.as_ref())
                .last()
                .map(|cause| cause.to_string()),
        };
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        answer
    }
}

/// The exporter would write the body of a refusal to the log. A collector may repeat in it the token that it refuses.
fn without_body_unless_taken(answer: Response<Bytes>) -> Response<Bytes> {
    match answer.status().is_success() {
        true => answer,
        false => answer.map(|_| Bytes::new()),
    }
}
