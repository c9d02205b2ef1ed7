//! Where the database is: `DATABASE_URL`. What it leaves open comes from libpq's `PG*` variables, then from libpq's
//! defaults.

use std::env;

use clap::Args;
use oddscache::{Config, Error};

#[derive(Args)]
#[command(
    next_help_heading = "Database (what the URL leaves open comes from the other flags, then from libpq's defaults)"
)]
pub(crate) struct DatabaseArguments {
    /// Where the database is: postgres://user@host:port/name?sslmode=verify-full, or host=... dbname=... If it holds a
    /// password, give it by the environment, because other users can see arguments
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// Host names or addresses, separated by commas and tried in this order, or the directory of the server's socket
    #[arg(long, env = "PGHOST")]
    host: Option<String>,
    /// IP addresses of the hosts, in place of looking them up
    #[arg(long, env = "PGHOSTADDR", value_name = "ADDRESS")]
    hostaddr: Option<String>,
    /// Port, or one for each host
    #[arg(long, env = "PGPORT")]
    port: Option<String>,
    /// Role to log in as. Its password comes from the URL, from PGPASSWORD, or from the password file
    #[arg(long, env = "PGUSER", value_name = "ROLE")]
    user: Option<String>,
    /// Database name
    #[arg(long, env = "PGDATABASE", value_name = "NAME")]
    dbname: Option<String>,
    /// Password file, readable by its owner only: lines of host:port:database:user:password [default: ~/.pgpass]
    #[arg(long, env = "PGPASSFILE", value_name = "FILE")]
    passfile: Option<String>,
    /// disable, allow, prefer, require, verify-ca or verify-full. Only the last two check who the server is
    #[arg(long, env = "PGSSLMODE", value_name = "MODE")]
    sslmode: Option<String>,
    /// Root certificates to trust, in a PEM file, or "system". Files in ~/.postgresql are not read
    #[arg(long, env = "PGSSLROOTCERT", value_name = "FILE")]
    sslrootcert: Option<String>,
    /// Client certificate, in a PEM file
    #[arg(long, env = "PGSSLCERT", value_name = "FILE")]
    sslcert: Option<String>,
    /// The client certificate's key, in a PEM file that only its owner may read, not encrypted
    #[arg(long, env = "PGSSLKEY", value_name = "FILE")]
    sslkey: Option<String>,
    /// postgres, or direct: start TLS without asking the server first, from PostgreSQL 17 on
    #[arg(long, env = "PGSSLNEGOTIATION", value_name = "HOW")]
    sslnegotiation: Option<String>,
    /// disable, prefer or require: whether the login must prove that nobody intercepts the connection
    #[arg(long, env = "PGCHANNELBINDING", value_name = "WHETHER")]
    channel_binding: Option<String>,
    /// any, read-write, read-only, primary, standby or prefer-standby: which hosts to accept
    #[arg(long, env = "PGTARGETSESSIONATTRS", value_name = "WHICH")]
    target_session_attrs: Option<String>,
    /// disable or random: whether the hosts are tried in random order
    #[arg(long, env = "PGLOADBALANCEHOSTS", value_name = "WHETHER")]
    load_balance_hosts: Option<String>,
    /// Seconds that connecting may take, for each address of each host [default: 10]
    #[arg(long, env = "PGCONNECT_TIMEOUT", value_name = "SECONDS")]
    connect_timeout: Option<String>,
    /// Settings for the session, such as "-c work_mem=64MB"
    #[arg(long, env = "PGOPTIONS", allow_hyphen_values = true)]
    options: Option<String>,
    /// Name to show in pg_stat_activity [default: oddscache and the purpose of the connection]
    #[arg(long, env = "PGAPPNAME", value_name = "NAME")]
    application_name: Option<String>,
}

impl DatabaseArguments {
    /// # Errors
    /// [`Error::Config`] if no database is named, or a setting is wrong. Its text quotes no value.
    pub(crate) fn config(&self) -> Result<Config, Error> {
        let usage = |message: &str| Err(Error::Config(message.to_owned()));
        let url = self.database_url.as_deref().unwrap_or_default();
        if url.is_empty() {
            if variable("PGSERVICE").is_some() {
                return usage(
                    "PGSERVICE is set, and connection service files are not supported; set DATABASE_URL or PGHOST, PGUSER and \
                     PGDATABASE",
                );
            }
            if !self.is_named() {
                return usage(
                    "no database is named; set DATABASE_URL (postgres://user@host/name) or PGHOST, PGUSER and PGDATABASE",
                );
            }
        }
        self.at(url, "DATABASE_URL")
    }

    /// Whether a flag or a variable names a database.
    pub(crate) fn is_named(&self) -> bool {
        let url = self.database_url.as_ref();
        url.is_some_and(|url| !url.is_empty())
            || [&self.host, &self.hostaddr, &self.dbname, &self.user]
                .into_iter()
                .any(Option::is_some)
    }

    /// The database at `url`, with the same defaults. `name` is the variable that gives the URL, for errors.
    pub(crate) fn at(&self, url: &str, name: &str) -> Result<Config, Error> {
        let defaults = [
            ("host", self.host.clone()),
            ("hostaddr", self.hostaddr.clone()),
            ("port", self.port.clone()),
            (
                "user",
                self.user
                    .clone()
                    .or_else(|| variable("USER"))
                    .or_else(|| variable("LOGNAME")),
            ),
            ("password", variable("PGPASSWORD")),
            ("dbname", self.dbname.clone()),
            ("passfile", self.passfile.clone().or_else(home_passfile)),
            ("sslmode", self.sslmode.clone()),
            ("sslrootcert", self.sslrootcert.clone()),
            ("sslcert", self.sslcert.clone()),
            ("sslkey", self.sslkey.clone()),
            ("sslnegotiation", self.sslnegotiation.clone()),
            ("channel_binding", self.channel_binding.clone()),
            ("target_session_attrs", self.target_session_attrs.clone()),
            ("load_balance_hosts", self.load_balance_hosts.clone()),
            ("connect_timeout", self.connect_timeout.clone()),
            ("options", self.options.clone()),
            ("application_name", self.application_name.clone()),
        ];
        let defaults = defaults
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        Config::with_defaults(url, defaults).map_err(|error| match error {
            Error::Config(message) => {
                Error::Config(format!("{name}, or a PG* variable or flag: {message}"))
            }
            other => other,
        })
    }
}

/// The value of a variable that is no flag. An empty one counts as not set, as in libpq.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn home_passfile() -> Option<String> {
    variable("HOME").map(|home| format!("{home}/.pgpass"))
}

/// Without the connection string, which may hold a password.
impl std::fmt::Debug for DatabaseArguments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatabaseArguments").finish_non_exhaustive()
    }
}
