//! Asks a running service, over HTTP/1.1, one connection a question.

use std::{fmt, net::SocketAddr, path::Path, str::FromStr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    body::{Body, Bytes},
    http::{
        HeaderValue, Request, StatusCode, Uri,
        header::{AUTHORIZATION, HOST},
        uri::Scheme,
    },
};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::http::auth::Secret;

/// No answer about one event is longer.
const MOST_BYTES: usize = 64 << 20;

/// Where a service listens: scheme, host and port.
#[derive(Debug, Clone)]
pub(crate) struct Url {
    tls: bool,
    host: String,
    port: u16,
}

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
        Ok(Url {
            tls,
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl Url {
    /// Where a service on this machine is reached that listens at `address`.
    pub(crate) fn of(address: SocketAddr, tls: bool) -> Url {
        let host = match address {
            SocketAddr::V4(address) if address.ip().is_unspecified() => "127.0.0.1".to_owned(),
            SocketAddr::V6(address) if address.ip().is_unspecified() => "[::1]".to_owned(),
            SocketAddr::V4(address) => address.ip().to_string(),
            SocketAddr::V6(address) => format!("[{}]", address.ip()),
        };
        Url {
            tls,
            host,
            port: address.port(),
        }
    }

    /// Without the brackets of an IPv6 address.
    fn bare(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// How a service is asked.
pub(crate) struct Asker {
    tls: TlsConnector,
    authorization: Option<HeaderValue>,
    /// Of one question and its answer.
    bound: Duration,
}

impl Asker {
    /// One that believes certificates issued by those of the file `ca`, or by the roots of the system.
    ///
    /// # Errors
    /// Names what is wrong with the file or the token.
    pub(crate) fn new(
        ca: Option<&Path>,
        token: Option<&Secret>,
        bound: Duration,
    ) -> anyhow::Result<Asker> {
        let mut roots = RootCertStore::empty();
        let given = match ca {
            Some(path) => CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .with_context(|| format!("--ca {}", path.display()))?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        roots.add_parsable_certificates(given);
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("starting TLS")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let token = token.map_or(Ok(None), Secret::token)?;
        let authorization = token.map(|token| HeaderValue::try_from(token.header()));
        Ok(Asker {
            tls: TlsConnector::from(Arc::new(config)),
            authorization: authorization.transpose().context("the token")?,
            bound,
        })
    }

    /// One that believes anybody, and tells nobody a secret: for asking whether something lives on this machine.
    ///
    /// # Errors
    /// If TLS cannot be started at all.
    pub(crate) fn of_anybody(bound: Duration) -> anyhow::Result<Asker> {
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .context("starting TLS")?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth();
        Ok(Asker {
            tls: TlsConnector::from(Arc::new(config)),
            authorization: None,
            bound,
        })
    }

    /// # Errors
    /// If there is no answer, or none in time.
    pub(crate) async fn get(&self, url: &Url, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        timeout(self.bound, self.connect(url, path))
            .await
            .with_context(|| format!("no answer within {} s", self.bound.as_secs_f32()))?
    }

    async fn connect(&self, url: &Url, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let stream = TcpStream::connect((url.bare(), url.port)).await?;
        if !url.tls {
            return self.exchange(stream, url, path).await;
        }
        let name = ServerName::try_from(url.bare().to_owned()).context("the host's name")?;
        let stream = self.tls.connect(name, stream).await?;
        self.exchange(stream, url, path).await
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        url: &Url,
        path: &str,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let host = HeaderValue::from_str(&format!("{}:{}", url.host, url.port))?;
        let mut request = Request::get(path).header(HOST, host).body(Body::empty())?;
        if let Some(authorization) = &self.authorization {
            let headers = request.headers_mut();
            headers.insert(AUTHORIZATION, authorization.clone());
        }
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
}

/// Believes any certificate whose key the other side has.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
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
        assert_eq!(read("https://cache").as_deref(), Ok("https://cache:443"));
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
}
