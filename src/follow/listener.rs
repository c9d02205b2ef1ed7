//! The listener: LISTENs, tells writers to notify, and finds out when notifications are lost.
//!
//! Notifications only make changes visible sooner. Without them the next poll finds the changes.
//!
//! The session that reads also listens. It is in a transaction only while it reads, so it does not hold back the
//! server's notification queue for longer than a read. With [`Config::listen_from`] a connection of its own listens.
//!
//! Writers notify only while somebody waits for notifications. A waiting follower says so by the wait lock, an advisory
//! lock in share mode, which the listening session holds. Every role may take it, and the server releases it if the
//! connection is lost. The lock must be in the database that LISTEN uses, where the writers look for it, and not on a
//! standby that is read. [`crate::follow::schedule::polling`] explains why no change goes unseen.
//!
//! # Invariants
//! - Q1: LISTEN, the wait lock and session settings are used only in a session that no pooler gives to others. A second
//!   connection to the same server checks this each time, and is closed at once ([`own_session`]).
//! - Q2: [`Listener::check`] succeeds only if LISTEN succeeded on a connection that is not closed, and no notification
//!   is known to be lost. Every poll proves again that the reading connection works.
//! - Q3: A notification is lost if a read found a log row whose transaction had to notify, and none came from the
//!   beginning of the read before until [`GRACE`] after this one. A transaction must notify if its id is at least
//!   `notifies_from` while the lock is held (W2). That read before did not show the transaction, so its notification
//!   cannot be older. It may be younger than the read that found it, because the server sends it after the commit
//!   became visible.
//! - Q4: After a loss only a notification that arrives proves that they arrive again.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{Either, select},
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_postgres::{SimpleQueryMessage, error::SqlState};

use crate::{
    backoff::Backoff,
    config::Config,
    error::Error,
    follow::session::{LISTEN, execute, listen, open_check, own_session, same_database},
    postgres::{
        connection::{Access, Connection, Events, within},
        quote::literal,
    },
    read::preflight::{self, Feed},
};

/// A notification must arrive within this time after a read has found its log row.
const GRACE: Duration = Duration::from_secs(2);

/// A standby may replay a commit long after its notification came. If none came within this time before a read found
/// the log row, it is taken for lost.
const REPLAYED_WITHIN: Duration = Duration::from_secs(15);

/// How long checking for notifications waits for its own.
const ARRIVES_WITHIN: Duration = Duration::from_secs(4);

/// The longest time that a statement here may take. The follower reads nothing meanwhile.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Writers hold the wait lock exclusively for microseconds. A session that holds it for longer keeps followers out.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// Pauses before it listens again behind a pooler, or after a loss. They double. Nobody replaces a pooler within
/// seconds, and a writer may have switched its notifications off.
const FIRST_LONG_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

const NOT_YET: &str = "not listening yet";
const NOTIFY: &str = "sending a notification";

/// Listens for a follower. See the [module](self).
#[derive(Debug)]
pub(crate) struct Listener {
    /// How to connect for notifications.
    config: Config,
    cache_schema: String,
    channel: String,
    database: String,
    /// The connection of its own, if the reading connection does not listen.
    own: Option<Connection>,
    listens_elsewhere: bool,
    /// Whether a check found that no pooler gives the session of the reading connection to others.
    has_own_session: bool,
    /// Events of the connection that listens. `None` while none does.
    events: Option<Arc<Events>>,
    /// Set while the wait lock is held. Every transaction with this id or a greater one finds the lock, and so
    /// notifies.
    notifies_from: Option<u64>,
    opening: Option<Opening>,
    pause: Duration,
    backoff: Backoff,
    long_pauses: u32,
    expected: Option<Expected>,
    /// Why notifications do not arrive.
    trouble: Option<String>,
    /// When a notification was found to be lost. `None` once one has arrived.
    lost_at: Option<Instant>,
    /// How often that was so since [`Listener::take_losses`].
    losses: usize,
}

/// A notification that must have come after `since`, and must have arrived by `until`.
#[derive(Debug)]
struct Expected {
    since: Instant,
    until: Instant,
}

/// A connection that is being opened: one that listens, or one for the check.
#[derive(Debug)]
struct Opening {
    task: JoinHandle<Result<Option<Connection>, Error>>,
    done: Option<Result<Option<Connection>, Error>>,
}

impl Opening {
    /// Waits for the end. A cancelled wait loses nothing.
    async fn ended(&mut self) {
        if self.done.is_none() {
            let done = (&mut self.task).await;
            self.done = Some(done.unwrap_or_else(|_| Err(lost())));
        }
    }

    fn take(&mut self) -> Option<Result<Option<Connection>, Error>> {
        self.ended().now_or_never()?;
        self.done.take()
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    /// Does no I/O: [`Listener::settle`] connects and listens.
    pub(crate) fn new(config: &Config, feed: &Feed) -> Listener {
        Listener {
            config: config.for_listener(),
            cache_schema: config.cache_schema.clone(),
            channel: feed.channel.clone(),
            database: feed.database.clone(),
            own: None,
            listens_elsewhere: config.listens_elsewhere(),
            has_own_session: false,
            events: None,
            notifies_from: None,
            opening: None,
            pause: Duration::ZERO,
            backoff: Backoff::for_connections(),
            long_pauses: 0,
            expected: None,
            trouble: None,
            lost_at: None,
            losses: 0,
        }
    }

    /// Whether it listens to the channel and database of this feed.
    pub(crate) fn is_for(&self, feed: &Feed) -> bool {
        (&self.channel, &self.database) == (&feed.channel, &feed.database)
    }

    /// Whether notifications arrive, as far as known (Q2). The error says why they do not.
    pub(crate) fn check(&self) -> Result<(), String> {
        match (&self.trouble, &self.events) {
            (Some(trouble), _) => Err(trouble.clone()),
            (None, Some(events)) if !events.is_closed() => Ok(()),
            (None, Some(_)) => Err(lost().to_string()),
            (None, None) => Err(NOT_YET.to_owned()),
        }
    }

    /// Every writing transaction with this id or a greater one finds the wait lock, and so notifies. One with a smaller
    /// id may have looked too early; only a read finds what it committed. `None` while the lock is not held.
    pub(crate) fn notifies_from(&self) -> Option<u64> {
        self.notifies_from
    }

    /// How often a notification was found to be lost since the last call.
    pub(crate) fn take_losses(&mut self) -> usize {
        std::mem::take(&mut self.losses)
    }

    /// Waits for a notification, or for the end of the connection that listens. Returns false if it is time to
    /// [settle](Listener::settle) instead. Cancellation loses nothing.
    pub(crate) async fn notified(&mut self) -> bool {
        let came = async {
            match &self.events {
                Some(events) => events.notified().await,
                None => std::future::pending().await,
            }
        };
        let opened = async {
            match &mut self.opening {
                Some(opening) => opening.ended().await,
                None => std::future::pending().await,
            }
        };
        matches!(select(pin!(came), pin!(opened)).await, Either::Left(_))
    }

    /// Notes a read of changes: the greatest transaction id of its new log rows, 0 without any, and when the read before
    /// it began. `None` on a standby, where a read may show what was committed long before the one before it.
    pub(crate) fn found(&mut self, newest_xid: u64, read_before: Option<Instant>) {
        let now = Instant::now();
        let had_to_notify = self.notifies_from.is_some_and(|from| newest_xid >= from);
        if had_to_notify && self.expected.is_none() && self.lost_at.is_none() {
            let since = read_before.or_else(|| now.checked_sub(REPLAYED_WITHIN));
            let until = now + GRACE;
            self.expected = since.map(|since| Expected { since, until });
        }
    }

    /// Listens, and takes or releases the wait lock as `wants` says. Call it before each wait, while `reader` is in no
    /// transaction. Returns whether to read at once: nobody notified of what was committed before the lock was taken,
    /// and the status may have changed.
    ///
    /// Connects in the background. Otherwise it takes a few round trips on the connection that listens, and
    /// [`STATEMENT_TIMEOUT`] for each at most.
    ///
    /// # Errors
    /// `reader` does not work any more.
    pub(crate) async fn settle(&mut self, reader: &Connection, wants: bool) -> Result<bool, Error> {
        let before = self.check();
        self.judge();
        let mut locked = Ok(false);
        if let Some(opened) = self.opening.as_mut().and_then(Opening::take) {
            self.opening = None;
            locked = match opened {
                Ok(opened) => self.listen(reader, opened).await.map(|()| false),
                // After a loss it still listens, and a notification may still arrive.
                Err(_) if self.events.is_some() => Ok(false),
                Err(error) => Err(error),
            };
        }
        if self
            .events
            .as_ref()
            .is_some_and(|events| events.is_closed())
        {
            locked = Err(lost());
        }
        if locked.is_ok() && self.events.is_some() {
            if wants != self.notifies_from.is_some() {
                locked = self.hold_wait_lock(reader, wants).await.map(|()| wants);
            }
            if locked.is_ok() {
                self.set_trouble(self.lost_at.map(|_| Error::NotificationLost));
            }
        }
        if let Err(error) = &locked {
            self.fail(reader, error).await?;
        }
        if self.opening.is_none() && (self.events.is_none() || self.lost_at.is_some()) {
            if self.lost_at.is_some() {
                self.pause = self.long_pause();
            }
            let (pause, open) = (self.pause, self.open(reader));
            let open = async move {
                sleep(pause).await;
                open.await
            };
            let task = tokio::spawn(open);
            self.opening = Some(Opening { task, done: None });
        }
        Ok(locked.unwrap_or_default() || self.check() != before)
    }

    /// Decides whether a notification is lost (Q3), or whether they arrive again (Q4).
    fn judge(&mut self) {
        let last = self
            .events
            .as_ref()
            .and_then(|events| events.last_notification());
        if let Some(Expected { since, until }) = self.expected {
            if last >= Some(since) {
                self.expected = None;
            } else if Instant::now() >= until {
                self.expected = None;
                self.lost_at = Some(until);
                self.losses += 1;
                // Something in between may now give the session to others.
                self.has_own_session = false;
                self.set_trouble(Some(Error::NotificationLost));
            }
        }
        if self.lost_at.is_some() && last > self.lost_at {
            self.lost_at = None;
            self.long_pauses = 0;
            self.opening = None;
            self.set_trouble(None);
        }
    }

    /// Sets or ends the trouble. Logs what is new.
    fn set_trouble(&mut self, error: Option<Error>) {
        let channel = &self.channel;
        let trouble = error.map(|error| error.to_string());
        match &trouble {
            _ if trouble == self.trouble => {}
            Some(error) => {
                tracing::warn!(
                    channel,
                    error,
                    "notifications do not arrive; polling, and trying again"
                );
            }
            None => tracing::info!(channel, "listening for notifications again"),
        }
        self.trouble = trouble;
    }

    /// Notes that it does not listen any more. Fails if `reader` is the reason.
    async fn fail(&mut self, reader: &Connection, error: &Error) -> Result<(), Error> {
        let events = self.events.take();
        if events.is_some_and(|events| events.last_notification().is_some()) {
            self.backoff = Backoff::for_connections();
        }
        self.own = None;
        self.notifies_from = None;
        self.expected = None;
        if !self.listens_elsewhere {
            // The error may have left a transaction open.
            let rollback = execute(reader, "ROLLBACK", LISTEN);
            within(self.config.read_timeout, LISTEN, rollback).await?;
        }
        self.pause = match error {
            Error::Pooled => self.long_pause(),
            _ => self.backoff.next(),
        };
        self.set_trouble(Some(error.clone()));
        Ok(())
    }

    fn long_pause(&mut self) -> Duration {
        let pause = FIRST_LONG_PAUSE.saturating_mul(1 << self.long_pauses.min(6));
        self.long_pauses += 1;
        pause
            .min(LONGEST_PAUSE)
            .mul_f64(0.5 + 0.5 * fastrand::f64())
    }

    /// Opens what [`Listener::listen`] needs: a connection that listens elsewhere, or one for the check. `None` if the
    /// session of `reader` has been checked.
    fn open(
        &self,
        reader: &Connection,
    ) -> impl Future<Output = Result<Option<Connection>, Error>> + Send + use<> {
        let (config, target) = (self.config.clone(), reader.target().clone());
        let (channel, database) = (self.channel.clone(), self.database.clone());
        let (elsewhere, is_checked) = (self.listens_elsewhere, self.has_own_session);
        let bound = self.bound();
        async move {
            if !elsewhere {
                return match is_checked {
                    true => Ok(None),
                    false => open_check(&config, &target).await.map(Some),
                };
            }
            let connection = Connection::open(&config.connect, "listen").await?;
            // The checks come before LISTEN: behind a pooler, LISTEN would stay behind in a session that others use.
            within(bound, LISTEN, same_database(&connection, &database, bound)).await?;
            let check = open_check(&config, connection.target()).await?;
            own_session(&connection, &check, config.read_timeout).await?;
            within(bound, LISTEN, listen(&connection, &channel)).await?;
            Ok(Some(connection))
        }
    }

    /// Listens on the connection that was opened, or on `reader` after the check (Q1).
    async fn listen(
        &mut self,
        reader: &Connection,
        opened: Option<Connection>,
    ) -> Result<(), Error> {
        // Clear this before the lock is lost. From then on writers need not notify, so the follower must not rely on
        // them.
        self.notifies_from = None;
        if self.listens_elsewhere {
            self.events = opened
                .as_ref()
                .map(|connection| Arc::clone(connection.events()));
            self.own = opened;
            return Ok(());
        }
        if let Some(check) = opened {
            own_session(reader, &check, self.config.read_timeout).await?;
            self.has_own_session = true;
        }
        within(self.bound(), LISTEN, listen(reader, &self.channel)).await?;
        self.events = Some(Arc::clone(reader.events()));
        Ok(())
    }

    /// Takes or releases the wait lock.
    async fn hold_wait_lock(&mut self, reader: &Connection, wants: bool) -> Result<(), Error> {
        let connection = self.own.as_ref().unwrap_or(reader);
        // As in `listen`.
        self.notifies_from = None;
        // The session holds no other advisory lock.
        if !wants {
            let unlock = execute(
                connection,
                "SELECT pg_catalog.pg_advisory_unlock_all()",
                LISTEN,
            );
            return within(self.bound(), LISTEN, unlock).await;
        }
        let begin = connection.begin(Access::Read, self.bound());
        let lock = wait_sql(&begin, &self.cache_schema);
        let lock = async {
            let lock = connection.client.simple_query(&lock).await;
            lock.map_err(|error| match error.code() {
                Some(&SqlState::LOCK_NOT_AVAILABLE) => Error::unexpected(
                    LISTEN,
                    "another session holds exclusively the advisory lock that tells writers to notify; \
                     `oddscache sql check` (sql/check.sql) names that session",
                ),
                _ => Error::database(LISTEN)(error),
            })
        };
        let answer = within(self.bound(), LISTEN, lock).await?;
        let xid = answer.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        });
        let xid =
            xid.ok_or_else(|| Error::unexpected(LISTEN, "the next transaction id is no number"))?;
        self.notifies_from = Some(xid);
        Ok(())
    }

    fn bound(&self) -> Duration {
        self.config.read_timeout.min(STATEMENT_TIMEOUT)
    }
}

/// Checks once whether notifications arrive, by the same statements as a follower. Returns how long one took.
///
/// Opens two connections, three with [`Config::listen_from`], and takes a few round trips on each. Takes for a moment
/// the advisory lock that tells writers to notify. Writes nothing. Sends one notification: other caches that get it read
/// the change log once.
///
/// # Errors
/// [`Error::Pooled`], [`Error::NotificationLost`], [`Error::OtherListenDatabase`] or an error of the server, if
/// notifications do not arrive. A follower would then poll. Otherwise the error that would keep a follower from
/// starting.
pub async fn check_notifications(config: &Config) -> Result<Duration, Error> {
    let reader = Connection::open(&config.connect, "check").await?;
    let bound = config.read_timeout;
    let check = preflight::check_first(&reader, config, config.need_feed);
    let feed = within(bound, LISTEN, check).await?.ok_or_else(|| {
        Error::Config("notifications come from the change feed (need_feed)".to_owned())
    })?;
    let mut listener = Listener::new(config, &feed);
    let opened = listener.open(&reader).await?;
    listener.listen(&reader, opened).await?;
    listener.hold_wait_lock(&reader, true).await?;
    let connection = listener.own.as_ref().unwrap_or(&reader);
    let notifier = open_check(&listener.config, connection.target()).await?;
    let begin = notifier.begin(Access::Write, bound);
    let channel = literal(&feed.channel);
    let notify = format!("{begin}; SELECT pg_catalog.pg_notify({channel}, ''); COMMIT");
    let sent_at = Instant::now();
    within(bound, NOTIFY, execute(&notifier, &notify, NOTIFY)).await?;
    let came = timeout(ARRIVES_WITHIN, connection.events().notified()).await;
    if connection.is_closed() {
        return Err(lost());
    }
    came.map_err(|_| Error::NotificationLost)?;
    Ok(sent_at.elapsed())
}

fn lost() -> Error {
    Error::unexpected(LISTEN, "the connection was lost")
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
        "{begin}; SET LOCAL lock_timeout = {}; SELECT pg_advisory_unlock_all(); \
         SELECT pg_advisory_lock_shared(hashtextextended({}, 0)); \
         SELECT x::text::numeric + age(x::xid) FROM pg_snapshot_xmax(pg_current_snapshot()) AS x; COMMIT",
        LOCK_TIMEOUT.as_millis(),
        literal(&format!("oddscache listener {cache_schema}")),
    )
}
