//! Makes TLS connectors with rustls, and turns its errors into sentences.
//!
//! # Invariants
//! - C1: In every mode, the server proves that it has the private key of its certificate.
//! - C2: In verify-ca and verify-full, the certificate is valid now. It is one of the given certificates, or its chain
//!   ends in one of them.
//! - C3: In verify-full, the certificate is for the host that the connection string names.

use std::{error::Error as StdError, io, path::Path, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct,
    Error as TlsError, RootCertStore, SignatureScheme,
    client::{
        WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use tokio_postgres_rustls::MakeRustlsConnect;
use x509_cert::{Certificate, der::Decode};

use crate::{
    error::Error,
    postgres::tls::{Identity, Pem, Roots, Tls, Verify},
};

/// A connector with these settings. Blocks: reads files.
pub(crate) fn connector(tls: &Tls) -> Result<MakeRustlsConnect, Error> {
    let verify = tls.verify();
    let given = match (&tls.roots, verify) {
        (_, Verify::Nothing) => Vec::new(),
        (Some(Roots::Given(pem)), _) => certificates("sslrootcert", pem)?,
        (Some(Roots::System) | None, _) => system_roots("sslrootcert=system")?,
    };
    let builder = builder(verify, given)?;
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = client_certificate(identity)?;
            let config = builder.with_client_auth_cert(chain, key);
            config.map_err(|error| wrong("sslcert and sslkey", &error.to_string()))?
        }
    };
    // sslnegotiation=direct requires this. Older servers ignore it.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(MakeRustlsConnect::new(config))
}

/// The settings for HTTPS: the file with the root certificates, or the system's without one. With `Verify::Nothing`
/// neither is read. Blocks: reads files.
#[cfg(feature = "client")]
pub(crate) fn https(roots: Option<&Path>, verify: Verify) -> Result<ClientConfig, Error> {
    let given = match (roots, verify) {
        (_, Verify::Nothing) => Vec::new(),
        (Some(path), _) => certificates("ca", &Pem::File(path.to_owned()))?,
        (None, _) => system_roots("https")?,
    };
    Ok(builder(verify, given)?.with_no_client_auth())
}

fn builder(
    verify: Verify,
    given: Vec<CertificateDer<'static>>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Error> {
    // Do not use the process's default provider: the embedding program may have chosen another one, or none.
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(given.iter().cloned());
    // rustls would refuse the certificates of many PostgreSQL servers, so our own verifier decides (see `Verifier`).
    let verifier = Verifier {
        verify,
        given,
        roots,
        provider: Arc::clone(&provider),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong("TLS", &error.to_string()))?;
    let verifier = Arc::new(verifier);
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(verifier))
}

fn wrong(what: &str, problem: &str) -> Error {
    Error::Config(format!("{what}: {problem}"))
}

fn pem_error(name: &str, pem: &Pem, problem: &str) -> Error {
    match pem {
        Pem::File(path) => wrong(name, &format!("{}: {problem}", path.display())),
        Pem::Text(_) => wrong(name, problem),
    }
}

/// The PEM text, read from its file if need be.
fn read(name: &str, pem: &Pem) -> Result<Vec<u8>, Error> {
    match pem {
        Pem::Text(text) => Ok(text.clone()),
        Pem::File(path) => {
            let text = std::fs::read(path);
            text.map_err(|error| pem_error(name, pem, &error.to_string()))
        }
    }
}

fn certificates(name: &str, pem: &Pem) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(name, pem)?;
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match list {
        Ok(list) if !list.is_empty() => Ok(list),
        _ => Err(pem_error(name, pem, "no PEM certificates")),
    }
}

fn system_roots(name: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(wrong(
            name,
            "the system has no root certificates; install some (Debian: apt install ca-certificates) or name a file",
        ));
    }
    Ok(found.certs)
}

fn client_certificate(
    identity: &Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let chain = certificates("sslcert", &identity.certificate)?;
    if let Pem::File(path) = &identity.key {
        check_rights(path).map_err(|problem| pem_error("sslkey", &identity.key, &problem))?;
    }
    let text = read("sslkey", &identity.key)?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        let encrypted = b"ENCRYPTED";
        let problem = if text.windows(encrypted.len()).any(|part| part == encrypted) {
            "the key is encrypted, which oddscache does not support; decrypt it: openssl pkey -in ... -out ..."
        } else {
            "no private key in PEM (PKCS#8, PKCS#1 or SEC1)"
        };
        pem_error("sslkey", &identity.key, problem)
    })?;
    Ok((chain, key))
}

/// As in libpq: only the owner may read a key, except that a group may read a key of root.
#[cfg(unix)]
fn check_rights(key: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(key).map_err(|error| error.to_string())?;
    let wider = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & wider == 0 {
        Ok(())
    } else {
        Err(
            "others than its owner may read the key; run chmod 0600 on it (0640 if root owns it)"
                .to_owned(),
        )
    }
}

#[cfg(not(unix))]
fn check_rights(_: &Path) -> Result<(), String> {
    Ok(())
}

/// Decides whether to accept the server's certificate.
#[derive(Debug)]
struct Verifier {
    verify: Verify,
    /// The given certificates. A server's own certificate may be one of them.
    given: Vec<CertificateDer<'static>>,
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), TlsError> {
        if self.verify == Verify::Nothing {
            return Ok(());
        }
        let parsed = ParsedCertificate::try_from(certificate)?;
        if self.given.contains(certificate) {
            // A given certificate needs no issuer. The chain check would even refuse many self-signed ones, because
            // they claim to be those of a certificate authority. So check only the validity.
            check_validity(certificate, now)?;
        } else {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &self.roots,
                intermediates,
                now,
                algorithms,
            )?;
        }
        match self.verify {
            Verify::ChainAndHost => verify_server_name(&parsed, host),
            Verify::Chain | Verify::Nothing => Ok(()),
        }
    }
}

/// Fails unless the certificate is valid now.
fn check_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), TlsError> {
    let parsed = Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let validity = parsed.tbs_certificate.validity;
    let (begin, end) = (
        validity.not_before.to_unix_duration().as_secs(),
        validity.not_after.to_unix_duration().as_secs(),
    );
    if now.as_secs() < begin {
        return Err(CertificateError::NotValidYet.into());
    }
    if now.as_secs() > end {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        self.check(certificate, intermediates, host, now)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The error of rustls among the causes of `error`.
pub(crate) fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a TlsError> {
    if let Some(found) = error.downcast_ref::<TlsError>() {
        return Some(found);
    }
    // `source()` of an io::Error skips the error that it wraps and returns the source of that one. Look at the wrapped
    // error itself.
    let inner = error
        .downcast_ref::<io::Error>()
        .and_then(|error| error.get_ref());
    match inner {
        Some(inner) => cause(inner),
        None => error.source().and_then(cause),
    }
}

/// What is wrong, with the way out. `None` if a retry may help.
pub(crate) fn explain(error: &TlsError) -> Option<String> {
    use CertificateError as Certificate;
    let explained = match error {
        TlsError::InvalidCertificate(problem) => match problem {
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                "the server's certificate has expired; renew it, and check this machine's clock".to_owned()
            }
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                "the server's certificate is not valid yet; check this machine's clock".to_owned()
            }
            Certificate::UnknownIssuer => {
                "none of the root certificates issued the server's certificate; name the right one in sslrootcert"
                    .to_owned()
            }
            Certificate::NotValidForName => {
                "the server's certificate is for another host; connect by a name in its subjectAltName, or use \
                 sslmode=verify-ca"
                    .to_owned()
            }
            Certificate::NotValidForNameContext { presented, .. } => format!(
                "the server's certificate is not for this host but for {}; connect by a name in its subjectAltName, \
                 renew it for this host, or use sslmode=verify-ca",
                if presented.is_empty() {
                    "none (a common name alone does not count)".to_owned()
                } else {
                    presented.join(", ")
                }
            ),
            problem => format!(
                "the server's certificate cannot be used ({problem}); it must be an X.509 version 3 certificate for \
                 TLS servers, and not that of a certificate authority unless sslrootcert holds the same one"
            ),
        },
        TlsError::AlertReceived(alert) if is_permanent(*alert) => format!(
            "the server ended the TLS handshake ({alert:?}); it may require a client certificate (sslcert, sslkey), or \
                 not trust the one given"
        ),
        TlsError::PeerIncompatible(problem) => {
            format!("the server and oddscache support no common version or cipher of TLS: {problem:?}")
        }
        TlsError::NoApplicationProtocol => "the server speaks TLS but not the PostgreSQL protocol".to_owned(),
        TlsError::InvalidMessage(_) => "the answer is not TLS; this may not be a PostgreSQL server".to_owned(),
        TlsError::NoCertificatesPresented => "the server presents no certificate".to_owned(),
        TlsError::PeerMisbehaved(problem) => format!("the server breaks the TLS protocol: {problem:?}"),
        _ => return None,
    };
    Some(explained)
}

/// Whether an alert refuses a certificate or a setting. Other alerts may be transient.
fn is_permanent(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::HandshakeFailure
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired
            | Alert::ProtocolVersion
            | Alert::InsufficientSecurity
            | Alert::UnrecognisedName
            | Alert::NoApplicationProtocol
            | Alert::NoRenegotiation
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_found_at_any_depth() {
        let tls = || TlsError::InvalidCertificate(CertificateError::Expired);
        assert!(cause(&tls()).is_some());
        assert!(cause(&io::Error::other(tls())).is_some());
        assert!(cause(&io::Error::other(io::Error::other(tls()))).is_some());
        assert!(cause(&io::Error::other("x")).is_none());
    }
}
