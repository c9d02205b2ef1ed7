//! The listener: a connection of its own that LISTENs, never inside a transaction, and reconnects by itself.
//!
//! Notifications only make changes visible sooner. If the listener fails, the next poll finds the changes.
//!
//! The listener proves that notifications arrive. After some quiet a second connection, the notifier, sends a heartbeat
//! on the same way that changes take: a log row and a notification. If the notification does not arrive here,
//! notifications are lost, even if both connections look healthy.
//!
//! Writers notify only while somebody waits for notifications. A waiting follower says so by the wait lock, an advisory
//! lock in share mode, which the listening session holds. Every role may take it, and the server releases it if the
//! connection is lost. The lock must be in the database that LISTEN uses, where the writers look for it, and not on a
//! standby that is read. [`crate::follow::schedule::polling`] explains why no change goes unseen.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_postgres::{SimpleQueryMessage, error::SqlState, types::Type};

use crate::{
    config::Config,
    error::Error,
    follow::backoff::Backoff,
    postgres::{
        connection::{Access, Connection, within},
        quote::{literal, quote},
    },
    read::preflight::{self, DATABASE, Feed},
};

/// The time without a notification after which the listener sends a heartbeat, give or take a fifth. A heartbeat
/// notifies all followers, so the random part lets one of them send it for all.
const QUIET: Duration = Duration::from_secs(5);

/// A heartbeat must arrive within this time.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(4);

/// A session of our own answers within this time. If it does not, a pooler has given it to another connection.
const SESSION_TIMEOUT: Duration = Duration::from_millis(500);

/// Writers hold the wait lock exclusively for microseconds. A session that holds it for longer keeps followers out.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// After this many failed proofs in a row, the cause is probably a pooler and not the network. Nobody replaces a pooler
/// within minutes, so the listener then makes longer pauses.
const LOST_BEFORE_LONGER_PAUSES: u32 = 3;
const FIRST_LONGER_PAUSE: Duration = Duration::from_secs(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// A notification proves for this long that notifications arrive: [`QUIET`], then [`HEARTBEAT_TIMEOUT`], and some
/// reserve.
const PROVEN_FOR: Duration = Duration::from_secs(15);

/// The follower's handle to the listener's task. Dropping it ends the task and closes its connections.
#[derive(Debug)]
pub(crate) struct Listener {
    channel: String,
    database: String,
    state: Arc<State>,
    task: JoinHandle<()>,
}

/// What the follower and the listener's task share.
#[derive(Debug)]
struct State {
    /// Wakes the follower. Remembers one notification at most.
    notified: Notify,
    /// Whether the follower waits for notifications, so that writers should send them.
    wanted: watch::Sender<bool>,
    /// Locked for a moment at a time, never across an await.
    health: Mutex<Health>,
    /// Heartbeats sent since the follower last took the number.
    heartbeats: AtomicUsize,
    /// Whether connections keep their server sessions, as the last check found.
    own_session: AtomicBool,
}

#[derive(Debug)]
struct Health {
    /// When the last notification came. `None` while not listening.
    last_notification: Option<Instant>,
    /// Why notifications do not arrive. `None` once one has arrived.
    trouble: Option<String>,
    /// Set while the wait lock is held. Every transaction with this id or a greater one finds the lock, and so
    /// notifies.
    notifies_from: Option<u64>,
}

impl Listener {
    /// Starts the task. Needs a tokio runtime; opens connections in the background.
    pub(crate) fn spawn(config: &Config, feed: &Feed) -> Listener {
        let listener = ListenerTask::new(config, feed);
        let state = Arc::clone(&listener.state);
        Listener {
            channel: feed.channel.clone(),
            database: feed.database.clone(),
            state,
            task: tokio::spawn(listener.run()),
        }
    }

    /// Whether it listens to the channel and database of this feed.
    pub(crate) fn is_for(&self, feed: &Feed) -> bool {
        (&self.channel, &self.database) == (&feed.channel, &feed.database)
    }

    /// Waits for a notification. Returns at once if one came since the last call. Cancellation loses none.
    pub(crate) async fn notified(&self) {
        self.state.notified.notified().await;
    }

    /// Whether notifications are proven to arrive. The error says why they are not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let health = self.state.health();
        match health.last_notification {
            Some(last) if last.elapsed() < PROVEN_FOR => Ok(()),
            _ => Err(health
                .trouble
                .clone()
                .unwrap_or_else(|| UNPROVEN.to_owned())),
        }
    }

    /// Sets whether writers should notify. The task takes or releases the wait lock, and wakes the follower once it
    /// holds it.
    pub(crate) fn want(&self, wanted: bool) {
        let change = |before: &mut bool| std::mem::replace(before, wanted) != wanted;
        self.state.wanted.send_if_modified(change);
    }

    /// Every writing transaction with this id or a greater one finds the wait lock, and so notifies. One with a smaller
    /// id may have looked too early; only a read finds what it committed. `None` while the lock is not held.
    pub(crate) fn notifies_from(&self) -> Option<u64> {
        self.state.health().notifies_from
    }

    /// Whether the listener's connection has a server session of its own, so that no pooler hands it to others.
    pub(crate) fn has_own_session(&self) -> bool {
        self.state.own_session.load(Ordering::Relaxed)
    }

    /// How many heartbeats were sent since the last call.
    pub(crate) fn take_heartbeats(&self) -> usize {
        self.state.heartbeats.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        // No code can panic while it holds the lock, so the data is whole even if the lock is poisoned.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a notification came, and wakes the follower. Returns whether this ends trouble.
    fn note_notification(&self) -> bool {
        let mut health = self.health();
        health.last_notification = Some(Instant::now());
        let ended = health.trouble.take().is_some();
        drop(health);
        self.notified.notify_one();
        ended
    }

    /// Notes trouble, and wakes the follower if it is new. `is_disconnected` says whether the listening connection is
    /// lost. Returns whether the trouble is new.
    fn note_trouble(&self, trouble: String, is_disconnected: bool) -> bool {
        let mut health = self.health();
        let is_new = health.trouble.as_ref() != Some(&trouble);
        health.trouble = Some(trouble);
        if is_disconnected {
            health.last_notification = None;
            health.notifies_from = None;
        }
        drop(health);
        // The follower must not go on waiting for notifications, and its status must change.
        if is_new {
            self.notified.notify_one();
        }
        is_new
    }
}

const UNPROVEN: &str = "it is not proven that notifications arrive";

/// The task behind a [`Listener`].
struct ListenerTask {
    config: Config,
    cache_schema: String,
    channel: String,
    database: String,
    state: Arc<State>,
    notifier: Option<Notifier>,
    backoff: Backoff,
    /// How many attempts in a row failed because notifications were lost.
    lost_in_a_row: u32,
}

impl ListenerTask {
    fn new(config: &Config, feed: &Feed) -> ListenerTask {
        let state = Arc::new(State {
            notified: Notify::new(),
            wanted: watch::Sender::new(true),
            health: Mutex::new(Health {
                last_notification: None,
                trouble: None,
                notifies_from: None,
            }),
            heartbeats: AtomicUsize::new(0),
            own_session: AtomicBool::new(false),
        });
        ListenerTask {
            config: config.for_listener(),
            cache_schema: config.cache_schema.clone(),
            channel: feed.channel.clone(),
            database: feed.database.clone(),
            state,
            notifier: None,
            backoff: Backoff::for_connections(),
            lost_in_a_row: 0,
        }
    }

    async fn run(mut self) {
        loop {
            let Err(error) = self.listen().await;
            // The next connection may go through another pooler, so forget what was learned about this one.
            self.state.own_session.store(false, Ordering::Relaxed);
            self.notifier = None;
            if self.state.note_trouble(error.to_string(), true) {
                let channel = &self.channel;
                tracing::warn!(channel, %error, "notifications do not arrive; polling, and trying again");
            }
            // A connection costs the server something, and a pooler that loses notifications will go on losing them.
            let mut pause = self.backoff.next();
            if matches!(error, Error::NotificationLost | Error::Pooled) {
                self.lost_in_a_row += 1;
                let extra = self.lost_in_a_row.checked_sub(LOST_BEFORE_LONGER_PAUSES);
                if let Some(extra) = extra {
                    let longer = FIRST_LONGER_PAUSE.saturating_mul(1 << extra.min(6));
                    pause += longer
                        .min(LONGEST_PAUSE)
                        .mul_f64(0.5 + 0.5 * fastrand::f64());
                }
            }
            sleep(pause).await;
        }
    }

    /// Opens the connection that listens. Fails if it is of another database, or has no session of its own.
    async fn open(&mut self) -> Result<Connection, Error> {
        let connection = Connection::open(&self.config.connect).await?;
        let bound = self.config.read_timeout;
        // Both checks come before LISTEN: behind a pooler, LISTEN would stay behind in a session that others use.
        within(
            bound,
            LISTEN,
            same_database(&connection, &self.database, bound),
        )
        .await?;
        let one_session = within(bound, LISTEN, self.one_session(&connection)).await;
        let one_session = one_session.inspect_err(|_| self.notifier = None);
        let own_session = one_session.is_ok();
        self.state.own_session.store(own_session, Ordering::Relaxed);
        one_session?;
        let sql = format!(
            "{}LISTEN {}",
            connection.session_bounds(bound),
            quote(&self.channel)
        );
        let listen = async {
            let listen = connection.client.batch_execute(&sql).await;
            listen.map_err(Error::database(LISTEN))
        };
        within(bound, LISTEN, listen).await?;
        Ok(connection)
    }

    /// Listens until an error ends it.
    async fn listen(&mut self) -> Result<Infallible, Error> {
        let bound = self.config.read_timeout;
        let connection = self.open().await?;
        let mut wanted = self.state.wanted.subscribe();
        let mut holds_lock = false;
        // The first heartbeat goes out at once: nothing is proven yet.
        let mut quiet_until = Instant::now();
        loop {
            let wants = *wanted.borrow_and_update();
            if wants != holds_lock {
                within(bound, LISTEN, self.hold_wait_lock(&connection, wants)).await?;
                holds_lock = wants;
            }
            let quiet = quiet_until.saturating_duration_since(Instant::now());
            let came = notification(&connection, quiet);
            let came = match select(pin!(came), pin!(wanted.changed())).await {
                Either::Left((came, _)) => came?,
                Either::Right(_) => continue,
            };
            // Quiet for long enough: prove that notifications still arrive.
            if !came {
                match self.heartbeat().await {
                    // The notification may be of another follower's heartbeat. It proves as much.
                    Ok(()) if notification(&connection, HEARTBEAT_TIMEOUT).await? => {}
                    Ok(()) => return Err(Error::NotificationLost),
                    // Only the notifier failed. The listening connection may be fine, so keep it and try later.
                    Err(error) => {
                        self.notifier = None;
                        if self.state.note_trouble(error.to_string(), false) {
                            tracing::warn!(channel = self.channel, %error, "cannot prove that notifications arrive");
                        }
                        quiet_until = Instant::now() + QUIET;
                        continue;
                    }
                }
            }
            if self.state.note_notification() {
                tracing::info!(channel = self.channel, "notifications arrive");
            }
            self.backoff = Backoff::for_connections();
            self.lost_in_a_row = 0;
            quiet_until = Instant::now() + QUIET.mul_f64(0.8 + 0.4 * fastrand::f64());
        }
    }

    /// Takes or releases the wait lock.
    async fn hold_wait_lock(&self, connection: &Connection, wants: bool) -> Result<(), Error> {
        let client = &connection.client;
        if !wants {
            // Clear this before releasing the lock. From then on writers need not notify, so the follower must not rely
            // on them.
            self.state.health().notifies_from = None;
            // The session holds no other advisory lock.
            let unlock = "SELECT pg_catalog.pg_advisory_unlock_all()";
            let unlock = client.batch_execute(unlock).await;
            return unlock.map_err(Error::database(LISTEN));
        }
        let begin = connection.begin(Access::Read, self.config.read_timeout);
        let lock = wait_sql(&begin, &self.cache_schema);
        let lock = client.simple_query(&lock).await;
        let answer = lock.map_err(|error| match error.code() {
            Some(&SqlState::LOCK_NOT_AVAILABLE) => Error::unexpected(
                LISTEN,
                "another session holds exclusively the advisory lock that tells writers to notify; \
                 `oddscache sql check` (sql/check.sql) names that session",
            ),
            _ => Error::database(LISTEN)(error),
        })?;
        let xid = answer.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        });
        let xid =
            xid.ok_or_else(|| Error::unexpected(LISTEN, "the next transaction id is no number"))?;
        self.state.health().notifies_from = Some(xid);
        // No notification came for what was committed until now, so the follower must read once.
        self.state.notified.notify_one();
        Ok(())
    }

    /// Checks that the connection keeps its server session while another connection is in a transaction. A pooler in
    /// transaction mode gives the session to that other one; LISTEN would then stay behind in a session that others
    /// use.
    async fn one_session(&mut self, connection: &Connection) -> Result<(), Error> {
        let bound = self.config.read_timeout;
        let before = session(connection, bound).await?;
        let notifier = &self.notifier().await?.connection;
        let begin = notifier.begin(Access::Read, bound);
        let execute = async |sql: &str| notifier.client.batch_execute(sql).await;
        execute(&begin).await.map_err(Error::database(LISTEN))?;
        // A pooler with a single session keeps this query waiting while the notifier holds that session.
        let now = timeout(SESSION_TIMEOUT, session(connection, bound)).await;
        let now = now.map_err(|_| Error::Pooled)??;
        execute("COMMIT").await.map_err(Error::database(LISTEN))?;
        match before == now {
            true => Ok(()),
            false => Err(Error::Pooled),
        }
    }

    /// The notifier; opens it if there is none, or if its connection was lost.
    async fn notifier(&mut self) -> Result<&Notifier, Error> {
        let notifier = match self.notifier.take() {
            Some(notifier) if !notifier.connection.is_closed() => notifier,
            _ => Notifier::open(&self.config, &self.cache_schema, &self.channel).await?,
        };
        Ok(self.notifier.insert(notifier))
    }

    async fn heartbeat(&mut self) -> Result<(), Error> {
        let bound = self.config.read_timeout;
        let send = async { self.notifier().await?.send().await };
        within(bound, HEARTBEAT, send).await?;
        self.state.heartbeats.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Checks once whether notifications arrive, by the same statements as a follower. Returns how long one took.
///
/// Opens three connections, and takes a few round trips on each. Takes for a moment the advisory lock that tells
/// writers to notify. Writes nothing: it rolls its heartbeat back, and then sends a notification alone. Other caches
/// that get the notification read the change log once.
///
/// # Errors
/// [`Error::Pooled`], [`Error::NotificationLost`], [`Error::OtherListenDatabase`] or an error of the server, if
/// notifications do not arrive. A follower would then poll. Otherwise the error that would keep a follower from
/// starting.
pub async fn check_notifications(config: &Config) -> Result<Duration, Error> {
    let reader = Connection::open(&config.connect).await?;
    let bound = config.read_timeout;
    let feed = within(
        bound,
        LISTEN,
        preflight::check_first(&reader, config, config.need_feed),
    )
    .await?;
    let feed = feed.ok_or_else(|| {
        Error::Config("notifications come from the change feed (need_feed)".to_owned())
    })?;
    let mut listener = ListenerTask::new(config, &feed);
    let connection = listener.open().await?;
    within(bound, LISTEN, listener.hold_wait_lock(&connection, true)).await?;
    let sent_at = Instant::now();
    let channel = listener.channel.clone();
    let send = async { listener.notifier().await?.try_notify(&channel).await };
    within(bound, HEARTBEAT, send).await?;
    match notification(&connection, HEARTBEAT_TIMEOUT).await? {
        true => Ok(sent_at.elapsed()),
        false => Err(Error::NotificationLost),
    }
}

const LISTEN: &str = "LISTEN";
const HEARTBEAT: &str = "sending a heartbeat";

/// Checks that the listening connection is in the database that is read, or in the same database of its primary.
async fn same_database(
    connection: &Connection,
    expected: &str,
    bound: Duration,
) -> Result<(), Error> {
    let client = &connection.client;
    let execute = async |sql: &str| {
        client
            .batch_execute(sql)
            .await
            .map_err(Error::database(LISTEN))
    };
    // A transaction, for the time-outs that `begin` sets.
    execute(&connection.begin(Access::Read, bound)).await?;
    let rows = client.query_typed(DATABASE, &[]).await;
    let rows = rows.map_err(Error::database(LISTEN))?;
    execute("COMMIT").await?;
    let found: Option<String> = rows
        .first()
        .map(|row| row.try_get(0))
        .transpose()
        .map_err(Error::database(LISTEN))?;
    if found.as_deref() == Some(expected) {
        return Ok(());
    }
    Err(Error::OtherListenDatabase {
        found: found.unwrap_or_default(),
        expected: expected.to_owned(),
    })
}

/// The process id of the server session that answers.
async fn session(connection: &Connection, bound: Duration) -> Result<String, Error> {
    // A transaction, for the settings and time-outs that `begin` sets.
    let begin = connection.begin(Access::Read, bound);
    let sql = format!("{begin}; SELECT pg_catalog.pg_backend_pid(); COMMIT");
    let answer = connection.client.simple_query(&sql).await;
    let answer = answer.map_err(Error::database(LISTEN))?;
    let id = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    id.ok_or_else(|| Error::unexpected(LISTEN, "no answer"))
}

/// Takes the wait lock, then asks which transaction id the server will assign next. A transaction that looked for the
/// lock before it was taken has a smaller id, because it had its id before it looked (W1 of
/// [`crate::follow::schedule::polling`]).
///
/// `age()` gives the distance to that next id, as long as the current transaction has no id of its own. So asking
/// assigns none. An id of our own would have to be on disk before a snapshot shows it, because after a crash the server
/// could assign it again.
fn wait_sql(begin: &str, cache_schema: &str) -> String {
    format!(
        "{begin}; SET LOCAL lock_timeout = {}; SELECT pg_advisory_lock_shared(hashtextextended({}, 0)); \
         SELECT x::text::numeric + age(x::xid) FROM pg_snapshot_xmax(pg_current_snapshot()) AS x; COMMIT",
        LOCK_TIMEOUT.as_millis(),
        literal(&format!("oddscache listener {cache_schema}")),
    )
}

/// Waits for a notification. Returns whether one came in time.
async fn notification(connection: &Connection, within: Duration) -> Result<bool, Error> {
    let came = timeout(within, connection.notified()).await.is_ok();
    if connection.is_closed() {
        return Err(Error::unexpected(LISTEN, "the connection was lost"));
    }
    Ok(came)
}

/// Sends heartbeats on a connection of its own. Sent on the listening connection they would prove nothing: a pooler in
/// transaction mode passes a client's own notifications back to it, but not those of others.
#[derive(Debug)]
struct Notifier {
    connection: Connection,
    /// Begins a transaction that may write.
    begin: String,
    /// The statement that sends the heartbeat.
    heartbeat: String,
}

impl Notifier {
    async fn open(config: &Config, cache_schema: &str, channel: &str) -> Result<Notifier, Error> {
        let connection = Connection::open(&config.connect).await?;
        // A role without the right to call heartbeat() can still notify. That does not prove that log rows cause
        // notifications.
        let sql = "SELECT 1 FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
             WHERE n.nspname = $1 AND p.proname = 'heartbeat' AND p.pronargs = 0 \
               AND has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')";
        let client = &connection.client;
        let execute = async |sql: &str| client.batch_execute(sql).await;
        let bound = config.read_timeout;
        // `begin` pins the search path, so that the role's own one cannot change what these names mean.
        let begin = connection.begin(Access::Read, bound);
        execute(&begin).await.map_err(Error::database(HEARTBEAT))?;
        let may = client
            .query_typed(sql, &[(&cache_schema, Type::TEXT)])
            .await
            .map_err(Error::database(HEARTBEAT))?;
        execute("COMMIT")
            .await
            .map_err(Error::database(HEARTBEAT))?;
        let call = match may.is_empty() {
            false => format!("{}.heartbeat()", quote(cache_schema)),
            true => format!("pg_catalog.pg_notify({}, '')", literal(channel)),
        };
        let begin = connection.begin(Access::Write, bound);
        Ok(Notifier {
            connection,
            begin,
            heartbeat: format!("SELECT {call}"),
        })
    }

    async fn send(&self) -> Result<(), Error> {
        self.run(&self.heartbeat, "COMMIT").await
    }

    /// Sends a heartbeat and rolls it back, so that nothing is written and nobody is notified. Then sends a
    /// notification without a heartbeat.
    async fn try_notify(&self, channel: &str) -> Result<(), Error> {
        self.run(&self.heartbeat, "ROLLBACK").await?;
        let notify = format!("SELECT pg_catalog.pg_notify({}, '')", literal(channel));
        self.run(&notify, "COMMIT").await
    }

    async fn run(&self, statement: &str, end: &str) -> Result<(), Error> {
        let sql = format!("{}; {statement}; {end}", self.begin);
        let run = self.connection.client.batch_execute(&sql).await;
        run.map_err(Error::database(HEARTBEAT))
    }
}
