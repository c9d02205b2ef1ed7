//! The bell: a connection of its own that LISTENs, never in a transaction, and comes back by itself.
//!
//! It makes changes visible sooner, nothing else: whatever becomes of it, the poll finds them. Whether it still rings is
//! proven, not assumed: when it was quiet for a while a second connection sends a heartbeat the way changes come (a log row,
//! a notification), and if that does not arrive here, notifications do not work, however well the connection looks.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_postgres::types::Type;

use crate::{Config, Error, backoff::Backoff, catalog::quote, connection::Connection};

/// After so much quiet a heartbeat is sent, give or take a fifth: one of many followers rings for all of them.
const QUIET: Duration = Duration::from_secs(5);

/// Within so much time it must have come.
const ANSWER: Duration = Duration::from_secs(5);

/// A bell that was heard so recently works: it may be quiet, then be given a heartbeat and its time, and some more.
const PROVEN_FOR: Duration = Duration::from_secs(15);

/// Ends its task, and with it the connections, when dropped.
#[derive(Debug)]
pub(crate) struct Bell {
    channel: String,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    /// Remembers one ring at the most.
    rung: Notify,
    /// Held for a moment at a time, never across an await.
    health: Mutex<Health>,
    heartbeats: AtomicUsize,
}

#[derive(Debug)]
struct Health {
    heard: Option<Instant>,
    /// What is the matter while it has not been heard.
    trouble: String,
}

impl Bell {
    pub(crate) fn spawn(config: &Config, channel: String) -> Bell {
        let state = Arc::new(State {
            rung: Notify::new(),
            health: Mutex::new(Health {
                heard: None,
                trouble: "notifications have yet to be proven to arrive".to_owned(),
            }),
            heartbeats: AtomicUsize::new(0),
        });
        let listener = Listener {
            config: config.for_bell().clone(),
            cache_schema: config.cache_schema.clone(),
            channel: channel.clone(),
            state: Arc::clone(&state),
            ringer: None,
            backoff: Backoff::for_connections(),
        };
        Bell {
            channel,
            state,
            task: tokio::spawn(listener.run()),
        }
    }

    pub(crate) fn channel(&self) -> &str {
        &self.channel
    }

    /// Waits until it has rung since the last call. Cancellation loses no ring.
    pub(crate) async fn rung(&self) {
        self.state.rung.notified().await;
    }

    /// Whether it was heard lately; if not, why.
    pub(crate) fn check(&self) -> Result<(), String> {
        let health = self.state.health();
        match health.heard {
            Some(heard) if heard.elapsed() < PROVEN_FOR => Ok(()),
            _ => Err(health.trouble.clone()),
        }
    }

    /// How many heartbeats were sent since the last call.
    pub(crate) fn take_heartbeats(&self) -> usize {
        self.state.heartbeats.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        // Nothing that holds it can panic halfway.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) {
        self.health().heard = Some(Instant::now());
        self.rung.notify_one();
    }

    /// Says whether that is news.
    fn troubled(&self, trouble: String, deaf: bool) -> bool {
        let mut health = self.health();
        let news = health.trouble != trouble;
        health.trouble = trouble;
        if deaf {
            health.heard = None;
        }
        news
    }
}

/// The task behind a bell.
struct Listener {
    config: Config,
    cache_schema: String,
    channel: String,
    state: Arc<State>,
    ringer: Option<Ringer>,
    backoff: Backoff,
}

impl Listener {
    async fn run(mut self) {
        loop {
            let Err(error) = self.listen().await;
            self.ringer = None;
            if self.state.troubled(error.to_string(), true) {
                let channel = &self.channel;
                tracing::warn!(channel, %error, "notifications do not arrive; polling, and trying again");
            }
            sleep(self.backoff.next()).await;
        }
    }

    /// Listens until that does not work any more.
    async fn listen(&mut self) -> Result<Infallible, Error> {
        let connection = Connection::open(&self.config).await?;
        let sql = format!("LISTEN {}", quote(&self.channel));
        let listen = timeout(
            self.config.read_timeout,
            connection.client.batch_execute(&sql),
        )
        .await;
        let listen = listen.map_err(|_| Error::TimedOut {
            doing: LISTEN,
            seconds: self.config.read_timeout.as_secs(),
        })?;
        listen.map_err(Error::database(LISTEN))?;
        // What was committed before LISTEN took effect rang no bell of ours.
        self.state.rung.notify_one();
        let mut quiet = Duration::ZERO;
        loop {
            if !heard(&connection, quiet).await? {
                match self.heartbeat().await {
                    // An answer to a heartbeat of somebody else will do as well.
                    Ok(()) if heard(&connection, ANSWER).await? => {}
                    Ok(()) => return Err(Error::Mute),
                    // The bell itself may be as well as ever; it is only not proven.
                    Err(error) => {
                        self.ringer = None;
                        if self.state.troubled(error.to_string(), false) {
                            tracing::warn!(channel = self.channel, %error, "cannot tell whether notifications arrive");
                        }
                        quiet = QUIET;
                        continue;
                    }
                }
            }
            self.state.heard();
            self.backoff = Backoff::for_connections();
            quiet = QUIET.mul_f64(0.8 + 0.4 * fastrand::f64());
        }
    }

    async fn heartbeat(&mut self) -> Result<(), Error> {
        let bound = self.config.read_timeout;
        let ring = async {
            let ringer = match self.ringer.take() {
                Some(ringer) if !ringer.connection.is_closed() => ringer,
                _ => Ringer::open(&self.config, &self.cache_schema, &self.channel).await?,
            };
            self.ringer.insert(ringer).ring().await
        };
        timeout(bound, ring).await.unwrap_or(Err(Error::TimedOut {
            doing: HEARTBEAT,
            seconds: bound.as_secs(),
        }))?;
        self.state.heartbeats.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

const LISTEN: &str = "LISTEN";
const HEARTBEAT: &str = "sending a heartbeat";

/// Waits for a notification; says whether one came in time.
async fn heard(connection: &Connection, within: Duration) -> Result<bool, Error> {
    let came = timeout(within, connection.notified()).await.is_ok();
    if connection.is_closed() {
        return Err(Error::unexpected(LISTEN, "the connection was lost"));
    }
    Ok(came)
}

/// Sends heartbeats, from a connection other than the one that listens: a pooler that hands out connections by the
/// transaction would pass a client's own notifications back to it, and nobody else's.
#[derive(Debug)]
struct Ringer {
    connection: Connection,
    sql: String,
}

impl Ringer {
    async fn open(config: &Config, cache_schema: &str, channel: &str) -> Result<Ringer, Error> {
        let connection = Connection::open(config).await?;
        // A role without the right can still ring; what is not proven then is that log rows ring.
        let sql = "SELECT format(CASE WHEN p.oid IS NULL THEN 'SELECT pg_notify(%2$L, '''')' ELSE 'SELECT %1$I.heartbeat()' END, $1, $2) \
             FROM (SELECT) AS one LEFT JOIN (pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace AND n.nspname = $1 \
               AND has_schema_privilege(n.oid, 'USAGE')) ON p.proname = 'heartbeat' AND p.pronargs = 0 AND has_function_privilege(p.oid, 'EXECUTE')";
        let row = connection
            .client
            .query_typed(sql, &[(&cache_schema, Type::TEXT), (&channel, Type::TEXT)])
            .await
            .map_err(Error::database(HEARTBEAT))?;
        let row = row
            .first()
            .ok_or_else(|| Error::unexpected(HEARTBEAT, "no answer"))?;
        let sql = row.try_get(0).map_err(Error::database(HEARTBEAT))?;
        Ok(Ringer { connection, sql })
    }

    async fn ring(&self) -> Result<(), Error> {
        let ring = self.connection.client.batch_execute(&self.sql).await;
        ring.map_err(Error::database(HEARTBEAT))
    }
}
