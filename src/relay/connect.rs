//! Connects to the NATS server of a relay, and says in words why that fails.

use std::{error::Error as _, fs, io, path::Path, sync::Arc, time::Duration};

use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions,
    rustls::{
        AlertDescription, CertificateError, ClientConfig, Error as TlsError, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use crate::{
    error::Error,
    relay::address::{ANSWER_TIMEOUT, Login, Relay},
};

/// How long connecting to the server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A server that sends nothing for twice this time counts as lost.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// After so many failed attempts to connect again a client ends. Its session ends as well, and the next one reads the
/// files again.
const RECONNECTS: usize = 4;

/// The most messages of a subscription that wait. What comes beyond is dropped, and asked for or read again.
const MOST_WAITING: usize = 4096;

impl Relay {
    /// Connects. From then on the client connects again by itself a few times, with the files as they were now.
    pub(super) async fn connect(&self, doing: &str) -> Result<Client, Error> {
        let relay = self.clone();
        let options = tokio::task::spawn_blocking(move || relay.options()).await;
        let options = options
            .map_err(|error| self.unreachable(error))?
            .map_err(|problem| self.unreachable(problem))?
            .name(format!("oddscache {doing}"))
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(ANSWER_TIMEOUT))
            .ping_interval(PING_INTERVAL)
            .max_reconnects(RECONNECTS)
            .subscription_capacity(MOST_WAITING);
        let connect = options.connect(self.servers.clone());
        match tokio::time::timeout(CONNECT_TIMEOUT * 2, connect).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => Err(self.unreachable(self.explain(&error))),
            Err(_) => Err(self.unreachable("no answer")),
        }
    }

    /// Login and TLS. Blocks: reads files.
    fn options(&self) -> Result<ConnectOptions, String> {
        let options = match &self.login {
            Login::None => ConnectOptions::new(),
            Login::Token(token) => ConnectOptions::with_token(token.clone()),
            Login::User(user, password) => {
                ConnectOptions::with_user_and_password(user.clone(), password.clone())
            }
            Login::Nkey(seed) => ConnectOptions::with_nkey(seed.clone()),
            Login::Credentials(path) => {
                let what = format!("the credentials file {}", path.display());
                let text = fs::read_to_string(path).map_err(|error| format!("{what}: {error}"))?;
                // The error of the parser may quote the file.
                ConnectOptions::with_credentials(&text).map_err(|_| {
                    format!("{what} has no user JWT and seed; write it by `nsc generate creds`")
                })?
            }
        };
        let options = options.tls_client_config(self.tls()?);
        Ok(options.require_tls(self.requires_tls()))
    }

    fn requires_tls(&self) -> bool {
        let mut servers = self.servers.iter();
        self.root_certificates.is_some()
            || self.client_certificate.is_some()
            || servers.any(|server| server.tls_required())
    }

    /// The configuration for TLS. Without it the client would use the process's default provider, and panic if there is
    /// none.
    fn tls(&self) -> Result<ClientConfig, String> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &self.root_certificates {
            roots.add_parsable_certificates(certificates("the root certificates", path)?);
        } else if self.requires_tls() {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS: {error}"))?
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.client_certificate else {
            return Ok(config.with_no_client_auth());
        };
        let chain = certificates("the client certificate", certificate)?;
        let what = format!("the client certificate's key {}", key.display());
        let text = fs::read(key).map_err(|error| format!("{what}: {error}"))?;
        let key = PrivateKeyDer::from_pem_slice(&text)
            .map_err(|_| format!("{what}: no private key in PEM that is not encrypted"))?;
        config
            .with_client_auth_cert(chain, key)
            .map_err(|error| format!("{what}: {error}"))
    }

    /// What is wrong, and the way out.
    fn explain(&self, error: &ConnectError) -> String {
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation => {
                let refused = match self.login {
                    Login::None => {
                        "it requires a login: a user and a password, a token, an nkey, a credentials file or a client certificate"
                    }
                    Login::Token(_) => "it refuses the token",
                    Login::User(..) => "it refuses the user or the password",
                    Login::Nkey(_) => "it does not know the nkey",
                    Login::Credentials(_) => {
                        "it refuses the credentials file: expired, revoked, or of an account that it does not know"
                    }
                };
                return format!("authorization violation: {refused}");
            }
            ConnectErrorKind::Authentication => {
                return "the nkey's seed is malformed: it has 58 characters and begins with SU"
                    .to_owned();
            }
            _ => {}
        }
        let hint = match tls_error(error) {
            Some(TlsError::InvalidCertificate(reason)) => self.untrusted(reason),
            Some(TlsError::InvalidMessage(_)) => {
                "it does not offer TLS; turn that on there, or write nats:// and name no certificates"
            }
            Some(TlsError::AlertReceived(alert)) if is_about_certificates(*alert) => {
                self.certificate_refused()
            }
            // A server that closes the connection at once may be faster than its alert.
            None if self.requires_tls()
                && self.client_certificate.is_none()
                && is_closed(error) =>
            {
                "it closed the connection; it may require a client certificate (Relay::client_certificate, --relay-cert)"
            }
            _ => return error.to_string(),
        };
        format!("{hint} ({error})")
    }

    fn untrusted(&self, reason: &CertificateError) -> &'static str {
        match reason {
            CertificateError::UnknownIssuer if !self.requires_tls() => {
                "it requires TLS; write tls:// in place of nats://"
            }
            // A bad signature: an authority of the same name is trusted.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is not of a trusted authority; name the authority's PEM file (Relay::root_certificates, \
                 --relay-ca)"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another host; name a host in the URL that the certificate names"
            }
            _ => "its certificate cannot be trusted",
        }
    }

    fn certificate_refused(&self) -> &'static str {
        match self.client_certificate {
            None => {
                "it requires a client certificate (Relay::client_certificate, --relay-cert and --relay-key)"
            }
            Some(_) => {
                "it refuses the client certificate: expired, or of an authority that it does not trust"
            }
        }
    }
}

/// The certificates of a PEM file.
fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let what = format!("{what} {}", path.display());
    let text = fs::read(path).map_err(|error| format!("{what}: {error}"))?;
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match list {
        Ok(list) if !list.is_empty() => Ok(list),
        _ => Err(format!("{what}: no certificates in PEM")),
    }
}

/// The error of the TLS library beneath.
fn tls_error(error: &ConnectError) -> Option<&TlsError> {
    let io: &io::Error = error.source()?.downcast_ref()?;
    io.get_ref()?.downcast_ref()
}

fn is_closed(error: &ConnectError) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let Some(source) = error.source() else {
        return false;
    };
    match source.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(kind) => matches!(
            kind,
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
        ),
        // The client's own text for the end of the connection.
        None => source.to_string() == "broken pipe",
    }
}

fn is_about_certificates(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::HandshakeFailure
    )
}
