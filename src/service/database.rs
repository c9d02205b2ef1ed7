//! Which database: `DATABASE_URL`, and for what it leaves open the `PG*` variables that libpq knows, and its defaults.

use std::{env, path::Path, time::Duration};

use clap::Args;
use oddscache::Error;
use tokio_postgres::config::SslMode;

#[derive(Debug, Args)]
#[command(
    next_help_heading = "Database (what the URL leaves open comes from the other flags, then from libpq's defaults)"
)]
pub(crate) struct DatabaseArguments {
    /// Where the database is: postgres://user@host:port/name, or host=... dbname=... Better given by the environment if it
    /// holds a password, for arguments can be seen by other users
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// Host name or address, or the directory of the server's socket
    #[arg(long, env = "PGHOST")]
    host: Option<String>,
    /// Port
    #[arg(long, env = "PGPORT")]
    port: Option<u16>,
    /// Role to log in as. Its password comes from the URL or from PGPASSWORD
    #[arg(long, env = "PGUSER", value_name = "ROLE")]
    user: Option<String>,
    /// Database name
    #[arg(long, env = "PGDATABASE", value_name = "NAME")]
    dbname: Option<String>,
    /// disable, prefer or require
    #[arg(long, env = "PGSSLMODE", value_name = "MODE")]
    sslmode: Option<String>,
    /// Seconds that connecting may take
    #[arg(long, env = "PGCONNECT_TIMEOUT", value_name = "SECONDS")]
    connect_timeout: Option<u64>,
    /// Settings for the session, such as "-c work_mem=64MB"
    #[arg(long, env = "PGOPTIONS", allow_hyphen_values = true)]
    options: Option<String>,
    /// Name to be seen under in pg_stat_activity
    #[arg(
        long,
        env = "PGAPPNAME",
        default_value = "oddscache",
        value_name = "NAME"
    )]
    application_name: String,
}

/// Where Debian's and libpq's server sockets lie.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

impl DatabaseArguments {
    /// # Errors
    /// [`Error::Config`] if no database is named, or something cannot be read; never with the password in it.
    pub(crate) fn config(&self) -> Result<tokio_postgres::Config, Error> {
        let usage = |message: String| Error::Config(message);
        let mut config = match &self.database_url {
            // The driver's message names the part that is wrong, not its value.
            Some(url) => url.parse().map_err(|error: tokio_postgres::Error| {
                let cause = std::error::Error::source(&error)
                    .map(|cause| format!(": {cause}"))
                    .unwrap_or_default();
                usage(format!("DATABASE_URL: {error}{cause}"))
            })?,
            None if self.host.is_none() && self.dbname.is_none() && self.user.is_none() => {
                return Err(usage(
                    "no database is named; set DATABASE_URL (postgres://user@host/name) or PGHOST, PGUSER and PGDATABASE"
                        .to_owned(),
                ));
            }
            None => tokio_postgres::Config::new(),
        };
        let port = self
            .port
            .or_else(|| config.get_ports().first().copied())
            .unwrap_or(5432);
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            match &self.host {
                Some(host) => config.host(host),
                None => config.host(default_host(port)),
            };
        }
        if config.get_ports().is_empty() {
            config.port(port);
        }
        if config.get_user().is_none() {
            let user = self
                .user
                .clone()
                .or_else(|| env::var("USER").ok())
                .or_else(|| env::var("LOGNAME").ok());
            config.user(user.ok_or_else(|| usage("no role is named; set PGUSER".to_owned()))?);
        }
        if config.get_password().is_none()
            && let Ok(password) = env::var("PGPASSWORD")
        {
            config.password(password);
        }
        if config.get_dbname().is_none() {
            let name = self
                .dbname
                .clone()
                .or_else(|| config.get_user().map(str::to_owned))
                .unwrap_or_default();
            config.dbname(name);
        }
        if let Some(mode) = &self.sslmode
            && self
                .database_url
                .as_deref()
                .is_none_or(|url| !url.contains("sslmode"))
        {
            config.ssl_mode(match mode.as_str() {
                "disable" => SslMode::Disable,
                "allow" | "prefer" => SslMode::Prefer,
                _ => SslMode::Require,
            });
        }
        if config.get_ssl_mode() == SslMode::Require {
            return Err(usage(
                "sslmode: this version of oddscache cannot do TLS; use a local socket or a tunnel"
                    .to_owned(),
            ));
        }
        if config.get_connect_timeout().is_none()
            && let Some(seconds) = self.connect_timeout
        {
            config.connect_timeout(Duration::from_secs(seconds));
        }
        if config.get_options().is_none()
            && let Some(options) = &self.options
        {
            config.options(options);
        }
        if config.get_application_name().is_none() {
            config.application_name(&self.application_name);
        }
        Ok(config)
    }
}

fn default_host(port: u16) -> &'static str {
    let has_socket = |directory: &&str| {
        Path::new(directory)
            .join(format!(".s.PGSQL.{port}"))
            .exists()
    };
    SOCKET_DIRECTORIES
        .into_iter()
        .find(|directory| has_socket(directory))
        .unwrap_or("localhost")
}
