//! TLS by rustls: from settings to a connector, and from its errors to sentences.
//!
//! | invariant | |
//! |---|---|
//! | T1 | whatever the mode, the peer proves that it has the key of the certificate it shows |
//! | T2 | verify-ca and stricter: the certificate is issued, now, by a root that was given, or is one of those |
//! | T3 | verify-full: it is issued for the host that was asked for |

use std::{error::Error as StdError, io, path::Path, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError,
    RootCertStore, SignatureScheme,
    client::{
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

/// A connector with these settings. Reads files, and blocks for it.
pub(crate) fn connector(tls: &Tls) -> Result<MakeRustlsConnect, Error> {
    // Never the process's default provider: an embedding program may have chosen another, or none.
    let provider = Arc::new(ring::default_provider());
    let verify = tls.verify();
    let given = match (&tls.roots, verify) {
        (_, Verify::Nothing) => Vec::new(),
        (Some(Roots::Given(pem)), _) => certificates("sslrootcert", pem)?,
        (Some(Roots::System) | None, _) => system_roots()?,
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(given.iter().cloned());
    let verifier = Verifier {
        verify,
        given,
        roots,
        provider: Arc::clone(&provider),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong("TLS", &error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = client_certificate(identity)?;
            let config = builder.with_client_auth_cert(chain, key);
            config.map_err(|error| wrong("sslcert and sslkey", &error.to_string()))?
        }
    };
    // Needed by sslnegotiation=direct; older servers pay no heed.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(MakeRustlsConnect::new(config))
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

/// The text; `None` where it was given as it is.
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

fn system_roots() -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(wrong(
            "sslrootcert=system",
            "the system has no root certificates (Debian: apt-get install ca-certificates), or name a file",
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
            "the key is encrypted, which is not supported; decrypt it: openssl pkey -in ... -out ..."
        } else {
            "no private key in PEM (PKCS#8, PKCS#1 or SEC1)"
        };
        pem_error("sslkey", &identity.key, problem)
    })?;
    Ok((chain, key))
}

/// As libpq has it: a key is for its owner alone; root's may be readable by a group.
#[cfg(unix)]
fn check_rights(key: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(key).map_err(|error| error.to_string())?;
    let wider = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & wider == 0 {
        Ok(())
    } else {
        Err(
            "others than its owner may read the key; chmod 0600 it (0640 if root owns it)"
                .to_owned(),
        )
    }
}

#[cfg(not(unix))]
fn check_rights(_: &Path) -> Result<(), String> {
    Ok(())
}

/// Judges the server's certificate.
#[derive(Debug)]
struct Verifier {
    verify: Verify,
    /// What was given, to know the server's own certificate among it.
    given: Vec<CertificateDer<'static>>,
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn judge(
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
            // Servers' self-signed certificates often say that they are an authority, which the verifier would refuse.
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

/// Whether it is valid now.
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
        self.judge(certificate, intermediates, host, now)
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

/// What rustls has against it, somewhere in the causes of `error`.
pub(crate) fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a TlsError> {
    if let Some(found) = error.downcast_ref::<TlsError>() {
        return Some(found);
    }
    // An error within an io::Error is not its source: the source of that is.
    let inner = error
        .downcast_ref::<io::Error>()
        .and_then(|error| error.get_ref());
    match inner {
        Some(inner) => cause(inner),
        None => error.source().and_then(cause),
    }
}

/// What is wrong and the way out, where waiting does not help; `None` where it may.
pub(crate) fn explain(error: &TlsError) -> Option<String> {
    use CertificateError as Certificate;
    let explained = match error {
        TlsError::InvalidCertificate(problem) => match problem {
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                "the server's certificate has expired; renew it (and look at this machine's clock)".to_owned()
            }
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                "the server's certificate is not valid yet; look at this machine's clock".to_owned()
            }
            Certificate::UnknownIssuer => {
                "the server's certificate is issued by none of the root certificates; name the right ones in sslrootcert"
                    .to_owned()
            }
            Certificate::NotValidForName => {
                "the server's certificate is for another host; connect by a name that it bears as subjectAltName, or use \
                 sslmode=verify-ca"
                    .to_owned()
            }
            Certificate::NotValidForNameContext { presented, .. } => format!(
                "the server's certificate is not for this host but for {}; connect by a name that it bears as \
                 subjectAltName, have it renewed, or use sslmode=verify-ca",
                if presented.is_empty() {
                    "none (a common name alone does not count)".to_owned()
                } else {
                    presented.join(", ")
                }
            ),
            problem => format!(
                "the server's certificate cannot be used ({problem}); it must be X.509 version 3, no certificate authority's \
                 unless sslrootcert holds the same one, and for TLS servers"
            ),
        },
        TlsError::AlertReceived(alert) if is_refusal(*alert) => format!(
            "the server ended the TLS handshake ({alert:?}); does it ask for a client certificate (sslcert, sslkey), and \
             trust the one given?"
        ),
        TlsError::PeerIncompatible(problem) => {
            format!("the server's TLS has nothing in common with ours: {problem:?}")
        }
        TlsError::NoApplicationProtocol => "the server speaks TLS, but not PostgreSQL".to_owned(),
        TlsError::InvalidMessage(_) => "what answers does not speak TLS".to_owned(),
        TlsError::NoCertificatesPresented => "the server shows no certificate".to_owned(),
        TlsError::PeerMisbehaved(problem) => format!("the server breaks the TLS protocol: {problem:?}"),
        _ => return None,
    };
    Some(explained)
}

/// Alerts that speak of what was shown or asked for, not of trouble of the moment.
fn is_refusal(alert: AlertDescription) -> bool {
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
    fn every_cause_is_found_however_deep() {
        let tls = || TlsError::InvalidCertificate(CertificateError::Expired);
        assert!(cause(&tls()).is_some());
        assert!(cause(&io::Error::other(tls())).is_some());
        assert!(cause(&io::Error::other(io::Error::other(tls()))).is_some());
        assert!(cause(&io::Error::other("x")).is_none());
    }
}
