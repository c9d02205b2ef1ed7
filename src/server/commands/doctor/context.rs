//! What every group of checks needs to know.

use std::time::Duration;

use oddscache::{Config, sql::Table};

use crate::server::{
    options::{follow::FollowArguments, relay::RelayArguments},
    session::{Session, Trouble, literal},
};

#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArguments {
    #[command(flatten)]
    pub(super) follow: FollowArguments,
    #[command(flatten)]
    pub(super) relay: RelayArguments,
    /// The role whose rights to look at [default: the one that connects]
    #[arg(long, env = "ODDSCACHE_ROLE", value_name = "NAME")]
    pub(super) role: Option<String>,
    /// Skip the trial warmup, which reads everything once: seconds of work for a large database. Skip the trial
    /// subscriber of a relay
    #[arg(long)]
    pub(super) quick: bool,
    /// Print one JSON object: oddscache, database, relay, findings (id, level, checked, object, what, why, fix), summary
    #[arg(long)]
    pub(super) json: bool,
    /// End with code 3 if nothing fails but there are warnings
    #[arg(long)]
    pub(super) strict: bool,
    /// How long a transaction that has written may stay open or prepared before doctor reports it
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    pub(super) long_transaction: Duration,
    /// How long one query may take. Connecting may take six times as long, reading everything twelve times
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(super) check_timeout: Duration,
}

pub(super) struct Context<'a> {
    pub(super) arguments: &'a DoctorArguments,
    pub(super) config: Config,
    /// Where the cache would LISTEN, if not on the connection that reads.
    pub(super) listen: Option<Config>,
    pub(super) app_schema: &'a str,
    pub(super) cache_schema: &'a str,
}

/// The application's tables, as a list of SQL literals.
pub(super) fn tables() -> String {
    Table::ALL.map(|table| literal(table.name())).join(", ")
}

impl Context<'_> {
    pub(super) async fn session(&self) -> Result<Session, Trouble> {
        self.session_at(&self.config).await
    }

    pub(super) async fn session_at(&self, config: &Config) -> Result<Session, Trouble> {
        Session::open(config, "doctor", self.arguments.check_timeout).await
    }
}
