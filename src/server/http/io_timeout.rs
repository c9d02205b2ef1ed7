//! A connection that ends with an error if its client makes us wait too long.
//!
//! | we wait for | at most |
//! |---|---|
//! | the next request | `idle_timeout` |
//! | the rest of a request's head | `head_timeout` after its first byte |
//! | the client to take more of an answer | `stall_timeout` after it last took some |
//! | the client to take the whole answer | `answer_timeout` after its request |
//!
//! While we make an answer, the client waits for us. `checks` bounds that by `request_timeout`.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{counters::HttpCounters, limits::Limits};

/// The state of a connection that its time-outs depend on.
#[derive(Debug)]
pub(crate) struct Activity {
    state: Mutex<State>,
    /// How many bytes the socket has taken. What was written to TLS may still be in its buffers.
    taken: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// Between a request's head and the end of its answer.
    under_way: bool,
    /// True from a request's head until the socket has taken the whole answer.
    unsent: bool,
    /// Whether the head of a request has come.
    has_asked: bool,
    /// When the last answer ended, or the connection began.
    idle_since: Instant,
    /// When the first byte of a head came.
    head_since: Option<Instant>,
    /// When the client must have taken the whole answer. `None` for streams, which have no end.
    answer_until: Option<Instant>,
    /// Woken when the answer ends, so that hyper reads again and the reading timer is armed.
    reader: Option<Waker>,
}

impl Activity {
    pub(crate) fn new() -> Activity {
        Activity {
            state: Mutex::new(State {
                under_way: false,
                unsent: false,
                has_asked: false,
                idle_since: Instant::now(),
                head_since: None,
                answer_until: None,
                reader: None,
            }),
            taken: AtomicU64::new(0),
        }
    }

    fn state<R>(&self, look: impl FnOnce(&mut State) -> R) -> R {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Call it when a request's head has come. Keep the result until the answer has ended.
    pub(crate) fn begin(self: &Arc<Self>, within: Duration) -> UnderWay {
        self.state(|state| {
            (state.under_way, state.unsent) = (true, true);
            state.has_asked = true;
            state.head_since = None;
            state.answer_until = Some(Instant::now() + within);
        });
        UnderWay(Arc::clone(self))
    }

    /// Counts bytes that the socket has taken.
    pub(crate) fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Call it when all that was written is flushed.
    pub(super) fn flushed(&self) {
        self.state(|state| state.unsent = state.under_way);
    }

    /// Since when the client has been silent. `None` if it waits for an answer or takes one.
    pub(super) fn silence(&self) -> Option<Silence> {
        self.state(|state| {
            (!state.under_way && !state.unsent).then_some(Silence {
                has_asked: state.has_asked,
                since: state.idle_since,
            })
        })
    }

    /// Whether the socket has not taken all of an answer. If the connection ends now, the answer is cut.
    pub(crate) fn is_unsent(&self) -> bool {
        self.state(|state| state.unsent)
    }
}

/// The silence of a connection without an answer under way.
#[derive(Debug)]
pub(super) struct Silence {
    /// Whether the head of a request has ever come.
    pub(super) has_asked: bool,
    /// When the last answer ended, or the connection began.
    pub(super) since: Instant,
}

/// Lives while an answer is made or sent.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Activity>);

impl UnderWay {
    /// The answer is a stream, which has no end. So `answer_timeout` does not apply.
    pub(crate) fn is_stream(&self) {
        self.0.state(|state| state.answer_until = None);
    }

    /// The same body. The answer ends when the body is dropped.
    pub(crate) fn with(self, body: Body) -> Body {
        Body::new(Tracked {
            body,
            _under_way: self,
        })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // The client must still take what is left in buffers, so `answer_until` stays.
        let reader = self.0.state(|state| {
            state.under_way = false;
            state.idle_since = Instant::now();
            state.reader.take()
        });
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

struct Tracked {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A timer that is set again only if its deadline changes, because setting it costs more than polling it.
#[derive(Debug)]
struct Timer(Pin<Box<Sleep>>);

impl Timer {
    fn new() -> Timer {
        Timer(Box::pin(sleep_until(Instant::now())))
    }

    /// Whether `deadline` has passed. If not, the task is woken at the deadline.
    fn is_over(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        if self.0.deadline() != deadline {
            self.0.as_mut().reset(deadline);
        }
        self.0.as_mut().poll(cx).is_ready()
    }
}

/// A stream with the time-outs of the table above.
#[derive(Debug)]
pub(crate) struct IoTimeout<S> {
    inner: S,
    activity: Arc<Activity>,
    limits: Arc<Limits>,
    counters: Arc<HttpCounters>,
    reading: Timer,
    writing: Timer,
    /// Since when the client has taken nothing although an answer waits for it.
    stalled_since: Option<Instant>,
    /// Whether a write is pending. Then a flush without work is no progress.
    write_waits: bool,
    /// The value of [`Activity::taken`] at the last look. If it has grown, the client takes its answer.
    taken_before: u64,
}

impl<S> IoTimeout<S> {
    pub(crate) fn new(
        inner: S,
        activity: Arc<Activity>,
        limits: Arc<Limits>,
        counters: Arc<HttpCounters>,
    ) -> IoTimeout<S> {
        IoTimeout {
            inner,
            activity,
            limits,
            counters,
            reading: Timer::new(),
            writing: Timer::new(),
            stalled_since: None,
            write_waits: false,
            taken_before: 0,
        }
    }

    /// Whether the socket has taken more since the last call. A TLS flush that is still pending may have sent some.
    fn has_taken_more(&mut self) -> bool {
        let taken = self.activity.taken.load(Ordering::Relaxed);
        std::mem::replace(&mut self.taken_before, taken) != taken
    }

    /// Checks after a write whether the client's time is over.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            if self.stalled_since.take().is_some() {
                // During a stall the reading side has no deadline. Wake it to set its timer again.
                cx.waker().wake_by_ref();
            }
            return result;
        }
        if self.has_taken_more() {
            self.stalled_since = None;
        }
        let since = *self.stalled_since.get_or_insert_with(Instant::now);
        let mut until = since + self.limits.stall_timeout;
        if let Some(answer_until) = self.activity.state(|state| state.answer_until) {
            until = until.min(answer_until);
        }
        if self.writing.is_over(until, cx) {
            self.counters.stalled.fetch_add(1, Ordering::Relaxed);
            return Poll::Ready(Err(late("the client does not take its answer")));
        }
        Poll::Pending
    }
}

fn late(what: &'static str) -> io::Error {
    tracing::debug!(reason = what, "a connection is cut off");
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<S: AsyncRead + Unpin> AsyncRead for IoTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buffer);
        let more = buffer.filled().len() > before;
        let (limits, stalled) = (&this.limits, this.stalled_since.is_some());
        let pending = result.is_pending();
        // No deadline applies while an answer is made or a write stalls: the client need not send anything then.
        let until = this.activity.state(|state| {
            if more && !state.under_way {
                state.head_since.get_or_insert_with(Instant::now);
            }
            if pending && state.under_way {
                state.reader = Some(cx.waker().clone());
            }
            match (state.under_way || stalled, state.head_since) {
                (true, _) => None,
                (false, Some(since)) => Some(since + limits.head_timeout),
                (false, None) => Some(state.idle_since + limits.idle_timeout),
            }
        });
        if pending
            && let Some(until) = until
            && this.reading.is_over(until, cx)
        {
            this.counters.silent.fetch_add(1, Ordering::Relaxed);
            return Poll::Ready(Err(late("the client asks for nothing")));
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for IoTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.write_waits = result.is_pending();
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bytes);
        self.write_waits = result.is_pending();
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        // If a write is pending, this flush had nothing to send, so the stall goes on. Otherwise the socket has taken
        // everything.
        if matches!(result, Poll::Ready(Ok(()))) && !self.write_waits {
            self.activity.flushed();
        }
        match result.is_ready() && self.write_waits {
            true => result,
            false => self.written(cx, result),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        Poll::Ready(ready!(self.written(cx, result)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_util::task::noop_waker;

    use super::*;

    /// Behaves like TLS: it takes every write at once, and flushes by a script. Each step of the script says how many
    /// bytes the socket took, and whether those were all.
    struct Buffering {
        flushes: VecDeque<(usize, bool)>,
        activity: Arc<Activity>,
    }

    impl AsyncRead for Buffering {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Buffering {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            let (bytes, done) = self.flushes.pop_front().unwrap();
            self.activity.take(bytes);
            match done {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn io_timeout(flushes: &[(usize, bool)], stall_timeout: Duration) -> IoTimeout<Buffering> {
        let activity = Arc::new(Activity::new());
        let inner = Buffering {
            flushes: flushes.iter().copied().collect(),
            activity: Arc::clone(&activity),
        };
        let limits = Limits {
            stall_timeout,
            ..Limits::default()
        };
        IoTimeout::new(inner, activity, Arc::new(limits), Arc::default())
    }

    #[tokio::test]
    async fn a_stall_ends_when_all_is_flushed() {
        let mut stream = io_timeout(
            &[(0, false), (0, false), (9, true)],
            Duration::from_secs(60),
        );
        let (waker, mut flushed) = (noop_waker(), Vec::new());
        for _ in 0..3 {
            let mut cx = Context::from_waker(&waker);
            let result = Pin::new(&mut stream).poll_flush(&mut cx);
            flushed.push((result.is_ready(), stream.stalled_since.is_some()));
        }
        assert_eq!(flushed, [(false, true), (false, true), (true, false)]);
    }

    #[tokio::test]
    async fn a_client_that_takes_some_of_a_flush_has_not_stalled() {
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let script = [(0, false), (1, false), (1, false), (0, false)];
        let mut stream = io_timeout(&script, Duration::from_secs(1));
        for _ in 0..3 {
            assert!(Pin::new(&mut stream).poll_flush(&mut cx).is_pending());
            // As if the stall had begun earlier.
            *stream.stalled_since.as_mut().unwrap() -= Duration::from_secs(5);
        }
        let result = Pin::new(&mut stream).poll_flush(&mut cx);
        assert!(matches!(result, Poll::Ready(Err(_))), "{result:?}");
    }
}
