//! What a connection is doing, as its time-outs need to know it: `io_timeout` has their table.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Waker,
    time::Duration,
};

use axum::body::Body;
use tokio::time::Instant;

use super::watched::{Watch, watched};

/// The state of a connection that its time-outs depend on.
#[derive(Debug)]
pub(crate) struct Activity {
    state: Mutex<State>,
    /// How many bytes the socket has taken. What was written to TLS may still be in its buffers.
    pub(super) taken: AtomicU64,
    /// Whether the socket takes nothing at the moment, although something waits.
    blocked: AtomicBool,
}

#[derive(Debug)]
pub(super) struct State {
    /// Requests between their head and the end of their answer. HTTP/2 has several at a time.
    pub(super) under_way: usize,
    /// The connection speaks HTTP/2. Then bytes need not be the beginning of a request's head.
    pub(super) is_http2: bool,
    /// True from a request's head until the socket has taken the whole answer.
    unsent: bool,
    /// Whether the head of a request has come.
    has_asked: bool,
    /// When the last answer ended, or the connection began.
    pub(super) idle_since: Instant,
    /// When the first byte of a head came.
    pub(super) head_since: Option<Instant>,
    /// When the client must have taken the whole answer. `None` for streams, which have no end, and for HTTP/2, where
    /// `http2` bounds each answer.
    pub(super) answer_until: Option<Instant>,
    /// When the socket last took nothing although something waited.
    blocked_at: Option<Instant>,
    /// Woken when the answer ends, so that hyper reads again and the reading timer is armed.
    pub(super) reader: Option<Waker>,
}

impl Activity {
    pub(crate) fn new() -> Activity {
        Activity {
            state: Mutex::new(State {
                under_way: 0,
                is_http2: false,
                unsent: false,
                has_asked: false,
                idle_since: Instant::now(),
                head_since: None,
                answer_until: None,
                blocked_at: None,
                reader: None,
            }),
            taken: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
        }
    }

    pub(super) fn state<R>(&self, look: impl FnOnce(&mut State) -> R) -> R {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Call it before the first request if the connection speaks HTTP/2.
    pub(super) fn is_http2(&self) {
        self.state(|state| state.is_http2 = true);
    }

    /// Call it when a request's head has come. Keep the result until the answer has ended. The client has `within` to
    /// take the answer.
    pub(crate) fn begin(self: &Arc<Self>, within: Option<Duration>) -> UnderWay {
        self.state(|state| {
            state.under_way += 1;
            state.unsent = true;
            state.has_asked = true;
            state.head_since = None;
            state.answer_until = within.map(|within| Instant::now() + within);
        });
        UnderWay(Arc::clone(self))
    }

    /// Says whether the socket takes nothing at the moment, although something waits.
    pub(super) fn set_blocked(&self, blocked: bool) {
        if self.blocked.swap(blocked, Ordering::Relaxed) || blocked {
            self.state(|state| state.blocked_at = Some(Instant::now()));
        }
    }

    /// Whether the socket took nothing at some time since then, although something waited.
    pub(super) fn was_blocked_since(&self, since: Instant) -> bool {
        self.blocked.load(Ordering::Relaxed)
            || self.state(|state| state.blocked_at.is_some_and(|at| at >= since))
    }

    /// Counts bytes that the socket has taken.
    pub(crate) fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Call it when all that was written is flushed.
    pub(super) fn flushed(&self) {
        self.state(|state| state.unsent = state.under_way > 0);
    }

    /// Since when the client has been silent. `None` if it waits for an answer or takes one.
    pub(super) fn silence(&self) -> Option<Silence> {
        self.state(|state| {
            (state.under_way == 0 && !state.unsent).then_some(Silence {
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
        watched(body, self)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // The client must still take what is left in buffers, so `answer_until` stays.
        let reader = self.0.state(|state| {
            state.under_way -= 1;
            state.idle_since = Instant::now();
            match state.under_way {
                0 => state.reader.take(),
                _ => None,
            }
        });
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Watch for UnderWay {}
