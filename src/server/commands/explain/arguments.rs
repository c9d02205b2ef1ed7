//! The flags of `oddscache explain`.

use std::{path::PathBuf, time::Duration};

use crate::server::{
    client::Url,
    options::{follow::FollowArguments, secret::Secret},
};

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArguments {
    /// The id of the event
    pub(super) event: i64,
    #[command(flatten)]
    pub(super) follow: FollowArguments,
    /// The running service to compare with [default: http://127.0.0.1:7979, if it answers]
    #[arg(long, env = "ODDSCACHE_URL", value_name = "URL")]
    pub(super) url: Option<Url>,
    /// The token, if the service requires one. Give it by the environment
    #[arg(
        long,
        env = "ODDSCACHE_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub(super) token: Option<Secret>,
    /// A PEM file with the authority that issued the service's certificate, if the system does not trust it
    #[arg(long, env = "ODDSCACHE_CA", value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// Ask the database alone, even if a service is named
    #[arg(long)]
    pub(super) no_service: bool,
    /// How long to wait for the service to show what the database says
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(super) wait: Duration,
    /// How many log rows that name the event to show, newest first
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u16).range(..=1000))]
    pub(super) log_rows: u16,
    /// How long one query to the server or one request to the service may take
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub(super) timeout: Duration,
    /// Print one JSON object: event_id, verdict, reason, differences, database, service
    #[arg(long)]
    pub(super) json: bool,
}
