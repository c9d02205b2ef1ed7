//! A connection to the database whose background task ends with it.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, task::JoinHandle, time::timeout};
use tokio_postgres::{AsyncMessage, Client};

use crate::{
    error::{Error, reason},
    postgres::connect::ConnectOptions,
};

/// A client with the task that moves its bytes. Dropping it closes the connection at once; the server then rolls back
/// the open transaction.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    settings_after_begin: &'static str,
    events: Arc<Events>,
    task: JoinHandle<()>,
}

/// What the task tells the client: whether a notification came, and whether the connection is closed. It drops
/// payloads, because anybody can notify any channel.
#[derive(Debug, Default)]
struct Events {
    notification: Notify,
    closed: AtomicBool,
}

impl Connection {
    pub(crate) async fn open(options: &ConnectOptions) -> Result<Connection, Error> {
        let (client, mut connection) = options.open().await?;
        let settings_after_begin = connection.settings_after_begin();
        let events = Arc::new(Events::default());
        let sender = Arc::clone(&events);
        let task = tokio::spawn(async move {
            loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(_))) => sender.notification.notify_one(),
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

    /// Waits for a notification or for the end of the connection. One notification since the last call is remembered,
    /// however many came. A cancelled wait loses none.
    pub(crate) async fn notified(&self) {
        self.events.notification.notified().await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.events.closed.load(Ordering::Acquire)
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
