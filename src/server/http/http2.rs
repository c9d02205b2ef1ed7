//! HTTP/2, for clients that choose it in the TLS handshake: many requests at a time on one connection.
//!
//! hyper and h2 speak the protocol. This file gives each *stream*, a request with its answer, the bounds that a
//! connection of HTTP/1.1 has. A client can stop one answer and go on with others, so the socket does not show it.
//!
//! | bound | is |
//! |---|---|
//! | streams of a connection | [`MOST_STREAMS`] |
//! | streams of all connections | `most_connections`: as many answers at a time as HTTP/1.1 allows. Further ones get 503 |
//! | the client takes nothing of an answer, though the socket took all that it could | `stall_timeout`, then the stream is reset |
//! | the client takes the whole answer | `answer_timeout`, then the stream is reset |
//! | requests that the client cancels ("rapid reset") | [`MOST_CANCELLED`] within [`INTERVAL`], then the connection ends |
//! | bytes of a head, number of headers | as in HTTP/1.1. h2 itself answers 431, and bounds CONTINUATION frames |
//! | bytes of an answer that wait for the client | [`BUFFER_BYTES`] and a frame for each stream |
//!
//! A body is cut into frames of at most [`FRAME_BYTES`]. hyper asks for the next frame once the client's window has
//! room for a byte of the one before. So each piece ends with a frame of one byte: hyper sends it only when the client
//! has taken all before it. Until then the stream counts, and its time-outs run.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    http::{
        StatusCode,
        header::{CONNECTION, CONTENT_TYPE},
    },
    response::Response,
};
use hyper::{
    Request,
    body::{Frame, Incoming, SizeHint},
    rt::Executor,
    server::conn::http2,
    service::{Service, service_fn},
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, OwnedSemaphorePermit},
    time::{Instant, sleep_until},
};

use super::{
    activity::{Activity, UnderWay},
    address::Peer,
    io_timeout::IoTimeout,
    problem::problem,
    shared::{MOST_HEADERS, Shared},
};

/// Streams that one connection may have at a time. RFC 9113 recommends no fewer.
const MOST_STREAMS: u32 = 100;

/// Requests of one connection that the client may cancel within [`INTERVAL`]. A page that searches while its user types
/// cancels some.
const MOST_CANCELLED: u32 = 200;
const INTERVAL: Duration = Duration::from_secs(10);

/// Streams that the client may reset before the service has looked at them.
const MOST_RESET_UNSEEN: usize = 20;

/// The bytes of an answer that h2 takes from a body before the socket takes them.
const BUFFER_BYTES: usize = 64 * 1024;

/// A client takes frames of this size unless it says otherwise.
const FRAME_BYTES: usize = 16 * 1024;

/// What clients may send of a body before the service reads it. The service reads none, so this is the protocol's
/// least.
const WINDOW_BYTES: u32 = 65_535;

tokio::task_local! {
    /// The stream whose task is running.
    static STREAM: Arc<Progress>;
}

/// Answers the requests of one connection until it ends.
pub(super) async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    shared: &Shared,
    peer: Peer,
    router: Router,
    activity: Arc<Activity>,
) -> hyper::Result<()> {
    activity.is_http2();
    let stream = IoTimeout::new(
        stream,
        Arc::clone(&activity),
        Arc::clone(&shared.limits),
        Arc::clone(&shared.counters),
    );
    let streams = Streams {
        shared: shared.clone(),
        activity,
        cancelled: Arc::new(Mutex::new((Instant::now(), 0))),
        is_flooding: Arc::default(),
        is_last: Arc::default(),
    };
    let inner = TowerToHyperService::new(router);
    let service = service_fn({
        let streams = streams.clone();
        move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            let permit = streams.admit(&request);
            let under_way = streams.activity.begin(None);
            let answer = permit.map(|permit| (permit, inner.call(request)));
            let streams = streams.clone();
            async move {
                let progress = STREAM.with(Arc::clone);
                progress.must_be_taken_within(streams.shared.limits.answer_timeout);
                let (permit, response) = match answer {
                    Ok((permit, answer)) => (permit, answer.await?),
                    Err(refusal) => (None, *refusal),
                };
                // What ends a connection of HTTP/1.1 lets one of HTTP/2 take no more requests.
                if response
                    .headers()
                    .get(CONNECTION)
                    .is_some_and(|value| value == "close")
                {
                    streams.is_last.notify_one();
                }
                let kind = response.headers().get(CONTENT_TYPE);
                if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream")) {
                    progress.has_no_end();
                }
                if response.body().is_end_stream() {
                    progress.is_done();
                }
                Ok::<_, Infallible>(response.map(|body| Frames {
                    body,
                    rest: Bytes::new(),
                    progress,
                    _under_way: under_way,
                    _permit: permit,
                }))
            }
        }
    });
    let most_head_bytes = u32::try_from(shared.limits.most_head_bytes).unwrap_or(u32::MAX);
    // hyper's own timers stay off, because `IoTimeout` and `Streams` have the time-outs.
    let connection = http2::Builder::new(streams.clone())
        .max_concurrent_streams(MOST_STREAMS)
        .max_pending_accept_reset_streams(MOST_RESET_UNSEEN)
        .max_header_list_size(most_head_bytes)
        .max_send_buf_size(BUFFER_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let (mut ending, mut is_closing) = (shared.ending.clone(), false);
    loop {
        tokio::select! {
            ended = &mut connection => return ended,
            _ = async { tokio::select! {
                _ = ending.wait_for(|end| *end) => {}
                () = streams.is_last.notified() => {}
            } }, if !is_closing => {
                is_closing = true;
                connection.as_mut().graceful_shutdown();
            }
            () = streams.is_flooding.notified() => {
                shared.counters.flooding.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%peer, "a connection is cut off: the client cancels too many requests");
                return Ok(());
            }
        }
    }
}

/// Runs the streams of one connection, each in a task of its own. A task ends when its stream or the connection ends.
#[derive(Clone)]
struct Streams {
    shared: Shared,
    activity: Arc<Activity>,
    /// Since when the client cancelled how many requests.
    cancelled: Arc<Mutex<(Instant, u32)>>,
    /// Told when they are too many.
    is_flooding: Arc<Notify>,
    /// Told when the connection must take no more requests.
    is_last: Arc<Notify>,
}

impl Streams {
    /// A place for the request, or its refusal. Health checks need none.
    fn admit(
        &self,
        request: &Request<Incoming>,
    ) -> Result<Option<OwnedSemaphorePermit>, Box<Response>> {
        if request.headers().len() > MOST_HEADERS {
            let sentence = format!("a request has at most {MOST_HEADERS} headers here");
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return Err(Box::new(problem(status, sentence)));
        }
        match Arc::clone(&self.shared.http2_requests).try_acquire_owned() {
            Ok(permit) => Ok(Some(permit)),
            Err(_) if matches!(request.uri().path(), "/livez" | "/readyz") => Ok(None),
            Err(_) => {
                self.shared.counters.refused.fetch_add(1, Ordering::Relaxed);
                let most = self.shared.limits.most_connections;
                let sentence = format!(
                    "{most} requests are under way over HTTP/2; try again later, or raise --most-connections"
                );
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Err(Box::new(problem(status, sentence)))
            }
        }
    }

    /// Counts a request that the client cancelled.
    fn count_cancelled(&self) {
        let mut cancelled = self
            .cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (since, count) = &mut *cancelled;
        if since.elapsed() >= INTERVAL {
            (*since, *count) = (Instant::now(), 0);
        }
        *count += 1;
        if *count > MOST_CANCELLED {
            self.is_flooding.notify_one();
        }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        let (streams, progress) = (self.clone(), Arc::new(Progress::default()));
        tokio::spawn(async move {
            let stream = STREAM.scope(Arc::clone(&progress), future);
            tokio::select! {
                _ = stream => {
                    if !progress.done.load(Ordering::Relaxed) {
                        streams.count_cancelled();
                    }
                }
                // Dropping the stream resets it.
                () = progress.is_late(&streams.shared.limits, &streams.activity) => {
                    streams.shared.counters.stalled.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(reason = "the client does not take its answer", "a stream is cut off");
                }
            }
        });
    }
}

/// How far the answer of a stream is.
#[derive(Debug, Default)]
struct Progress {
    times: Mutex<Times>,
    /// Whether all of the answer was given to hyper.
    done: AtomicBool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Times {
    /// Since when a frame waits for the client. `None` while we make the next one.
    waits_since: Option<Instant>,
    /// When the client must have taken the whole answer. `None` for streams of changes, which have no end.
    answer_until: Option<Instant>,
}

impl Progress {
    fn times<R>(&self, look: impl FnOnce(&mut Times) -> R) -> R {
        look(&mut self.times.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn must_be_taken_within(&self, time: Duration) {
        self.times(|times| times.answer_until = Some(Instant::now() + time));
    }

    fn has_no_end(&self) {
        self.times(|times| times.answer_until = None);
    }

    fn is_done(&self) {
        self.done.store(true, Ordering::Relaxed);
    }

    /// Ends when the client has had its time.
    async fn is_late(&self, limits: &super::limits::Limits, activity: &Activity) {
        loop {
            let (now, times) = (Instant::now(), self.times(|times| *times));
            let next = match times.waits_since {
                // A frame that begins to wait meanwhile is found before its time is over.
                None => now + limits.stall_timeout,
                Some(since) => {
                    let stalls = since + limits.stall_timeout;
                    // On a slow network the streams wait for each other, which is not their client's fault. The
                    // connection's own time-out runs while its socket takes nothing.
                    let lately = now - limits.stall_timeout.min(now - since);
                    if times.answer_until.is_some_and(|until| until <= now)
                        || (stalls <= now && !activity.was_blocked_since(lately))
                    {
                        return;
                    }
                    let next = if stalls <= now {
                        now + limits.stall_timeout
                    } else {
                        stalls
                    };
                    times.answer_until.map_or(next, |until| next.min(until))
                }
            };
            sleep_until(next).await;
        }
    }
}

/// A body, in frames that show how far the client has taken it.
struct Frames {
    body: Body,
    /// What is left of the last piece of the body.
    rest: Bytes,
    progress: Arc<Progress>,
    _under_way: UnderWay,
    _permit: Option<OwnedSemaphorePermit>,
}

/// The size of the next frame of a piece with so many bytes left. The last one has one byte.
fn frame_bytes(left: usize) -> usize {
    match left {
        0 | 1 => left,
        left => (left - 1).min(FRAME_BYTES),
    }
}

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        // hyper asks again when the client has room for more.
        this.progress.times(|times| times.waits_since = None);
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    this.progress.is_done();
                    return Poll::Ready(None);
                }
            }
        }
        let frame = this.rest.split_to(frame_bytes(this.rest.len()));
        let now = Instant::now();
        this.progress.times(|times| times.waits_since = Some(now));
        if this.is_end_stream() {
            this.progress.is_done();
        }
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, of_body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower() + rest);
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};

    use super::*;

    #[test]
    fn each_piece_ends_with_a_frame_of_one_byte() {
        for bytes in [1, 2, 100, FRAME_BYTES, FRAME_BYTES + 1, 4 * FRAME_BYTES + 7] {
            let (mut left, mut frames) = (bytes, Vec::new());
            while left > 0 {
                frames.push(frame_bytes(left));
                left -= frame_bytes(left);
            }
            assert_eq!(frames.last(), Some(&1), "{bytes}");
            assert!(
                frames.iter().all(|frame| *frame <= FRAME_BYTES),
                "{frames:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_body_arrives_as_it_is() {
        let pieces = [&b"a"[..], b"", &[7; 3 * FRAME_BYTES]].map(Bytes::copy_from_slice);
        let all = pieces.concat();
        let pieces = stream::iter(pieces.map(Ok::<_, Infallible>));
        let progress = Arc::new(Progress::default());
        let frames = Frames {
            body: Body::from_stream(pieces),
            rest: Bytes::new(),
            progress: Arc::clone(&progress),
            _under_way: Arc::new(Activity::new()).begin(None),
            _permit: None,
        };
        let mut pieces = Body::new(frames).into_data_stream();
        let mut found = Vec::new();
        while let Some(piece) = pieces.next().await {
            assert!(progress.times(|times| times.waits_since.is_some()));
            found.extend_from_slice(&piece.unwrap());
        }
        assert_eq!(found, all);
        assert!(progress.done.load(Ordering::Relaxed));
        assert!(progress.times(|times| times.waits_since.is_none()));
    }
}
