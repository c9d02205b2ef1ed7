//! Which servers a configuration names, in which order to try them, and which sessions are acceptable.

use std::{
    env,
    path::{Path, PathBuf},
};

use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode as Negotiate, TargetSessionAttrs};

use crate::error::Error;

/// The directories of servers' sockets. Debian's build of libpq looks in the first, other builds in the second.
pub(crate) const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// `target_session_attrs`: which servers are acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Session {
    #[default]
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

impl Session {
    pub(crate) const WORDS: [(&'static str, Session); 6] = [
        ("any", Session::Any),
        ("read-write", Session::ReadWrite),
        ("read-only", Session::ReadOnly),
        ("primary", Session::Primary),
        ("standby", Session::Standby),
        ("prefer-standby", Session::PreferStandby),
    ];

    pub(crate) fn of(attributes: TargetSessionAttrs) -> Session {
        match attributes {
            TargetSessionAttrs::ReadWrite => Session::ReadWrite,
            TargetSessionAttrs::ReadOnly => Session::ReadOnly,
            _ => Session::Any,
        }
    }

    /// Which servers to accept in each round through the list of servers.
    pub(crate) fn rounds(self) -> &'static [Session] {
        match self {
            Session::Any => &[Session::Any],
            Session::ReadWrite => &[Session::ReadWrite],
            Session::ReadOnly => &[Session::ReadOnly],
            Session::Primary => &[Session::Primary],
            Session::Standby => &[Session::Standby],
            Session::PreferStandby => &[Session::Standby, Session::Any],
        }
    }

    /// A query, the answer of an acceptable server, and the reason to refuse any other. `None` if every server is
    /// acceptable.
    pub(crate) fn query(self) -> Option<(&'static str, &'static str, &'static str)> {
        let (read_only, recovery) = (
            "SHOW transaction_read_only",
            // SHOW needs no snapshot. With default_transaction_isolation = serializable, a standby refuses queries.
            "SHOW in_hot_standby",
        );
        match self {
            Session::Any | Session::PreferStandby => None,
            Session::ReadWrite => Some((read_only, "off", "sessions there are read-only")),
            Session::ReadOnly => Some((read_only, "on", "sessions there are not read-only")),
            Session::Primary => Some((recovery, "off", "it is a standby")),
            Session::Standby => Some((recovery, "on", "it is not a standby")),
        }
    }
}

/// One server of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The host's name or socket directory. TLS and the password file use it.
    pub(crate) host: Host,
    /// The address, if no lookup is needed.
    pub(crate) address: Option<std::net::IpAddr>,
    pub(crate) port: u16,
}

impl Target {
    /// Host and port, or the path of the socket, for messages.
    pub(crate) fn name(&self) -> String {
        match &self.host {
            // If a password contains an @ that was not written as %40, the host begins with a part of the password.
            // Leave it out.
            Host::Tcp(host) => format!(
                "{}:{}",
                host.rsplit('@').next().unwrap_or_default(),
                self.port
            ),
            #[cfg(unix)]
            Host::Unix(path) => format!("{}/.s.PGSQL.{}", path.display(), self.port),
        }
    }

    pub(crate) fn is_socket(&self) -> bool {
        !matches!(self.host, Host::Tcp(_))
    }

    /// The host as password files name it: the default socket directories count as `localhost`.
    pub(crate) fn password_host(&self) -> String {
        match &self.host {
            Host::Tcp(host) => host.clone(),
            #[cfg(unix)]
            Host::Unix(path)
                if SOCKET_DIRECTORIES
                    .iter()
                    .any(|directory| path == Path::new(directory)) =>
            {
                "localhost".to_owned()
            }
            #[cfg(unix)]
            Host::Unix(path) => path.to_string_lossy().into_owned(),
        }
    }

    /// The driver's configuration for this server only.
    pub(crate) fn postgres(
        &self,
        all: &tokio_postgres::Config,
        negotiate: Negotiate,
    ) -> tokio_postgres::Config {
        // The driver's setters can only add hosts, not replace them. So copy everything else into a new configuration.
        let mut one = tokio_postgres::Config::new();
        all.get_user().map(|user| one.user(user));
        all.get_password().map(|password| one.password(password));
        all.get_dbname().map(|name| one.dbname(name));
        all.get_options().map(|options| one.options(options));
        all.get_application_name()
            .map(|name| one.application_name(name));
        all.get_connect_timeout()
            .map(|time| one.connect_timeout(*time));
        all.get_tcp_user_timeout()
            .map(|time| one.tcp_user_timeout(*time));
        one.keepalives(all.get_keepalives())
            .keepalives_idle(all.get_keepalives_idle())
            .channel_binding(all.get_channel_binding())
            .ssl_negotiation(all.get_ssl_negotiation())
            .ssl_mode(negotiate)
            .port(self.port);
        all.get_keepalives_interval()
            .map(|time| one.keepalives_interval(time));
        all.get_keepalives_retries()
            .map(|count| one.keepalives_retries(count));
        match &self.host {
            Host::Tcp(name) => one.host(name),
            #[cfg(unix)]
            Host::Unix(path) => one.host_path(path),
        };
        one
    }
}

/// The servers of a configuration, in the order to try them. Random if `load_balance_hosts` asks for that.
pub(crate) fn targets(postgres: &tokio_postgres::Config) -> Result<Vec<Target>, Error> {
    let (hosts, addresses, ports) = (
        postgres.get_hosts(),
        postgres.get_hostaddrs(),
        postgres.get_ports(),
    );
    // As in libpq: `hostaddr` gives one address per host, and `port` one port per host or one for all.
    let count = hosts.len().max(addresses.len());
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(Error::Config(format!(
            "{} hosts, but {} addresses in hostaddr; give one for each host",
            hosts.len(),
            addresses.len()
        )));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(Error::Config(format!(
            "{count} hosts, but {} ports; give one for all or one for each",
            ports.len()
        )));
    }
    let port = |at: usize| ports.get(at).or(ports.first()).copied().unwrap_or(5432);
    let mut targets: Vec<Target> = (0..count)
        .filter_map(|at| {
            let address = addresses.get(at).copied();
            let host = match (hosts.get(at), address) {
                (Some(host), _) => host.clone(),
                (None, address) => Host::Tcp(address?.to_string()),
            };
            Some(Target {
                host,
                address,
                port: port(at),
            })
        })
        .collect();
    // No host at all: libpq's default is the local server.
    if targets.is_empty() {
        let port = port(0);
        targets.push(Target {
            host: default_host(port),
            address: None,
            port,
        });
    }
    if postgres.get_load_balance_hosts() == LoadBalanceHosts::Random {
        fastrand::shuffle(&mut targets);
    }
    Ok(targets)
}

/// The directory of the local server's socket if it has one, else `localhost`. Looks at the file system.
fn default_host(port: u16) -> Host {
    let has_socket = |directory: &&str| {
        Path::new(directory)
            .join(format!(".s.PGSQL.{port}"))
            .exists()
    };
    match SOCKET_DIRECTORIES.into_iter().find(has_socket) {
        #[cfg(unix)]
        Some(directory) => Host::Unix(PathBuf::from(directory)),
        _ => Host::Tcp("localhost".to_owned()),
    }
}

/// The role to log in as. Without a name the driver uses that of the operating system's user.
pub(crate) fn user(postgres: &tokio_postgres::Config) -> Option<String> {
    let from_environment = || env::var("USER").or_else(|_| env::var("LOGNAME")).ok();
    postgres
        .get_user()
        .map(str::to_owned)
        .or_else(from_environment)
}
