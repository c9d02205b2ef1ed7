//! How to reach a service.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::{
    Uri,
    header::HeaderValue,
    http::uri::{Authority, Scheme},
};

use super::error::Error;

/// How to reach a service: URL, token, certificates, bounds. Its `Debug` output does not show the token.
#[derive(Debug, Clone)]
pub struct Config {
    pub(super) base: Base,
    /// Marked as sensitive, so `Debug` hides it.
    pub(super) authorization: Option<HeaderValue>,
    pub(super) roots: Option<PathBuf>,
    pub(super) accepts_any_certificate: bool,
    pub(super) timeout: Duration,
    pub(super) most_bytes: usize,
}

/// Scheme, host and port.
#[derive(Debug, Clone)]
pub(super) struct Base {
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

impl Base {
    pub(super) fn is_https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }
}

impl Config {
    /// A service at `http://host:port` or `https://host:port`.
    ///
    /// # Errors
    /// [`Error::Config`] if the URL has another form. It does not quote the URL, which may hold a secret.
    pub fn new(url: &str) -> Result<Config, Error> {
        let wrong =
            |how: &str| Error::Config(format!("the URL {how}, as in http://127.0.0.1:7979"));
        let uri: Uri = url
            .parse()
            .map_err(|_| wrong("must have scheme, host and port"))?;
        let parts = uri.into_parts();
        let scheme = parts.scheme.ok_or_else(|| wrong("must have a scheme"))?;
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(wrong("must begin with http:// or https://"));
        }
        let authority = parts.authority.ok_or_else(|| wrong("must name a host"))?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(wrong("must name a host, and no user"));
        }
        if parts
            .path_and_query
            .is_some_and(|path| path.as_str() != "/")
        {
            return Err(wrong("must end after the port"));
        }
        Ok(Config {
            base: Base { scheme, authority },
            authorization: None,
            roots: None,
            accepts_any_certificate: false,
            timeout: Duration::from_secs(10),
            most_bytes: 64 << 20,
        })
    }

    /// The bearer token that the service requires.
    ///
    /// # Errors
    /// [`Error::Config`] if a header cannot hold it. It does not quote the token.
    pub fn token(mut self, token: &str) -> Result<Config, Error> {
        let value = HeaderValue::try_from(format!("Bearer {}", token.trim()));
        let mut value = value.map_err(|_| {
            Error::Config("the token has characters that a header cannot hold".to_owned())
        })?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// A PEM file with the authority that issued the service's certificate, or with that certificate itself. By default
    /// the system's root certificates count.
    #[must_use]
    pub fn ca(mut self, file: impl AsRef<Path>) -> Config {
        self.roots = Some(file.as_ref().to_owned());
        self
    }

    /// Accepts any certificate, for a health check of a service on the same machine. It excludes a token, which
    /// anybody in between could read.
    #[must_use]
    pub fn danger_accept_any_certificate(mut self) -> Config {
        self.accepts_any_certificate = true;
        self
    }

    /// How long a request may take until its answer is whole; 10 s by default. A request that waits for a transaction
    /// gets its [`Query::wait_for`](super::Query::wait_for) on top. A stream of changes has no end: there it bounds the
    /// time until it begins.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Config {
        self.timeout = timeout;
        self
    }

    /// The most bytes that one answer or one event of a stream may have; 64 MiB by default. The client holds at most
    /// one answer for each call, and the values that it makes of it.
    #[must_use]
    pub fn most_bytes(mut self, most: usize) -> Config {
        self.most_bytes = most;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scheme_host_and_port_make_a_url() {
        for (url, base) in [
            ("http://127.0.0.1:7979", "http://127.0.0.1:7979"),
            ("https://cache/", "https://cache"),
            ("http://[::1]:7979", "http://[::1]:7979"),
        ] {
            assert_eq!(Config::new(url).unwrap().base.to_string(), base);
        }
        for wrong in [
            "ftp://cache",
            "cache:7979",
            "http://cache/v1",
            "http://user:secret@cache",
            "http://",
            "x y",
        ] {
            let error = Config::new(wrong).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_token_is_not_printed() {
        let config = Config::new("http://cache")
            .unwrap()
            .token("hunter2-hunter2")
            .unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        let error = Config::new("http://cache")
            .unwrap()
            .token("hunter2\n2")
            .unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
