//! Standard error. One thread writes it, so that no other thread waits for its reader.
//!
//! A pipe that nobody reads, or a terminal stopped by Ctrl-S, blocks each write. Messages then wait in a queue of up to
//! [`MOST_BYTES`]. The program drops further ones and counts them. It also drops and counts a message whose write
//! fails, for instance on a full disk. When it can write again, the log says how many messages it dropped.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    panic,
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// The most bytes of messages that wait.
const MOST_BYTES: usize = 1 << 20;

/// How long the process waits at its end for messages to be written.
const AT_THE_END: Duration = Duration::from_secs(1);

/// The pause before a message is written again to an output that is in non-blocking mode and full.
const PAUSE: Duration = Duration::from_millis(20);

static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Messages on their way to standard error.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Signalled when a message comes, and when all are written.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The thread removes a message when it has written it.
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
    /// How many messages were dropped since the process began.
    dropped: u64,
    /// How many of these the log has reported.
    reported: u64,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, message: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.bytes + message.len() > MOST_BYTES {
            waiting.dropped += 1;
            return;
        }
        waiting.bytes += message.len();
        waiting.messages.push_back(message.to_vec());
        self.changed.notify_all();
    }

    /// Waits for the next message, and returns it. Its bytes count as waiting until [`Queue::done`].
    fn next(&self) -> Vec<u8> {
        let mut waiting = self.waiting();
        loop {
            if let Some(message) = waiting.messages.front_mut() {
                return std::mem::take(message);
            }
            waiting = self
                .changed
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Call it when the message from [`Queue::next`] is written, or its write failed. If it was written, returns how
    /// many messages were dropped and not reported before.
    fn done(&self, bytes: usize, is_written: bool) -> u64 {
        let mut waiting = self.waiting();
        waiting.messages.pop_front();
        waiting.bytes -= bytes;
        if waiting.messages.is_empty() {
            self.changed.notify_all();
        }
        if !is_written {
            waiting.dropped += 1;
            return 0;
        }
        let unreported = waiting.dropped - waiting.reported;
        waiting.reported = waiting.dropped;
        unreported
    }

    /// Waits until all messages are written, for at most `bound`.
    fn flush(&self, bound: Duration) {
        let until = Instant::now() + bound;
        let mut waiting = self.waiting();
        while !waiting.messages.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let (guard, _) = self
                .changed
                .wait_timeout(waiting, left)
                .unwrap_or_else(PoisonError::into_inner);
            waiting = guard;
        }
    }

    fn write_all_to(&self, mut out: impl Write) -> ! {
        loop {
            let message = self.next();
            let is_written = write(&mut out, &message).is_ok();
            let dropped = self.done(message.len(), is_written);
            if dropped > 0 {
                // This goes into the queue, so it never blocks this thread.
                tracing::warn!(
                    dropped,
                    "standard error could not be written for a while: {dropped} messages were dropped"
                );
            }
        }
    }
}

fn write(out: &mut impl Write, mut message: &[u8]) -> io::Result<()> {
    while !message.is_empty() {
        match out.write(message) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => message = message.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// When this is dropped, at the end of the process, it waits up to 1 s for messages to be written.
#[derive(Debug)]
pub(crate) struct Flush;

impl Drop for Flush {
    fn drop(&mut self) {
        if let Some(queue) = QUEUE.get() {
            queue.flush(AT_THE_END);
        }
    }
}

/// Starts the thread. Call it once. Before that, and if it fails, [`say`] writes directly. Afterwards panics go to the
/// log, because Rust's own report of a panic writes directly and could block.
pub(crate) fn start() -> io::Result<Flush> {
    // A descriptor of its own, because a thread that writes to `io::stderr()` keeps its lock while it is blocked.
    let out = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    thread::Builder::new()
        .name("stderr".to_owned())
        .spawn(move || QUEUE.get_or_init(Queue::default).write_all_to(out))?;
    QUEUE.get_or_init(Queue::default);
    panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!("a panic, which is a bug: {panic}\n{backtrace}");
    }));
    Ok(Flush)
}

/// Puts a line into the queue, or drops it. Never fails. Blocks only before [`start`].
pub(crate) fn say(line: &str) {
    let line = format!("{line}\n");
    match QUEUE.get() {
        Some(queue) => queue.put(line.as_bytes()),
        None => {
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }
}

/// A writer for the log. Each call puts one message into the queue, or drops it. Never fails. Blocks only before
/// [`start`].
#[derive(Debug)]
pub(crate) struct Messages;

impl Write for Messages {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        match QUEUE.get() {
            Some(queue) => queue.put(message),
            None => {
                let _ = io::stderr().write_all(message);
            }
        }
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many messages were dropped since the process began.
pub(crate) fn dropped() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.waiting().dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_and_what_is_dropped_is_counted_and_reported_once() {
        let queue = Queue::default();
        let message = vec![b'x'; MOST_BYTES / 4];
        for _ in 0..6 {
            queue.put(&message);
        }
        assert_eq!(queue.waiting().dropped, 2);
        let begun = Instant::now();
        queue.flush(Duration::from_millis(20));
        assert!(begun.elapsed() >= Duration::from_millis(20));
        for (is_written, unreported) in [(false, 0), (true, 3), (true, 0), (true, 0)] {
            let taken = queue.next();
            assert_eq!(taken, message);
            // A message that is being written keeps its place in the queue.
            assert_eq!(queue.waiting().messages.front(), Some(&Vec::new()));
            assert_eq!(queue.done(taken.len(), is_written), unreported);
        }
        assert_eq!(queue.waiting().bytes, 0);
        queue.flush(Duration::ZERO);
    }

    #[test]
    fn a_full_output_in_non_blocking_mode_is_tried_again() {
        struct Full(Vec<u8>, u32);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                match self.1 % 2 {
                    0 => Err(io::ErrorKind::WouldBlock.into()),
                    _ => self.0.write(&bytes[..1]),
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut out = Full(Vec::new(), 0);
        write(&mut out, b"abc").unwrap();
        assert_eq!(out.0, b"abc");
    }
}
