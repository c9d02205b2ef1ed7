use std::{error::Error as StdError, path::PathBuf, time::Duration};

use tokio_postgres::{
    Client, Socket,
    config::SslMode as Negotiate,
    tls::{MakeTlsConnect, TlsConnect},
};

#[cfg(feature = "nats")]
use crate::relay::address::Relay;
use crate::{
    error::Error,
    postgres::{
        connect::{CONNECT_TIMEOUT, ConnectOptions, Connection},
        connector::Connector,
        conninfo::Parameters,
        hosts::Session,
        password::{Login, PasswordSource},
        tls::{SslMode, Tls},
    },
};

/// How to reach the database and how to follow it.
///
/// Building one does no I/O. Cloning copies a few strings. `Debug` hides the password and keys. The service's settings
/// have the names of these methods.
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) connect: ConnectOptions,
    pub(crate) app_schema: String,
    pub(crate) cache_schema: String,
    pub(crate) lookback: Duration,
    pub(crate) poll_interval: Duration,
    pub(crate) read_timeout: Duration,
    pub(crate) warmup_timeout: Duration,
    pub(crate) warmup_connections: usize,
    pub(crate) retry_unreachable: bool,
    pub(crate) need_feed: bool,
    pub(crate) allow_row_security: bool,
    pub(crate) audit_cycle: Duration,
    pub(crate) audit_budget: f64,
    listen_from: Option<Box<Config>>,
    #[cfg(feature = "nats")]
    pub(crate) relay: Option<Relay>,
}

/// With the driver's default of two hours, a dead peer would go unnoticed for that long.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const DRIVER_KEEPALIVE_IDLE: Duration = Duration::from_secs(2 * 60 * 60);

/// PostgreSQL has no time before 4713 BC, so the start of the window must stay after it.
const LONGEST_LOOKBACK: Duration = Duration::from_secs(1_000 * 365 * 24 * 60 * 60);

impl Config {
    /// Reads a connection string as libpq does: a URL (`postgres://user@host/database`) or `host=... dbname=...`.
    ///
    /// It understands `host`, `hostaddr` and `port` (several with commas between), `dbname`, `user`, `password`,
    /// `passfile`, `sslmode`, `sslrootcert`, `sslcert`, `sslkey`, `sslnegotiation`, `channel_binding`,
    /// `target_session_attrs`, `load_balance_hosts`, `connect_timeout` (seconds, for each address), `keepalives`,
    /// `keepalives_idle` and the other `keepalives_*`, `tcp_user_timeout` (milliseconds), `options`,
    /// `application_name`. Without a host it uses the socket in `/var/run/postgresql` or `/tmp` if there is one, else
    /// `localhost`. It reads no file in the home directory, and no environment variable but `USER`.
    ///
    /// # Errors
    /// [`Error::Config`] if the string cannot be understood. The error names the parameter, never a value.
    pub fn new(connection_string: &str) -> Result<Config, Error> {
        Config::with_defaults(connection_string, [])
    }

    /// The same, with defaults for the parameters that the connection string leaves out. A default has the name of a
    /// parameter, as in `("port", "5433")`. The service adds the `PG*` variables of its environment this way.
    ///
    /// # Errors
    /// [`Error::Config`] if something cannot be understood. The error names the parameter, never a value.
    pub fn with_defaults<'a>(
        connection_string: &str,
        defaults: impl IntoIterator<Item = (&'a str, String)>,
    ) -> Result<Config, Error> {
        let mut parameters = Parameters::parse(connection_string)?;
        for (name, value) in defaults {
            parameters.fill_in(name, value)?;
        }
        let parsed = parameters.build()?;
        let mut config = Config::from_postgres(parsed.postgres);
        config.connect.tls = parsed.tls;
        config.connect.session = parsed.session;
        config.connect.passfile = parsed.passfile;
        config.connect.check()?;
        Ok(config)
    }

    /// Takes the driver's own configuration, and adds what it leaves out: a time limit of 10 s for connecting to each
    /// address, and keepalives that notice a dead peer within 15 s. The driver knows only three TLS modes;
    /// [`Config::tls`] sets the others.
    ///
    /// Without an application name, each connection is named by its purpose: `oddscache follow` reads and listens,
    /// `oddscache listen` only listens ([`Config::listen_from`]), `oddscache warmup` helps to read everything, and
    /// `oddscache check` finds out whether a pooler is in between.
    pub fn from_postgres(mut postgres: tokio_postgres::Config) -> Config {
        if postgres.get_connect_timeout().is_none() {
            postgres.connect_timeout(CONNECT_TIMEOUT);
        }
        if postgres.get_keepalives_idle() == DRIVER_KEEPALIVE_IDLE {
            postgres
                .keepalives_idle(KEEPALIVE_IDLE)
                .keepalives_interval(Duration::from_secs(3))
                .keepalives_retries(3);
        }
        if postgres.get_tcp_user_timeout().is_none() {
            postgres.tcp_user_timeout(Duration::from_secs(15));
        }
        let mode = match postgres.get_ssl_mode() {
            Negotiate::Disable => SslMode::Disable,
            Negotiate::Prefer => SslMode::Prefer,
            // A mode that a later driver adds gets the strictest of the three.
            _ => SslMode::Require,
        };
        Config {
            connect: ConnectOptions {
                tls: Tls::new(mode),
                session: Session::of(postgres.get_target_session_attrs()),
                passfile: None,
                password: None,
                connector: None,
                postgres,
            },
            app_schema: "public".to_owned(),
            cache_schema: "oddscache".to_owned(),
            lookback: Duration::from_secs(2 * 60 * 60),
            poll_interval: Duration::from_secs(1),
            read_timeout: Duration::from_secs(10),
            warmup_timeout: Duration::from_secs(300),
            warmup_connections: 2,
            retry_unreachable: true,
            need_feed: true,
            allow_row_security: false,
            audit_cycle: Duration::from_secs(120),
            audit_budget: 0.01,
            listen_from: None,
            #[cfg(feature = "nats")]
            relay: None,
        }
    }

    /// Follows a relay in place of a database: needs no database, and makes no connection to one. What concerns the
    /// database has no effect then; [`Config::retry_unreachable`] holds for the relay.
    ///
    /// ```
    /// use oddscache::{Config, OddsCache, Relay};
    ///
    /// # fn main() -> Result<(), oddscache::Error> {
    /// let (cache, follower) = OddsCache::connect(Config::relay(Relay::new("nats://localhost:4222")?));
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "nats")]
    pub fn relay(relay: Relay) -> Config {
        Config {
            relay: Some(relay),
            ..Config::from_postgres(tokio_postgres::Config::new())
        }
    }

    /// Whether and how to encrypt, and which certificates to trust. Replaces what the connection string says about TLS.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Config {
        self.connect.tls = tls;
        self
    }

    /// A password file in the form of libpq's `.pgpass`: lines of `host:port:database:user:password`. Used if no
    /// password is set. Each connection reads it again for each host. A file that users other than its owner may read
    /// is ignored, with a warning in the log. No file is read unless set.
    #[must_use]
    pub fn passfile(mut self, path: impl Into<PathBuf>) -> Config {
        self.connect.passfile = Some(path.into());
        self
    }

    /// A function that returns the password, such as a token that expires, from a cloud's identity service or a vault.
    /// Each new connection calls it for each host that it tries. It replaces any other password, whether set or in a
    /// file.
    ///
    /// The function has a time limit of its own, as long as `connect_timeout` (10 s unless set). It is not called again
    /// while a connection lasts. It need not cache the password: a follower opens one connection and keeps it, opens
    /// two for a moment each time that it connects, and tries again after a loss with growing pauses.
    ///
    /// If it fails or takes too long, opening fails with [`Error::Password`]. A follower then tries again, as it does
    /// when the database cannot be reached. The error's text is logged and shown in
    /// [`Status`](crate::metrics::status::Status): it must not contain a secret. The password itself is never logged,
    /// nor kept once the login is sent.
    ///
    /// [`Config::listen_from`] does not inherit it: that configuration has a function of its own.
    ///
    /// ```
    /// use oddscache::{Config, Login};
    ///
    /// # async fn token(host: &str, port: u16, user: &str) -> Result<String, std::io::Error> { Ok(String::new()) }
    /// # fn example() -> Result<(), oddscache::Error> {
    /// let config = Config::new("postgres://oddscache@db.example.com/odds?sslmode=verify-full")?
    ///     .password_with(async |login: Login| token(&login.host, login.port, &login.user).await);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn password_with<F, Fut, E>(mut self, password: F) -> Config
    where
        F: Fn(Login) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        self.connect.password = Some(PasswordSource::new(password));
        self
    }

    /// A TLS connector of your own, instead of rustls: for a certified implementation, or keys in hardware. Works
    /// without the cargo feature `tls`. Any connector for the driver works, such as those of `postgres-openssl`,
    /// `postgres-native-tls` or `tokio-postgres-rustls`.
    ///
    /// `sslmode` still says whether TLS is used: `require` and the stricter modes insist on it, `prefer` (the default)
    /// connects without TLS if the handshake fails, so set at least `require`. In every mode, the connector alone
    /// decides which server certificates it accepts. Give root and client certificates to the connector: if the
    /// connection string or [`Config::tls`] names any, opening fails with [`Error::Config`]. Unix sockets are never
    /// encrypted.
    ///
    /// A handshake that the connector refuses is [`Error::Tls`] and ends a follower before its first warmup; one that
    /// the network breaks is [`Error::Unreachable`]. Each connection clones the connector. [`Config::listen_from`] does
    /// not inherit it.
    ///
    /// ```
    /// use oddscache::{Config, Error, tokio_postgres::{Socket, tls::{MakeTlsConnect, TlsConnect}}};
    ///
    /// fn config<C>(connector: C) -> Result<Config, Error>
    /// where
    ///     C: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    ///     C::TlsConnect: Send + 'static,
    ///     C::Stream: Send + 'static,
    ///     <C::TlsConnect as TlsConnect<Socket>>::Future: Send,
    /// {
    ///     let config = Config::new("postgres://oddscache@db.example.com/odds?sslmode=require")?;
    ///     Ok(config.tls_connector(connector))
    /// }
    /// ```
    #[must_use]
    pub fn tls_connector<C>(mut self, connector: C) -> Config
    where
        C: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        C::TlsConnect: Send + 'static,
        C::Stream: Send + 'static,
        <C::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        self.connect.connector = Some(Connector::new(connector));
        self
    }

    /// The schema of the application's tables; `public` unless set.
    #[must_use]
    pub fn app_schema(mut self, schema: impl Into<String>) -> Config {
        self.app_schema = schema.into();
        self
    }

    /// The schema of the change feed, which `sql/install.sql` creates; `oddscache` unless set.
    #[must_use]
    pub fn cache_schema(mut self, schema: impl Into<String>) -> Config {
        self.cache_schema = schema.into();
        self
    }

    /// How long after its kickoff an event is held, by the server's clock; 2 h unless set, at most a thousand years.
    #[must_use]
    pub fn lookback(mut self, lookback: Duration) -> Config {
        self.lookback = lookback.min(LONGEST_LOOKBACK);
        self
    }

    /// How long to wait for a notification before reading the change log without one; 1 s unless set, at least 10 ms.
    ///
    /// It bounds how late a change becomes visible when notifications are lost, and how old a view of an idle database
    /// gets. The time of the read comes on top of both.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Config {
        self.poll_interval = interval.max(Duration::from_millis(10));
        self
    }

    /// How long reading changes may take; 10 s unless set. After that the follower treats the connection as dead and
    /// opens another.
    #[must_use]
    pub fn read_timeout(mut self, timeout: Duration) -> Config {
        self.read_timeout = timeout;
        self
    }

    /// How long reading everything may take; 300 s unless set. After that the follower treats the connection as dead
    /// and opens another.
    #[must_use]
    pub fn warmup_timeout(mut self, timeout: Duration) -> Config {
        self.warmup_timeout = timeout;
        self
    }

    /// How many connections read everything in parallel, from 1 to 8; 2 unless set. Each costs the server a session and
    /// a share of a core. All but the first are closed after the warmup; one that cannot be opened is left out.
    #[must_use]
    pub fn warmup_connections(mut self, connections: usize) -> Config {
        self.warmup_connections = connections.clamp(1, 8);
        self
    }

    /// Whether the follower waits for a database that cannot be reached *before* the first warmup (the default), or
    /// ends with the error. After the first warmup it always tries again.
    #[must_use]
    pub fn retry_unreachable(mut self, retry: bool) -> Config {
        self.retry_unreachable = retry;
        self
    }

    /// Whether the change feed must be installed; `true` unless set. With `false`, only
    /// [`warm_up`](crate::follow::warm_up) works: a follower ends with [`Error::Config`].
    #[must_use]
    pub fn need_feed(mut self, need: bool) -> Config {
        self.need_feed = need;
        self
    }

    /// Whether the role may be subject to row level security; `false` unless set. Set it only if the policies show the
    /// role every row: hidden rows are missing from the cache, without an error.
    #[must_use]
    pub fn allow_row_security(mut self, allow: bool) -> Config {
        self.allow_row_security = allow;
        self
    }

    /// The time in which the audit reads every event again and compares it with the view; 120 s unless set. The audit
    /// takes longer if its budget does not suffice. So it also makes a pass of its own over kickoffs, ids and times,
    /// which costs a small part of that. If comparing everything takes longer than seven cycles, a third pass compares the
    /// markets of those events that changed lately or begin soon.
    /// [`OddsCache::audit`](crate::cache::OddsCache::audit) says how long each takes.
    #[must_use]
    pub fn audit_cycle(mut self, cycle: Duration) -> Config {
        self.audit_cycle = cycle;
        self
    }

    /// The share of its time that the follower may spend on the audit, from 0.0001 to 1; 0.01 unless set. The load on
    /// the server is at most this share of one core. At 110,000 events it took ten minutes with 0.01 to compare all
    /// kickoffs, ids and times (`benches/README.md`); the time falls in proportion.
    #[must_use]
    pub fn audit_budget(mut self, budget: f64) -> Config {
        self.audit_budget = budget;
        self
    }

    /// Where to LISTEN, if not at the server that is read. A follower of a standby listens at its primary, because a
    /// standby sends no notifications. A follower behind a pooler in transaction mode listens at the server itself.
    ///
    /// The follower takes from `listener` only how to connect: hosts, role, password, TLS and the time limit of
    /// connecting. After a notification it reads several times within a third of a second, because the standby may not
    /// have replayed the change yet.
    #[must_use]
    pub fn listen_from(mut self, listener: Config) -> Config {
        self.listen_from = Some(Box::new(listener));
        self
    }

    /// How to connect for notifications.
    pub(crate) fn for_listener(&self) -> Config {
        Config {
            read_timeout: self.read_timeout,
            ..self.listen_from.as_deref().unwrap_or(self).clone()
        }
    }

    /// Whether notifications come from another server. One may then come before its change can be read.
    pub(crate) fn listens_elsewhere(&self) -> bool {
        self.listen_from.is_some()
    }

    /// Connects as a follower does, with TLS and password as configured.
    ///
    /// It tries one host after the other until one accepts, in random order with `load_balance_hosts=random`. It goes
    /// on after a host that refused the login. Each address of a host has its own `connect_timeout` (10 s unless set)
    /// for everything up to the login. The [`Connection`] must be polled. Dropping the future leaves nothing behind.
    /// Needs a tokio runtime with time and I/O.
    ///
    /// # Errors
    /// - [`Error::Config`]: the settings contradict each other.
    /// - [`Error::Password`]: [`Config::password_with`] gave no password for any host.
    /// - [`Error::TooManyConnections`]: one of the hosts has no connection left.
    /// - [`Error::Unreachable`]: waiting may help with one of the hosts.
    /// - [`Error::Tls`] or [`Error::Refused`]: waiting helps with none of them.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let config = oddscache::Config::new("postgres://oddscache@db1,db2/odds?sslmode=verify-full")?;
    /// let (client, connection) = config.open().await?;
    /// tokio::spawn(connection);
    /// let rows = client.query("SELECT current_database()", &[]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn open(&self) -> Result<(Client, Connection), Error> {
        self.connect.open(None).await
    }

    /// The same. The connection's `application_name` is `oddscache` and the purpose, unless the configuration has one.
    ///
    /// # Errors
    /// Those of [`Config::open`].
    pub async fn open_for(&self, purpose: &str) -> Result<(Client, Connection), Error> {
        self.connect.open(Some(purpose)).await
    }

    /// Hosts and database, for messages: never a password.
    pub fn target(&self) -> String {
        self.connect.target()
    }
}
