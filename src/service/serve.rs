//! `oddscache serve`: one follower, one HTTP server, and an end to both.

use std::{future::Future, net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::Context;
use axum::Router;
use oddscache::OddsCache;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::timeout,
};

use super::{args::ServeArguments, changes::Hub, http, logging, prune};

/// How long answers under way may take once the end was asked for.
const DRAIN: Duration = Duration::from_secs(5);

pub(crate) async fn run(arguments: ServeArguments) -> anyhow::Result<ExitCode> {
    logging::change_on_signal()?;
    let config = arguments
        .follow
        .config()?
        .poll_interval(arguments.poll_interval);
    let (cache, follower) = OddsCache::connect(config.clone());
    let options = http::Options {
        inline: arguments.inline_markets,
    };
    let server = Server::start(arguments.listen, &cache, arguments.most_streams, options).await?;
    tracing::info!(address = %server.address, "serving HTTP; /readyz says when it is warm");
    let pruner = prune::run(
        config,
        arguments.follow.cache_schema().to_owned(),
        arguments.log_keep,
    );
    let resync = resync_on_signal(cache.clone());
    let result = tokio::select! {
        ended = follower.run() => ended.map(|()| ExitCode::SUCCESS).map_err(anyhow::Error::from),
        () = pruner => unreachable_end(),
        error = resync => error,
        signal = end_asked_for() => {
            tracing::info!(signal = signal?, "ending");
            Ok(ExitCode::SUCCESS)
        }
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
    anyhow::bail!("no more signals come")
}

fn unreachable_end() -> anyhow::Result<ExitCode> {
    anyhow::bail!("the pruner ended")
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

/// A running HTTP server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    end: watch::Sender<bool>,
    hub: Hub,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub(crate) async fn start(
        address: SocketAddr,
        cache: &OddsCache,
        most_streams: usize,
        options: http::Options,
    ) -> anyhow::Result<Server> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address}; choose another address with --listen, or end what is using it")
        })?;
        let address = listener.local_addr().context("listening")?;
        let hub = Hub::start(cache, most_streams);
        let router = http::router(cache.clone(), hub.clone(), options);
        let (end, mut ending) = watch::channel(false);
        let ended = async move {
            // Fails when the sender is gone, which is an end as well.
            let _ = ending.wait_for(|end| *end).await;
        };
        let task = tokio::spawn(serve(listener, router, ended));
        Ok(Server {
            address,
            end,
            hub,
            task,
        })
    }

    /// Accepts no more, and lets answers under way finish, but not for long.
    pub(crate) async fn stop(self) {
        self.end.send_replace(true);
        // Streams of changes would go on for ever.
        self.hub.stop();
        let abort = self.task.abort_handle();
        if timeout(DRAIN, self.task).await.is_err() {
            tracing::warn!("answers were still under way; cut off");
            abort.abort();
        }
    }
}

async fn serve(
    listener: TcpListener,
    router: Router,
    ended: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router)
        .with_graceful_shutdown(ended)
        .await
}
