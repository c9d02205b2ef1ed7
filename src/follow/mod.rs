//! The follower: the one loop that keeps a cache equal to the database.

pub(crate) mod listener;
pub(crate) mod repairs;
pub(crate) mod retry;
pub(crate) mod schedule;
mod session;

use std::{
    fmt,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures_util::future::{Either, select};
use tokio::time::{sleep, timeout};
use tracing::{Instrument, Span, field::Empty};

use crate::{
    config::Config,
    error::Error,
    follow::{
        listener::Listener,
        repairs::Repairs,
        retry::{Again, Retry},
        schedule::{Schedule, Seen, Woken, rereads::Rereads},
    },
    metrics::{
        reload::{Reload, ReloadReason},
        stats::WarmupStats,
        status::{Fault, Status},
    },
    postgres::{
        connection::{Connection, within},
        statement::Prepared,
    },
    read::{
        self, Cause, Done, Read, ReadState,
        audit::{Audit, Audited, Pass, Resync, Step},
        changed::WORTH_HELPERS,
        parallel::EXPORTING,
        preflight::{self, Feed},
        schema::Names,
        source::Source,
        transaction::{self, ReadStart},
        turn::Turn,
        unreadable::Unreadable,
    },
    sql::FEED_VERSION,
    store::{
        draft::Draft,
        publish::{Publisher, add},
        state::{Cut, Moment, View},
    },
};

/// Keeps a cache equal to the database. It warms the cache up. Then, whenever a notification comes or the poll interval
/// has passed, it reads what changed and publishes it. The loop is [`DatabaseFollower::run`].
///
/// The follower is in one of five states. The last column says which state follows an error:
///
/// | state | what it does | after an error |
/// |---|---|---|
/// | connecting | opens the reading connection, checks tables, rights and the feed; then warms up or resumes (b) | paused |
/// | warming up | reads everything in one transaction; the old view stays readable | the same (a) or paused |
/// | following | waits, reads what changed, publishes | the same (a) or paused |
/// | without feed | reads everything again and again until the feed is back, then follows | the same (a) or paused |
/// | paused | waits, longer each time, with jitter; then connects | - |
///
/// (a) After a lock time-out or a conflict it rolls back, pauses for up to 5 s, and reads again. If the server could
/// not send a row, it rolls back, and reads again at once to find that row. When it was following, it reads from the
/// same cursor.
///
/// (b) After a lost connection it resumes: it goes on following from the same cursor. Its first read proves continuity
/// ([`crate::read::continuity`]), or reads everything. It warms up instead if it did not follow before, if the feed is
/// not there or not whole, or if everything was to be read anyway.
///
/// Before the first warmup an error that waiting does not resolve ends the follower.
pub(crate) struct DatabaseFollower {
    config: Config,
    names: Names,
    /// Set to `None` for good once a session does not know its prepared statements: a pooler hands out the sessions.
    prepared: Option<Prepared>,
    publisher: Publisher,
    draft: Draft,
    listener: Option<Listener>,
    epoch: u64,
    schedule: Schedule,
    audit: Audit,
    repairs: Repairs,
    /// Takes the place of the audit while the feed is not whole, that is, does not log every change.
    rereads: Rereads,
    /// Why there is no feed. Set while the follower goes on without it.
    without_feed: Option<Fault>,
    /// The cut of the last read of everything, and when that began. While the feed is not whole, nothing later proves
    /// that the view shows what was committed.
    whole: (Arc<Cut>, Moment),
    degraded: Degraded,
    /// Outlives the connection, so that pauses between tries of a row keep growing.
    unreadable: Unreadable,
    retry: Retry,
    turn: Turn,
    /// Set while everything is read again beside following.
    resync: Option<Resync>,
    /// What was known when the connection was lost. The next connection resumes from it.
    lost: Option<ReadState>,
    /// How many connections in a row were lost before a read proved continuity.
    failed_resumes: u32,
    /// How many reading connections were opened.
    connections: u64,
    last_warmup: Option<WarmupStats>,
    /// The feed version that the log named last; 0 before.
    feed_version: i32,
    troubled_since: Option<DateTime<Utc>>,
}

/// The faults of [`Status::Degraded`], and since when there are any.
#[derive(Debug, Default)]
struct Degraded {
    since: Option<DateTime<Utc>>,
    faults: Vec<Fault>,
}

impl Degraded {
    /// Replaces the faults. Logs each new one, and when the last one has gone.
    fn note(&mut self, faults: Vec<Fault>) {
        for fault in faults.iter().filter(|fault| !self.faults.contains(fault)) {
            let Fault { what, repair } = fault;
            tracing::error!(what, repair, "degraded: not every committed change arrives");
        }
        if faults.is_empty() && !self.faults.is_empty() {
            tracing::info!("no longer degraded: every committed change arrives");
        }
        self.since = (!faults.is_empty()).then(|| self.since.unwrap_or_else(Utc::now));
        self.faults = faults;
    }
}

/// The state of the loop. Only [`DatabaseFollower::step`] changes it.
enum State {
    Connecting,
    WarmingUp(Box<Connection>),
    Following(Box<Following>),
    WithoutFeed(Box<Following>),
    Paused(Duration),
}

/// The following state: the cache is warm.
struct Following {
    reader: Connection,
    known: ReadState,
    /// A read that a lock or a conflict prevented. It is made next, without waiting.
    put_off: Option<Woken>,
}

impl DatabaseFollower {
    pub(crate) fn new(config: Config, publisher: Publisher) -> DatabaseFollower {
        let now = Instant::now();
        publisher.late_from(config.poll_interval + LATE);
        DatabaseFollower {
            names: Names::new(&config, config.need_feed, ""),
            prepared: Some(Prepared::new()),
            publisher,
            draft: Draft::default(),
            listener: None,
            epoch: 0,
            schedule: Schedule::new(config.poll_interval, config.listens_elsewhere(), now),
            audit: Audit::new(config.audit_cycle, config.audit_budget, now),
            repairs: Repairs::default(),
            rereads: Rereads::default(),
            without_feed: None,
            whole: (Arc::default(), Moment::now()),
            degraded: Degraded::default(),
            unreadable: Unreadable::default(),
            retry: Retry::new(),
            turn: Turn::default(),
            resync: None,
            lost: None,
            failed_resumes: 0,
            connections: 0,
            last_warmup: None,
            feed_version: 0,
            troubled_since: None,
            config,
        }
    }

    /// Follows until the future is dropped, or until an error *before the first warmup* that waiting does not resolve.
    /// Such errors are a refused login, a missing table, feed or right, and another feed version. An unreachable
    /// database ends it only if [`Config::retry_unreachable`] is off.
    ///
    /// After the first warmup no error ends it: it tries again, and the view ages meanwhile.
    ///
    /// Needs a tokio runtime with time and I/O enabled. Decodes and applies rows on the thread that polls the future,
    /// in less than 1 µs for each market. The future may be dropped at any point. That closes the connections, and
    /// published views stay readable.
    ///
    /// # Errors
    /// The error that ended it. [`OddsCache::ready`](crate::cache::OddsCache::ready) returns the same one.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        let mut state = State::Connecting;
        loop {
            state = self.step(state).await?;
        }
    }

    /// Does what the state says, and returns the next state. An error drops the connection that the state held.
    async fn step(&mut self, state: State) -> Result<State, Error> {
        let next = match state {
            State::Connecting => self.connect().await,
            State::WarmingUp(reader) => {
                let warm = self.warm_up(*reader).await.map(Box::new);
                match self.without_feed {
                    None => warm.map(State::Following),
                    Some(_) => warm.map(State::WithoutFeed),
                }
            }
            State::Following(following) => {
                let following = self.follow(*following).await;
                following.map(|following| State::Following(Box::new(following)))
            }
            State::WithoutFeed(following) => self.look_for_feed(*following).await,
            State::Paused(pause) => {
                sleep(pause).await;
                Ok(State::Connecting)
            }
        };
        next.or_else(|error| self.pause(error).map(State::Paused))
    }

    /// Notes an error. Returns how long to pause, or the error if it ends the follower.
    fn pause(&mut self, error: Error) -> Result<Duration, Error> {
        add(&self.publisher.counters().failures, 1);
        let is_waited_for = error.is_transient() && self.config.retry_unreachable;
        if !(self.is_warm() || is_waited_for) {
            tracing::error!(%error, "the cache cannot be warmed up");
            self.publisher.end(Some(error.clone()));
            return Err(error);
        }
        let pause = self.retry.reconnect();
        tracing::warn!(%error, pause_ms = millis(pause), "not following; trying again after a pause");
        self.troubled(error);
        Ok(pause)
    }

    fn is_warm(&self) -> bool {
        self.last_warmup.is_some()
    }

    async fn connect(&mut self) -> Result<State, Error> {
        let reader = Connection::open(&self.config.connect, "follow").await?;
        // A listener of its own connection goes on.
        if !self.config.listens_elsewhere() {
            self.listener = None;
        }
        self.turn = Turn::default();
        self.connections += 1;
        let again = self.connections > 1;
        add(&self.publisher.counters().reconnects, usize::from(again));
        let has_feed = self.find_feed(&reader).await?;
        let Some(mut known) = self.lost.take().filter(|_| has_feed) else {
            return Ok(State::WarmingUp(Box::new(reader)));
        };
        known.doubt();
        self.schedule.reconnected(Instant::now());
        Ok(State::Following(Box::new(Following {
            reader,
            known,
            put_off: Some(Woken::Time),
        })))
    }

    /// Keeps what is known for the next connection. Not if that could not resume, or if a resumed read would fail again:
    /// a read of everything has more time.
    fn keep(&mut self, following: Following, error: &Error) {
        let Following { reader, known, .. } = following;
        let may_resume = match known.is_unproven() {
            false => {
                self.failed_resumes = 0;
                true
            }
            true => {
                self.failed_resumes += 1;
                let is_lost = reader.is_closed() || error.ends_connection();
                is_lost && self.failed_resumes < MOST_FAILED_RESUMES
            }
        };
        let is_whole = known.reload.is_none() && !self.rereads.is_on();
        self.lost = Some(known).filter(|_| may_resume && is_whole);
    }

    /// Checks tables, rights and the feed. Returns whether the feed is there. A warm follower goes on without it:
    /// somebody has uninstalled it, or revoked a right on it.
    async fn find_feed(&mut self, reader: &Connection) -> Result<bool, Error> {
        match self.check(reader, self.config.need_feed).await {
            Ok(feed) => {
                self.without_feed = None;
                self.listen(feed.as_ref())?;
                Ok(true)
            }
            Err(error) if self.is_warm() && self.works_without_feed(reader, &error).await => {
                self.without_feed = Some(Fault {
                    what: format!("no change is logged: {error}"),
                    repair: "oddscache sql install --apply, then oddscache sql grants --apply"
                        .to_owned(),
                });
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Checks tables, rights and, if it is needed, the feed. What is read next is what was checked.
    async fn check(&mut self, reader: &Connection, need_feed: bool) -> Result<Option<Feed>, Error> {
        self.names = Names::new(&self.config, need_feed, reader.settings_after_begin());
        let check = preflight::check_first(reader, &self.config, need_feed);
        within(self.config.read_timeout, CHECKING, check).await
    }

    /// Whether the follower can go on without the feed: `error` concerns the feed alone, and the application's tables
    /// can be read.
    async fn works_without_feed(&mut self, reader: &Connection, error: &Error) -> bool {
        if error.is_transient() || reader.is_closed() || self.roll_back(reader).await.is_err() {
            return false;
        }
        self.check(reader, false).await.is_ok()
    }

    /// Reads everything into the next epoch.
    async fn warm_up(&mut self, reader: Connection) -> Result<Following, Error> {
        let reason = match self.is_warm() {
            false => ReloadReason::First,
            true => ReloadReason::ConnectionLost,
        };
        self.announce(&reason.into(), false);
        loop {
            match self.try_warm_up(&reader, reason).await {
                Ok(known) => {
                    self.retry.warmed_up();
                    self.schedule.warmed_up();
                    return Ok(Following {
                        reader,
                        known,
                        put_off: None,
                    });
                }
                Err(error) => self.give_way(&reader, error).await?,
            }
        }
    }

    async fn try_warm_up(
        &mut self,
        reader: &Connection,
        reason: ReloadReason,
    ) -> Result<ReadState, Error> {
        let start = self.begin_in_turn(reader).await?;
        Box::pin(self.read_everything(reader, reason.into(), start)).await
    }

    /// Begins the transaction of a read of everything, once other caches let this one make it.
    async fn begin_in_turn(&mut self, reader: &Connection) -> Result<ReadStart, Error> {
        loop {
            let begin = transaction::begin(self.source(reader), None);
            let start = within(self.config.read_timeout, BEGINNING, begin).await?;
            if self.has_turn(reader).await? {
                return Ok(start);
            }
        }
    }

    /// Whether other caches let this one read everything now, in the current transaction. If not, ends the transaction
    /// and pauses.
    async fn has_turn(&mut self, reader: &Connection) -> Result<bool, Error> {
        let turn = self.turn.take(&reader.client, &self.names);
        let Some(pause) = within(self.config.read_timeout, BEGINNING, turn).await? else {
            return Ok(true);
        };
        self.roll_back(reader).await?;
        sleep(pause).await;
        Ok(false)
    }

    /// Waits, then reads what changed. After an error that ends the connection, what is known is kept: the error has
    /// changed neither the draft nor the cursor (R2 of [`crate::read`]).
    async fn follow(&mut self, mut following: Following) -> Result<Following, Error> {
        match Box::pin(self.try_follow(&mut following)).await {
            Ok(()) => Ok(following),
            Err(error) => {
                self.keep(following, &error);
                Err(error)
            }
        }
    }

    async fn try_follow(&mut self, following: &mut Following) -> Result<(), Error> {
        let woken = match following.put_off.take() {
            Some(woken) => woken,
            // Once writers notify, the follower reads what was committed before (W2, W3 of `schedule::polling`).
            None if self.settle_listener(&following.reader).await? => Woken::Time,
            None => self.wait().await,
        };
        let Following { reader, known, .. } = following;
        let resumes = known.is_unproven();
        match self.catch_up(reader, known, woken).await {
            // As after a warmup, only the next read shows that the connection lasts.
            Ok(()) if resumes => self.retry.warmed_up(),
            Ok(()) => self.retry.caught_up(),
            Err(error) => {
                self.give_way(reader, error).await?;
                following.put_off = Some(woken);
            }
        }
        Ok(())
    }

    /// Waits, then looks for the feed. Without one, it reads everything again when that is due.
    async fn look_for_feed(&mut self, mut following: Following) -> Result<State, Error> {
        let rest = self.rereads.until_due(Instant::now()).unwrap_or_default();
        sleep(rest.min(LOOKING_FOR_FEED)).await;
        let Following { reader, known, .. } = &mut following;
        known.reload = Some(ReloadReason::FeedNotWhole.into());
        if self.find_feed(reader).await? {
            // The connection is the same, so the epoch is, too.
            following.put_off = Some(Woken::Time);
            return Ok(State::Following(Box::new(following)));
        }
        // Other requests do not shorten the rest. Otherwise clients could make the follower exceed its budget.
        if self.publisher.request().take_resync() || self.rereads.is_due(Instant::now()) {
            match self.read(reader, known, None, None).await {
                Ok(()) => self.retry.caught_up(),
                Err(error) => self.give_way(reader, error).await?,
            }
        }
        Ok(State::WithoutFeed(Box::new(following)))
    }

    fn source<'a>(&'a self, reader: &'a Connection) -> Source<'a> {
        Source::new(reader, &self.config, &self.names)
    }

    /// Listens, and tells writers whether to notify. Returns whether to read at once.
    async fn settle_listener(&mut self, reader: &Connection) -> Result<bool, Error> {
        match &mut self.listener {
            Some(listener) => {
                let wants = self.schedule.wants_notifications();
                let settled = listener.settle(reader, wants).await;
                let counters = self.publisher.counters();
                add(&counters.lost_notifications, listener.take_losses());
                settled
            }
            None => Ok(false),
        }
    }

    /// Makes a listener for the channel that the feed names, unless there is one.
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
            self.listener = Some(Listener::new(&self.config, feed));
        }
        Ok(())
    }

    /// Logs once that the feed has an older version, and once that it was upgraded.
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
        // Not `self.source()`: that would borrow all of `self` beside the draft.
        let source = Source::new(reader, &self.config, &self.names);
        let prepared = self.prepared.as_ref();
        let reload = reason.reason.name();
        let span = tracing::info_span!(
            "warmup",
            reason = reload,
            epoch = number(epoch),
            rows = Empty,
            events = Empty
        );
        let (draft, unreadable) = (&mut self.draft, &mut self.unreadable);
        let progress = self.publisher.progress();
        let follows = progress.begin();
        let reload = reason.clone();
        let read = read::everything(source, prepared, draft, unreadable, reload, start, progress);
        let read = within(self.config.warmup_timeout, WARMING_UP, Box::pin(read));
        let read = read.instrument(span.clone()).await;
        drop(follows);
        let (known, done) = match read {
            // The refusal has aborted the transaction, so a new one must begin (E2 of `read::parallel`).
            Err(error) if error.is_of(EXPORTING) => {
                self.read_on_one_connection(reader, &error).await?;
                let start = self.begin_in_turn(reader).await?;
                return Box::pin(self.read_everything(reader, reason, start)).await;
            }
            read => read?,
        };
        span.record("rows", number(done.rows_read));
        span.record("events", number(self.draft.len()));
        // Set it only after the read: if the read fails, the old view stays, with its epoch.
        self.epoch = epoch;
        let notifies_from = self.listener.as_ref().and_then(Listener::notifies_from);
        self.schedule.read_everything(Instant::now(), notifies_from);
        span.in_scope(|| self.publish(&known, done));
        Ok(known)
    }

    /// Waits for a notification, for the request of a handle, or until it is time to read without either.
    async fn wait(&mut self) -> Woken {
        let begun_at = Instant::now();
        let until_audit = || self.audit.until_due(begun_at);
        let until_due = self.rereads.until_due(begun_at).unwrap_or_else(until_audit);
        let resync = self.resync.as_ref();
        let until_resync = resync.map(|resync| resync.until_due(begun_at));
        let until_due = until_resync.map_or(until_due, |resync| resync.min(until_due));
        let until_retry = self.unreadable.until_due(begun_at);
        let until_due = until_retry.map_or(until_due, |retry| retry.min(until_due));
        let wake = self.schedule.next(until_due);
        // A notification or request that comes during the rest is remembered, and ends the wait at once.
        sleep(wake.rest).await;
        let notified = async {
            match &mut self.listener {
                Some(listener) if wake.by_notification => listener.notified().await,
                _ => std::future::pending().await,
            }
        };
        let notified = pin!(notified);
        let asked = pin!(self.publisher.request().requested());
        let woken = match timeout(wake.within, select(notified, asked)).await {
            Ok(Either::Left((true, _))) => Woken::Notification,
            Ok(Either::Left((false, _))) => Woken::Time,
            Ok(Either::Right(_)) => Woken::Request,
            Err(_) => Woken::Time,
        };
        self.schedule.waited(begun_at.elapsed());
        woken
    }

    /// Reads what changed since the last read. Then makes a step of the audit if one is due.
    async fn catch_up(
        &mut self,
        reader: &Connection,
        known: &mut ReadState,
        woken: Woken,
    ) -> Result<(), Error> {
        let counters = self.publisher.counters();
        let woke = match woken {
            Woken::Notification => &counters.notifications,
            Woken::Request => &counters.requested_reads,
            Woken::Time => &counters.polls,
        };
        add(woke, 1);
        if self.publisher.request().take_resync() {
            self.begin_resync(known);
        }
        // While the feed is not whole, slices of different moments would mix unlogged changes.
        if self.rereads.is_on() && self.resync.take().is_some() {
            known.reload = Some(ReloadReason::Requested.into());
        }
        self.read(reader, known, Some(woken), None).await?;
        let now = Instant::now();
        if let Some(step) = self.resync.as_ref().and_then(|resync| resync.due(now)) {
            return Box::pin(self.audit_step(reader, known, step)).await;
        }
        if self.rereads.is_on() {
            if self.rereads.is_due(now) {
                // A request to read everything may have come with the changes. It covers this, not the other way round.
                known
                    .reload
                    .get_or_insert(ReloadReason::FeedNotWhole.into());
                self.read(reader, known, None, None).await?;
            }
        } else if let Some(step) = self.audit.due(now) {
            Box::pin(self.audit_step(reader, known, step)).await?;
            // The audit found a difference, so everything is read again at once. The time counts against the audit's
            // budget.
            if known.reload.is_some() {
                let begun_at = Instant::now();
                self.read(reader, known, None, None).await?;
                self.audit.rest(begun_at.elapsed(), Instant::now());
            }
        }
        Ok(())
    }

    /// Begins to read everything again, as requested: beside following, if the log tells what changes meanwhile.
    fn begin_resync(&mut self, known: &mut ReadState) {
        match &mut self.resync {
            _ if self.rereads.is_on() => known.reload = Some(ReloadReason::Requested.into()),
            Some(resync) => resync.again(),
            None => {
                tracing::info!("reading everything again beside following, as requested");
                self.resync = Some(Resync::new(Instant::now()));
            }
        }
    }

    /// Makes a step of the audit. Its read is a second one, after that of the changes, so it delays no change that was
    /// waiting. If the step fails or takes too long, it is made again later, with fewer events.
    async fn audit_step(
        &mut self,
        reader: &Connection,
        known: &mut ReadState,
        step: Step,
    ) -> Result<(), Error> {
        let (begun_at, pass) = (Instant::now(), step.pass());
        let mut result = self.read(reader, known, None, Some(step.clone())).await;
        if let Err(error @ Error::UnreadableRow { .. }) = &result
            && !self.unreadable.is_looking()
        {
            self.look_for_rows(reader, error).await?;
            result = self.read(reader, known, None, Some(step)).await;
        }
        let Err(error) = result else {
            return Ok(());
        };
        let took = begun_at.elapsed();
        let in_a_row = match (&mut self.resync, pass) {
            (Some(resync), Pass::Resync) => resync.failed(took, Instant::now()),
            _ => self.audit.failed(pass, took, Instant::now()),
        };
        // Any other error is the end of the connection.
        if !error.is_of_a_statement() || reader.is_closed() {
            return Err(error);
        }
        add(&self.publisher.counters().failures, 1);
        if error.is_conflict() && in_a_row < PASSING {
            tracing::info!(%error, "a step of the audit gave way; trying again later");
        } else {
            tracing::warn!(%error, "a step of the audit failed; trying again later");
        }
        self.roll_back(reader).await
    }

    /// Makes one read and publishes its result. `woken` is given if the read follows a wait, `step` if it is for the
    /// audit. If neither is given, a reload is due.
    async fn read(
        &mut self,
        reader: &Connection,
        known: &mut ReadState,
        woken: Option<Woken>,
        step: Option<Step>,
    ) -> Result<(), Error> {
        let begun_at = Instant::now();
        // Boxed, because a build without optimisation copies a future several times on the stack at every level.
        while !Box::pin(self.try_read(reader, known, woken, step.clone(), begun_at)).await? {}
        Ok(())
    }

    /// The same. False if other caches do not let this one read everything yet.
    async fn try_read(
        &mut self,
        reader: &Connection,
        known: &mut ReadState,
        woken: Option<Woken>,
        step: Option<Step>,
        begun_at: Instant,
    ) -> Result<bool, Error> {
        let cause = match (step, woken) {
            (Some(step), _) => Cause::Audit(step),
            (None, Some(Woken::Time)) => Cause::Time,
            (None, _) => Cause::News,
        };
        // Not `self.source()`: that would borrow all of `self` beside the draft.
        let source = Source::new(reader, &self.config, &self.names);
        let reason = match (&cause, woken) {
            (Cause::Audit(Step::Resync(_)), _) => "resync",
            (Cause::Audit(_), _) => "audit",
            (_, Some(woken)) => woken.name(),
            (_, None) => "reload",
        };
        let epoch = self.epoch;
        let resumes = known.is_unproven();
        let span = tracing::debug_span!(
            "read",
            reason,
            epoch = number(epoch),
            log_rows = Empty,
            rows = Empty
        );
        // Finding a row that cannot be read may take a few hundred statements.
        let bound = match self.unreadable.is_looking() {
            true => self.config.read_timeout.max(LOOKING),
            false => self.config.read_timeout,
        };
        let (draft, unreadable) = (&mut self.draft, &mut self.unreadable);
        let changes = read::changes(source, &mut self.prepared, draft, known, unreadable, cause);
        let changes = within(bound, READING, Box::pin(changes));
        match changes.instrument(span.clone()).await? {
            Read::Done(done) => self.caught_up(known, woken, *done, &span, begun_at, resumes),
            Read::Wide(reason, news) => {
                // Every cache of the database sees such a change at the same moment, and looks at all rows.
                let is_catalog = |reload: &Reload| reload.reason == ReloadReason::Catalog;
                if reason.as_ref().is_some_and(is_catalog) && !self.has_turn(reader).await? {
                    return Ok(false);
                }
                if let Some(reason) = &reason {
                    self.announce(reason, resumes);
                }
                let source = Source::new(reader, &self.config, &self.names);
                let (draft, unreadable) = (&mut self.draft, &mut self.unreadable);
                let prepared = self.prepared.as_ref();
                let wide = read::wide(source, prepared, draft, known, unreadable, reason, *news);
                let wide = within(self.config.warmup_timeout, READING, Box::pin(wide));
                match wide.instrument(span.clone()).await {
                    // The refusal has aborted the transaction, so a new one must begin (E2 of `read::parallel`).
                    Err(error) if error.is_of(EXPORTING) => {
                        self.read_on_one_connection(reader, &error).await?;
                        return Ok(false);
                    }
                    done => self.caught_up(known, woken, done?, &span, begun_at, resumes),
                }
            }
            Read::Reload(reason, start) => {
                let why = reason.reason;
                if !self.has_turn(reader).await? {
                    known.reload = Some(reason);
                    return Ok(false);
                }
                self.announce(&reason, resumes);
                *known = Box::pin(self.read_everything(reader, reason, *start)).await?;
                if resumes && !why.is_new_epoch() {
                    add(&self.publisher.counters().resumed, 1);
                }
                // Reads at a budget need no further rests.
                let in_a_row = match why {
                    ReloadReason::FeedNotWhole => 0,
                    _ => self.schedule.reloaded(begun_at.elapsed()),
                };
                if in_a_row == MANY_RELOADS {
                    let way_out = why.way_out();
                    tracing::warn!(
                        reason = why.name(),
                        "everything was read {in_a_row} times in a row, and pauses grow; {way_out}"
                    );
                }
                if self.without_feed.is_none() {
                    self.listen(known.feed())?;
                }
            }
        }
        Ok(true)
    }

    /// Publishes what a read of changes found, unless the audit found a difference.
    fn caught_up(
        &mut self,
        known: &mut ReadState,
        woken: Option<Woken>,
        mut done: Done,
        span: &Span,
        begun_at: Instant,
        resumes: bool,
    ) {
        span.record("log_rows", number(done.log_rows));
        span.record("rows", number(done.rows_read));
        let _entered = span.enter();
        if resumes {
            let (log_rows, rows) = (done.log_rows, done.rows_read);
            tracing::info!(log_rows, rows, "resumed: continuity proven");
            add(&self.publisher.counters().resumed, 1);
        }
        if let Some(woken) = woken {
            self.plan_next(known, woken, &done, begun_at.elapsed());
        }
        if done.is_requested {
            self.begin_resync(known);
        }
        let audited = done.audited.take();
        if let Some(audited) = audited
            .as_ref()
            .filter(|audited| audited.pass == Pass::Resync)
        {
            done.is_resynced = self.resynced(audited, begun_at.elapsed());
            return self.publish(known, done);
        }
        if let Some(audited) = audited
            && !self.audited(&audited, begun_at.elapsed())
        {
            // The draft is not a state of the database. So it is not published, and the view is not proven current.
            known.reload = Some(ReloadReason::Audit.into());
        } else {
            self.publish(known, done);
        }
    }

    /// Notes a step of a resync. Returns whether it was the last one.
    fn resynced(&mut self, audited: &Audited, took: Duration) -> bool {
        let Some(resync) = &mut self.resync else {
            return false;
        };
        for mismatch in audited.mismatches.iter().take(MOST_NAMED) {
            tracing::warn!(%mismatch, "the resync found a change that was not logged");
        }
        let is_over = resync.done(audited, took, Instant::now());
        if is_over {
            tracing::info!("everything was read again, as requested");
            self.resync = None;
            let counters = self.publisher.counters();
            add(&counters.reloads, 1);
            add(counters.reloads_by_reason.of(ReloadReason::Requested), 1);
        }
        is_over
    }

    /// After the server refused to export a snapshot.
    async fn read_on_one_connection(
        &mut self,
        reader: &Connection,
        error: &Error,
    ) -> Result<(), Error> {
        tracing::warn!(%error, "reading everything on one connection from now on");
        self.config.warmup_connections = 1;
        self.roll_back(reader).await
    }

    /// Decides how to wait for the next change. `done` and `took` are of the read just made.
    fn plan_next(&mut self, known: &ReadState, woken: Woken, done: &Done, took: Duration) {
        if let (Some(listener), Some(shown)) = (&mut self.listener, &done.shown) {
            listener.found(done.newest_xid, shown.unseen);
        }
        let notifies_from = self.listener.as_ref().map(Listener::notifies_from);
        self.schedule.read(Seen {
            now: Instant::now(),
            took,
            woken,
            rows: done.log_rows,
            is_wide: done.wide.is_some(),
            xmin: known.xmin(),
            notifies_from: notifies_from.flatten(),
        });
    }

    /// Counts and logs the result of a step of the audit. Returns whether cache and database were equal.
    fn audited(&mut self, audited: &Audited, took: Duration) -> bool {
        let now = Instant::now();
        let ended = self.audit.done(audited, took, now);
        self.publisher.set_audit(self.audit.passes(now));
        let Audited {
            pass,
            count,
            mismatches,
            ..
        } = audited;
        let counters = self.publisher.counters();
        let (events, passes) = match pass {
            Pass::Headers => (&counters.audited_headers, &counters.audit_headers_passes),
            Pass::Likely | Pass::Full | Pass::Resync => {
                (&counters.audited_events, &counters.audit_passes)
            }
        };
        add(events, *count);
        add(&counters.audit_mismatches, mismatches.len());
        add(passes, usize::from(ended && *pass != Pass::Likely));
        if ended && *pass == Pass::Full {
            self.repairs.pass_ended();
        }
        if mismatches.is_empty() {
            return true;
        }
        let held = |id| self.draft.event(id).cloned();
        if !self.repairs.found(mismatches, held, Instant::now()) {
            return true;
        }
        for mismatch in mismatches.iter().take(MOST_NAMED) {
            tracing::error!(%mismatch, "the audit found a change that no trigger saw");
        }
        if mismatches.len() > MOST_NAMED {
            tracing::error!(
                events = mismatches.len(),
                "changes that no trigger saw; the log names the first {MOST_NAMED}"
            );
        }
        false
    }

    /// Handles the error of a read. If the server could not send a row, it rolls back, and the next read looks for that
    /// row. After a lock time-out or a conflict it rolls back and pauses. The caller may then read again from the same
    /// cursor, because nothing was applied. It returns any other error, which ends the connection.
    async fn give_way(&mut self, reader: &Connection, error: Error) -> Result<(), Error> {
        let is_looking = self.unreadable.is_looking();
        let again = match reader.is_closed() {
            true => None,
            false => self.retry.same_connection(&error, is_looking),
        };
        let Some(again) = again else {
            return Err(error);
        };
        add(&self.publisher.counters().failures, 1);
        match again {
            Again::LookForRows => self.look_for_rows(reader, &error).await,
            Again::After(pause) => {
                let pause_ms = millis(pause);
                match pause < LONG_PAUSE {
                    true => {
                        tracing::info!(%error, pause_ms, "gave way; reading again after a pause")
                    }
                    false => {
                        tracing::warn!(%error, pause_ms, "still giving way; reading again after a pause")
                    }
                }
                self.roll_back(reader).await?;
                self.troubled(error);
                sleep(pause).await;
                Ok(())
            }
        }
    }

    /// Rolls back a read that failed at a row. The next one looks for that row.
    async fn look_for_rows(&mut self, reader: &Connection, error: &Error) -> Result<(), Error> {
        tracing::warn!(%error, "looking for the row");
        self.unreadable.search();
        self.roll_back(reader).await
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

    /// Tells why everything is read. `resumes` says that the connection was lost since the last read. Then the status
    /// says so, too, because the view was not current when the read of everything began.
    fn announce(&mut self, reason: &Reload, resumes: bool) {
        if reason.reason == ReloadReason::FeedNotWhole {
            tracing::debug!("looking for changes that the feed did not log");
        } else if !self.is_warm() {
            tracing::info!("warming up");
            self.publisher.set_status(Status::Warming);
        } else {
            match resumes && reason.reason.is_new_epoch() {
                true => {
                    tracing::info!(%reason, "not resumed: continuity not proven; reading everything")
                }
                false => {
                    tracing::info!(%reason, "reading again what may have changed; the old view stays readable")
                }
            }
            let shown = match resumes {
                true => ReloadReason::ConnectionLost,
                false => reason.reason,
            };
            self.publisher.set_status(Status::Resyncing {
                reason: shown,
                detail: reason.to_string(),
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
        add(&counters.unreadable_rows, done.unreadable_rows_found);
        add(&counters.evicted_events, done.evicted);
        let reload = done.warmup.as_ref().map(|(reload, _)| reload);
        if let Some(reload) = reload.or(done.wide.as_ref()) {
            add(&counters.reloads, 1);
            add(counters.reloads_by_reason.of(reload.reason), 1);
        }
    }

    fn following_status(&self) -> Status {
        if let Some(since) = self.degraded.since {
            let faults = self.degraded.faults.clone();
            let bound = self.rereads.bound();
            return Status::Degraded {
                since,
                faults,
                bound,
            };
        }
        let listener = self.listener.as_ref().map(Listener::check);
        match listener {
            Some(Ok(())) => Status::Live,
            Some(Err(reason)) => Status::PollingOnly { reason },
            None => Status::PollingOnly {
                reason: "there is no listener".to_owned(),
            },
        }
    }

    /// Notes a read of all that may have changed without a log row. It began at `began`. Notes whether the feed is whole,
    /// and when to read that again.
    fn read_whole(&mut self, known: &ReadState, began: Moment, connections: usize) {
        let is_whole = known.feed().is_some_and(|feed| feed.faults.is_empty());
        self.rereads.ended(
            is_whole,
            began.monotonic.elapsed(),
            connections,
            Instant::now(),
        );
        self.whole = (Arc::clone(known.cut()), began);
    }

    fn publish(&mut self, known: &ReadState, done: Done) {
        self.count(&done);
        let reload = done.warmup.as_ref().map(|(reload, _)| reload.reason);
        if reload.is_some() {
            self.resync = None;
            self.read_whole(known, done.began, self.config.warmup_connections);
        } else if done.is_whole {
            let connections = match done.snapshots_read >= WORTH_HELPERS {
                true => self.config.warmup_connections,
                false => 1,
            };
            self.read_whole(known, done.began, connections);
        }
        if let Some((reason, warmup)) = done.warmup {
            let WarmupStats {
                events,
                snapshots,
                markets,
                memory_bytes,
                seconds,
            } = warmup;
            if reason.reason != ReloadReason::FeedNotWhole {
                tracing::info!(%reason, events, snapshots, markets, memory_bytes, seconds, epoch = self.epoch, "warm");
            }
            self.last_warmup = Some(warmup);
        }
        let wide = done.wide.as_ref();
        if let Some(reason) = wide.filter(|wide| wide.reason != ReloadReason::FeedNotWhole) {
            let (rows, seconds) = (done.rows_read, done.began.elapsed().as_secs_f64());
            tracing::info!(%reason, rows, seconds, "read what may have changed");
        }
        if reload == Some(ReloadReason::Audit) {
            let held = |id| self.draft.event(id).cloned();
            match self.repairs.repaired(held, Instant::now()) {
                0 => tracing::error!(
                    "repaired what the audit found; every table and partition has its triggers now, so look for 'could not \
                     be logged' in the server's log, and for who disables triggers; if you find neither, please report it"
                ),
                events => tracing::error!(
                    events,
                    "reading everything again changed nothing in events that the audit found to differ; the follower repeats \
                     it after growing pauses; please report this"
                ),
            }
        }
        if done.evicted > 0 {
            tracing::debug!(events = done.evicted, window_start = %known.cut().window_start, "evicted");
        }
        let begun_at = Instant::now();
        let (cut, proven) = match self.rereads.is_on() {
            true => self.whole.clone(),
            false => (Arc::clone(known.cut()), done.began),
        };
        let change = self.draft.change(Arc::clone(&cut), self.epoch);
        let unreadable = self.unreadable.faults();
        let is_moved = !matches!(reload, None | Some(ReloadReason::FeedNotWhole))
            || done.is_resynced
            || unreadable != self.publisher.published().unreadable;
        if is_moved || !change.is_empty() {
            let epoch = self.epoch;
            let span = tracing::debug_span!("publish", epoch = number(epoch), events = Empty);
            let _entered = span.enter();
            if !span.is_disabled() {
                span.record("events", number(change.event_ids().len()));
            }
            let warmup = self.last_warmup.clone();
            let mut state = self.draft.state(cut, self.epoch, Some(proven), warmup);
            state.unreadable.clone_from(&unreadable);
            self.publisher.publish(state, change);
            if reload.is_none() {
                self.publisher.timers().publish.record(begun_at.elapsed());
            }
        } else {
            // Nothing differs: the published state is proven current at the new cut.
            self.publisher.prove(cut, proven);
        }
        if let Some(shown) = &done.shown {
            self.publisher.timers().record(done.took.as_ref(), shown);
        }
        self.publisher.set_change_log(known.change_log());
        let mut faults = known
            .feed()
            .map_or_else(Vec::new, |feed| feed.faults.clone());
        faults.extend(self.without_feed.clone());
        faults.extend(self.repairs.faults());
        faults.extend(unreadable);
        self.degraded.note(faults);
        self.troubled_since = None;
        self.publisher.set_status(self.following_status());
    }
}

/// How often it looks whether the feed is there again.
const LOOKING_FOR_FEED: Duration = Duration::from_secs(5);

/// A view that is older than the poll interval and this tells that the database does not answer, long before the read
/// times out.
const LATE: Duration = Duration::from_secs(5);

/// The least time limit of a read that looks for unreadable rows.
const LOOKING: Duration = Duration::from_secs(30);

/// From this many failed steps of the audit in a row on, a conflict is logged as a warning.
const PASSING: u32 = 3;

/// From a pause of this length on, a conflict is logged as a warning.
const LONG_PAUSE: Duration = Duration::from_secs(1);

/// After this many reads of everything in a row, the log says why they happen and what to do.
const MANY_RELOADS: u32 = 4;

/// The most mismatches of a step that the log names. It only counts the rest.
const MOST_NAMED: usize = 10;

/// After this many connections that were lost before a read proved continuity, the next one reads everything. Something
/// may end each connection because of that read.
const MOST_FAILED_RESUMES: u32 = 3;

const CHECKING: &str = "checking tables, rights and triggers";
const BEGINNING: &str = "beginning to read";
const READING: &str = "reading changes";
const WARMING_UP: &str = "warming up";

/// A count in a span. OpenTelemetry has no unsigned numbers, so it would get text.
fn number(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Reads the database once, without following it, and returns the view. Opens up to
/// [`Config::warmup_connections`](crate::config::Config::warmup_connections) connections, and closes them. Needs no
/// change feed if [`Config::need_feed`](crate::config::Config::need_feed) is off.
///
/// # Errors
/// The errors with which [`Follower::run`](crate::Follower::run) ends, and every error of the connection: it does not
/// wait for a database that cannot be reached.
pub async fn warm_up(config: Config) -> Result<View, Error> {
    let reader = Connection::open(&config.connect, "warmup").await?;
    let (shared, publisher) = Publisher::new(Status::Warming);
    let mut follower = DatabaseFollower::new(config, publisher);
    follower.check(&reader, follower.config.need_feed).await?;
    follower.warm_up(reader).await?;
    Ok(View(shared.load_full()))
}

impl Drop for DatabaseFollower {
    fn drop(&mut self) {
        // Has no effect if an error ended the follower before.
        self.publisher.end(None);
    }
}

impl fmt::Debug for DatabaseFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("config", &self.config)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}
