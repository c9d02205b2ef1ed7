//! Starts the HTTP server, and ends it without cutting answers off.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{Extension, Router, middleware::from_fn_with_state};
use oddscache::{InlineMarkets, OddsCache};
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    api::changes::Hub,
    auth::Access,
    checks::{Checks, check, turn_away},
    counters::HttpCounters,
    health::Health,
    limits::Limits,
    listener::{self, Shared},
    metrics::{self, Requests},
    router,
    tls::Tls,
};

/// How a server serves.
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
    /// Warns if anybody who can connect can read, or if a token crosses the network in the clear.
    pub(crate) fn warn_if_exposed(&self, address: SocketAddr) {
        let restricted = self.access.is_restricted();
        if address.ip().is_loopback() || (restricted && self.tls.is_some()) {
            return;
        }
        let missing = match (restricted, self.tls.is_some()) {
            (false, false) => "requires no token (--token-file) and has no TLS (--tls-cert)",
            (false, true) => "requires no token (--token-file)",
            (true, _) => "has no TLS (--tls-cert), so others can read tokens on the network",
        };
        tracing::warn!(%address, "listening beyond this machine, and the service {missing}: keep it in a private network or behind a proxy");
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
    /// `None` once it has ended.
    task: Mutex<Option<Running>>,
    /// Its sender is gone when the task has ended, for any reason.
    ended: watch::Receiver<()>,
}

/// The task that accepts connections and serves them.
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
        inline: InlineMarkets,
    ) -> anyhow::Result<Server> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address}; choose another address with --listen, or end what is using it")
        })?;
        let address = listener.local_addr().context("listening")?;
        let limits = Arc::new(serving.limits);
        let hub = Hub::start(cache, limits.most_streams);
        let requests = Requests::default();
        let router = router::router(cache.clone(), hub.clone(), inline, requests.clone());
        let (end, ending) = watch::channel(false);
        let counters = Arc::new(HttpCounters::default());
        let checks = Checks {
            limits: Arc::clone(&limits),
            access: serving.access,
            counters: Arc::clone(&counters),
        };
        let (health, with_health) = (Arc::clone(&serving.health), Extension(serving.health));
        let with_counters = Extension(Arc::clone(&counters));
        // Outside the checks, so that it counts refused requests too.
        let counting = from_fn_with_state(requests, metrics::count);
        let guarded = |router: Router| {
            let router = router
                .layer(with_health.clone())
                .layer(with_counters.clone());
            router.layer(counting.clone())
        };
        let shared = Shared {
            limits: Arc::clone(&limits),
            counters,
            tls: serving.tls,
            router: guarded(
                router
                    .clone()
                    .layer(from_fn_with_state(checks.clone(), check)),
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

    /// Returns if the server has ended without [`Server::stop`]: only a restart of the process helps.
    pub(crate) async fn broke(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
        if *self.end.borrow() {
            std::future::pending::<()>().await;
        }
    }

    /// Makes `/readyz` fail, then accepts no more connections, ends streams, and gives answers under way a bounded
    /// time.
    ///
    /// A second call waits for the same end, even if the first one was dropped.
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
        // Streams of changes have no end of their own.
        self.hub.stop();
        let drained = timeout_at(closing + self.drain, &mut running.task).await;
        if drained.is_err() {
            tracing::warn!("answers were still under way at the end of --drain, and are cut off");
            // The task owns the connections, so they end with it.
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
        Server::start(address, &cache, serving, router::default_inline())
            .await
            .unwrap()
    }

    /// This happens if the follower ends while the service is ending.
    #[tokio::test]
    async fn a_second_stop_waits_for_the_same_end() {
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
