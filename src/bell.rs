//! The bell: a connection of its own that LISTENs, never in a transaction, and comes back by itself.
//!
//! It makes changes visible sooner, nothing else. Whatever becomes of it, the poll finds them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{Config, Error, backoff::Backoff, catalog::quote, connection::Connection};

/// Ends its task, and with it the connection, when dropped.
#[derive(Debug)]
pub(crate) struct Bell {
    channel: String,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Remembers one ring at the most.
    rung: Notify,
    listening: AtomicBool,
}

impl Bell {
    pub(crate) fn spawn(config: Config, channel: String) -> Bell {
        let state = Arc::new(State::default());
        let task = tokio::spawn(keep_listening(config, channel.clone(), Arc::clone(&state)));
        Bell {
            channel,
            state,
            task,
        }
    }

    pub(crate) fn channel(&self) -> &str {
        &self.channel
    }

    /// Waits until it has rung since the last call. Cancellation loses no ring.
    pub(crate) async fn rung(&self) {
        self.state.rung.notified().await;
    }

    pub(crate) fn is_listening(&self) -> bool {
        self.state.listening.load(Ordering::Acquire)
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_listening(config: Config, channel: String, state: Arc<State>) {
    let mut last_error = None;
    let mut backoff = Backoff::for_connections();
    loop {
        match listen(&config, &channel).await {
            Ok(connection) => {
                last_error = None;
                backoff = Backoff::for_connections();
                state.listening.store(true, Ordering::Release);
                // What was committed before LISTEN took effect rang no bell of ours.
                state.rung.notify_one();
                while !connection.is_closed() {
                    connection.notified().await;
                    state.rung.notify_one();
                }
                state.listening.store(false, Ordering::Release);
                tracing::warn!(
                    channel,
                    "the listening connection is lost; polling until it is back"
                );
            }
            Err(error) => {
                let error = error.to_string();
                if last_error.as_ref() != Some(&error) {
                    tracing::warn!(
                        channel,
                        error,
                        "LISTEN does not work; polling, and trying again"
                    );
                    last_error = Some(error);
                }
            }
        }
        sleep(backoff.next()).await;
    }
}

async fn listen(config: &Config, channel: &str) -> Result<Connection, Error> {
    let connection = Connection::open(config).await?;
    let sql = format!("LISTEN {}", quote(channel));
    let listen = timeout(config.read_timeout, connection.client.batch_execute(&sql)).await;
    let listen = listen.map_err(|_| Error::TimedOut {
        doing: "LISTEN",
        seconds: config.read_timeout.as_secs(),
    })?;
    listen.map_err(Error::database("LISTEN"))?;
    Ok(connection)
}
