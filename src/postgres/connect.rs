//! Opens a connection: tries every server of the configuration in turn, each with its own time limit.
//!
//! # Invariants
//! - O1: Each address of each server has the whole `connect_timeout`, up to and including the login.
//! - O2: If `sslmode` requires TLS, no byte of the login goes out unencrypted.
//! - O3: The error counts as transient only if the error of at least one server does.

use std::{
    future::{Future, poll_fn},
    io,
    net::IpAddr,
    path::PathBuf,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::timeout;
use tokio_postgres::{
    AsyncMessage, Client, SimpleQueryMessage, Socket,
    config::{Host, SslMode as Negotiate},
    error::SqlState,
};

use crate::{
    error::{Error, causes, reason},
    postgres::{
        connector::{Connector, Stream},
        hosts::{self, Session, Target},
        passfile,
        password::{Login, PasswordSource},
        quote::quote,
        server_version::Major,
        tls::{SslMode, Tls},
    },
};

/// The settings that hold for a transaction. A macro, because `concat!` takes only literals. Each setting costs the
/// server 2 us a transaction. So planner settings are here only if another value could make a read take minutes.
macro_rules! settings {
    () => {
        "SET LOCAL exit_on_error = off; SET LOCAL standard_conforming_strings = on; SET LOCAL quote_all_identifiers = off; \
         SET LOCAL extra_float_digits = 1; SET LOCAL DateStyle = 'ISO, MDY'; SET LOCAL IntervalStyle = postgres; \
         SET LOCAL TimeZone = 'UTC'; SET LOCAL bytea_output = hex; SET LOCAL row_security = on; SET LOCAL jit = off; \
         SET LOCAL enable_indexscan = on; SET LOCAL enable_bitmapscan = on; SET LOCAL enable_nestloop = on; \
         SET LOCAL enable_hashjoin = on; SET LOCAL enable_hashagg = on; SET LOCAL enable_sort = on; \
         SET LOCAL join_collapse_limit = 8; SET LOCAL from_collapse_limit = 8; "
    };
}

/// The part of a connection that moves the bytes of a [`Client`], with or without TLS, as
/// [`tokio_postgres::Connection`] does. It ends when the client is dropped. Dropping it closes the connection.
///
/// It must be polled. `tokio::spawn(connection)` is enough if notices and notifications do not matter; otherwise poll
/// [`Connection::poll_message`].
#[must_use = "the client does nothing until this is polled"]
pub struct Connection {
    inner: tokio_postgres::Connection<Socket, Stream>,
    target: Target,
}

impl Connection {
    /// Statements to run right after BEGIN, each with its semicolon. For the transaction they replace what the role,
    /// the database or the server sets. With them
    /// - the server reads SQL text and prints values in the same way in every session, with times in UTC;
    /// - an error does not end the session, nor does `transaction_timeout` (since PostgreSQL 17);
    /// - the planner may use indexes and every way to join, and `jit` is off.
    ///
    /// They do not include the other time-outs and `search_path`, which depend on the transaction. Does no I/O.
    #[must_use]
    pub fn settings_after_begin(&self) -> &'static str {
        let version = self.inner.parameter("server_version");
        match version.and_then(Major::parse) {
            Some(Major(17..)) => concat!("SET LOCAL transaction_timeout = 0; ", settings!()),
            _ => settings!(),
        }
    }

    /// The server that it reached, with its address.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// The next notice or notification. Moves the client's bytes meanwhile. `None` once the connection is closed.
    ///
    /// # Errors
    /// The driver's error that ended the connection.
    pub fn poll_message(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<AsyncMessage, tokio_postgres::Error>>> {
        self.inner.poll_message(context)
    }
}

impl Future for Connection {
    type Output = Result<(), tokio_postgres::Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.inner).poll(context)
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

/// How long connecting to one address may take, unless the configuration says otherwise.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How to reach the server, as a connection string says.
#[derive(Debug, Clone)]
pub(crate) struct ConnectOptions {
    pub(crate) postgres: tokio_postgres::Config,
    pub(crate) tls: Tls,
    pub(crate) session: Session,
    pub(crate) passfile: Option<PathBuf>,
    /// Replaces any other password.
    pub(crate) password: Option<PasswordSource>,
    /// The user's own connector, which replaces rustls.
    pub(crate) connector: Option<Connector>,
}

impl ConnectOptions {
    /// Fails if the options contradict each other.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.tls.check(self.postgres.get_ssl_negotiation())?;
        hosts::targets(&self.postgres).map(drop)
    }

    /// Fails if the TLS settings contradict each other, or if this program has no connector for them.
    pub(crate) fn check_tls(&self) -> Result<(), Error> {
        self.tls.check(self.postgres.get_ssl_negotiation())?;
        self.tls.check_connector(self.connector.is_some())
    }

    /// The same options for this server only, in whatever state it is.
    pub(crate) fn only(&self, target: &Target) -> ConnectOptions {
        let mut postgres = target.postgres(&self.postgres, self.postgres.get_ssl_mode());
        target.address.map(|address| postgres.hostaddr(address));
        ConnectOptions {
            postgres,
            session: Session::Any,
            ..self.clone()
        }
    }

    /// Hosts and database, for messages. Never contains a password.
    pub(crate) fn target(&self) -> String {
        let targets = hosts::targets(&self.postgres).unwrap_or_default();
        let hosts: Vec<String> = targets.iter().map(Target::name).collect();
        let database = self
            .postgres
            .get_dbname()
            .or(self.postgres.get_user())
            .unwrap_or_default();
        format!("{}/{database}", hosts.join(","))
    }

    /// See [`Config::open_for`](crate::config::Config::open_for).
    pub(crate) async fn open(&self, purpose: Option<&str>) -> Result<(Client, Connection), Error> {
        if self.postgres.get_application_name().is_none() {
            let words: Vec<&str> = ["oddscache"].into_iter().chain(purpose).collect();
            let mut named = self.clone();
            named.postgres.application_name(words.join(" "));
            return named.open_named().await;
        }
        self.open_named().await
    }

    async fn open_named(&self) -> Result<(Client, Connection), Error> {
        self.check_tls()?;
        let targets = hosts::targets(&self.postgres)?;
        let connector = self.connector(&targets).await?;
        let mut failures = Vec::new();
        for session in self.session.rounds() {
            for target in &targets {
                match self.try_target(target, &connector, *session).await {
                    Ok(opened) => return Ok(opened),
                    Err(failure) => failures.push(failure),
                }
            }
        }
        Err(self.sum_up(failures))
    }

    /// The user's connector; else rustls, if any connection may need it.
    async fn connector(&self, targets: &[Target]) -> Result<Connector, Error> {
        if let Some(connector) = &self.connector {
            return Ok(connector.clone());
        }
        // Without a need for TLS, do not read certificates: a missing file must not prevent the connection.
        #[cfg(feature = "tls")]
        if self.tls.mode != SslMode::Disable && targets.iter().any(|target| !target.is_socket()) {
            let tls = self.tls.clone();
            // Reading certificates blocks.
            let connector =
                tokio::task::spawn_blocking(move || crate::postgres::rustls::connector(&tls)).await;
            let connector = connector
                .map_err(|_| Error::Config("reading certificates was interrupted".to_owned()))?;
            return connector.map(Connector::new);
        }
        let _ = targets;
        Ok(Connector::none())
    }

    fn may_use_tls(&self) -> bool {
        cfg!(feature = "tls") || self.connector.is_some()
    }

    /// Tries each address of one server, each with its own time limit (O1).
    async fn try_target(
        &self,
        target: &Target,
        connector: &Connector,
        session: Session,
    ) -> Result<(Client, Connection), Error> {
        let bound = self.connect_bound();
        let late = || unreachable(target, format!("no answer within {} s", bound.as_secs()));
        let addresses = timeout(bound, look_up(target))
            .await
            .map_err(|_| late())??;
        let password = self.password(target).await?;
        let mut failure: Option<Error> = None;
        for address in addresses {
            let attempt = self.try_address(target, address, connector, &password, session);
            let error = match timeout(bound, attempt).await.map_err(|_| late()) {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(error)) | Err(error) => error,
            };
            failure = Some(more_telling(failure, error));
        }
        Err(failure.unwrap_or_else(|| unreachable(target, "the name has no address".to_owned())))
    }

    /// Tries one address with or without TLS, in the order that the mode prescribes (O2).
    async fn try_address(
        &self,
        target: &Target,
        address: Option<IpAddr>,
        connector: &Connector,
        password: &Password,
        session: Session,
    ) -> Result<(Client, Connection), Error> {
        let (first, second) = match self.tls.mode {
            _ if target.is_socket() => (Negotiate::Disable, None),
            SslMode::Disable => (Negotiate::Disable, None),
            _ if !self.may_use_tls() => (Negotiate::Disable, None),
            SslMode::Allow => (Negotiate::Disable, Some(Negotiate::Require)),
            SslMode::Prefer => (Negotiate::Prefer, Some(Negotiate::Disable)),
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                (Negotiate::Require, None)
            }
        };
        let login = self
            .log_in(target, address, connector, password, first)
            .await;
        let login = match (login, second) {
            // The handshake failed, or pg_hba.conf has no line for this kind of connection.
            (
                Err(Failed {
                    try_other_way: true,
                    ..
                }),
                Some(second),
            ) => {
                self.log_in(target, address, connector, password, second)
                    .await
            }
            (login, _) => login,
        };
        let (client, mut connection) = login.map_err(|failed| failed.error)?;
        // The login worked. Now check whether the session is one that `target_session_attrs` accepts.
        let Some((query, wanted, problem)) = session.query() else {
            return Ok((client, connection));
        };
        match first_value(&client, &mut connection, query).await {
            Ok(Some(answer)) if answer == wanted => Ok((client, connection)),
            Ok(_) => Err(unreachable(
                target,
                format!("{problem}, which target_session_attrs does not allow"),
            )),
            Err(reason) => Err(unreachable(target, reason)),
        }
    }

    async fn log_in(
        &self,
        target: &Target,
        address: Option<IpAddr>,
        connector: &Connector,
        password: &Password,
        negotiate: Negotiate,
    ) -> Result<(Client, Connection), Failed> {
        let mut postgres = target.postgres(&self.postgres, negotiate);
        address.map(|address| postgres.hostaddr(address));
        match password {
            Password::Configured => {}
            Password::FromFile(password) => {
                postgres.password(password);
            }
            Password::Asked(password) => {
                postgres.password(password);
            }
        }
        let connect = postgres.connect(connector.clone()).await;
        let (client, connection) = connect.map_err(|error| Failed {
            // `pg_hba.conf` may refuse this kind of connection and accept the other (SQLSTATE 28000).
            try_other_way: is_about_tls(&error)
                || error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION),
            error: self.classify(target, &error, password),
        })?;
        let target = Target {
            address: address.or(target.address),
            ..target.clone()
        };
        let connection = Connection {
            inner: connection,
            target,
        };
        Ok((client, connection))
    }

    /// The password for this server, within the time that connecting may take.
    async fn password(&self, target: &Target) -> Result<Password, Error> {
        if let Some(source) = &self.password {
            let bound = self.connect_bound();
            let user = hosts::user(&self.postgres).unwrap_or_default();
            let asked = source.ask(self.login(target, user));
            let asked = timeout(bound, asked).await;
            let asked = asked.unwrap_or_else(|_| Err(format!("none within {} s", bound.as_secs())));
            return asked.map(Password::Asked).map_err(|reason| {
                let target = target.name();
                Error::Password { target, reason }
            });
        }
        let from_file = self.password_from_file(target).await;
        Ok(from_file.map_or(Password::Configured, Password::FromFile))
    }

    fn login(&self, target: &Target, user: String) -> Login {
        Login {
            host: target.password_host(),
            port: target.port,
            database: self.postgres.get_dbname().unwrap_or(&user).to_owned(),
            user,
        }
    }

    /// The password for this server from the password file, unless one is configured.
    async fn password_from_file(&self, target: &Target) -> Option<Vec<u8>> {
        let path = self.passfile.clone()?;
        if self.postgres.get_password().is_some() {
            return None;
        }
        let login = self.login(target, hosts::user(&self.postgres)?);
        let reading = tokio::task::spawn_blocking(move || passfile::read(&path, &login));
        reading.await.ok().flatten()
    }

    /// Turns an error of the login into one of ours, which decides whether a retry makes sense.
    fn classify(
        &self,
        target: &Target,
        error: &tokio_postgres::Error,
        password: &Password,
    ) -> Error {
        #[cfg(feature = "tls")]
        if let Some(cause) = crate::postgres::rustls::cause(error) {
            return match crate::postgres::rustls::explain(cause) {
                Some(reason) => tls(target, reason),
                None => unreachable(target, format!("TLS: {cause}")),
            };
        }
        let mut said = reason(error);
        let Some(code) = error.code() else {
            return self.classify_unanswered(target, error, said);
        };
        if *code == SqlState::TOO_MANY_CONNECTIONS {
            let role = self.postgres.get_user().unwrap_or_default();
            return Error::TooManyConnections {
                target: target.name(),
                reason: said,
                role: quote(role),
                database: quote(self.postgres.get_dbname().unwrap_or(role)),
            };
        }
        // Transient: the server starts up or shuts down, has too little memory, or a disk fails.
        if ["57P", "53", "58"]
            .iter()
            .any(|class| code.code().starts_with(class))
        {
            return unreachable(target, said);
        }
        // PgBouncer reports everything with this one code. Most of it is transient: it is full, or its server is away.
        let permanent = [
            "unsupported startup parameter",
            "authentication failed",
            "no such",
        ];
        if *code == SqlState::PROTOCOL_VIOLATION
            && !permanent.iter().any(|words| said.contains(words))
        {
            return unreachable(target, said);
        }
        if *code == SqlState::INVALID_PASSWORD {
            said.push_str(match password {
                Password::Configured => "",
                Password::FromFile(_) => "; the password came from the password file",
                Password::Asked(_) => "; the password came from password_with",
            });
        }
        refused(target, said)
    }

    /// The same for an error that did not come from the server.
    fn classify_unanswered(
        &self,
        target: &Target,
        error: &tokio_postgres::Error,
        said: String,
    ) -> Error {
        // The driver does not tell its errors apart by type, only by text.
        match error.to_string().as_str() {
            "error performing TLS handshake" if said.ends_with("server does not support TLS") => {
                tls(
                    target,
                    format!(
                        "the server does not offer TLS, which sslmode={} requires; switch it on there (ssl = on)",
                        self.tls.mode
                    ),
                )
            }
            "error performing TLS handshake" if said.ends_with("invalid dns name") => tls(
                target,
                "a certificate cannot be issued for this host name".to_owned(),
            ),
            // A connector that refuses the server will refuse it again. Only trouble with the network may end by
            // itself.
            "error performing TLS handshake" if self.connector.is_some() && !is_about_io(error) => {
                tls(target, said)
            }
            // No password is given, the password is wrong, or channel binding is impossible.
            "invalid configuration" | "authentication error" => refused(target, said),
            _ => unreachable(target, said),
        }
    }

    /// One error for all servers that were tried.
    fn sum_up(&self, mut failures: Vec<Error>) -> Error {
        let parts = |error: &Error| match error {
            Error::Unreachable { target, reason }
            | Error::TooManyConnections { target, reason, .. }
            | Error::Password { target, reason }
            | Error::Refused { target, reason }
            | Error::Tls { target, reason } => (target.clone(), reason.clone()),
            other => (String::new(), other.to_string()),
        };
        let database = self
            .postgres
            .get_dbname()
            .or(self.postgres.get_user())
            .unwrap_or_default();
        let mut said: Vec<(String, String)> = Vec::new();
        for failure in failures.iter().map(parts) {
            if !said.contains(&failure) {
                said.push(failure);
            }
        }
        // One server stands by itself; several are listed, each with its reason.
        let (target, reason) = match said.as_slice() {
            [(target, reason)] => (format!("{target}/{database}"), reason.clone()),
            several => {
                let all: Vec<String> = several
                    .iter()
                    .map(|(target, reason)| format!("{target}: {reason}"))
                    .collect();
                (self.target(), all.join("; "))
            }
        };
        let full = failures.iter().find_map(|error| match error {
            Error::TooManyConnections { role, database, .. } => {
                Some((role.clone(), database.clone()))
            }
            _ => None,
        });
        let transient = failures.iter().any(Error::is_transient);
        let no_password = |error: &Error| matches!(error, Error::Password { .. });
        let no_password = failures.iter().all(no_password);
        let refused = failures
            .iter()
            .any(|error| matches!(error, Error::Refused { .. }));
        // Transient if any of the failures is (O3).
        match (failures.pop(), full) {
            (Some(Error::Config(problem)), _) => Error::Config(problem),
            (_, Some((role, database))) => Error::TooManyConnections {
                target,
                reason,
                role,
                database,
            },
            _ if no_password => Error::Password { target, reason },
            _ if transient => Error::Unreachable { target, reason },
            _ if refused => Error::Refused { target, reason },
            _ => Error::Tls { target, reason },
        }
    }

    fn connect_bound(&self) -> Duration {
        let bound = self.postgres.get_connect_timeout().copied();
        bound.unwrap_or(CONNECT_TIMEOUT)
    }
}

/// Where the password of a login comes from.
enum Password {
    /// From the connection string, or there is none.
    Configured,
    FromFile(Vec<u8>),
    Asked(String),
}

/// A login that failed, and whether to try again the other way: with TLS if this was without, or the reverse.
struct Failed {
    error: Error,
    try_other_way: bool,
}

/// The more useful of the errors of two addresses of one server. An answer from the server says more than no answer.
fn more_telling(before: Option<Error>, now: Error) -> Error {
    match before {
        Some(before) if !before.is_transient() => before,
        _ => now,
    }
}

fn unreachable(target: &Target, reason: String) -> Error {
    let target = target.name();
    Error::Unreachable { target, reason }
}

fn refused(target: &Target, reason: String) -> Error {
    let target = target.name();
    Error::Refused { target, reason }
}

fn tls(target: &Target, reason: String) -> Error {
    let target = target.name();
    Error::Tls { target, reason }
}

/// Whether the network failed. Connectors also wrap refusals of the other side in I/O errors, of the kinds
/// `InvalidData` and `Other`: these do not count.
fn is_about_io(error: &tokio_postgres::Error) -> bool {
    let said = [io::ErrorKind::InvalidData, io::ErrorKind::Other];
    causes(error)
        .find_map(|cause| cause.downcast_ref::<io::Error>())
        .is_some_and(|error| !said.contains(&error.kind()))
}

fn is_about_tls(error: &tokio_postgres::Error) -> bool {
    error.to_string() == "error performing TLS handshake"
}

/// The addresses of a server. `None` stands for a Unix socket, which has no address.
async fn look_up(target: &Target) -> Result<Vec<Option<IpAddr>>, Error> {
    let name = match (&target.host, target.address) {
        (_, Some(address)) => return Ok(vec![Some(address)]),
        (Host::Tcp(name), None) => name,
        #[cfg(unix)]
        (Host::Unix(_), None) => return Ok(vec![None]),
    };
    let found = tokio::net::lookup_host((name.as_str(), target.port)).await;
    let found = found.map_err(|error| unreachable(target, error.to_string()))?;
    let mut addresses: Vec<Option<IpAddr>> = found.map(|address| Some(address.ip())).collect();
    addresses.dedup();
    Ok(addresses)
}

/// The first value of a query's answer. Polls `connection`, without which the client gets no answer. The error is a
/// text.
async fn first_value(
    client: &Client,
    connection: &mut Connection,
    query: &str,
) -> Result<Option<String>, String> {
    let mut answer = pin!(client.simple_query(query));
    let messages = poll_fn(|context| {
        loop {
            match connection.poll_message(context) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
                Poll::Ready(None) => return Poll::Ready(Err(None)),
                Poll::Pending => return answer.as_mut().poll(context).map_err(Some),
            }
        }
    })
    .await
    .map_err(|error: Option<tokio_postgres::Error>| {
        error.map_or("connection closed".to_owned(), |error| reason(&error))
    })?;
    Ok(messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_address_does_not_hide_a_refused_login() {
        let target = Target {
            host: Host::Tcp("h".to_owned()),
            address: None,
            port: 1,
        };
        let dead = || unreachable(&target, "nobody".to_owned());
        let login = || refused(&target, "password".to_owned());
        let is_login = |error: Error| matches!(error, Error::Refused { .. });
        assert!(is_login(more_telling(Some(dead()), login())));
        assert!(is_login(more_telling(Some(login()), dead())));
        assert!(is_login(more_telling(None, login())));
        assert!(!is_login(more_telling(Some(dead()), dead())));
    }
}
