pub(crate) mod backoff;
pub(crate) mod listener;
pub(crate) mod schedule;

use std::{
    fmt,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures_util::future::{Either, select};
use tokio::time::{sleep, timeout};
use tracing::{Instrument, field::Empty};

use crate::{
    config::Config,
    error::Error,
    follow::{
        backoff::Backoff,
        listener::Listener,
        schedule::{Schedule, Seen, Woken},
    },
    metrics::{
        reload::{Reload, ReloadReason},
        stats::WarmupStats,
        status::Status,
    },
    postgres::{
        connection::{Connection, within},
        statement::Prepared,
    },
    read::{
        self, Cause, Done, Read, ReadState,
        audit::{Audit, Audited, Step},
        parallel::EXPORTING,
        preflight::{self, Feed},
        schema::Names,
        source::Source,
        transaction::{self, ReadStart},
    },
    sql::FEED_VERSION,
    store::{
        draft::Draft,
        publish::{Publisher, add},
        state::View,
    },
};

/// Keeps a cache equal to the database: warms it up, then reads what changed whenever a notification comes or the poll
/// interval has passed, and publishes it. The loop is [`Follower::run`].
///
/// It is in one of four states. The table says where trouble leads from each:
///
/// | state | does | trouble leads to |
/// |---|---|---|
/// | connecting | opens the reading connection, checks tables, rights and triggers, LISTENs | paused |
/// | warming up | reads everything in one transaction; the old view stays readable | a lock, a conflict: reads again after a while; all else: paused |
/// | following | waits, reads what changed, publishes | a lock, a conflict: reads again from the same cursor; all else: paused |
/// | paused | waits, longer each time, with jitter | connecting |
///
/// Before the first warmup an error that waiting does not resolve ends the follower.
pub struct Follower {
    config: Config,
    names: Names,
    /// `None` once sessions are found to be handed out anew: for good.
    prepared: Option<Prepared>,
    publisher: Publisher,
    draft: Draft,
    listener: Option<Listener>,
    epoch: u64,
    schedule: Schedule,
    audit: Audit,
    /// Pauses between connections. It starts again after each read of changes, not after a warmup: a failure that follows
    /// each warmup must not be answered by one warmup after the other.
    backoff: Backoff,
    /// How many connections were opened to read.
    connections: u64,
    last_warmup: Option<WarmupStats>,
    /// The feed's, as far as it was told; 0 before.
    feed_version: i32,
    troubled_since: Option<DateTime<Utc>>,
}

/// Where the loop is. [`Follower::step`] alone moves it.
enum State {
    Connecting,
    WarmingUp(Session),
    Following(Box<Following>),
    Paused(Duration),
}

/// The connection that reads.
struct Session {
    reader: Connection,
    /// Pauses after locks that were not to be had, and conflicts.
    locks: Backoff,
}

/// A cache that is warm.
struct Following {
    session: Session,
    known: ReadState,
    /// Whether the session's time-outs are ours.
    is_bounded: bool,
    /// The read to make without waiting, since a lock or a conflict put it off.
    put_off: Option<Woken>,
}

impl Follower {
    pub(crate) fn new(config: Config, publisher: Publisher) -> Follower {
        let now = Instant::now();
        Follower {
            names: Names::new(&config, ""),
            prepared: Some(Prepared::new()),
            publisher,
            draft: Draft::default(),
            listener: None,
            epoch: 0,
            schedule: Schedule::new(config.poll_interval, config.listens_elsewhere(), now),
            audit: Audit::new(config.audit_cycle, config.audit_budget, now),
            backoff: Backoff::for_connections(),
            connections: 0,
            last_warmup: None,
            feed_version: 0,
            troubled_since: None,
            config,
        }
    }

    /// Follows until it is dropped, or until an error *before the first warmup* that waiting will not resolve: a refused
    /// login, a missing table, trigger or right, another feed version; also an unreachable database, if
    /// [`Config::retry_unreachable`] is off. After the first warmup it survives everything: the view ages meanwhile.
    ///
    /// Needs a tokio runtime with time and I/O enabled. Dropping the future is a clean stop at any point: it closes the
    /// connections, and published views stay readable.
    ///
    /// # Errors
    /// The error that ended it; [`OddsCache::ready`](crate::cache::OddsCache::ready) returns the same.
    pub async fn run(mut self) -> Result<(), Error> {
        let mut state = State::Connecting;
        loop {
            state = self.step(state).await?;
        }
    }

    /// From one state to the next. An error drops the connection that the state held.
    async fn step(&mut self, state: State) -> Result<State, Error> {
        let warm = |following| State::Following(Box::new(following));
        let next = match state {
            State::Connecting => self.connect().await.map(State::WarmingUp),
            State::WarmingUp(session) => self.warm_up(session).await.map(warm),
            State::Following(following) => self.follow(*following).await.map(warm),
            State::Paused(pause) => {
                sleep(pause).await;
                Ok(State::Connecting)
            }
        };
        next.or_else(|error| self.pause(error).map(State::Paused))
    }

    /// How long to pause after an error, or that it ends the follower.
    fn pause(&mut self, error: Error) -> Result<Duration, Error> {
        add(&self.publisher.counters().failures, 1);
        let is_waited_for = error.is_transient() && self.config.retry_unreachable;
        if !(self.is_warm() || is_waited_for) {
            tracing::error!(%error, "the cache cannot be warmed up");
            self.publisher.end(Some(error.clone()));
            return Err(error);
        }
        let pause = self.backoff.next();
        tracing::warn!(%error, pause_ms = millis(pause), "not following; trying again after a pause");
        self.troubled(error);
        Ok(pause)
    }

    fn is_warm(&self) -> bool {
        self.last_warmup.is_some()
    }

    async fn connect(&mut self) -> Result<Session, Error> {
        let reader = Connection::open(&self.config.connect).await?;
        self.connections += 1;
        self.names = Names::new(&self.config, reader.without_transaction_timeout());
        let again = self.connections > 1;
        add(&self.publisher.counters().reconnects, usize::from(again));
        let check = preflight::check_first(&reader, &self.config);
        let feed = within(self.config.read_timeout, CHECKING, check).await?;
        // Before the first snapshot, so that a notification comes for each change after it.
        self.listen(feed.as_ref())?;
        Ok(Session {
            reader,
            locks: Backoff::for_locks(),
        })
    }

    /// Reads everything into the next epoch.
    async fn warm_up(&mut self, mut session: Session) -> Result<Following, Error> {
        let reason = match self.is_warm() {
            false => ReloadReason::First,
            true => ReloadReason::ConnectionLost,
        };
        self.announce(&reason.into());
        loop {
            match self.try_warm_up(&session, reason).await {
                Ok(known) => {
                    session.locks = Backoff::for_locks();
                    return Ok(Following {
                        session,
                        known,
                        is_bounded: false,
                        put_off: None,
                    });
                }
                Err(error) => self.give_way(&mut session, error).await?,
            }
        }
    }

    async fn try_warm_up(
        &mut self,
        session: &Session,
        reason: ReloadReason,
    ) -> Result<ReadState, Error> {
        let begin = transaction::begin(self.source(&session.reader), None);
        let start = within(self.config.read_timeout, BEGINNING, begin).await?;
        self.read_everything(&session.reader, reason.into(), start)
            .await
    }

    /// Waits, then reads what changed.
    async fn follow(&mut self, mut following: Following) -> Result<Following, Error> {
        if !following.is_bounded {
            following.is_bounded = self.bound_session(&following.session.reader).await?;
        }
        let woken = match following.put_off.take() {
            Some(woken) => woken,
            None => self.wait().await,
        };
        let Following { session, known, .. } = &mut following;
        match self.catch_up(&session.reader, known, woken).await {
            Ok(()) => {
                session.locks = Backoff::for_locks();
                self.backoff = Backoff::for_connections();
            }
            Err(error) => {
                self.give_way(session, error).await?;
                following.put_off = Some(woken);
            }
        }
        Ok(following)
    }

    fn source<'a>(&'a self, reader: &'a Connection) -> Source<'a> {
        Source::new(reader, &self.config, &self.names)
    }

    /// Keeps the time-outs of the role, the database and the server away from the session of the reading connection. Only
    /// once the listener has proven that sessions are not handed to others: they would inherit what is set here. Says
    /// whether that is done.
    async fn bound_session(&self, reader: &Connection) -> Result<bool, Error> {
        let is_ours = self
            .listener
            .as_ref()
            .is_some_and(Listener::has_own_session);
        // Of several servers the listener may have proven another.
        if !is_ours || self.config.listens_elsewhere() || !self.config.connect.is_of_one_server() {
            return Ok(false);
        }
        let bound = self.config.read_timeout;
        let set = reader.session_bounds(bound);
        let set = async {
            let set = reader.client.batch_execute(&set).await;
            set.map_err(Error::database(CHECKING))
        };
        within(bound, CHECKING, set).await?;
        Ok(true)
    }

    /// Listens to the channel that the feed names.
    fn listen(&mut self, feed: Option<&Feed>) -> Result<(), Error> {
        let feed = feed.ok_or_else(|| {
            Error::Config("a follower needs the change feed (need_feed)".to_owned())
        })?;
        self.tell_version(feed.version);
        if self
            .listener
            .as_ref()
            .is_none_or(|listener| !listener.is_for(feed))
        {
            let listener = Listener::spawn(&self.config, feed);
            listener.want(self.schedule.wants_notifications());
            self.listener = Some(listener);
        }
        Ok(())
    }

    /// Says once that the feed is of the version before, and once that it was upgraded.
    fn tell_version(&mut self, found: i32) {
        let told = std::mem::replace(&mut self.feed_version, found);
        if told == found {
            return;
        }
        if found < FEED_VERSION {
            tracing::warn!(
                found,
                newest = FEED_VERSION,
                "the change feed is of an older version, which the next oddscache may not follow; let the owner of the tables \
                 run `oddscache sql install --apply`, which upgrades it under running caches"
            );
        } else if told != 0 {
            tracing::info!(from = told, to = found, "the change feed was upgraded");
        }
    }

    async fn read_everything(
        &mut self,
        reader: &Connection,
        reason: Reload,
        start: ReadStart,
    ) -> Result<ReadState, Error> {
        let epoch = self.epoch + u64::from(reason.reason.is_new_epoch());
        // Beside the draft, which is borrowed too.
        let source = Source::new(reader, &self.config, &self.names);
        let prepared = self.prepared.as_ref();
        let span = tracing::info_span!("warmup", %reason, epoch, rows = Empty, events = Empty);
        let read = read::everything(source, prepared, &mut self.draft, reason.clone(), start);
        let read = within(self.config.warmup_timeout, WARMING_UP, read);
        let (known, done) = match read.instrument(span.clone()).await {
            Err(error) if error.is_of(EXPORTING) => {
                tracing::warn!(%error, "reading everything on one connection from now on");
                self.config.warmup_connections = 1;
                self.roll_back(reader).await?;
                let begin = transaction::begin(self.source(reader), None);
                let start = within(self.config.read_timeout, BEGINNING, begin).await?;
                return Box::pin(self.read_everything(reader, reason, start)).await;
            }
            read => read?,
        };
        span.record("rows", done.rows_read);
        span.record("events", self.draft.len());
        self.epoch = epoch;
        self.publish(&known, done);
        Ok(known)
    }

    /// Waits for a notification, for a handle that asks, or for the time to look without either.
    async fn wait(&mut self) -> Woken {
        let begun_at = Instant::now();
        let wake = self.schedule.next(self.audit.until_due(begun_at));
        sleep(wake.rest).await;
        let notified = async {
            match &self.listener {
                Some(listener) if wake.by_notification => listener.notified().await,
                _ => std::future::pending().await,
            }
        };
        let notified = pin!(notified);
        let asked = pin!(self.publisher.request().asked());
        let woken = match timeout(wake.within, select(notified, asked)).await {
            Ok(Either::Left(_)) => Woken::Notification,
            Ok(Either::Right(_)) => Woken::Asked,
            Err(_) => Woken::Time,
        };
        self.schedule.slept(begun_at.elapsed());
        woken
    }

    /// Reads what changed since the last read, and audits a slice if one is due.
    async fn catch_up(
        &mut self,
        reader: &Connection,
        known: &mut ReadState,
        woken: Woken,
    ) -> Result<(), Error> {
        let counters = self.publisher.counters();
        let woke = match woken {
            Woken::Notification => &counters.notifications,
            Woken::Asked => &counters.asks,
            Woken::Time => &counters.polls,
        };
        add(woke, 1);
        if let Some(listener) = &self.listener {
            add(&counters.heartbeats, listener.take_heartbeats());
        }
        if self.publisher.request().take_resync() {
            known.reload = Some(ReloadReason::Asked.into());
        }
        self.read(reader, known, Some(woken), None).await?;
        if let Some(step) = self.audit.due(Instant::now()) {
            self.audit_step(reader, known, step).await?;
        }
        // The audit found something.
        if known.reload.is_some() {
            let begun_at = Instant::now();
            self.read(reader, known, None, None).await?;
            self.audit.rest(begun_at.elapsed(), Instant::now());
        }
        Ok(())
    }

    /// A step of the audit, after what there was to show is shown. One that is in somebody's way or takes too long is
    /// given up and made again later, smaller.
    async fn audit_step(
        &mut self,
        reader: &Connection,
        known: &mut ReadState,
        step: Step,
    ) -> Result<(), Error> {
        let begun_at = Instant::now();
        let Err(error) = self.read(reader, known, None, Some(step)).await else {
            return Ok(());
        };
        self.audit.failed(begun_at.elapsed(), Instant::now());
        let said_by_server = matches!(
            &error,
            Error::Database {
                sqlstate: Some(_),
                disconnected: false,
                ..
            }
        );
        if !said_by_server || reader.is_closed() {
            return Err(error);
        }
        add(&self.publisher.counters().failures, 1);
        if error.is_conflict() {
            tracing::info!(%error, "a step of the audit was given up, to be made again");
        } else {
            tracing::warn!(%error, "a step of the audit failed, to be made again");
        }
        self.roll_back(reader).await
    }

    /// One read, for what ended the wait, for the audit, or for a reload that is due.
    async fn read(
        &mut self,
        reader: &Connection,
        known: &mut ReadState,
        woken: Option<Woken>,
        step: Option<Step>,
    ) -> Result<(), Error> {
        let begun_at = Instant::now();
        let cause = match (step, woken) {
            (Some(step), _) => Cause::Audit(step),
            (None, Some(Woken::Time)) => Cause::Time,
            (None, _) => Cause::News,
        };
        // Beside the draft, which is borrowed too.
        let source = Source::new(reader, &self.config, &self.names);
        let reason = match (&cause, woken) {
            (Cause::Audit(_), _) => "audit",
            (_, Some(woken)) => woken.name(),
            (_, None) => "reload",
        };
        let epoch = self.epoch;
        let span = tracing::debug_span!("read", reason, epoch, log_rows = Empty, rows = Empty);
        let changes = read::changes(source, &mut self.prepared, &mut self.draft, known, cause);
        let changes = within(self.config.read_timeout, READING, changes);
        match changes.instrument(span.clone()).await? {
            Read::Done(mut done) => {
                span.record("log_rows", done.log_rows);
                span.record("rows", done.rows_read);
                if let Some(woken) = woken {
                    let rows = done.log_rows;
                    self.plan_next(known, woken, rows, begun_at.elapsed());
                }
                let audited = done.audited.take();
                if let Some(audited) = audited
                    && !self.audited(&audited, begun_at.elapsed())
                {
                    // What the draft holds is no state of the database: it is not shown, nor proven.
                    known.reload = Some(ReloadReason::Audit.into());
                } else {
                    self.publish(known, *done);
                }
            }
            Read::Reload(reason, start) => {
                self.announce(&reason);
                *known = self.read_everything(reader, reason, *start).await?;
                self.schedule.reloaded(begun_at.elapsed());
                self.listen(known.feed())?;
            }
        }
        Ok(())
    }

    /// Decides how to wait for the next change, after a read that took so long.
    fn plan_next(&mut self, known: &ReadState, woken: Woken, rows: usize, took: Duration) {
        let rings_from = self.listener.as_ref().map(Listener::rings_from);
        self.schedule.read(Seen {
            now: Instant::now(),
            took,
            woken,
            rows,
            xmin: known.xmin(),
            rings_from: rings_from.flatten(),
        });
        if let Some(listener) = &self.listener {
            listener.want(self.schedule.wants_notifications());
        }
    }

    /// Says whether what was audited equals what is held.
    fn audited(&mut self, audited: &Audited, took: Duration) -> bool {
        let ended = self.audit.done(audited, took, Instant::now());
        let Audited::Events { count, mismatches } = audited else {
            return true;
        };
        let counters = self.publisher.counters();
        add(&counters.audited_events, *count);
        add(&counters.audit_mismatches, mismatches.len());
        add(&counters.audit_passes, usize::from(ended));
        for mismatch in mismatches.iter().take(MOST_NAMED) {
            tracing::error!(%mismatch, "the audit found a change that no trigger saw");
        }
        if mismatches.len() > MOST_NAMED {
            tracing::error!(
                events = mismatches.len(),
                "changes that no trigger saw; the first {MOST_NAMED} were named"
            );
        }
        mismatches.is_empty()
    }

    /// After a failed read: where a lock or a conflict was the matter, ends the transaction, waits a little, and lets the
    /// caller read again from the same cursor, for nothing was applied. All else is the end of this connection.
    async fn give_way(&mut self, session: &mut Session, error: Error) -> Result<(), Error> {
        let reader = &session.reader;
        let again = error.is_conflict() && !reader.is_closed();
        if !again {
            return Err(error);
        }
        add(&self.publisher.counters().failures, 1);
        let pause = session.locks.next();
        tracing::info!(%error, pause_ms = millis(pause), "gave way; reading again after a pause");
        self.roll_back(reader).await?;
        self.troubled(error);
        sleep(pause).await;
        Ok(())
    }

    async fn roll_back(&self, reader: &Connection) -> Result<(), Error> {
        let rollback = async {
            reader
                .client
                .batch_execute("ROLLBACK")
                .await
                .map_err(Error::database("ending a read"))
        };
        within(self.config.read_timeout, READING, rollback).await
    }

    fn announce(&mut self, reason: &Reload) {
        if !self.is_warm() {
            tracing::info!("warming up");
            self.publisher.set_status(Status::Warming);
        } else {
            tracing::info!(%reason, "reading everything; the old view stays readable");
            self.publisher.set_status(Status::Resyncing {
                reason: reason.to_string(),
            });
        }
    }

    fn troubled(&mut self, error: Error) {
        let since = *self.troubled_since.get_or_insert_with(Utc::now);
        self.publisher
            .set_status(Status::Disconnected { since, error });
    }

    fn count(&self, done: &Done) {
        let counters = self.publisher.counters();
        add(&counters.reads, 1);
        add(&counters.log_rows, done.log_rows);
        add(&counters.snapshots_read, done.snapshots_read);
        counters
            .rows_read
            .fetch_add(done.rows_read, Ordering::Relaxed);
        counters
            .malformed_rows_read
            .fetch_add(done.malformed_rows_read, Ordering::Relaxed);
        add(&counters.evicted_events, done.evicted);
        if let Some((reload, _)) = &done.warmup {
            add(&counters.reloads, 1);
            add(counters.reloads_by_reason.of(reload.reason), 1);
        }
    }

    fn following_status(&self) -> Status {
        let listener = self.listener.as_ref().map(Listener::check);
        match listener {
            Some(Ok(())) => Status::Live,
            Some(Err(reason)) => Status::PollingOnly { reason },
            None => Status::PollingOnly {
                reason: "no bell".to_owned(),
            },
        }
    }

    fn publish(&mut self, known: &ReadState, done: Done) {
        self.count(&done);
        let everything = done.warmup.is_some();
        let repaired =
            matches!(&done.warmup, Some((reload, _)) if reload.reason == ReloadReason::Audit);
        if let Some((reason, warmup)) = done.warmup {
            let WarmupStats {
                events,
                snapshots,
                markets,
                memory_bytes,
                seconds,
            } = warmup;
            tracing::info!(%reason, events, snapshots, markets, memory_bytes, seconds, epoch = self.epoch, "warm");
            self.last_warmup = Some(warmup);
        }
        if repaired {
            explain_repair(known.feed());
        }
        if done.evicted > 0 {
            tracing::debug!(events = done.evicted, window_start = %known.cut().window_start, "evicted");
        }
        let begun_at = Instant::now();
        let cut = Arc::clone(known.cut());
        let change = self.draft.change(Arc::clone(&cut), self.epoch);
        if everything || !change.is_empty() {
            let epoch = self.epoch;
            let span = tracing::debug_span!("publish", epoch, events = Empty);
            let _entered = span.enter();
            if !span.is_disabled() {
                span.record("events", change.event_ids().len());
            }
            let warmup = self.last_warmup.clone();
            let state = self.draft.state(cut, self.epoch, done.began, warmup);
            self.publisher.publish(state, change);
            if !everything {
                self.publisher.timers().publish.record(begun_at.elapsed());
            }
        } else {
            self.publisher.prove(cut, done.began);
        }
        if let Some(shown) = &done.shown {
            self.publisher.timers().record(done.took.as_ref(), shown);
        }
        self.publisher.set_change_log(known.change_log());
        self.troubled_since = None;
        self.publisher.set_status(self.following_status());
    }
}

/// Says how what the audit found can have come.
fn explain_repair(feed: Option<&Feed>) {
    let bypasses = feed.into_iter().flat_map(|feed| &feed.bypasses);
    let ways: Vec<&str> = bypasses.map(String::as_str).collect();
    if !ways.is_empty() {
        let ways = ways.join("; ");
        tracing::error!(
            ways,
            "what the audit found was mended; it can have come in these ways"
        );
    } else {
        tracing::error!(
            "what the audit found was mended; every table and partition has its triggers now, so look for 'could not be \
                 logged' in the server's log, and for who disables triggers; if there is neither, please report it"
        );
    }
}

/// More mismatches of one slice are only counted.
const MOST_NAMED: usize = 10;

const CHECKING: &str = "checking tables, rights and triggers";
const BEGINNING: &str = "beginning to read";
const READING: &str = "reading changes";
const WARMING_UP: &str = "warming up";

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Reads the database once, without following it, and returns the view. Needs no change feed if
/// [`Config::need_feed`](crate::config::Config::need_feed) is off.
///
/// # Errors
/// Whatever [`Follower::run`] would end with; an unreachable database is not waited for.
pub async fn warm_up(config: Config) -> Result<View, Error> {
    let reader = Connection::open(&config.connect).await?;
    within(
        config.read_timeout,
        CHECKING,
        preflight::check_first(&reader, &config),
    )
    .await?;
    let (shared, publisher) = Publisher::new(Status::Warming);
    let mut follower = Follower::new(config, publisher);
    follower.names = Names::new(&follower.config, reader.without_transaction_timeout());
    let locks = Backoff::for_locks();
    follower.warm_up(Session { reader, locks }).await?;
    Ok(View(shared.load_full()))
}

impl Drop for Follower {
    fn drop(&mut self) {
        // Unless an error ended it.
        self.publisher.end(None);
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("config", &self.config)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}
