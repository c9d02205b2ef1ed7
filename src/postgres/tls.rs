//! The TLS settings of a connection, with libpq's meaning.

use std::{fmt, path::PathBuf};

use tokio_postgres::config::SslNegotiation;

use crate::error::Error;

/// libpq's `sslmode`: whether to encrypt the connection, and what to require of the server's certificate.
///
/// Connections over a Unix socket are never encrypted, whatever the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum SslMode {
    /// Never encrypts.
    Disable,
    /// Encrypts only if the server refuses an unencrypted connection. Does not protect against an attacker on the
    /// network, who can accept one.
    Allow,
    /// Encrypts if the server offers TLS. Does not encrypt if the server does not, if the handshake fails, or if
    /// `pg_hba.conf` has no line for encrypted connections. Does not protect against an attacker on the network. Never
    /// encrypts if there is neither the cargo feature `tls` nor a connector of one's own.
    #[default]
    Prefer,
    /// Always encrypts. Does not check the certificate; with root certificates it checks as [`SslMode::VerifyCa`] does.
    Require,
    /// Always encrypts. One of the root certificates must have issued the certificate, for any host.
    VerifyCa,
    /// Always encrypts. One of the root certificates must have issued the certificate, for the host that the connection
    /// string names. Without given root certificates, those of the system count.
    VerifyFull,
}

impl SslMode {
    pub(crate) const WORDS: [(&'static str, SslMode); 6] = [
        ("disable", SslMode::Disable),
        ("allow", SslMode::Allow),
        ("prefer", SslMode::Prefer),
        ("require", SslMode::Require),
        ("verify-ca", SslMode::VerifyCa),
        ("verify-full", SslMode::VerifyFull),
    ];

    /// Whether an unencrypted connection is refused.
    pub(crate) fn is_mandatory(self) -> bool {
        matches!(
            self,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull
        )
    }
}

/// Prints the name that a connection string uses.
impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = SslMode::WORDS.iter().find(|(_, mode)| mode == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

/// TLS settings for [`Config::tls`](crate::config::Config::tls). Each new connection reads the files again, so that
/// renewed certificates need no restart. `Debug` shows no key.
///
/// ```
/// use oddscache::{Config, SslMode, Tls};
///
/// # fn example() -> Result<(), oddscache::Error> {
/// let tls = Tls::new(SslMode::VerifyFull).root_certificates_file("/etc/odds/root.crt");
/// let config = Config::new("postgres://oddscache@db.example.com/odds")?.tls(tls);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Tls {
    pub(crate) mode: SslMode,
    pub(crate) roots: Option<Roots>,
    pub(crate) identity: Option<Identity>,
}

/// Which root certificates to trust.
#[derive(Clone)]
pub(crate) enum Roots {
    System,
    Given(Pem),
}

/// The certificate and key to present to the server.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) certificate: Pem,
    pub(crate) key: Pem,
}

/// A PEM file or PEM text.
#[derive(Clone)]
#[cfg_attr(not(feature = "tls"), allow(dead_code))]
pub(crate) enum Pem {
    File(PathBuf),
    Text(Vec<u8>),
}

/// What to check of the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verify {
    Nothing,
    Chain,
    ChainAndHost,
}

impl Tls {
    /// Settings with this mode, without root certificates and without a client certificate.
    #[must_use]
    pub fn new(mode: SslMode) -> Tls {
        Tls {
            mode,
            ..Tls::default()
        }
    }

    /// The mode.
    pub fn mode(&self) -> SslMode {
        self.mode
    }

    /// `sslrootcert`: trusts the certificates in this PEM file and no others. If one of them is the server's own, it is
    /// trusted too, as libpq does with self-signed certificates.
    #[must_use]
    pub fn root_certificates_file(mut self, path: impl Into<PathBuf>) -> Tls {
        self.roots = Some(Roots::Given(Pem::File(path.into())));
        self
    }

    /// The same as [`Tls::root_certificates_file`], from PEM text.
    #[must_use]
    pub fn root_certificates_pem(mut self, pem: impl Into<Vec<u8>>) -> Tls {
        self.roots = Some(Roots::Given(Pem::Text(pem.into())));
        self
    }

    /// `sslrootcert=system`: trusts what the operating system trusts (or `SSL_CERT_FILE`, `SSL_CERT_DIR`). Requires
    /// [`SslMode::VerifyFull`]: anybody can get a certificate for some host from one of these authorities.
    #[must_use]
    pub fn system_roots(mut self) -> Tls {
        self.roots = Some(Roots::System);
        self
    }

    /// `sslcert` and `sslkey`: the certificate, with its chain if it has one, and the key. They are presented to a
    /// server that asks for a client certificate. Both are PEM files. The key must be PKCS#8, PKCS#1 or SEC1 and not
    /// encrypted. Only its owner may be able to read it.
    #[must_use]
    pub fn client_certificate_files(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Tls {
        self.identity = Some(Identity {
            certificate: Pem::File(certificate.into()),
            key: Pem::File(key.into()),
        });
        self
    }

    /// The same as [`Tls::client_certificate_files`], from PEM text.
    #[must_use]
    pub fn client_certificate_pem(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Tls {
        self.identity = Some(Identity {
            certificate: Pem::Text(certificate.into()),
            key: Pem::Text(key.into()),
        });
        self
    }

    #[cfg_attr(not(feature = "tls"), allow(dead_code))]
    pub(crate) fn verify(&self) -> Verify {
        match self.mode {
            SslMode::VerifyFull => Verify::ChainAndHost,
            SslMode::VerifyCa => Verify::Chain,
            SslMode::Require if self.roots.is_some() => Verify::Chain,
            _ => Verify::Nothing,
        }
    }

    /// Fails if the settings contradict each other.
    pub(crate) fn check(&self, negotiation: SslNegotiation) -> Result<(), Error> {
        let mode = self.mode;
        if matches!(self.roots, Some(Roots::System)) && mode != SslMode::VerifyFull {
            self.wrong(
                "the system's root certificates (sslrootcert=system) need sslmode=verify-full",
            )
        } else if mode == SslMode::VerifyCa && self.roots.is_none() {
            self.wrong("verify-ca needs root certificates (sslrootcert)")
        } else if negotiation == SslNegotiation::Direct && !mode.is_mandatory() {
            self.wrong("sslnegotiation=direct needs sslmode=require or stricter")
        } else {
            Ok(())
        }
    }

    /// Fails if neither rustls nor the user's own connector can do what the settings say. `is_own` says whether there
    /// is such a connector.
    pub(crate) fn check_connector(&self, is_own: bool) -> Result<(), Error> {
        if is_own && (self.roots.is_some() || self.identity.is_some()) {
            self.wrong(
                "sslrootcert, sslcert and sslkey have no effect on a TLS connector of one's own (tls_connector); give the \
                 certificates to the connector",
            )
        } else if cfg!(not(feature = "tls")) && !is_own && self.mode.is_mandatory() {
            self.wrong(
                "this program was built without TLS; build it with oddscache's cargo feature tls, set a connector of your own \
                 (tls_connector), or use a Unix socket",
            )
        } else {
            Ok(())
        }
    }

    fn wrong(&self, problem: &str) -> Result<(), Error> {
        Err(Error::Config(format!("sslmode={}: {problem}", self.mode)))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = |pem: &Pem| match pem {
            Pem::File(path) => path.display().to_string(),
            Pem::Text(_) => "given".to_owned(),
        };
        let roots = self.roots.as_ref().map(|roots| match roots {
            Roots::System => "system".to_owned(),
            Roots::Given(pem) => file(pem),
        });
        let identity = self.identity.as_ref();
        f.debug_struct("Tls")
            .field("mode", &self.mode)
            .field("roots", &roots)
            .field(
                "certificate",
                &identity.map(|identity| file(&identity.certificate)),
            )
            .field("key", &identity.map(|identity| file(&identity.key)))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// `.ci/run` runs this with and without the feature. Without it, no mode that requires TLS may connect.
    #[test]
    fn a_mode_that_requires_tls_needs_the_feature() {
        for (word, mode) in SslMode::WORDS {
            let text = format!("host=h sslmode={word} sslrootcert=/root.crt");
            let config = Config::new(&text).expect("it makes sense");
            let refused = config.connect.check_tls().is_err();
            assert_eq!(
                refused,
                mode.is_mandatory() && cfg!(not(feature = "tls")),
                "{word}"
            );
            let tls = Tls::new(mode);
            assert_eq!(tls.check_connector(false).is_err(), refused, "{word}");
            assert!(tls.check_connector(true).is_ok(), "{word}");
            let tls = tls.root_certificates_pem("x");
            assert!(tls.check_connector(true).is_err(), "{word}");
            assert_eq!(mode.to_string(), word);
        }
        let mut driver = tokio_postgres::Config::new();
        driver.ssl_mode(tokio_postgres::config::SslMode::Require);
        let mode = Config::from_postgres(driver).connect.tls.mode;
        assert_eq!(mode, SslMode::Require);
    }

    /// Also for a driver's configuration, which did not come from a connection string.
    #[cfg(not(feature = "tls"))]
    #[tokio::test]
    async fn without_the_feature_no_connection_is_attempted() {
        let mut driver = tokio_postgres::Config::new();
        driver
            .host("127.0.0.1")
            .port(1)
            .ssl_mode(tokio_postgres::config::SslMode::Require);
        let error = Config::from_postgres(driver).open().await.map(drop);
        let error = error.expect_err("refused").to_string();
        assert!(
            error.contains("sslmode=require") && error.contains("cargo feature tls"),
            "{error}"
        );
    }
}
