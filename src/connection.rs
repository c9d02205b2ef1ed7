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

use crate::{Config, Error, error::reason};

/// A client together with the task that moves its bytes. Dropping it closes the connection at once, which makes the server
/// roll back whatever was under way.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
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
    pub(crate) async fn open(config: &Config) -> Result<Connection, Error> {
        let (client, mut wire) = config.open().await?;
        let heard = Arc::new(Heard::default());
        let ring = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            loop {
                match poll_fn(|context| wire.poll_message(context)).await {
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
            heard,
            task,
        })
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
