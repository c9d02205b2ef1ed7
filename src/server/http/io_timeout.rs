//! A connection that ends with an error if its client makes us wait too long.
//!
//! | we wait for | at most |
//! |---|---|
//! | the next request | `idle_timeout` |
//! | the rest of a request's head | `head_timeout` after its first byte |
//! | the client to take more of an answer | `stall_timeout` after it last took some |
//! | the client to take the whole answer | `answer_timeout` after its request |
//!
//! Over HTTP/2 the second line does not apply: a part of a head costs memory for one head, and the connection is idle
//! meanwhile. The last two apply to each answer, and `http2` has them: only the stream knows whether its client takes it.
//!
//! While we make an answer, the client waits for us. `checks` bounds that by `request_timeout`.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{activity::Activity, counters::HttpCounters, limits::Limits};

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
        self.activity.set_blocked(result.is_pending());
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
            if more && state.under_way == 0 && !state.is_http2 {
                state.head_since.get_or_insert_with(Instant::now);
            }
            if pending && state.under_way > 0 {
                state.reader = Some(cx.waker().clone());
            }
            match (state.under_way > 0 || stalled, state.head_since) {
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
    use std::{collections::VecDeque, time::Duration};

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
