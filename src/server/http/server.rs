//! Starts the HTTP server, and ends it without cutting answers off.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    middleware::{from_fn, from_fn_with_state},
};
use futures_util::future::OptionFuture;
use oddscache::{History, InlineMarkets, OddsCache};
use tokio::{
    sync::{Mutex, Semaphore, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};

#[cfg(feature = "otlp")]
use super::trace;
use super::{
    access_log,
    address::Address,
    api::changes::Hub,
    auth::Access,
    checks::{Checks, check, turn_away},
    cors::{self, Origin},
    counters::HttpCounters,
    health::Health,
    limits::{Limits, SocketMode},
    listener::{self, Listener},
    metrics::{self, Requests},
    router::{self, Face},
    shared::Shared,
    tls::Tls,
};

/// How a server serves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Serving {
    pub(crate) limits: Limits,
    /// Open to all by default.
    pub(crate) access: Access,
    /// Plain HTTP by default. Unix sockets have no TLS.
    pub(crate) tls: Option<Tls>,
    pub(crate) health: Arc<Health>,
    /// Reads the history of markets, if the service may.
    pub(crate) history: Option<History>,
    /// The operators' address. Without one the only address has their paths, too.
    pub(crate) admin: Option<Address>,
    /// Pages of these origins may read what the public address answers.
    pub(crate) cors: Vec<Origin>,
    /// Whether each request gets a line of the log.
    pub(crate) access_log: bool,
    /// Whether each request gets a span.
    #[cfg(feature = "otlp")]
    pub(crate) traces: bool,
    /// The permissions of Unix sockets.
    pub(crate) socket_mode: SocketMode,
}

impl Serving {
    /// Warns if anybody who can connect can read, or if a token crosses the network in the clear.
    pub(crate) fn warn_if_exposed(&self, address: &Address) {
        let restricted = self.access.is_restricted();
        let is_local = match address {
            Address::Tcp(address) => address.ip().is_loopback(),
            Address::Unix(_) => true,
        };
        if is_local || (restricted && self.tls.is_some()) {
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
    pub(crate) address: Address,
    /// The operators' address.
    pub(crate) admin: Option<Address>,
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
    /// Listens at `address`, and at the operators' address if there is one.
    pub(crate) async fn start(
        address: Address,
        cache: &OddsCache,
        serving: Serving,
        inline: InlineMarkets,
    ) -> anyhow::Result<Server> {
        let mode = serving.socket_mode;
        let listener = Listener::bind(&address, mode, "--listen").await?;
        let admin = match &serving.admin {
            Some(address) => Some(Listener::bind(address, mode, "--admin-listen").await?),
            None => None,
        };
        let face = match &admin {
            Some(_) => Face::Public,
            None => Face::Whole,
        };
        let hub = Hub::start(cache, serving.limits.most_streams);
        let (drain, drain_delay) = (serving.limits.drain, serving.limits.drain_delay);
        let health = Arc::clone(&serving.health);
        let (end, ending) = watch::channel(false);
        let parts = Parts {
            cache: cache.clone(),
            hub: hub.clone(),
            inline,
            requests: Requests::default(),
            counters: Arc::default(),
            serving,
            ending,
        };
        let (address, admin_address) = (
            listener.address()?,
            admin.as_ref().map(Listener::address).transpose()?,
        );
        let public = listener::run(listener, parts.shared(face));
        let admin = admin.map(|admin| listener::run(admin, parts.shared(Face::Operators)));
        let (lives, ended) = watch::channel(());
        let task = tokio::spawn(async move {
            let _lives = lives;
            tokio::join!(public, OptionFuture::from(admin));
        });
        Ok(Server {
            address,
            admin: admin_address,
            end,
            hub,
            health,
            drain,
            drain_delay,
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

/// What the answers of all addresses are made from. They share their counters.
struct Parts {
    cache: OddsCache,
    hub: Hub,
    inline: InlineMarkets,
    requests: Requests,
    counters: Arc<HttpCounters>,
    serving: Serving,
    ending: watch::Receiver<bool>,
}

impl Parts {
    /// What the connections of an address need.
    fn shared(&self, face: Face) -> Shared {
        let serving = &self.serving;
        let limits = Arc::new(match face {
            Face::Operators => serving.limits.of_operators(),
            Face::Whole | Face::Public => serving.limits.clone(),
        });
        let checks = Checks {
            limits: Arc::clone(&limits),
            access: serving.access.clone(),
            counters: Arc::clone(&self.counters),
        };
        let router = router::router(
            self.cache.clone(),
            self.hub.clone(),
            self.inline.clone(),
            serving.history.clone(),
            self.requests.clone(),
            face,
        );
        let cors = match face {
            Face::Operators => None,
            Face::Whole | Face::Public => cors::layer(&serving.cors),
        };
        let guarded = |router: Router| {
            let router = router
                .layer(Extension(Arc::clone(&serving.health)))
                .layer(Extension(Arc::clone(&self.counters)));
            // Outside the checks, which refuse other methods than GET and HEAD. A page may also read a refusal.
            let router = match &cors {
                Some(cors) => router.layer(cors.clone()),
                None => router,
            };
            // Outside the checks, so that it counts refused requests too.
            let router = router.layer(from_fn_with_state(self.requests.clone(), metrics::count));
            let router = match serving.access_log {
                true => router.layer(from_fn(access_log::log)),
                false => router,
            };
            // Outside the log, whose ids it takes.
            #[cfg(feature = "otlp")]
            let router = match serving.traces {
                true => router.layer(from_fn_with_state(serving.tls.is_some(), trace::trace)),
                false => router,
            };
            router
        };
        let checked = router
            .clone()
            .layer(from_fn_with_state(checks.clone(), check));
        Shared {
            http2_requests: Arc::new(Semaphore::new(limits.most_connections)),
            limits,
            counters: Arc::clone(&self.counters),
            tls: serving.tls.clone(),
            router: guarded(checked),
            turned_away: guarded(router.layer(from_fn_with_state(checks, turn_away))),
            ending: self.ending.clone(),
        }
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
        assert!(TcpStream::connect(server.address.to_string()).await.is_ok());
        server.stop().await;
        assert!(
            TcpStream::connect(server.address.to_string())
                .await
                .is_err()
        );
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
