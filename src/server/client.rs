//! Asks a running service over HTTP/1.1.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use axum::{
    body::{Body, to_bytes},
    http::{
        HeaderValue, Request, StatusCode, Uri,
        header::{AUTHORIZATION, HOST},
        uri::Scheme,
    },
};
use hyper_util::rt::TokioIo;
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::{net::UnixStream, task::spawn_blocking, time::timeout};
use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::{http::auth::Token, options::secret::Secret};

/// The most bytes to read of an answer. An answer about one event has fewer.
const MOST_BYTES: u64 = 64 << 20;

/// Where a service listens: `scheme://host:port`.
#[derive(Debug, Clone)]
pub(crate) struct Url(String);

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Url, String> {
        let uri: Uri = text
            .parse()
            .map_err(|error| format!("not a URL: {error}"))?;
        let tls = uri.scheme() == Some(&Scheme::HTTPS);
        if !tls && uri.scheme() != Some(&Scheme::HTTP) {
            return Err("it must begin with http:// or https://".to_owned());
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err("only scheme, host and port: http://127.0.0.1:7979".to_owned());
        }
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or("it names no host")?;
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Url::new(tls, format!("{host}:{port}")))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Url {
    fn new(tls: bool, place: impl fmt::Display) -> Url {
        let scheme = if tls { "https" } else { "http" };
        Url(format!("{scheme}://{place}"))
    }

    /// The URL to use on the machine whose service listens at `address`.
    pub(crate) fn of(address: SocketAddr, tls: bool) -> Url {
        let ip: IpAddr = match address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        Url::new(tls, SocketAddr::new(ip, address.port()))
    }
}

/// An HTTP client of the service.
pub(crate) struct Client {
    agent: Agent,
    authorization: Option<HeaderValue>,
    /// The most time that a request and its answer may take.
    bound: Duration,
}

impl Client {
    /// A client that trusts the certificates of the file `ca`, or the system's roots without one.
    ///
    /// # Errors
    /// Names what is wrong with the file or the token.
    pub(crate) fn new(
        ca: Option<&Path>,
        token: Option<&Secret>,
        bound: Duration,
    ) -> anyhow::Result<Client> {
        let roots = match ca {
            Some(path) => CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .with_context(|| format!("--ca {}", path.display()))?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        let roots = roots
            .iter()
            .map(|root| Certificate::from_der(root).to_owned());
        let tls = TlsConfig::builder().root_certs(RootCerts::from(roots));
        let authorization = Token::given(token)?.map(|token| HeaderValue::try_from(token.header()));
        Ok(Client {
            agent: agent(tls, bound),
            authorization: authorization.transpose().context("the token")?,
            bound,
        })
    }

    /// A client that accepts any certificate and sends no secret: for health checks of a service on this machine.
    pub(crate) fn for_health_checks(bound: Duration) -> Client {
        Client {
            agent: agent(TlsConfig::builder().disable_verification(true), bound),
            authorization: None,
            bound,
        }
    }

    /// Status and body of the answer to `GET path`.
    ///
    /// # Errors
    /// If there is no answer, or none in time.
    pub(crate) async fn get(&self, url: &Url, path: &str) -> anyhow::Result<(StatusCode, Vec<u8>)> {
        let mut request = self.agent.get(format!("{url}{path}"));
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let exchange = move || {
            let mut response = request.call()?;
            let status = response.status();
            let body = response.body_mut().with_config().limit(MOST_BYTES);
            Ok((status, body.read_to_vec()?))
        };
        let answer = spawn_blocking(exchange).await.context("asking")?;
        answer.map_err(|error| match error {
            ureq::Error::Timeout(_) => {
                anyhow!("no answer within {} s", self.bound.as_secs_f32())
            }
            error => error.into(),
        })
    }
}

fn agent(tls: ureq::tls::TlsConfigBuilder, bound: Duration) -> Agent {
    let provider = Arc::new(ring::default_provider());
    let tls = tls.unversioned_rustls_crypto_provider(provider).build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .timeout_global(Some(bound))
        .http_status_as_error(false)
        // The token is for the named service alone: no redirect, no proxy.
        .max_redirects(0)
        .proxy(None);
    config.build().new_agent()
}

/// Status and body of the answer to `GET target` at a Unix socket, without a token.
///
/// # Errors
/// If there is no answer, or none within `bound`.
pub(crate) async fn get_at_socket(
    socket: &Path,
    target: &str,
    bound: Duration,
) -> anyhow::Result<(StatusCode, Vec<u8>)> {
    let exchange = async {
        let stream = TokioIo::new(UnixStream::connect(socket).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        let request = Request::get(target)
            .header(HOST, "localhost")
            .body(Body::empty())?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let most = usize::try_from(MOST_BYTES).unwrap_or(usize::MAX);
            let body = to_bytes(Body::new(response.into_body()), most).await?;
            anyhow::Ok((status, body.to_vec()))
        };
        // The connection does the work of both, and ends with an error if the service breaks off.
        tokio::select! {
            biased;
            answer = answer => answer,
            ended = connection => {
                ended?;
                Err(anyhow!("the connection ended without an answer"))
            }
        }
    };
    match timeout(bound, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(anyhow!("no answer within {} s", bound.as_secs_f32())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let read = |text: &str| text.parse::<Url>().map(|url| url.to_string());
        for (text, url) in [
            ("http://127.0.0.1:7979", "http://127.0.0.1:7979"),
            ("http://cache/", "http://cache:80"),
            ("http://[::1]:7979", "http://[::1]:7979"),
            ("https://cache", "https://cache:443"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(url));
        }
        for wrong in [
            "ftp://cache",
            "cache:7979",
            "http://cache/v1",
            "http://",
            "x y",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_service_on_all_addresses_is_asked_on_the_loopback() {
        for (address, url) in [
            ("0.0.0.0:7979", "http://127.0.0.1:7979"),
            ("[::]:7979", "http://[::1]:7979"),
            ("192.0.2.1:80", "http://192.0.2.1:80"),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(Url::of(address, false).to_string(), url);
        }
    }
}
