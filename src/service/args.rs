//! The command line. Every flag is also an environment variable, and those of `serve` are the keys of the settings file.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use oddscache::{Config, Error};

use super::{
    auth::AccessArguments,
    database::{DatabaseArguments, Url},
    doctor::DoctorArguments,
    explain::ExplainArguments,
    limits::Limits,
    paths,
    probe::ProbeArguments,
    sql,
    tls::TlsArguments,
};
use crate::demo::DemoArguments;

/// Keeps the latest betting odds of every upcoming event in memory, equal to PostgreSQL, and serves them.
///
/// It reads the application's tables once, then follows the change log that triggers write (install them with
/// `oddscache sql install --apply`). What it serves is always exactly one committed state of the database, and it says
/// how old that is.
///
/// First look, with nothing but PostgreSQL's server binaries installed: oddscache demo
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) log: LogArguments,
    /// A TOML file of settings: `listen = "127.0.0.1:7979"`, named as the long flags of serve. Flags and the environment go
    /// before it
    #[arg(long, global = true, env = "ODDSCACHE_CONFIG", value_name = "FILE", value_parser = paths::path())]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Warm up, follow the database, and serve its odds over HTTP
    ///
    /// Binds before it warms up; /readyz answers 503 until it is warm. Waits for a database that cannot be reached, now and
    /// later; ends with code 1 where waiting does not help before the first warmup: a wrong password, missing tables,
    /// triggers or rights. SIGTERM and Ctrl-C end it within --drain; SIGUSR1 makes it read everything again, SIGUSR2
    /// log in detail, and as before, and SIGHUP read the tokens and the certificate again.
    Serve(Box<ServeArguments>),
    /// Print the settings of serve that are in force, and where each comes from: flag, environment, file or default
    ///
    /// Takes the flags of serve. What it prints is a file for --config; secrets are hidden. Connects to nothing.
    Config(Box<ServeArguments>),
    /// Warm up once, print every event as a line of JSON, in event id order, and exit
    Dump(DumpArguments),
    /// Print one of the SQL scripts for psql, or run it with --apply
    ///
    /// install, check and uninstall the change feed; grants: make a least-privilege role for the cache; indexes: make the
    /// recommended indexes. The owner of the tables runs them.
    Sql {
        #[command(flatten)]
        database: DatabaseArguments,
        #[command(flatten)]
        script: sql::Args,
    },
    /// Look at everything that can be wrong with the database, the feed, the rights, the bell and the log
    ///
    /// Prints what it finds, the worst first: what is wrong, why it matters, and the statement or command that mends it.
    /// Writes nothing. Run it as the role that the cache logs in as; it says what that role may not look
    /// at. Ends with code 0 if nothing fails, 1 if something does, 3 with --strict if there are warnings only.
    Doctor(DoctorArguments),
    /// Tell where the odds of an event come from, and whether a running service and the database agree about it
    ///
    /// Per bookmaker and source the snapshot that won and those it beat; or why the event is not held; and the rows of the
    /// change log that name it. Ends with code 0 if the service agrees or none was asked, 1 if it differs.
    Explain(ExplainArguments),
    /// Tell whether a running service lives (/livez): ends with code 0 if so, else with 1
    ///
    /// For the health check of a container. A service whose database is away lives; one whose follower is stuck does not.
    Health(ProbeArguments),
    /// Tell whether a running service is ready (/readyz): ends with code 0 if so, else with 1
    Ready(ProbeArguments),
    /// Show it all on a private throw-away PostgreSQL with simulated bookmakers
    ///
    /// Needs PostgreSQL's server binaries, no running server, no configuration. Ctrl-C leaves nothing running and no files.
    Demo(DemoArguments),
}

#[derive(Debug, Args)]
pub(crate) struct LogArguments {
    /// What to log to standard error: a level (error, warn, info, debug, trace) or a filter such as oddscache=debug
    #[arg(
        long,
        global = true,
        env = "ODDSCACHE_LOG",
        default_value = "info,tokio_postgres=warn",
        value_name = "FILTER"
    )]
    pub(crate) log: String,
    /// How to write it
    #[arg(
        long,
        global = true,
        env = "ODDSCACHE_LOG_FORMAT",
        default_value = "text"
    )]
    pub(crate) log_format: LogFormat,
    /// How often the same place may log within 10 s; how many more there were is said after that. 0: any number
    #[arg(
        long,
        global = true,
        env = "ODDSCACHE_LOG_REPEATS",
        default_value_t = 20,
        value_name = "COUNT"
    )]
    pub(crate) log_repeats: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// What `serve` and `dump` read, and how.
#[derive(Debug, Args)]
pub(crate) struct FollowArguments {
    #[command(flatten)]
    database: DatabaseArguments,
    /// The schema of the application's tables
    #[arg(
        long,
        env = "ODDSCACHE_APP_SCHEMA",
        default_value = "public",
        value_name = "NAME"
    )]
    app_schema: String,
    /// The schema of the change feed
    #[arg(
        long,
        env = "ODDSCACHE_CACHE_SCHEMA",
        default_value = "oddscache",
        value_name = "NAME"
    )]
    cache_schema: String,
    /// How long an event is held after its kickoff, such as 2h or 90m
    #[arg(long, env = "ODDSCACHE_LOOKBACK", default_value = "2h", value_parser = humantime::parse_duration)]
    lookback: Duration,
    /// Let the role be subject to row level security: only right where its policies show it every row
    #[arg(long, env = "ODDSCACHE_ALLOW_ROW_SECURITY")]
    allow_row_security: bool,
    /// How long reading everything may take before the connection counts as dead
    #[arg(long, env = "ODDSCACHE_WARMUP_TIMEOUT", default_value = "5m", value_parser = humantime::parse_duration)]
    warmup_timeout: Duration,
    /// How many connections read everything at a time, 1 to 8; those besides the first are open only meanwhile
    #[arg(long, env = "ODDSCACHE_WARMUP_CONNECTIONS", default_value_t = 2)]
    warmup_connections: usize,
    /// How long reading changes may take before the connection counts as dead
    #[arg(long, env = "ODDSCACHE_READ_TIMEOUT", default_value = "10s", value_parser = humantime::parse_duration)]
    read_timeout: Duration,
    /// Where to LISTEN, if not at DATABASE_URL: at the primary of a standby that is read, or past a pooler in transaction
    /// mode
    #[arg(
        long,
        env = "ODDSCACHE_BELL_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    bell_url: Option<Url>,
    /// Within which time the audit should have compared every event with the database
    #[arg(long, env = "ODDSCACHE_AUDIT_CYCLE", default_value = "2m", value_parser = humantime::parse_duration)]
    audit_cycle: Duration,
    /// Which share of the time, and at most of one core of the server, the audit may take
    #[arg(
        long,
        env = "ODDSCACHE_AUDIT_BUDGET",
        default_value = "0.01",
        value_name = "SHARE",
        value_parser = share
    )]
    audit_budget: f64,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match (0.0001..=1.0).contains(&share) {
        true => Ok(share),
        false => Err("a share between 0.0001 and 1".to_owned()),
    }
}

impl FollowArguments {
    pub(crate) fn config(&self) -> Result<Config, Error> {
        let mut config = self.database.config()?;
        if let Some(bell) = self.bell()? {
            config = config.bell_from(bell);
        }
        Ok(config
            .app_schema(&self.app_schema)
            .cache_schema(&self.cache_schema)
            .lookback(self.lookback)
            .allow_row_security(self.allow_row_security)
            .warmup_timeout(self.warmup_timeout)
            .warmup_connections(self.warmup_connections)
            .read_timeout(self.read_timeout)
            .audit_cycle(self.audit_cycle)
            .audit_budget(self.audit_budget))
    }

    /// Where to LISTEN, if elsewhere.
    pub(crate) fn bell(&self) -> Result<Option<Config>, Error> {
        let Some(Url(url)) = &self.bell_url else {
            return Ok(None);
        };
        self.database.at(url, "ODDSCACHE_BELL_URL").map(Some)
    }

    pub(crate) fn lookback(&self) -> Duration {
        self.lookback
    }

    pub(crate) fn warmup_timeout(&self) -> Duration {
        self.warmup_timeout
    }

    pub(crate) fn read_timeout(&self) -> Duration {
        self.read_timeout
    }

    pub(crate) fn app_schema(&self) -> &str {
        &self.app_schema
    }

    pub(crate) fn cache_schema(&self) -> &str {
        &self.cache_schema
    }
}

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    pub(crate) follow: FollowArguments,
    /// Where to serve HTTP. It is read-only, but open to whoever can connect: keep it on loopback or a private network, or ask
    /// for a token and serve TLS
    #[arg(
        long,
        env = "ODDSCACHE_LISTEN",
        default_value = "127.0.0.1:7979",
        value_name = "ADDRESS:PORT"
    )]
    pub(crate) listen: SocketAddr,
    /// The markets in /v1/list: ids as in betpawa_market_id, and after a colon the line where only one of several is wanted
    #[arg(
        long,
        env = "ODDSCACHE_INLINE_MARKETS",
        default_value = "3743,5000:2.5,3795,4693",
        value_delimiter = ',',
        value_parser = inline_market,
        value_name = "ID[:LINE]"
    )]
    pub(crate) inline_markets: Vec<(String, Option<f64>)>,
    /// Read the change log at the latest after this long, bell or no bell: bounds staleness when notifications are lost
    #[arg(long, env = "ODDSCACHE_POLL_INTERVAL", default_value = "1s", value_parser = humantime::parse_duration)]
    pub(crate) poll_interval: Duration,
    /// Prune rows from the change log that are older than this, if the role may (sql/grants.sql with -v prune=on)
    #[arg(long, env = "ODDSCACHE_LOG_KEEP", default_value = "1h", value_parser = humantime::parse_duration)]
    pub(crate) log_keep: Duration,
    /// How often to prune the change log, on average
    #[arg(long, env = "ODDSCACHE_PRUNE_INTERVAL", default_value = "1m", value_parser = humantime::parse_duration)]
    pub(crate) prune_interval: Duration,
    /// A view that was proven current within so long counts as ready though the database is away
    #[arg(long, env = "ODDSCACHE_READY_MAX_AGE", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) ready_max_age: Duration,
    #[command(flatten)]
    pub(crate) limits: Limits,
    #[command(flatten)]
    pub(crate) access: AccessArguments,
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
}

#[derive(Debug, Args)]
pub(crate) struct DumpArguments {
    #[command(flatten)]
    pub(crate) follow: FollowArguments,
    /// Do not insist on the change feed: it takes no part in a single reading
    #[arg(long, env = "ODDSCACHE_WITHOUT_FEED")]
    pub(crate) without_feed: bool,
}

fn inline_market(text: &str) -> Result<(String, Option<f64>), String> {
    let (id, line) = match text.split_once(':') {
        None => (text, None),
        Some((id, line)) => {
            let line = line.parse().ok().filter(|line: &f64| line.is_finite());
            (id, Some(line.ok_or("the line is no number")?))
        }
    };
    match id.trim() {
        "" => Err("a market needs an id: 3743, or 5000:2.5 with a line".to_owned()),
        id => Ok((id.to_owned(), line)),
    }
}
