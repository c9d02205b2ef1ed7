//! Waiting for a future in a Python thread.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use pyo3::prelude::*;

/// How long a signal, such as that of Ctrl-C, may wait until it is seen.
const SIGNALS: Duration = Duration::from_millis(50);

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for `future` until `deadline`. `None` after it. Other Python threads run meanwhile.
///
/// With `signals`, their handlers run. One that raises, as that of Ctrl-C does, ends the wait.
pub(crate) fn wait<F: Future>(
    py: Python<'_>,
    deadline: Option<Instant>,
    signals: bool,
    future: F,
) -> PyResult<Option<F::Output>> {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Ok(Some(output));
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(None);
        }
        let pause = match (left, signals) {
            (Some(left), true) => Some(left.min(SIGNALS)),
            (None, true) => Some(SIGNALS),
            (left, false) => left,
        };
        py.detach(|| match pause {
            Some(pause) => thread::park_timeout(pause),
            None => thread::park(),
        });
        if signals {
            py.check_signals()?;
        }
    }
}
