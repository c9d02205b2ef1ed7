//! A connection to the database whose background task ends with it.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Notify, task::JoinHandle, time::timeout};
use tokio_postgres::{AsyncMessage, Client};

use crate::{
    error::{Error, reason},
    postgres::{connect::ConnectOptions, hosts::Target},
};

/// A client with the task that moves its bytes. Dropping it closes the connection at once; the server then rolls back
/// the open transaction.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    settings_after_begin: &'static str,
    target: Target,
    events: Arc<Events>,
    task: JoinHandle<()>,
}

/// What the task tells the client: when a notification came, and whether the connection is closed. It drops payloads,
/// because anybody can notify any channel.
#[derive(Debug, Default)]
pub(crate) struct Events {
    notification: Notify,
    /// Locked for a moment at a time, never across an await.
    last_notification: Mutex<Option<Instant>>,
    closed: AtomicBool,
}

impl Events {
    /// Waits for a notification or for the end of the connection. One notification since the last call is remembered,
    /// however many came. A cancelled wait loses none.
    pub(crate) async fn notified(&self) {
        self.notification.notified().await;
    }

    /// When the last notification came. `None` if none ever did.
    pub(crate) fn last_notification(&self) -> Option<Instant> {
        *self.last()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn note_notification(&self) {
        *self.last() = Some(Instant::now());
        self.notification.notify_one();
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        // No code can panic while it holds the lock, so the value is whole even if the lock is poisoned.
        self.last_notification
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// `purpose` is a part of the connection's name; see [`ConnectOptions::open`].
    pub(crate) async fn open(options: &ConnectOptions, purpose: &str) -> Result<Connection, Error> {
        let (client, mut connection) = options.open(Some(purpose)).await?;
        let settings_after_begin = connection.settings_after_begin();
        let target = connection.target().clone();
        let events = Arc::new(Events::default());
        let sender = Arc::clone(&events);
        let task = tokio::spawn(async move {
            loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(_))) => sender.note_notification(),
                    Some(Ok(AsyncMessage::Notice(notice))) => {
                        tracing::debug!(message = notice.message(), "notice from the server")
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        tracing::debug!(reason = reason(&error), "connection lost");
                        break;
                    }
                    None => break,
                }
            }
            // Wake those who wait for a notification, so that they learn of the end.
            sender.closed.store(true, Ordering::Release);
            sender.notification.notify_one();
        });
        Ok(Connection {
            client,
            settings_after_begin,
            target,
            events,
            task,
        })
    }

    /// The statements that begin a transaction with our own settings, time-outs and search path, not those of the role,
    /// the database or the server. Each statement may take `bound`, and the session may idle for `bound` before the
    /// next one.
    pub(crate) fn begin(&self, access: Access, bound: Duration) -> String {
        format!(
            "BEGIN ISOLATION LEVEL {}; {}SET LOCAL statement_timeout = {bound}; SET LOCAL lock_timeout = {bound}; \
             SET LOCAL idle_in_transaction_session_timeout = {bound}; SET LOCAL search_path = pg_catalog, pg_temp",
            match access {
                Access::Read => "READ COMMITTED READ ONLY",
                Access::Write => "READ COMMITTED READ WRITE",
            },
            self.settings_after_begin(),
            bound = millis(bound),
        )
    }

    /// See [`settings_after_begin`](crate::postgres::connect::Connection::settings_after_begin).
    pub(crate) fn settings_after_begin(&self) -> &'static str {
        self.settings_after_begin
    }

    /// The settings for a session that nobody else uses. Statements outside of a transaction may take `bound`. The
    /// session may idle for any time, because a listener does so.
    pub(crate) fn session_bounds(&self, bound: Duration) -> String {
        format!(
            "SET idle_session_timeout = 0; SET statement_timeout = {}; SET default_transaction_isolation = 'read committed'; {}",
            millis(bound),
            self.settings_after_begin.replace("SET LOCAL", "SET"),
        )
    }

    /// The server that it reached.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    pub(crate) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.events.is_closed()
    }
}

/// Whether a transaction may write. Overrides the role's default.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Milliseconds, as the server expects them. At least 1, because 0 would mean "no bound".
pub(crate) fn millis(duration: Duration) -> u128 {
    duration.as_millis().clamp(1, i32::MAX as u128)
}

/// Fails with [`Error::TimedOut`] if the work takes longer than `bound`.
pub(crate) async fn within<T>(
    bound: Duration,
    doing: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(bound, work).await.unwrap_or(Err(Error::TimedOut {
        doing,
        seconds: bound.as_secs(),
    }))
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}
