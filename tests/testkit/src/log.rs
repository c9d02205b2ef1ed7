//! Captures what this thread logs, for tests that use one thread.

use std::{
    io::{Result, Write},
    sync::{Arc, Mutex},
};

use tracing::{Dispatch, Level, subscriber::DefaultGuard};

#[derive(Debug, Clone, Default)]
struct Bytes(Arc<Mutex<Vec<u8>>>);

/// Captures messages until it is dropped.
#[derive(Debug)]
pub struct Log {
    written: Bytes,
    _other: Dispatch,
    _guard: DefaultGuard,
}

impl Log {
    /// Begins to capture messages up to this level.
    pub fn capture(level: Level) -> Log {
        let written = Bytes::default();
        let writer = written.clone();
        // If the process has only one subscriber, and a thread without it reaches a log statement first, tracing
        // switches that statement off for all threads. A second subscriber prevents that.
        let other = tracing_subscriber::fmt().with_writer(std::io::sink);
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .with_max_level(level);
        Log {
            written,
            _other: Dispatch::new(other.finish()),
            _guard: tracing::subscriber::set_default(subscriber.finish()),
        }
    }

    /// What was logged since the last call.
    pub fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.written.0.lock().expect("no panic"));
        String::from_utf8(bytes).expect("text")
    }
}

impl Write for Bytes {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.lock().expect("no panic").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}
