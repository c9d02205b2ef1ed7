//! `oddscache serve`: one follower, one HTTP server, and an end to both.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{Extension, Router, middleware::from_fn_with_state};
use clap::Args;
use oddscache::OddsCache;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Mutex, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};

use crate::server::{
    descriptors,
    http::{
        Hub,
        auth::{Access, AccessArguments},
        guard::{Guard, guard, turn_away},
        health::{Health, Patience},
        io_timeout::Tally,
        limits::Limits,
        listener::{self, Shared},
        metrics::{self, Requests},
        router::{self, Options},
        tls::{Tls, TlsArguments},
    },
    logging,
    options::follow::FollowArguments,
    prune,
    systemd::Notifier,
};

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

pub(crate) async fn run(arguments: ServeArguments) -> anyhow::Result<ExitCode> {
    logging::change_on_signal()?;
    let open_files = descriptors::raise();
    let follow = &arguments.follow;
    let config = follow.config()?.poll_interval(arguments.poll_interval);
    let patience = Patience::new(
        arguments.poll_interval,
        follow.read_timeout(),
        follow.warmup_timeout(),
    );
    let serving = Serving {
        limits: arguments.limits.clone(),
        access: Access::new(arguments.access.clone())?,
        tls: Tls::new(&arguments.tls)?,
        health: Arc::new(Health::new(arguments.ready_max_age, patience)),
    };
    let (cache, follower) = OddsCache::connect(config.clone());
    let options = Options {
        inline: arguments.inline_markets,
    };
    let server = Server::start(arguments.listen, &cache, serving.clone(), options).await?;
    tracing::info!(address = %server.address, "serving HTTP; /readyz says when it is warm");
    serving.warn_of_the_open(server.address);
    descriptors::warn_if_few(&serving.limits, open_files);
    let notifier = Notifier::from_environment();
    let result = tokio::select! {
        ended = follower.run() => ended.map(|()| ExitCode::SUCCESS).map_err(anyhow::Error::from),
        () = prune::run(config, follow.cache_schema().to_owned(), arguments.log_keep, arguments.prune_interval) => unreachable_end("the pruner"),
        error = resync_on_signal(cache.clone()) => error,
        error = read_again_on_signal(&serving) => error,
        never = notifier.run(&cache, &serving.health) => match never {},
        () = server.broke() => unreachable_end("the HTTP server"),
        // The cache is kept equal to the last: answers under way may wait for a change.
        ended = async {
            // Not within the macro, which looks at nothing where the log's level leaves it out.
            let signal = end_asked_for().await?;
            tracing::info!(signal, "ending");
            notifier.stopping();
            server.stop().await;
            anyhow::Ok(ExitCode::SUCCESS)
        } => ended,
    };
    server.stop().await;
    result
}

/// Ends only with an error.
async fn resync_on_signal(cache: OddsCache) -> anyhow::Result<ExitCode> {
    let mut asked = signal(SignalKind::user_defined1()).context("waiting for SIGUSR1")?;
    while asked.recv().await.is_some() {
        tracing::info!("SIGUSR1: everything is to be read again");
        cache.resync();
    }
    unreachable_end("SIGUSR1")
}

/// Certificates and tokens are renewed while it runs. Ends only with an error.
async fn read_again_on_signal(serving: &Serving) -> anyhow::Result<ExitCode> {
    let mut asked = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
    while asked.recv().await.is_some() {
        let tls = serving.tls.as_ref().map_or(Ok(()), Tls::read_again);
        match serving.access.read_again().and(tls) {
            Ok(()) => tracing::info!("SIGHUP: tokens and certificate were read again"),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(
                    error,
                    "SIGHUP: what could not be read again stays as it was"
                );
            }
        }
    }
    unreachable_end("SIGHUP")
}

fn unreachable_end(what: &str) -> anyhow::Result<ExitCode> {
    anyhow::bail!("{what} ended, which should not be")
}

/// Waits for SIGTERM or SIGINT, and names it.
pub(crate) async fn end_asked_for() -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// How a server serves, whatever it serves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Serving {
    pub(crate) limits: Limits,
    /// Open to all by default.
    pub(crate) access: Access,
    /// Plain HTTP by default.
    pub(crate) tls: Option<Tls>,
    pub(crate) health: Arc<Health>,
}

impl Serving {
    /// Read-only, but whoever can connect can read; and a token that is sent in the clear can be heard.
    fn warn_of_the_open(&self, address: SocketAddr) {
        let restricted = self.access.is_restricted();
        if address.ip().is_loopback() || (restricted && self.tls.is_some()) {
            return;
        }
        let missing = match (restricted, self.tls.is_some()) {
            (false, false) => {
                "neither a token is asked for (--token-file) nor is there TLS (--tls-cert)"
            }
            (false, true) => "no token is asked for (--token-file)",
            (true, _) => "there is no TLS (--tls-cert), so that tokens can be heard on the way",
        };
        tracing::warn!(%address, "listening beyond this machine, and {missing}; right only on a private network or behind a proxy");
    }
}

/// A running HTTP server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    end: watch::Sender<bool>,
    hub: Hub,
    health: Arc<Health>,
    drain: Duration,
    drain_delay: Duration,
    /// `None` once it was waited for.
    task: Mutex<Option<Running>>,
    /// Its sender is gone when the task has ended, however.
    ended: watch::Receiver<()>,
}

/// What accepts connections and serves them.
struct Running {
    task: JoinHandle<()>,
    /// When it was first told to end.
    ending_since: Option<Instant>,
}

impl Server {
    pub(crate) async fn start(
        address: SocketAddr,
        cache: &OddsCache,
        serving: Serving,
        options: Options,
    ) -> anyhow::Result<Server> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address}; choose another address with --listen, or end what is using it")
        })?;
        let address = listener.local_addr().context("listening")?;
        let limits = Arc::new(serving.limits);
        let hub = Hub::start(cache, limits.most_streams);
        let requests = Requests::default();
        let router = router::router(cache.clone(), hub.clone(), options, requests.clone());
        let (end, ending) = watch::channel(false);
        let tally = Arc::new(Tally::default());
        let checks = Guard {
            limits: Arc::clone(&limits),
            access: serving.access,
            tally: Arc::clone(&tally),
        };
        let (health, with_health) = (Arc::clone(&serving.health), Extension(serving.health));
        let with_tally = Extension(Arc::clone(&tally));
        // Outside the checks, so that what they refuse and cut short is counted too.
        let counting = from_fn_with_state(requests, metrics::count);
        let guarded = |router: Router| {
            let router = router.layer(with_health.clone()).layer(with_tally.clone());
            router.layer(counting.clone())
        };
        let shared = Shared {
            limits: Arc::clone(&limits),
            tally,
            tls: serving.tls,
            router: guarded(
                router
                    .clone()
                    .layer(from_fn_with_state(checks.clone(), guard)),
            ),
            turned_away: guarded(router.layer(from_fn_with_state(checks, turn_away))),
            ending,
        };
        let (lives, ended) = watch::channel(());
        let task = tokio::spawn(async move {
            let _lives = lives;
            listener::run(listener, shared).await;
        });
        Ok(Server {
            address,
            end,
            hub,
            health,
            drain: limits.drain,
            drain_delay: limits.drain_delay,
            task: Mutex::new(Some(Running {
                task,
                ending_since: None,
            })),
            ended,
        })
    }

    /// Returns if it has ended though nobody asked it to: only a restart mends that.
    pub(crate) async fn broke(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
        if *self.end.borrow() {
            std::future::pending::<()>().await;
        }
    }

    /// Says that it is not ready, accepts no more, ends streams, and lets answers under way finish, but not for long.
    ///
    /// Whoever asks again, also where the first was dropped, waits for the same end.
    pub(crate) async fn stop(&self) {
        let mut place = self.task.lock().await;
        let Some(running) = place.as_mut() else {
            return;
        };
        self.health.end();
        let since = *running.ending_since.get_or_insert_with(Instant::now);
        let closing = since + self.drain_delay;
        sleep_until(closing).await;
        self.end.send_replace(true);
        // Streams of changes would go on for ever.
        self.hub.stop();
        let drained = timeout_at(closing + self.drain, &mut running.task).await;
        if drained.is_err() {
            tracing::warn!("answers were still under way; cut off");
            // The connections end with it.
            running.task.abort();
        }
        *place = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{net::TcpStream, time::timeout};

    use super::*;

    async fn server(drain_delay: Duration) -> Server {
        let (cache, _) = OddsCache::detached();
        let serving = Serving {
            limits: Limits {
                drain_delay,
                ..Limits::default()
            },
            ..Serving::default()
        };
        let address = "127.0.0.1:0".parse().unwrap();
        Server::start(address, &cache, serving, Options::default())
            .await
            .unwrap()
    }

    /// As when the follower ends while the service does.
    #[tokio::test]
    async fn whoever_asks_again_for_the_end_waits_for_it() {
        let server = server(Duration::from_millis(500)).await;
        let given_up = timeout(Duration::from_millis(1), server.stop()).await;
        assert!(given_up.is_err());
        assert!(TcpStream::connect(server.address).await.is_ok());
        server.stop().await;
        assert!(TcpStream::connect(server.address).await.is_err());
        server.stop().await;
    }

    #[tokio::test]
    async fn an_end_that_nobody_asked_for_is_noticed() {
        let moment = Duration::from_millis(50);
        let asked = server(Duration::ZERO).await;
        assert!(timeout(moment, asked.broke()).await.is_err());
        asked.stop().await;
        assert!(timeout(moment, asked.broke()).await.is_err());
        let broken = server(Duration::ZERO).await;
        broken.task.lock().await.as_ref().unwrap().task.abort();
        timeout(Duration::from_secs(60), broken.broke())
            .await
            .expect("noticed");
    }
}
