//! Where the NATS server is, and how to log in.

use std::{fmt, path::PathBuf, time::Duration};

use async_nats::ServerAddr;

use crate::error::Error;

/// Where a relay is: a NATS server with JetStream, how to log in there, and the relay's name.
///
/// A process that follows the database publishes to a relay ([`OddsCache::relay_to`](crate::OddsCache::relay_to)). Any
/// number of processes follow the relay ([`Config::relay`](crate::Config::relay)), and none of them needs the database.
///
/// Building one does no I/O. `Debug` hides passwords, tokens and seeds.
#[derive(Clone)]
pub struct Relay {
    pub(super) servers: Vec<ServerAddr>,
    name: String,
    pub(super) login: Login,
    pub(super) root_certificates: Option<PathBuf>,
    pub(super) client_certificate: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone)]
pub(super) enum Login {
    None,
    Token(String),
    User(String, String),
    Nkey(String),
    Credentials(PathBuf),
}

/// How long the server may take to answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

impl Relay {
    /// A relay with the name `odds`. `url` is `nats://host:4222`, or several with commas between. `tls://` requires TLS,
    /// and a server that requires TLS refuses `nats://`. A user and a password, or a token, may be part of the URL.
    ///
    /// # Errors
    /// [`Error::Config`] if the URL cannot be understood. Its text does not quote the URL.
    pub fn new(url: &str) -> Result<Relay, Error> {
        let malformed =
            || Error::Config("the relay's URL is not of the form nats://host:4222".to_owned());
        let (mut servers, mut login) = (Vec::new(), Login::None);
        for part in url.split(',') {
            let server: ServerAddr = part.trim().parse().map_err(|_| malformed())?;
            // The client does not use a login of the URL, and would log it.
            let mut plain = server.into_inner();
            let (user, password) = (plain.username(), plain.password());
            if matches!(login, Login::None) && !user.is_empty() {
                let user = percent_decoded(user).ok_or_else(malformed)?;
                login = match password {
                    Some(password) => {
                        Login::User(user, percent_decoded(password).ok_or_else(malformed)?)
                    }
                    None => Login::Token(user),
                };
            }
            let cleared = plain.set_username("").and(plain.set_password(None));
            cleared.map_err(|()| malformed())?;
            servers.push(ServerAddr::from_url(plain).map_err(|_| malformed())?);
        }
        Ok(Relay {
            servers,
            name: "odds".to_owned(),
            login,
            root_certificates: None,
            client_certificate: None,
        })
    }

    /// The relay's name. Publisher and subscribers of one relay use the same. Streams and subjects are named after it, so
    /// it consists of letters, digits, `-` and `_`.
    ///
    /// # Errors
    /// [`Error::Config`] if it has other characters, is empty, or is longer than 64 characters.
    pub fn name(mut self, name: &str) -> Result<Relay, Error> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_plain) {
            return Err(Error::Config(
                "a relay's name consists of up to 64 letters, digits, '-' and '_'".to_owned(),
            ));
        }
        name.clone_into(&mut self.name);
        Ok(self)
    }

    /// Logs in with a token.
    #[must_use]
    pub fn token(mut self, token: &str) -> Relay {
        self.login = Login::Token(token.to_owned());
        self
    }

    /// Logs in with a user and a password.
    #[must_use]
    pub fn user_and_password(mut self, user: &str, password: &str) -> Relay {
        self.login = Login::User(user.to_owned(), password.to_owned());
        self
    }

    /// Logs in with the seed of an nkey: the text of the file that `nk -gen user` writes.
    #[must_use]
    pub fn nkey(mut self, seed: &str) -> Relay {
        self.login = Login::Nkey(seed.trim().to_owned());
        self
    }

    /// Logs in with a credentials file, as `nsc generate creds` writes it. It is read at the start, and again after an outage.
    #[must_use]
    pub fn credentials_file(mut self, path: impl Into<PathBuf>) -> Relay {
        self.login = Login::Credentials(path.into());
        self
    }

    /// Trusts the root certificates in a PEM file, and not those of the system. Requires TLS. The file is read at each
    /// connection.
    #[must_use]
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> Relay {
        self.root_certificates = Some(path.into());
        self
    }

    /// Shows a client certificate. Both files are PEM, and are read at the start and again after an outage. Requires TLS.
    #[must_use]
    pub fn client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Relay {
        self.client_certificate = Some((certificate.into(), key.into()));
        self
    }

    /// Servers and name, for messages: never a password or a token.
    #[must_use]
    pub fn target(&self) -> String {
        let servers: Vec<String> = self
            .servers
            .iter()
            .map(|server| format!("{}:{}", server.host(), server.port()))
            .collect();
        format!("{}/{}", servers.join(","), self.name)
    }

    /// The subject of the changes.
    pub(super) fn deltas(&self) -> String {
        format!("oddscache.{}.delta", self.name)
    }

    /// The subject of a part of a state, or of its head.
    pub(super) fn state(&self, part: &str) -> String {
        format!("oddscache.{}.state.{part}", self.name)
    }

    /// The subject of questions.
    pub(super) fn questions(&self) -> String {
        format!("oddscache.{}.ask", self.name)
    }

    /// The stream of the changes. The bucket of the lease has the same name.
    pub(super) fn stream(&self) -> String {
        format!("oddscache_{}", self.name)
    }

    /// The stream of the states.
    pub(super) fn state_stream(&self) -> String {
        format!("oddscache_{}_state", self.name)
    }

    pub(super) fn unreachable(&self, reason: impl fmt::Display) -> Error {
        Error::Relay {
            target: self.target(),
            reason: reason.to_string(),
        }
    }
}

/// Undoes `%XX`. `None` if that is no UTF-8, or a `%` has no two hexadecimal digits after it.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("target", &self.target())
            .finish_non_exhaustive()
    }
}
