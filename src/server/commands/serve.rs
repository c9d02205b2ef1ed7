//! `oddscache serve`: one follower and one HTTP server, which end together.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Args;
use oddscache::{Config, Error, History, InlineMarkets, OddsCache};
use tokio::signal::unix::{SignalKind, signal};

#[cfg(feature = "otlp")]
use crate::server::traces::TraceArguments;
use crate::server::{
    descriptors,
    http::{
        address::Address,
        auth::{Access, AccessArguments},
        cors::Origin,
        health::{Health, Patience},
        limits::{Limits, SocketMode},
        router::{INLINE_MARKETS, inline_market},
        server::{Server, Serving},
        tls::{Tls, TlsArguments},
    },
    logging,
    options::{follow::FollowArguments, relay::RelayArguments},
    prune,
    signals::end_signal,
    systemd::Notifier,
};

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    pub(crate) follow: FollowArguments,
    #[command(flatten)]
    pub(crate) relay: RelayArguments,
    /// Where to serve HTTP: an address and a port, or unix:/PATH for a Unix socket. It is read-only, but anybody who can
    /// connect can read: keep it on loopback or a private network, or require a token and use TLS
    #[arg(
        long,
        env = "ODDSCACHE_LISTEN",
        default_value = "127.0.0.1:7979",
        value_name = "ADDRESS:PORT"
    )]
    pub(crate) listen: Address,
    /// Where to serve what operators alone need: /metrics, /livez, /readyz, and /v1/stats in full. They are then no
    /// longer at --listen, whose /v1/stats and errors tell no names of servers, roles and triggers. The same token, TLS
    /// and limits apply, with up to 64 connections of its own
    #[arg(long, env = "ODDSCACHE_ADMIN_LISTEN", value_name = "ADDRESS:PORT")]
    pub(crate) admin_listen: Option<Address>,
    /// The permissions of Unix sockets, in octal
    #[arg(
        long,
        env = "ODDSCACHE_SOCKET_MODE",
        default_value = "660",
        value_name = "MODE"
    )]
    pub(crate) socket_mode: SocketMode,
    /// Let pages of this origin read the answers in a browser (CORS): https://board.example. Several are separated by
    /// commas, or given by several flags. * is every origin, and is refused if a token is required
    #[arg(
        long,
        env = "ODDSCACHE_CORS_ORIGIN",
        value_delimiter = ',',
        value_name = "ORIGIN"
    )]
    pub(crate) cors_origin: Vec<Origin>,
    /// Log each request when its answer has ended, with the id of x-request-id or a new one, which the answer gets too
    #[arg(long, env = "ODDSCACHE_ACCESS_LOG")]
    pub(crate) access_log: bool,
    /// The markets in /v1/list: ids as in betpawa_market_id. If a market has several lines, a colon and a line choose
    /// one
    #[arg(
        long,
        env = "ODDSCACHE_INLINE_MARKETS",
        default_value = INLINE_MARKETS,
        value_delimiter = ',',
        value_parser = inline_market,
        value_name = "ID[:LINE]"
    )]
    pub(crate) inline_markets: Vec<(String, Option<f64>)>,
    /// How many connections may read the history of markets for /v1/events/{id}/history. They are opened when somebody
    /// asks. 0 turns it off
    #[arg(
        long,
        env = "ODDSCACHE_HISTORY_CONNECTIONS",
        default_value_t = 2,
        value_name = "COUNT"
    )]
    pub(crate) history_connections: usize,
    /// How long the history of a market may take to read, with the time that it waits for a connection
    #[arg(long, env = "ODDSCACHE_HISTORY_TIMEOUT", default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) history_timeout: Duration,
    /// Read the change log at least this often, with or without notifications. Bounds staleness if notifications are
    /// lost
    #[arg(long, env = "ODDSCACHE_POLL_INTERVAL", default_value = "1s", value_parser = humantime::parse_duration)]
    pub(crate) poll_interval: Duration,
    /// Prune rows from the change log that are older than this, if the role may (`oddscache sql grants --prune`)
    #[arg(long, env = "ODDSCACHE_LOG_KEEP", default_value = "1h", value_parser = humantime::parse_duration)]
    pub(crate) log_keep: Duration,
    /// How often to prune the change log, on average
    #[arg(long, env = "ODDSCACHE_PRUNE_INTERVAL", default_value = "1m", value_parser = humantime::parse_duration)]
    pub(crate) prune_interval: Duration,
    /// While the database or the relay is away, the service counts as ready for this long after its view was last proven current
    #[arg(long, env = "ODDSCACHE_READY_MAX_AGE", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) ready_max_age: Duration,
    #[command(flatten)]
    pub(crate) limits: Limits,
    #[command(flatten)]
    pub(crate) access: AccessArguments,
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
    #[cfg(feature = "otlp")]
    #[command(flatten)]
    pub(crate) traces: TraceArguments,
}

pub(crate) async fn run(arguments: ServeArguments) -> anyhow::Result<ExitCode> {
    logging::change_on_signal()?;
    let open_files = descriptors::raise();
    let follow = &arguments.follow;
    let relay_from = arguments.relay.from()?;
    let needs_database = relay_from.is_none();
    let config = match relay_from {
        Some(relay) => Config::relay(relay),
        None => follow.config()?.poll_interval(arguments.poll_interval),
    };
    let patience = Patience::new(
        arguments.poll_interval,
        follow.read_timeout,
        follow.warmup_timeout,
    );
    let mut limits = arguments.limits.clone();
    let wanted = limits.most_connections;
    let of_operators = match &arguments.admin_listen {
        Some(_) => Limits::MOST_OF_OPERATORS + Limits::MOST_OF_OPERATORS_BEYOND,
        None => 0,
    };
    descriptors::fit(&mut limits, open_files, of_operators);
    let access = Access::new(arguments.access.clone())?;
    if access.is_restricted() && arguments.cors_origin.iter().any(Origin::is_any) {
        return Err(Error::Config(
            "--cors-origin * would let every page in a browser use the tokens that it gets hold of: name the origins, \
             or require no token"
                .to_owned(),
        )
        .into());
    }
    let history = match arguments.history_connections {
        connections @ 1.. if needs_database => Some(History::new(
            config.clone(),
            connections,
            arguments.history_timeout,
        )?),
        _ => None,
    };
    let serving = Serving {
        limits,
        access,
        tls: Tls::new(&arguments.tls)?,
        health: Arc::new(Health::new(arguments.ready_max_age, patience)),
        history,
        admin: arguments.admin_listen.clone(),
        cors: arguments.cors_origin.clone(),
        access_log: arguments.access_log,
        #[cfg(feature = "otlp")]
        traces: arguments.traces.are_sent(),
        socket_mode: arguments.socket_mode,
    };
    let (cache, follower) = OddsCache::connect(config.clone());
    let inline = InlineMarkets::new(arguments.inline_markets);
    let server = Server::start(arguments.listen, &cache, serving.clone(), inline).await?;
    if let Some(address) = &server.admin {
        // Under another name, because programs read where readers connect.
        tracing::info!(admin_address = %address, "serving operators; /readyz says when it is warm");
        serving.warn_if_exposed(address);
        tracing::info!(address = %server.address, "serving HTTP");
    } else {
        tracing::info!(address = %server.address, "serving HTTP; /readyz says when it is warm");
    }
    serving.warn_if_exposed(&server.address);
    descriptors::warn_if_few(&serving.limits, wanted, open_files, of_operators);
    let notifier = Notifier::from_environment();
    let publisher = arguments.relay.to()?.map(|relay| cache.relay_to(relay));
    let publish = async {
        if let Some(publisher) = publisher {
            publisher.run().await;
        }
        std::future::pending().await
    };
    let prune = async {
        let (keep, interval) = (arguments.log_keep, arguments.prune_interval);
        match needs_database {
            true => prune::run(config, follow.cache_schema.clone(), keep, interval).await,
            false => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        ended = follower.run() => ended.map(|()| ExitCode::SUCCESS).map_err(anyhow::Error::from),
        () = prune => unexpected_end("the pruner"),
        () = publish => unexpected_end("the relay's publisher"),
        error = resync_on_signal(cache.clone()) => error,
        error = reload_on_signal(&serving) => error,
        never = notifier.run(&cache, &serving.health) => match never {},
        () = server.broke() => unexpected_end("the HTTP server"),
        // The follower goes on until the server has stopped, because answers under way may wait for a change.
        ended = async {
            // Not within the macro, because a filtered message does not evaluate its fields.
            let signal = end_signal().await?;
            tracing::info!(signal, "ending");
            notifier.stopping();
            server.stop().await;
            anyhow::Ok(ExitCode::SUCCESS)
        } => ended,
    };
    server.stop().await;
    result
}

/// Reads everything again at each SIGUSR1. Ends only with an error.
async fn resync_on_signal(cache: OddsCache) -> anyhow::Result<ExitCode> {
    let mut asked = signal(SignalKind::user_defined1()).context("waiting for SIGUSR1")?;
    while asked.recv().await.is_some() {
        tracing::info!("SIGUSR1: reading everything again");
        cache.resync();
    }
    unexpected_end("SIGUSR1")
}

/// Reads certificates and tokens again at each SIGHUP. Ends only with an error.
async fn reload_on_signal(serving: &Serving) -> anyhow::Result<ExitCode> {
    let mut asked = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
    while asked.recv().await.is_some() {
        let tls = serving.tls.as_ref().map_or(Ok(()), Tls::read_again);
        match serving.access.read_again().and(tls) {
            Ok(()) => tracing::info!("SIGHUP: tokens and certificate were read again"),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(
                    error,
                    "SIGHUP: reading tokens and certificate again failed; the old ones stay in force"
                );
            }
        }
    }
    unexpected_end("SIGHUP")
}

fn unexpected_end(what: &str) -> anyhow::Result<ExitCode> {
    anyhow::bail!("{what} ended unexpectedly")
}
