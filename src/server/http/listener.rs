//! Accepts connections, a bounded number of them, serves each within its limits, and lets them finish at the end.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, http::header::CONTENT_TYPE};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    io_timeout::{Activity, Counted, Patient, Tally},
    limits::Limits,
    tls::Tls,
};

/// Connections too many that are told so at a time; those beyond are closed without a word.
const TURNED_AWAY_AT_ONCE: usize = 64;

/// What the kernel's patience is longer than ours.
const KERNEL_MARGIN: Duration = Duration::from_secs(30);

/// No request has more.
const MOST_HEADERS: usize = 64;

/// After an accept that failed for want of something that others may give back, such as descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What every connection needs.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) limits: Arc<Limits>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) tls: Option<Tls>,
    /// All that is served.
    pub(crate) router: Router,
    /// What a connection too many gets.
    pub(crate) turned_away: Router,
    /// Becomes true when all is to end.
    pub(crate) ending: watch::Receiver<bool>,
}

/// Accepts until the end is asked for, and returns when all connections have ended.
pub(crate) async fn run(listener: TcpListener, shared: Shared) {
    let places = Arc::new(Semaphore::new(shared.limits.most_connections));
    let more = Arc::new(Semaphore::new(TURNED_AWAY_AT_ONCE));
    let mut connections = JoinSet::new();
    let mut ending = shared.ending.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Fails when the sender is gone, which is an end as well.
            _ = ending.wait_for(|end| *end) => break,
            // Only so that what has ended does not pile up.
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                shared.tally.accepted.fetch_add(1, Ordering::Relaxed);
                accept(&mut connections, &shared, &places, &more, stream, peer);
            }
            // The client has gone already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted; is the limit of open files too low?");
                sleep(PAUSE).await;
            }
        }
    }
    // Nobody else is let in.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn accept(
    connections: &mut JoinSet<()>,
    shared: &Shared,
    places: &Arc<Semaphore>,
    more: &Arc<Semaphore>,
    stream: TcpStream,
    peer: SocketAddr,
) {
    let (place, router) = match Arc::clone(places).try_acquire_owned() {
        Ok(place) => (place, shared.router.clone()),
        Err(_) => {
            shared.tally.turned_away.fetch_add(1, Ordering::Relaxed);
            match Arc::clone(more).try_acquire_owned() {
                Ok(place) => (place, shared.turned_away.clone()),
                Err(_) => return,
            }
        }
    };
    if let Err(error) = prepare(&stream, &shared.limits) {
        tracing::debug!(%peer, %error, "a connection could not be set up");
    }
    connections.spawn(serve(stream, peer, shared.clone(), router, place));
}

/// Changes shall go out at once, and a client whose machine is gone shall not count for long as there.
fn prepare(stream: &TcpStream, limits: &Limits) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_keepalive(true)?;
    // Clearly later than our own, which is counted: the kernel counts from when the first byte waits, we from when it takes
    // no more.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(limits.stall_timeout + KERNEL_MARGIN))?;
    Ok(())
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Shared,
    router: Router,
    _place: OwnedSemaphorePermit,
) {
    let taken = Arc::<AtomicU64>::default();
    let ended = match &shared.tls {
        None => converse(stream, &shared, router, taken).await,
        Some(tls) => {
            // What TLS takes of an answer, the client has not yet.
            let stream = Counted::new(stream, Arc::clone(&taken));
            let handshake = tls.acceptor().accept(stream);
            match timeout(shared.limits.head_timeout, handshake).await {
                Ok(Ok(stream)) => converse(stream, &shared, router, taken).await,
                Ok(Err(error)) => {
                    tracing::debug!(%peer, %error, "the TLS handshake failed");
                    return;
                }
                Err(_) => {
                    shared.tally.silent.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    };
    if let Err(error) = ended {
        // With its cause, which tells whose patience ended.
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::debug!(%peer, %error, cause, "a connection broke off");
    }
}

/// All requests of one connection, one after the other.
async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    shared: &Shared,
    router: Router,
    taken: Arc<AtomicU64>,
) -> hyper::Result<()> {
    let limits = Arc::clone(&shared.limits);
    let activity = Arc::new(Activity::new());
    let patient = Patient::new(
        stream,
        Arc::clone(&activity),
        Arc::clone(&limits),
        Arc::clone(&shared.tally),
        taken,
    );
    let inner = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        let under_way = activity.begin(limits.answer_timeout);
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
    // No timer of hyper's own: the patience is the stream's.
    let connection = http1::Builder::new()
        .half_close(false)
        .max_buf_size(shared.limits.most_head_bytes)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(patient), service);
    let mut connection = std::pin::pin!(connection);
    let mut ending = shared.ending.clone();
    tokio::select! {
        ended = &mut connection => return ended,
        _ = ending.wait_for(|end| *end) => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}
