//! What to follow, and how.

use std::time::Duration;

use clap::Args;
use oddscache::{Config, Error};

use super::{database::DatabaseArguments, secret::Secret};

/// The flags of every command that reads the application's tables.
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
    pub(crate) app_schema: String,
    /// The schema of the change feed
    #[arg(
        long,
        env = "ODDSCACHE_CACHE_SCHEMA",
        default_value = "oddscache",
        value_name = "NAME"
    )]
    pub(crate) cache_schema: String,
    /// How long an event is held after its kickoff, such as 2h or 90m
    #[arg(long, env = "ODDSCACHE_LOOKBACK", default_value = "2h", value_parser = humantime::parse_duration)]
    pub(crate) lookback: Duration,
    /// Accept a role to which row level security applies. Its policies must show it every row
    #[arg(long, env = "ODDSCACHE_ALLOW_ROW_SECURITY")]
    allow_row_security: bool,
    /// How long reading everything may take before the connection counts as dead
    #[arg(long, env = "ODDSCACHE_WARMUP_TIMEOUT", default_value = "5m", value_parser = humantime::parse_duration)]
    pub(crate) warmup_timeout: Duration,
    /// How many connections read everything at a time, 1 to 8. All but the first close when everything is read
    #[arg(long, env = "ODDSCACHE_WARMUP_CONNECTIONS", default_value_t = 2)]
    warmup_connections: usize,
    /// How long reading changes may take before the connection counts as dead
    #[arg(long, env = "ODDSCACHE_READ_TIMEOUT", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) read_timeout: Duration,
    /// Where to LISTEN, if not at DATABASE_URL. If DATABASE_URL leads to a standby, name its primary. If it leads to a
    /// pooler in transaction mode, name the server itself
    #[arg(
        long,
        env = "ODDSCACHE_LISTEN_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    listen_url: Option<Secret>,
    /// The time in which the audit compares every event with the database, if its budget suffices
    #[arg(long, env = "ODDSCACHE_AUDIT_CYCLE", default_value = "2m", value_parser = humantime::parse_duration)]
    audit_cycle: Duration,
    /// The share of the time, and of one core of the server, that the audit may take
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
    /// Whether a flag or a variable names a database.
    pub(crate) fn names_database(&self) -> bool {
        self.database.is_named()
    }

    pub(crate) fn config(&self) -> Result<Config, Error> {
        let mut config = self.database.config()?;
        if let Some(listen) = self.listen()? {
            config = config.listen_from(listen);
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

    /// Where to LISTEN, if not at the database that is read.
    pub(crate) fn listen(&self) -> Result<Option<Config>, Error> {
        let url = self.listen_url.as_ref();
        url.map(|Secret(url)| self.database.at(url, "ODDSCACHE_LISTEN_URL"))
            .transpose()
    }
}
