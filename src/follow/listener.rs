//! The bell: a connection of its own that LISTENs, never in a transaction, and comes back by itself.
//!
//! It makes changes visible sooner, nothing else: whatever becomes of it, the poll finds them. Whether it still rings is
//! proven, not assumed: when it was quiet for a while a second connection sends a heartbeat the way changes come (a log row,
//! a notification), and if that does not arrive here, notifications do not work, however well the connection looks.
//!
//! Writers ring only while somebody waits for it. While the follower wants to be rung for, the session that LISTENs holds an
//! advisory lock in share mode, which every role may take and a lost connection gives back; why no change goes unseen for
//! it, [`crate::follow::schedule::polling`] says. It must be held where the writers look: in the database of the bell, not of a standby that is
//! read.

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
use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState, types::Type};

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

/// After so much quiet a heartbeat is sent, give or take a fifth: one of many followers rings for all of them.
const QUIET: Duration = Duration::from_secs(5);

/// Within so much time it must have come.
const ANSWER: Duration = Duration::from_secs(4);

/// A session that is one's own answers within this, whatever others do with theirs.
const SESSION_ANSWER: Duration = Duration::from_millis(500);

/// A writer holds the lock for microseconds; whoever holds it for longer means harm.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// After notifications that did not arrive so often in a row, it is not the network: a pooler is not replaced in minutes.
const MUTE_TRIES: u32 = 3;
const MUTE_PAUSE: Duration = Duration::from_secs(20);
const LONGEST_MUTE_PAUSE: Duration = Duration::from_secs(300);

/// A bell that was heard so recently works: it may be quiet, then be given a heartbeat and its time, and some more.
const PROVEN_FOR: Duration = Duration::from_secs(15);

/// Ends its task, and with it the connections, when dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    channel: String,
    database: String,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    /// Remembers one ring at the most.
    notified: Notify,
    /// Whether writers should ring.
    wanted: watch::Sender<bool>,
    /// Held for a moment at a time, never across an await.
    health: Mutex<Health>,
    heartbeats: AtomicUsize,
    /// The server's sessions were found to stay with their connections.
    own_session: AtomicBool,
}

#[derive(Debug)]
struct Health {
    heard: Option<Instant>,
    /// What is the matter while it has not been heard.
    trouble: Option<String>,
    /// While the lock is held that makes writers ring: the id of the first transaction that began after it was taken, or of
    /// a later one.
    rings_from: Option<u64>,
}

impl Listener {
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

    /// Whether it rings for this feed.
    pub(crate) fn is_for(&self, feed: &Feed) -> bool {
        (&self.channel, &self.database) == (&feed.channel, &feed.database)
    }

    /// Waits until it has rung since the last call. Cancellation loses no ring.
    pub(crate) async fn notified(&self) {
        self.state.notified.notified().await;
    }

    /// Whether it was heard lately; if not, why.
    pub(crate) fn check(&self) -> Result<(), String> {
        let health = self.state.health();
        match health.heard {
            Some(heard) if heard.elapsed() < PROVEN_FOR => Ok(()),
            _ => Err(health
                .trouble
                .clone()
                .unwrap_or_else(|| UNPROVEN.to_owned())),
        }
    }

    /// Says whether writers should ring. Once they do again, it rings itself.
    pub(crate) fn want(&self, wanted: bool) {
        let change = |before: &mut bool| std::mem::replace(before, wanted) != wanted;
        self.state.wanted.send_if_modified(change);
    }

    /// The transaction id from which on all who write ring, if they do. Of those with a smaller one, some may not, and go
    /// unheard until they are looked for.
    pub(crate) fn rings_from(&self) -> Option<u64> {
        self.state.health().rings_from
    }

    /// Whether the server's sessions stay with their connections on the way that the listener takes.
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
        // Nothing that holds it can panic halfway.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether that is the end of trouble.
    fn heard(&self) -> bool {
        let mut health = self.health();
        health.heard = Some(Instant::now());
        let ended = health.trouble.take().is_some();
        drop(health);
        self.notified.notify_one();
        ended
    }

    /// Says whether that is news.
    fn troubled(&self, trouble: String, deaf: bool) -> bool {
        let mut health = self.health();
        let news = health.trouble.as_ref() != Some(&trouble);
        health.trouble = Some(trouble);
        if deaf {
            health.heard = None;
            health.rings_from = None;
        }
        drop(health);
        // So that the follower looks at what became of it.
        if news {
            self.notified.notify_one();
        }
        news
    }
}

const UNPROVEN: &str = "notifications have yet to be proven to arrive";

/// The task behind a bell.
struct ListenerTask {
    config: Config,
    cache_schema: String,
    channel: String,
    database: String,
    state: Arc<State>,
    notifier: Option<Notifier>,
    backoff: Backoff,
    /// How often in a row what was sent did not arrive.
    mute: u32,
}

impl ListenerTask {
    fn new(config: &Config, feed: &Feed) -> ListenerTask {
        let state = Arc::new(State {
            notified: Notify::new(),
            wanted: watch::Sender::new(true),
            health: Mutex::new(Health {
                heard: None,
                trouble: None,
                rings_from: None,
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
            mute: 0,
        }
    }

    async fn run(mut self) {
        loop {
            let Err(error) = self.listen().await;
            // The way may be another from now on.
            self.state.own_session.store(false, Ordering::Relaxed);
            self.notifier = None;
            if self.state.troubled(error.to_string(), true) {
                let channel = &self.channel;
                tracing::warn!(channel, %error, "notifications do not arrive; polling, and trying again");
            }
            let mut pause = self.backoff.next();
            if matches!(error, Error::NotificationLost | Error::Pooled) {
                self.mute += 1;
                if let Some(more) = self.mute.checked_sub(MUTE_TRIES) {
                    let longer = MUTE_PAUSE.saturating_mul(1 << more.min(6));
                    pause += longer
                        .min(LONGEST_MUTE_PAUSE)
                        .mul_f64(0.5 + 0.5 * fastrand::f64());
                }
            }
            sleep(pause).await;
        }
    }

    /// Opens the connection that listens, in a session of its own.
    async fn open(&mut self) -> Result<Connection, Error> {
        let connection = Connection::open(&self.config.connect).await?;
        let bound = self.config.read_timeout;
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

    /// Listens until that does not work any more.
    async fn listen(&mut self) -> Result<Infallible, Error> {
        let bound = self.config.read_timeout;
        let connection = self.open().await?;
        let mut wanted = self.state.wanted.subscribe();
        let mut waits = false;
        let mut quiet_until = Instant::now();
        loop {
            let wants = *wanted.borrow_and_update();
            if wants != waits {
                within(bound, LISTEN, self.wait(&connection, wants)).await?;
                waits = wants;
            }
            let quiet = quiet_until.saturating_duration_since(Instant::now());
            let came = heard(&connection, quiet);
            let came = match select(pin!(came), pin!(wanted.changed())).await {
                Either::Left((came, _)) => came?,
                Either::Right(_) => continue,
            };
            if !came {
                match self.heartbeat().await {
                    // An answer to a heartbeat of somebody else will do as well.
                    Ok(()) if heard(&connection, ANSWER).await? => {}
                    Ok(()) => return Err(Error::NotificationLost),
                    // The bell itself may be as well as ever; it is only not proven.
                    Err(error) => {
                        self.notifier = None;
                        if self.state.troubled(error.to_string(), false) {
                            tracing::warn!(channel = self.channel, %error, "cannot tell whether notifications arrive");
                        }
                        quiet_until = Instant::now() + QUIET;
                        continue;
                    }
                }
            }
            if self.state.heard() {
                tracing::info!(channel = self.channel, "notifications arrive");
            }
            self.backoff = Backoff::for_connections();
            self.mute = 0;
            quiet_until = Instant::now() + QUIET.mul_f64(0.8 + 0.4 * fastrand::f64());
        }
    }

    /// Begins or ceases to wait for the bell.
    async fn wait(&self, connection: &Connection, wants: bool) -> Result<(), Error> {
        let client = &connection.client;
        if !wants {
            // First: a follower that still counted on it would sleep.
            self.state.health().rings_from = None;
            // The session has no other.
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
                "another session holds the advisory lock exclusively by which writers know that somebody waits for the \
                 listener; `oddscache sql check` (sql/check.sql) names it",
            ),
            _ => Error::database(LISTEN)(error),
        })?;
        let xid = answer.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        });
        let xid =
            xid.ok_or_else(|| Error::unexpected(LISTEN, "the next transaction id is no number"))?;
        self.state.health().rings_from = Some(xid);
        // What was committed until now rang no bell of ours.
        self.state.notified.notify_one();
        Ok(())
    }

    /// Whether a connection keeps its session of the server, also while another takes one. A pooler in transaction mode
    /// would leave LISTEN behind in a session that it hands to others.
    async fn one_session(&mut self, connection: &Connection) -> Result<(), Error> {
        let before = session(&connection.client).await?;
        let bound = self.config.read_timeout;
        let notifier = &self.notifier().await?.connection;
        let begin = notifier.begin(Access::Read, bound);
        let execute = async |sql: &str| notifier.client.batch_execute(sql).await;
        execute(&begin).await.map_err(Error::database(LISTEN))?;
        // Not for long: it may be the pooler's only session that is taken.
        let now = timeout(SESSION_ANSWER, session(&connection.client)).await;
        let now = now.map_err(|_| Error::Pooled)??;
        execute("COMMIT").await.map_err(Error::database(LISTEN))?;
        match before == now {
            true => Ok(()),
            false => Err(Error::Pooled),
        }
    }

    async fn notifier(&mut self) -> Result<&Notifier, Error> {
        let notifier = match self.notifier.take() {
            Some(notifier) if !notifier.connection.is_closed() => notifier,
            _ => Notifier::open(&self.config, &self.cache_schema, &self.channel).await?,
        };
        Ok(self.notifier.insert(notifier))
    }

    async fn heartbeat(&mut self) -> Result<(), Error> {
        let bound = self.config.read_timeout;
        let ring = async { self.notifier().await?.ring().await };
        within(bound, HEARTBEAT, ring).await?;
        self.state.heartbeats.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Does once what a follower does to be notified of changes, by the same statements, and says how long a notification took
/// to arrive. Where a follower would poll instead, the error says why.
///
/// Opens three connections. Takes for a moment the advisory lock by which writers know that somebody waits. Writes nothing:
/// the heartbeat is rolled back, and a notification is sent beside it, for which other caches look once more.
///
/// # Errors
/// What keeps notifications from arriving: [`Error::Pooled`], [`Error::NotificationLost`], [`Error::OtherListenDatabase`], an error of the server;
/// or what keeps a follower from starting.
pub async fn check_notifications(config: &Config) -> Result<Duration, Error> {
    let reader = Connection::open(&config.connect).await?;
    let bound = config.read_timeout;
    let feed = within(bound, LISTEN, preflight::check_first(&reader, config)).await?;
    let feed = feed.ok_or_else(|| {
        Error::Config("notifications come from the change feed (need_feed)".to_owned())
    })?;
    let mut listener = ListenerTask::new(config, &feed);
    let connection = listener.open().await?;
    within(bound, LISTEN, listener.wait(&connection, true)).await?;
    let sent_at = Instant::now();
    let channel = listener.channel.clone();
    let ring = async { listener.notifier().await?.try_notify(&channel).await };
    within(bound, HEARTBEAT, ring).await?;
    match heard(&connection, ANSWER).await? {
        true => Ok(sent_at.elapsed()),
        false => Err(Error::NotificationLost),
    }
}

const LISTEN: &str = "LISTEN";
const HEARTBEAT: &str = "sending a heartbeat";

/// A bell from elsewhere must be of the database that is read, or of its primary.
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

/// Which of the server's processes answers.
async fn session(client: &Client) -> Result<i32, Error> {
    let rows = client.query_typed("SELECT pg_catalog.pg_backend_pid()", &[]);
    let rows = rows.await.map_err(Error::database(LISTEN))?;
    let row = rows
        .first()
        .ok_or_else(|| Error::unexpected(LISTEN, "no answer"))?;
    row.try_get(0).map_err(Error::database(LISTEN))
}

/// Takes the lock, then asks which transaction id the server hands out next. Every transaction that looked for the lock
/// too early has a smaller one: it had its id before it looked (W1 of [`crate::follow::schedule::polling`]).
///
/// `age()` compares with that next id as long as the transaction has none of its own, and does so anew in each
/// transaction. Asking assigns no id. An id of our own would have to reach the disk before a snapshot shows it, since a
/// crash could hand it out again.
fn wait_sql(begin: &str, cache_schema: &str) -> String {
    format!(
        "{begin}; SET LOCAL lock_timeout = {}; SELECT pg_advisory_lock_shared(hashtextextended({}, 0)); \
         SELECT x::text::numeric + age(x::xid) FROM pg_snapshot_xmax(pg_current_snapshot()) AS x; COMMIT",
        LOCK_PATIENCE.as_millis(),
        literal(&format!("oddscache listener {cache_schema}")),
    )
}

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
struct Notifier {
    connection: Connection,
    sql: String,
}

impl Notifier {
    async fn open(config: &Config, cache_schema: &str, channel: &str) -> Result<Notifier, Error> {
        let connection = Connection::open(&config.connect).await?;
        // A role without the right can still ring; what is not proven then is that log rows ring.
        let sql = "SELECT 1 FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
             WHERE n.nspname = $1 AND p.proname = 'heartbeat' AND p.pronargs = 0 \
               AND has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')";
        let client = &connection.client;
        let execute = async |sql: &str| client.batch_execute(sql).await;
        let bound = config.read_timeout;
        // The role's search path has no say in what these names mean.
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
        let sql = format!("{begin}; SELECT {call}");
        Ok(Notifier { connection, sql })
    }

    async fn ring(&self) -> Result<(), Error> {
        self.run(&format!("{}; COMMIT", self.sql)).await
    }

    /// The same, with nothing written and nobody notified; then a notification alone.
    async fn try_notify(&self, channel: &str) -> Result<(), Error> {
        self.run(&format!("{}; ROLLBACK", self.sql)).await?;
        let notify = format!("SELECT pg_catalog.pg_notify({}, '')", literal(channel));
        self.run(&notify).await
    }

    async fn run(&self, sql: &str) -> Result<(), Error> {
        let run = self.connection.client.batch_execute(sql).await;
        run.map_err(Error::database(HEARTBEAT))
    }
}
