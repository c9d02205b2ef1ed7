//! Where a running service is, and the library's client for it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    str::FromStr,
    time::Duration,
};

use anyhow::anyhow;
use axum::{
    body::{Body, to_bytes},
    http::{Request, Uri, header::HOST, uri::Scheme},
};
use hyper_util::rt::TokioIo;
use oddscache::client::{Client, Config};
use tokio::{net::UnixStream, time::timeout};

use super::{http::auth::Token, options::secret::Secret};

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

/// A client that trusts the certificates of the file `ca`, or the system's roots without one. A request and its answer
/// take at most `bound`.
///
/// # Errors
/// Names what is wrong with the file or the token.
pub(crate) fn client(
    url: &Url,
    ca: Option<&Path>,
    token: Option<&Secret>,
    bound: Duration,
) -> anyhow::Result<Client> {
    let mut config = Config::new(&url.0)?.timeout(bound);
    if let Some(path) = ca {
        config = config.ca(path);
    }
    if let Some(Secret(token)) = Token::given(token)?.map(Token::into_secret) {
        config = config.token(&token)?;
    }
    Ok(Client::new(config)?)
}

/// A client that accepts any certificate and sends no secret: for health checks of a service on this machine.
pub(crate) fn for_health_checks(url: &Url, bound: Duration) -> anyhow::Result<Client> {
    let config = Config::new(&url.0)?.timeout(bound);
    Ok(Client::new(config.danger_accept_any_certificate())?)
}

/// An answer at a Unix socket that is longer than this is refused. It is a sentence or two.
const MOST_BYTES: usize = 64 << 10;

/// Status and body of the answer to `GET target` at a Unix socket, without a token.
///
/// # Errors
/// If there is no answer, or none within `bound`.
pub(crate) async fn get_at_socket(
    socket: &Path,
    target: &str,
    bound: Duration,
) -> anyhow::Result<(u16, Vec<u8>)> {
    let exchange = async {
        let stream = TokioIo::new(UnixStream::connect(socket).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        let request = Request::get(target)
            .header(HOST, "localhost")
            .body(Body::empty())?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = to_bytes(Body::new(response.into_body()), MOST_BYTES).await?;
            anyhow::Ok((status.as_u16(), body.to_vec()))
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
