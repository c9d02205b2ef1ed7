//! Log lines of the library, for Python's `logging`.
//!
//! They wait in a bounded queue until a Python thread takes them, because a thread of the library must not wait for the
//! GIL (J1).

use std::{
    collections::VecDeque,
    fmt::{self, Write},
    sync::{
        Arc, Condvar, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use arc_swap::ArcSwap;
use pyo3::prelude::*;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// How many lines wait at most. Further ones are counted and dropped.
const WAITING: usize = 1024;

/// The least level of `logging` that is recorded.
static LEVEL: AtomicU8 = AtomicU8::new(20);

static QUEUE: LazyLock<ArcSwap<Queue>> = LazyLock::new(ArcSwap::default);

#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<(u8, String)>,
    dropped: u64,
    ended: bool,
}

/// A level of `logging`.
fn number(level: Level) -> u8 {
    match level {
        Level::ERROR => 40,
        Level::WARN => 30,
        Level::INFO => 20,
        Level::DEBUG => 10,
        Level::TRACE => 5,
    }
}

struct Recorder;

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && metadata.target().starts_with("oddscache")
            && number(*metadata.level()) >= LEVEL.load(Ordering::Relaxed)
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let queue = QUEUE.load();
        let mut waiting = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.lines.len() < WAITING {
            let level = number(*event.metadata().level());
            waiting
                .lines
                .push_back((level, text.message + &text.fields));
        } else {
            waiting.dropped += 1;
        }
        drop(waiting);
        queue.more.notify_one();
    }

    /// Spans are not recorded: each line says what it is about.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// The message, and the fields as `name=value` behind it.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            name => write!(self.fields, " {name}={value}"),
        };
    }
}

/// Records the library's log lines from now on. The module calls it once.
pub(crate) fn install() {
    // Fails if it was called before. Then lines are recorded already.
    let _ = tracing::subscriber::set_global_default(Recorder);
}

/// Records lines of this level of `logging` and above.
#[pyfunction]
pub(crate) fn log_level(level: u8) {
    LEVEL.store(level, Ordering::Relaxed);
    tracing::callsite::rebuild_interest_cache();
}

/// Gives later lines a new queue. A forked process needs one: a thread that it does not have may have locked the old
/// one, whose memory is left alone for the same reason.
#[pyfunction]
pub(crate) fn log_renew() {
    std::mem::forget(QUEUE.swap(Arc::default()));
}

/// Takes the lines of the queue. One thread does.
#[pyclass(frozen, module = "oddscache._native")]
pub(crate) struct LogReader(Arc<Queue>);

#[pymethods]
impl LogReader {
    #[new]
    fn new() -> LogReader {
        LogReader(QUEUE.load_full())
    }

    /// Waits for lines. Returns all, each with its level, and how many were dropped. `None` once the reader was ended and
    /// all lines were taken.
    fn take(&self, py: Python<'_>) -> Option<(Vec<(u8, String)>, u64)> {
        py.detach(|| {
            let mut waiting = self
                .0
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            loop {
                if !waiting.lines.is_empty() {
                    let lines = std::mem::take(&mut waiting.lines).into();
                    return Some((lines, std::mem::take(&mut waiting.dropped)));
                }
                if waiting.ended {
                    return None;
                }
                let woken = self.0.more.wait(waiting);
                waiting = woken.unwrap_or_else(PoisonError::into_inner);
            }
        })
    }

    fn end(&self) {
        self.0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ended = true;
        self.0.more.notify_all();
    }
}
