//! `Relay`: where a relay is, from Python's arguments.

use std::path::PathBuf;

use pyo3::prelude::*;

use crate::errors;

/// Where a relay is: a NATS server with JetStream, how to log in there, and the relay's name. Nothing of it can be read
/// back but its text, which has no secret.
///
/// url: `nats://host:4222`, or several with commas between. `tls://` requires TLS. It may hold a user and a password, or
///     a token.
/// name: the relay's name, as its publisher has it.
/// user, password: log in as a user.
/// token: log in with a token.
/// nkey: log in with the seed of an nkey.
/// creds: log in with a credentials file. It is read at the start, and again after an outage.
/// ca: a PEM file of root certificates to trust in place of those of the system.
/// cert, key: PEM files of a client certificate and its key.
///
/// Does no I/O. Raises `ConfigError` for what cannot be understood, and for more than one way to log in.
#[pyclass(frozen, module = "oddscache")]
pub(crate) struct Relay(pub(crate) oddscache::Relay);

#[pymethods]
impl Relay {
    #[new]
    #[pyo3(signature = (
        url, *, name = "odds", user = None, password = None, token = None, nkey = None, creds = None, ca = None,
        cert = None, key = None
    ))]
    #[expect(clippy::too_many_arguments, reason = "named arguments in Python")]
    fn new(
        py: Python<'_>,
        url: &str,
        name: &str,
        user: Option<&str>,
        password: Option<&str>,
        token: Option<&str>,
        nkey: Option<&str>,
        creds: Option<PathBuf>,
        ca: Option<PathBuf>,
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> PyResult<Relay> {
        let relay = oddscache::Relay::new(url).and_then(|relay| relay.name(name));
        let mut relay = relay.map_err(|error| errors::exception(py, &error))?;
        let ways = [
            user.is_some(),
            token.is_some(),
            nkey.is_some(),
            creds.is_some(),
        ];
        if ways.into_iter().filter(|given| *given).count() > 1 {
            return Err(errors::config(
                py,
                "give one of user, token, nkey and creds",
            ));
        }
        relay = match (user, password) {
            (Some(user), password) => relay.user_and_password(user, password.unwrap_or_default()),
            (None, None) => relay,
            (None, Some(_)) => return Err(errors::config(py, "password needs user")),
        };
        if let Some(token) = token {
            relay = relay.token(token);
        }
        if let Some(seed) = nkey {
            relay = relay.nkey(seed);
        }
        if let Some(path) = creds {
            relay = relay.credentials_file(path);
        }
        if let Some(path) = ca {
            relay = relay.root_certificates(path);
        }
        match (cert, key) {
            (Some(cert), Some(key)) => relay = relay.client_certificate(cert, key),
            (None, None) => {}
            _ => return Err(errors::config(py, "cert and key need each other")),
        }
        Ok(Relay(relay))
    }

    fn __repr__(&self) -> String {
        format!("<oddscache.Relay {}>", self.0.target())
    }
}
