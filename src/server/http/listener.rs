//! Accepts a bounded number of connections, serves each within its limits, and lets them finish at the end.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context;
use axum::{Router, body::Body, http::header::CONTENT_TYPE};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener},
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep, timeout},
};

use super::{
    activity::Activity,
    address::{Address, Peer},
    http2,
    io_timeout::IoTimeout,
    limits::{Limits, SocketMode},
    pool::Pool,
    shared::{MOST_HEADERS, Shared},
    socket::{Socket, Stream},
    tls,
    unix_socket::{self, SocketFile},
};
use crate::server::logging::Seldom;

/// How much longer the kernel waits for a client than `stall_timeout`.
const KERNEL_MARGIN: Duration = Duration::from_secs(30);

/// The pause after a failed accept. Meanwhile other tasks may free what was missing, such as descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What listens for connections.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix {
        /// Before the listener, because the file must go first: until then no other process replaces it, and its inode
        /// is not used again.
        _file: SocketFile,
        listener: UnixListener,
        address: Address,
    },
}

impl Listener {
    /// # Errors
    /// Names the address, and `flag` as the way to another one.
    pub(crate) async fn bind(
        address: &Address,
        mode: SocketMode,
        flag: &str,
    ) -> anyhow::Result<Listener> {
        match address {
            Address::Tcp(tcp) => {
                let listener = TcpListener::bind(tcp).await.with_context(|| {
                    format!("cannot listen on {tcp}; choose another address with {flag}, or end what is using it")
                })?;
                Ok(Listener::Tcp(listener))
            }
            Address::Unix(path) => {
                let (listener, file) = unix_socket::listen(path, mode.0)
                    .with_context(|| format!("{flag} {address}"))?;
                let address = address.clone();
                Ok(Listener::Unix {
                    listener,
                    address,
                    _file: file,
                })
            }
        }
    }

    /// Where it listens, with the port that the kernel chose for port 0.
    pub(crate) fn address(&self) -> anyhow::Result<Address> {
        match self {
            Listener::Tcp(listener) => {
                Ok(Address::Tcp(listener.local_addr().context("listening")?))
            }
            Listener::Unix { address, .. } => Ok(address.clone()),
        }
    }

    async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream::Tcp(stream), Peer(Some(peer))))
            }
            Listener::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), Peer(None)))
            }
        }
    }
}

/// The open connections, and their tasks.
struct Connections {
    tasks: JoinSet<()>,
    /// Connections within the limit.
    usual: Pool,
    /// Connections beyond it. Each gets one short answer, so that health checks get theirs while clients take all
    /// others.
    beyond: Pool,
    /// When the log says that as many connections are open as may be.
    warns: Seldom,
}

/// Accepts connections until `ending`, and returns when all of them have ended.
pub(crate) async fn run(listener: Listener, shared: Shared) {
    let mut connections = Connections {
        tasks: JoinSet::new(),
        usual: Pool::new(shared.limits.most_connections),
        beyond: Pool::new(shared.limits.most_beyond),
        warns: Seldom::default(),
    };
    let mut ending = shared.ending.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // An error means that the sender is gone, which is an end as well.
            _ = ending.wait_for(|end| *end) => break,
            // Ended connections must not pile up.
            Some(ended) = connections.tasks.join_next_with_id() => {
                connections.ended(ended);
                continue;
            }
        };
        match accepted {
            Ok((stream, peer)) => {
                shared.counters.accepted.fetch_add(1, Ordering::Relaxed);
                connections.accept(&shared, stream, peer);
            }
            // The client has gone already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted; is the limit of open files too low?");
                let now = Instant::now();
                // The end of a silent connection may free what is missing.
                if connections.usual.evict(now) || connections.beyond.evict(now) {
                    shared.counters.evicted.fetch_add(1, Ordering::Relaxed);
                }
                sleep(PAUSE).await;
            }
        }
    }
    // No client can connect from here on.
    drop(listener);
    while connections.tasks.join_next().await.is_some() {}
}

impl Connections {
    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
        self.usual.remove(id);
        self.beyond.remove(id);
    }

    fn accept(&mut self, shared: &Shared, stream: Stream, peer: Peer) {
        // Connections that have ended make room.
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.ended(ended);
        }
        let now = Instant::now();
        if !self.usual.has_room() && self.warns.is_due() {
            tracing::warn!(
                connections = shared.limits.most_connections,
                "as many connections are open as may be: the service closes silent ones to make room; if there are \
                 none, new clients get 503; raise --most-connections, or find the client that opens so many"
            );
        }
        let find = |pool: &mut Pool| {
            pool.has_room() || {
                let evicts = pool.evict(now);
                shared
                    .counters
                    .evicted
                    .fetch_add(u64::from(evicts), Ordering::Relaxed);
                evicts
            }
        };
        let (pool, router) = if find(&mut self.usual) {
            (&mut self.usual, shared.router.clone())
        } else {
            shared.counters.turned_away.fetch_add(1, Ordering::Relaxed);
            if !find(&mut self.beyond) {
                return;
            }
            (&mut self.beyond, shared.turned_away.clone())
        };
        if let Stream::Tcp(stream) = &stream
            && let Err(error) = prepare(stream, &shared.limits)
        {
            tracing::debug!(%peer, %error, "a connection could not be set up");
        }
        let activity = Arc::new(Activity::new());
        let serving = serve(stream, peer, shared.clone(), router, Arc::clone(&activity));
        pool.add(activity, self.tasks.spawn(serving));
    }
}

/// Makes the kernel send changes at once, and notice a client whose machine is gone.
fn prepare(stream: &TcpStream, limits: &Limits) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_keepalive(true)?;
    // With this option the end of a connection is a reset. `Socket` removes it before an orderly end. So any other end
    // is a reset, even if the process is killed.
    socket.set_linger(Some(Duration::ZERO))?;
    // The kernel's time-out must come clearly after ours, because only ours is counted. The kernel's starts when the
    // first byte waits. Ours starts when the socket takes no more.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(limits.stall_timeout + KERNEL_MARGIN))?;
    Ok(())
}

async fn serve(
    stream: Stream,
    peer: Peer,
    shared: Shared,
    router: Router,
    activity: Arc<Activity>,
) {
    // On a Unix socket the kernel protects what is sent, and its permissions say who may connect.
    let tls = shared
        .tls
        .as_ref()
        .filter(|_| matches!(stream, Stream::Tcp(_)));
    let stream = Socket::new(stream, Arc::clone(&activity));
    let ended = match tls {
        None => converse(stream, &shared, peer, router, activity).await,
        Some(tls) => {
            let handshake = tls.acceptor().accept(stream);
            match timeout(shared.limits.head_timeout, handshake).await {
                Ok(Ok(stream)) if tls::is_http2(&stream) => {
                    http2::converse(stream, &shared, peer, router, activity).await
                }
                Ok(Ok(stream)) => converse(stream, &shared, peer, router, activity).await,
                Ok(Err(error)) => {
                    tracing::debug!(%peer, %error, "the TLS handshake failed");
                    return;
                }
                Err(_) => {
                    shared.counters.silent.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    };
    if let Err(error) = ended {
        // The cause says which time-out ended it.
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::debug!(%peer, %error, cause, "a connection broke off");
    }
}

/// Answers all requests of one connection, one after the other.
async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    shared: &Shared,
    peer: Peer,
    router: Router,
    activity: Arc<Activity>,
) -> hyper::Result<()> {
    let limits = Arc::clone(&shared.limits);
    let stream = IoTimeout::new(
        stream,
        Arc::clone(&activity),
        Arc::clone(&limits),
        Arc::clone(&shared.counters),
    );
    let inner = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let under_way = activity.begin(Some(limits.answer_timeout));
        request.extensions_mut().insert(peer);
        let answer = hyper::service::Service::call(&inner, request);
        async move {
            let response = answer.await?;
            let kind = response.headers().get(CONTENT_TYPE);
            if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream")) {
                under_way.is_stream();
            }
            Ok::<_, Infallible>(response.map(|body: Body| under_way.with(body)))
        }
    });
    // hyper's own timers stay off, because `IoTimeout` has the time-outs.
    let connection = http1::Builder::new()
        .half_close(false)
        .max_buf_size(shared.limits.most_head_bytes)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut ending = shared.ending.clone();
    tokio::select! {
        ended = &mut connection => return ended,
        _ = ending.wait_for(|end| *end) => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}
