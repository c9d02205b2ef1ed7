//! TLS of the HTTP server, by rustls. The certificate can be replaced while it runs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::auth::warn_if_open;

#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Access to the HTTP server")]
pub(crate) struct TlsArguments {
    /// Serve HTTPS with this certificate and its chain, in a PEM file. SIGHUP reads it again
    #[arg(long, env = "ODDSCACHE_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key, in a PEM file that only its owner may read, not encrypted
    #[arg(long, env = "ODDSCACHE_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
}

/// Cheap to clone. All clones see a certificate that is read again.
#[derive(Clone)]
pub(crate) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    config: Arc<ArcSwap<ServerConfig>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("certificate", &self.certificate)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// `None` if neither file is named.
    ///
    /// # Errors
    /// Names the flag that is missing, or the file and what is wrong with it.
    pub(crate) fn new(arguments: &TlsArguments) -> anyhow::Result<Option<Tls>> {
        let (certificate, key) = match (&arguments.tls_cert, &arguments.tls_key) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            (Some(_), None) => bail!("--tls-cert needs the certificate's key: give --tls-key"),
            (None, Some(_)) => bail!("--tls-key needs the key's certificate: give --tls-cert"),
        };
        let config = Arc::new(ArcSwap::new(read(&certificate, &key)?));
        Ok(Some(Tls {
            certificate,
            key,
            config,
        }))
    }

    /// Reads the files again, for new connections. If that fails, the old certificate stays in force.
    pub(crate) fn read_again(&self) -> anyhow::Result<()> {
        self.config.store(read(&self.certificate, &self.key)?);
        Ok(())
    }

    /// An acceptor for one connection, with the certificate as last read.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }
}

fn read(certificate: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("--tls-cert {}", certificate.display()))?;
    if chain.is_empty() {
        bail!(
            "--tls-cert {}: there is no certificate in it",
            certificate.display()
        );
    }
    let secret = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("--tls-key {}", key.display()))?;
    warn_if_open(key);
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("starting TLS")?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .with_context(|| {
            format!(
                "--tls-cert {} and --tls-key {}: they do not belong together",
                certificate.display(),
                key.display()
            )
        })?;
    config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The name of HTTP/2 in a TLS handshake (ALPN).
const HTTP2: &[u8] = b"h2";

/// Whether the client chose HTTP/2. A client that names no protocol speaks HTTP/1.1.
pub(super) fn is_http2<S>(stream: &TlsStream<S>) -> bool {
    let (_, connection) = stream.get_ref();
    connection.alpn_protocol() == Some(HTTP2)
}
