//! A connection to the database whose background work ends with it.

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

/// A client together with the task that moves its bytes. Dropping it closes the connection at once, which makes the server
/// roll back whatever was under way.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    without_transaction_timeout: &'static str,
    heard: Arc<Heard>,
    task: JoinHandle<()>,
}

/// All that is kept of any number of notifications: that there was one. The payload is never looked at, for anybody can
/// notify any channel.
#[derive(Debug, Default)]
struct Heard {
    rung: Notify,
    closed: AtomicBool,
}

impl Connection {
    pub(crate) async fn open(options: &ConnectOptions) -> Result<Connection, Error> {
        let (client, mut connection) = options.open().await?;
        let without_transaction_timeout = match connection.server_version() {
            Some(17..) => "SET LOCAL transaction_timeout = 0; ",
            _ => "",
        };
        let heard = Arc::new(Heard::default());
        let ring = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(_))) => ring.rung.notify_one(),
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
            ring.closed.store(true, Ordering::Release);
            ring.rung.notify_one();
        });
        Ok(Connection {
            client,
            without_transaction_timeout,
            heard,
            task,
        })
    }

    /// Begins a transaction in which no time-out of the role, the database or the server has a say, nor a search path:
    /// each of its statements may take `bound`, and it may wait as long for the next one.
    pub(crate) fn begin(&self, access: Access, bound: Duration) -> String {
        format!(
            "BEGIN ISOLATION LEVEL {}; {}SET LOCAL statement_timeout = {bound}; SET LOCAL lock_timeout = {bound}; \
             SET LOCAL idle_in_transaction_session_timeout = {bound}; SET LOCAL search_path = pg_catalog, pg_temp",
            match access {
                Access::Read => "READ COMMITTED READ ONLY",
                Access::Write => "READ COMMITTED READ WRITE",
            },
            self.without_transaction_timeout(),
            bound = millis(bound),
        )
    }

    /// What a transaction sets first, right after BEGIN, so that no `transaction_timeout` of the role, the database or the
    /// server ends its session. Empty before PostgreSQL 17, which brought that setting.
    pub(crate) fn without_transaction_timeout(&self) -> &'static str {
        self.without_transaction_timeout
    }

    /// For a session that nobody else is handed: whatever runs outside of a transaction block gets the same time, and the
    /// server does not end the session for being idle. A listener is idle most of the time.
    pub(crate) fn session_bounds(&self, bound: Duration) -> String {
        format!(
            "SET idle_session_timeout = 0; SET statement_timeout = {}; {}",
            millis(bound),
            self.without_transaction_timeout.replace("SET LOCAL", "SET"),
        )
    }

    /// Waits for a notification or the end of the connection. Notifications that came since the last call count: at most
    /// one is remembered. Cancellation loses none.
    pub(crate) async fn notified(&self) {
        self.heard.rung.notified().await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.heard.closed.load(Ordering::Acquire)
    }
}

/// Whether a transaction may write, whatever the role's transactions may by default.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Milliseconds as the server takes them; none would mean no bound.
pub(crate) fn millis(duration: Duration) -> u128 {
    duration.as_millis().clamp(1, i32::MAX as u128)
}

/// Bounds some work with the database.
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
