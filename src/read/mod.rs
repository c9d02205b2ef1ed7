//! One read: a transaction that brings the draft to one committed state of the database.
//!
//! | invariant | |
//! |---|---|
//! | R1 | all locks are taken before the snapshot, all rows are read under that snapshot, also where others import it |
//! | R2 | the draft and the cursor move together, after COMMIT; an error or a cancellation before leaves both as they were |
//! | R3 | within an epoch time never goes back: not that of the cut, nor the start of the window |
//! | R4 | what is sent before the answers to what came before it is used only if all of these were no errors |
//! | R5 | on a primary equal snapshots of the same server show equal rows: no transaction has ended in between |

pub(crate) mod audit;
pub(crate) mod change_log;
pub(crate) mod changed;
pub(crate) mod fingerprint;
pub(crate) mod parallel;
pub(crate) mod plan;
pub(crate) mod preflight;
pub(crate) mod rows;
pub(crate) mod schema;
pub(crate) mod source;
pub(crate) mod transaction;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{join, try_join, try_join3};
use hashbrown::HashSet;
use tokio_postgres::Client;

use crate::{
    error::Error,
    metrics::{
        reload::{Reload, ReloadReason},
        stats::WarmupStats,
        status::ChangeLog,
        timing::{Shown, Took},
    },
    model::Micros,
    postgres::{
        connection::millis,
        statement::{Prepared, Statement},
    },
    read::{
        audit::Audited,
        change_log::{ChangeSet, Changed, Cursor, LogRow},
        changed::{Bodies, Newest},
        fingerprint::Watched,
        plan::Plan,
        preflight::Feed,
        rows::{Reader, RowCounters, SnapshotHeaders},
        schema::Catalog,
        source::Source,
        transaction::ReadStart,
    },
    store::{
        draft::Draft,
        state::{Cut, Moment},
    },
};

/// What a follower knows after a read, and the next one starts from.
#[derive(Debug)]
pub(crate) struct ReadState {
    found: Found,
    at: Position,
    newest: Newest,
    /// Why the next read must read everything, if it must.
    pub(crate) reload: Option<Reload>,
}

/// What the catalog said at the last read of everything, and the statements made of it.
#[derive(Debug)]
struct Found {
    /// What the installed feed says of itself.
    feed: Option<Feed>,
    catalog: Catalog,
    watched: Watched,
    fingerprint: String,
    /// What is new in the log, on a primary.
    new_log_rows: Statement,
}

/// How far the last read came.
#[derive(Debug)]
struct Position {
    /// `None` where no feed is needed.
    cursor: Option<Cursor>,
    server: String,
    window_start: Micros,
    cut: Arc<Cut>,
    /// When the last read began, of whatever kind.
    began: Instant,
    /// When tables were last locked and looked at.
    looked: Instant,
    pruned_below: u64,
}

impl Position {
    fn of(start: ReadStart, cursor: Option<Cursor>, looked: Instant) -> Position {
        Position {
            cursor,
            server: start.server,
            window_start: start.window_start,
            cut: Arc::new(start.cut),
            began: start.began.monotonic,
            looked,
            pruned_below: start.pruned_below,
        }
    }
}

impl ReadState {
    /// The transaction id below which all had ended at the last read; 0 where no feed is read.
    pub(crate) fn xmin(&self) -> u64 {
        self.at.cursor.as_ref().map_or(0, Cursor::xmin)
    }

    /// How far the log reaches.
    pub(crate) fn change_log(&self) -> ChangeLog {
        ChangeLog {
            pruned_below: self.at.pruned_below,
            next_xid: self.at.cursor.as_ref().map_or(0, Cursor::xmax),
            feed_version: self.feed().map_or(0, |feed| feed.version),
        }
    }

    /// The cut of the last read.
    pub(crate) fn cut(&self) -> &Arc<Cut> {
        &self.at.cut
    }

    /// The feed, as of the last read of everything.
    pub(crate) fn feed(&self) -> Option<&Feed> {
        self.found.feed.as_ref()
    }
}

/// What a read did.
#[derive(Debug)]
pub(crate) struct Done {
    /// Before its snapshot was taken.
    pub(crate) began: Moment,
    pub(crate) log_rows: usize,
    pub(crate) snapshots_read: usize,
    pub(crate) rows_read: u64,
    pub(crate) malformed_rows_read: u64,
    pub(crate) evicted: usize,
    /// If changes were read; and what that took, unless for the audit.
    pub(crate) shown: Option<Shown>,
    pub(crate) took: Option<Took>,
    /// If everything was read.
    pub(crate) warmup: Option<(Reload, WarmupStats)>,
    /// If a slice was to be audited.
    pub(crate) audited: Option<Audited>,
}

impl Done {
    /// A read that found nothing.
    fn at(began: Moment) -> Done {
        Done {
            began,
            log_rows: 0,
            snapshots_read: 0,
            rows_read: 0,
            malformed_rows_read: 0,
            evicted: 0,
            shown: None,
            took: None,
            warmup: None,
            audited: None,
        }
    }
}

const BEGIN: &str = "beginning to read";
const END: &str = "ending a read";

/// Ends a read: whether all of it was of the snapshot, if rows were read, then COMMIT. What a query reads of a partitioned
/// table takes in a partition that was attached since. Where a default partition is locked, none can be.
async fn end(
    client: &Client,
    prepared: Option<&Prepared>,
    watched: Option<&Watched>,
) -> Result<(), Error> {
    let tables_now = async {
        match watched {
            Some(watched) => watched.tables_now.rows(client, prepared, &[]).await,
            None => Ok(Vec::new()),
        }
    };
    let (now, ()) = try_join(tables_now, client.batch_execute("COMMIT"))
        .await
        .map_err(Error::database(END))?;
    let Some(watched) = watched else {
        return Ok(());
    };
    let now: Option<&str> = now
        .first()
        .map_or(Ok(None), |row| row.try_get(0))
        .map_err(Error::database(END))?;
    if now == Some(&watched.tables) {
        Ok(())
    } else {
        Err(Error::conflict(
            END,
            "a partition was attached or detached meanwhile",
        ))
    }
}

/// R3.
fn keep_forward(start: &mut ReadStart, at: &Position) {
    start.window_start = start.window_start.max(at.window_start);
    start.cut.window_start = start.window_start.to_utc();
    start.cut.as_of = start.cut.as_of.max(at.cut.as_of);
}

/// A clock that goes back by less is taken for one that is being adjusted.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Reads everything, in the transaction begun: into a new draft, which replaces `draft` only at the end.
pub(crate) async fn everything(
    source: Source<'_>,
    prepared: Option<&Prepared>,
    draft: &mut Draft,
    reason: Reload,
    start: ReadStart,
) -> Result<(ReadState, Done), Error> {
    let row_counters = RowCounters::default();
    let (found, cursor) = Found::look(source, &start).await?;
    let (plan, bodies, newest) =
        whole(source, &found.catalog, &start, draft, &row_counters).await?;
    if let Some(prepared) = prepared {
        found.prepare(source, prepared, cursor.is_some()).await?;
    }
    end(source.client, None, Some(&found.watched)).await?;

    // From here on nothing can fail or be cancelled (R2).
    let mut next = draft.successor();
    let snapshots_read = bodies.apply(plan, &mut next);
    next.replace(draft);
    *draft = next;
    let done = Done {
        snapshots_read,
        rows_read: row_counters.rows(),
        malformed_rows_read: row_counters.malformed(),
        warmup: Some((reason, warmup_stats(draft, &start))),
        ..Done::at(start.began)
    };
    let at = Position::of(start, cursor, Instant::now());
    let state = ReadState {
        found,
        at,
        newest,
        reload: None,
    };
    Ok((state, done))
}

impl Found {
    /// Looks at the catalog, in the transaction begun: the fingerprint that the next reads compare with must be that of a
    /// whole feed. Also where reading the log begins.
    async fn look(source: Source<'_>, start: &ReadStart) -> Result<(Found, Option<Cursor>), Error> {
        let Source {
            client,
            config,
            names,
        } = source;
        client
            .batch_execute(&names.patience)
            .await
            .map_err(Error::database(BEGIN))?;
        let feed = preflight::check(client, config).await?;
        let catalog = Catalog::read(client, names).await?;
        let watched = Watched::find(client, names).await?;
        let fingerprint = fingerprint(client, None, &watched).await?;
        let log = names.log_table();
        let cursor = match names.need_feed {
            true => {
                let start =
                    change_log::start(client, &log, start.snapshot.clone(), start.cut.standby);
                Some(start.await?)
            }
            false => None,
        };
        let found = Found {
            feed,
            catalog,
            watched,
            fingerprint,
            new_log_rows: change_log::exactly_new(&log),
        };
        Ok((found, cursor))
    }

    /// Prepares what the reads of changes run.
    async fn prepare(
        &self,
        source: Source<'_>,
        prepared: &Prepared,
        reads_log: bool,
    ) -> Result<(), Error> {
        let watched = &self.watched;
        let once = [&source.names.cut, &watched.fingerprint, &watched.tables_now];
        let statements = once.into_iter().chain(self.catalog.prepared());
        let of_log = reads_log.then_some(&self.new_log_rows);
        prepared
            .prepare(source.client, statements.chain(of_log))
            .await
    }
}

/// All rows of the window, read on as many connections as the configuration allows.
async fn whole(
    source: Source<'_>,
    catalog: &Catalog,
    start: &ReadStart,
    draft: &mut Draft,
    row_counters: &RowCounters,
) -> Result<(Plan, Bodies, Newest), Error> {
    let Source {
        client,
        config,
        names,
    } = source;
    let reader = Reader {
        client,
        catalog,
        prepared: None,
        names_malformed: true,
        row_counters,
    };
    let exported = parallel::export(client, config, start).await?;
    let (headers, helpers) = join(
        reader.all_headers(start.window_start),
        parallel::open(config, names, start, exported.as_deref()),
    )
    .await;
    let headers = headers?;
    let mut newest = Newest::default();
    newest.note(&headers);
    let plan = Plan::whole(headers);
    let helping: Vec<Reader<'_>> = helpers
        .iter()
        .map(|helper| Reader {
            client: &helper.client,
            ..reader
        })
        .collect();
    let patience = config.read_timeout / 2;
    let bodies = Bodies::read_with(&helping, patience, reader, &plan, draft).await?;
    Ok((plan, bodies, newest))
}

fn warmup_stats(draft: &Draft, start: &ReadStart) -> WarmupStats {
    let stats = draft.stats();
    WarmupStats {
        events: draft.len(),
        snapshots: stats.total_snapshots,
        markets: stats.total_markets,
        memory_bytes: stats.memory_bytes,
        seconds: start.began.elapsed().as_secs_f64(),
    }
}

/// How far [`changes`] came.
pub(crate) enum Read {
    /// The draft is what the database was at the snapshot.
    Done(Box<Done>),
    /// What changed cannot be told, so [`everything`] must be read, in the transaction begun.
    Reload(Reload, Box<ReadStart>),
}

/// Why a read of changes is made.
pub(crate) enum Cause {
    /// There may be news.
    News,
    /// It is time to look, though nobody says that there is anything to see.
    Time,
    Audit(audit::Step),
}

/// However quiet it is, tables are looked at so often: what changes them without a transaction is thought of nowhere.
const LOOK: Duration = Duration::from_secs(10);

/// Reads what changed since the last read, and what the audit asks for. What is prepared is `None` afterwards if the session
/// at hand turns out to know nothing of it.
pub(crate) async fn changes(
    source: Source<'_>,
    prepared: &mut Option<Prepared>,
    draft: &mut Draft,
    state: &mut ReadState,
    cause: Cause,
) -> Result<Read, Error> {
    if matches!(cause, Cause::Time)
        && let Some(done) = nothing(source, draft, state).await?
    {
        return Ok(Read::Done(Box::new(done)));
    }
    let step = match cause {
        Cause::Audit(step) => Some(step),
        Cause::News | Cause::Time => None,
    };
    match read_changes(source, prepared.as_ref(), draft, state, step.clone()).await {
        // Nothing was applied (R2).
        Err(error) if error.is_unprepared() => *prepared = None,
        read => return read,
    }
    let rollback = source.client.batch_execute("ROLLBACK").await;
    rollback.map_err(Error::database(BEGIN))?;
    read_changes(source, None, draft, state, step).await
}

/// Whether nothing at all was written since the last read: then there is nothing to read.
async fn nothing(
    source: Source<'_>,
    draft: &mut Draft,
    state: &mut ReadState,
) -> Result<Option<Done>, Error> {
    let at = &mut state.at;
    let Some(cursor) = &at.cursor else {
        return Ok(None);
    };
    if cursor.is_of_standby() || state.reload.is_some() || at.looked.elapsed() > LOOK {
        return Ok(None);
    }
    let mut start = match transaction::peek(source).await {
        Ok(start) => start,
        // In a pooler's session the role's own time-outs hold outside of a transaction block. A read sets its own.
        Err(error) if error.is_conflict() => return Ok(None),
        Err(error) => return Err(error),
    };
    // R5.
    let same = start.server == at.server
        && !start.cut.standby
        && cursor.is_at(&start.snapshot)
        && start.window_start >= at.window_start.minus(CLOCK_TOLERANCE);
    if !same {
        return Ok(None);
    }
    keep_forward(&mut start, at);
    at.window_start = start.window_start;
    let evicted = draft.evict(at.window_start);
    at.cut = Arc::new(start.cut);
    at.began = start.began.monotonic;
    Ok(Some(Done {
        evicted,
        ..Done::at(start.began)
    }))
}

async fn fingerprint(
    client: &Client,
    prepared: Option<&Prepared>,
    watched: &Watched,
) -> Result<String, Error> {
    let rows = watched.fingerprint.rows(client, prepared, &[]).await;
    let rows = rows.map_err(Error::database(BEGIN))?;
    rows.first()
        .ok_or_else(|| Error::unexpected(BEGIN, "no answer"))?
        .try_get(0)
        .map_err(Error::database(BEGIN))
}

/// begin -> what changed -> its rows -> commit -> apply.
async fn read_changes(
    source: Source<'_>,
    prepared: Option<&Prepared>,
    draft: &mut Draft,
    state: &mut ReadState,
    step: Option<audit::Step>,
) -> Result<Read, Error> {
    let looked = Instant::now();
    let opened = open(source, prepared, state).await?;
    let (start, changed, seen) = match opened.news(source, state).await? {
        Ok(news) => news,
        Err((reason, start)) => return Ok(Read::Reload(reason, start)),
    };
    let row_counters = RowCounters::default();
    let for_audit = step.is_some();
    let rows = Rows::read(
        source,
        prepared,
        draft,
        state,
        &start,
        &changed.change_set,
        step,
        &row_counters,
    );
    let rows = rows.await?;
    let watched = rows.any().then_some(&state.found.watched);
    end(source.client, rows.prepared, watched).await?;

    // From here on nothing can fail or be cancelled (R2).
    let read_at = Instant::now();
    let anything = rows.part.is_some();
    let snapshots_read = rows
        .part
        .map_or(0, |(plan, bodies)| bodies.apply(plan, draft));
    let evicted = draft.evict(start.window_start);
    let began = start.began.monotonic;
    let took = Took {
        read: read_at.saturating_duration_since(began),
        decode: row_counters.decode(),
        apply: anything.then(|| read_at.elapsed()),
    };
    let shown = Shown {
        logged: changed.logged,
        server_now: start.server_now,
        began,
        unseen: (!start.cut.standby).then_some(state.at.began),
    };
    let done = Done {
        log_rows: changed.rows,
        snapshots_read,
        rows_read: row_counters.rows(),
        malformed_rows_read: row_counters.malformed(),
        evicted,
        shown: Some(shown),
        took: (!for_audit).then_some(took),
        audited: rows.sample.map(|sample| sample.compare(draft)),
        ..Done::at(start.began)
    };
    state.newest = rows.newest;
    let cursor = Some(Cursor::new(start.snapshot.clone(), seen));
    state.at = Position::of(start, cursor, looked);
    Ok(Read::Done(Box::new(done)))
}

/// What is asked at once at the beginning of a read (R4).
struct Opened {
    start: ReadStart,
    fingerprint: String,
    /// On a primary.
    log: Option<Result<Changed, Reload>>,
}

async fn open(
    source: Source<'_>,
    prepared: Option<&Prepared>,
    state: &ReadState,
) -> Result<Opened, Error> {
    let log = async {
        match &state.at.cursor {
            Some(cursor) if !cursor.is_of_standby() => {
                let statement = &state.found.new_log_rows;
                let log = change_log::read(source.client, prepared, statement, cursor);
                log.await.map(Some)
            }
            _ => Ok(None),
        }
    };
    let (start, fingerprint, log) = try_join3(
        transaction::begin(source, prepared),
        fingerprint(source.client, prepared, &state.found.watched),
        log,
    )
    .await?;
    Ok(Opened {
        start,
        fingerprint,
        log,
    })
}

/// The start of a read, what changed, and on a standby the log rows that it shows; or why everything must be read.
type News = Result<(ReadStart, Changed, Option<HashSet<LogRow>>), (Reload, Box<ReadStart>)>;

impl Opened {
    /// Whether the cursor can be gone on from, and what is new.
    async fn news(self, source: Source<'_>, state: &ReadState) -> Result<News, Error> {
        let Opened {
            mut start,
            fingerprint,
            log,
        } = self;
        let at = &state.at;
        let reload = |reason: Reload, start| Ok(Err((reason, Box::new(start))));
        if start.server != at.server {
            return reload(ReloadReason::ServerChanged.into(), start);
        }
        let cursor = at.cursor.as_ref();
        if cursor.is_some_and(|cursor| cursor.is_after(&start.snapshot)) {
            return reload(ReloadReason::WentBack.into(), start);
        }
        if start.window_start < at.window_start.minus(CLOCK_TOLERANCE) {
            return reload(ReloadReason::ClockWentBack.into(), start);
        }
        keep_forward(&mut start, at);
        if let Some(reason) = &state.reload {
            return reload(reason.clone(), start);
        }
        let Some(cursor) = cursor else {
            return reload(ReloadReason::First.into(), start);
        };
        if fingerprint != state.found.fingerprint {
            return reload(ReloadReason::Catalog.into(), start);
        }
        if cursor.is_pruned(start.pruned_below) {
            return reload(ReloadReason::Pruned.into(), start);
        }
        let news = match log {
            // The server was promoted or replaced, so the cursor cannot be trusted.
            _ if cursor.is_of_standby() != start.cut.standby => {
                Err(ReloadReason::ConnectionLost.into())
            }
            Some(log) => log.map(|changed| (changed, None)),
            None => {
                let table = source.names.log_table();
                let log =
                    change_log::read_on_standby(source.client, &table, cursor, &start.snapshot);
                log.await?.map(|(changed, seen)| (changed, Some(seen)))
            }
        };
        match news {
            Ok((changed, seen)) => Ok(Ok((start, changed, seen))),
            Err(reason) => reload(reason, start),
        }
    }
}

/// The rows of what changed, and of a step of the audit.
struct Rows<'p> {
    part: Option<(Plan, Bodies)>,
    newest: Newest,
    sample: Option<Sample>,
    /// What is left of it: what is prepared is planned for few keys.
    prepared: Option<&'p Prepared>,
}

impl<'p> Rows<'p> {
    #[expect(
        clippy::too_many_arguments,
        reason = "all of it is what one transaction reads by"
    )]
    async fn read(
        source: Source<'_>,
        prepared: Option<&'p Prepared>,
        draft: &mut Draft,
        state: &ReadState,
        start: &ReadStart,
        change_set: &ChangeSet,
        step: Option<audit::Step>,
        row_counters: &RowCounters,
    ) -> Result<Rows<'p>, Error> {
        let few = changed::are_few(change_set) && step.is_none();
        let replan = async {
            match prepared.is_some() && !few {
                true => source
                    .client
                    .batch_execute(source.names.replan)
                    .await
                    .map_err(Error::database(BEGIN)),
                false => Ok(()),
            }
        };
        let prepared = prepared.filter(|_| few);
        let reader = Reader {
            client: source.client,
            catalog: &state.found.catalog,
            prepared,
            names_malformed: true,
            row_counters,
        };
        let mut newest = state.newest;
        let window_start = start.window_start;
        let part = async {
            match change_set.is_empty() {
                true => Ok(None),
                false => changed::changed(reader, draft, change_set, window_start, &mut newest)
                    .await
                    .map(Some),
            }
        };
        // In this order, and without waiting in between.
        let ((), part) = try_join(replan, part).await?;
        let sample = match step {
            Some(step) => Some(Sample::read(source, reader, step, window_start, draft).await?),
            None => None,
        };
        Ok(Rows {
            part,
            newest,
            sample,
            prepared,
        })
    }

    fn any(&self) -> bool {
        self.part.is_some() || self.sample.is_some()
    }
}

/// What the database says for a step of the audit.
enum Sample {
    Window(Vec<i64>),
    /// Events, read in full and independently of what is held.
    Events(Vec<i64>, Box<Plan>, Bodies),
}

impl Sample {
    async fn read(
        source: Source<'_>,
        reader: Reader<'_>,
        step: audit::Step,
        window_start: Micros,
        draft: &mut Draft,
    ) -> Result<Sample, Error> {
        // Several statements, which together must not take the time after which a connection counts as dead.
        let bound = format!(
            "SET LOCAL statement_timeout = {}",
            millis(source.config.read_timeout / 5)
        );
        source
            .client
            .batch_execute(&bound)
            .await
            .map_err(Error::database(AUDIT))?;
        let slice = match step {
            audit::Step::Window => {
                let window = reader.all_kickoffs(window_start).await?;
                let mut ids: Vec<i64> = window.into_keys().collect();
                ids.sort_unstable();
                return Ok(Sample::Window(ids));
            }
            audit::Step::Slice(slice) => slice,
        };
        // What is malformed was named when it was read first.
        let reader = Reader {
            names_malformed: false,
            ..reader
        };
        let mut ids: Vec<i64> = draft.ids_in(slice.range).chain(slice.ids).collect();
        ids.sort_unstable();
        ids.dedup();
        let plan = Plan::whole(SnapshotHeaders {
            kickoffs: reader.kickoffs(window_start, &ids).await?,
            betpawa: reader.betpawa_headers(&ids).await?,
            competitors: reader.competitor_headers(&ids, &[]).await?,
        });
        let bodies = Bodies::read(reader, &plan, draft).await?;
        Ok(Sample::Events(ids, Box::new(plan), bodies))
    }

    /// Compares it with a draft that was brought to the same snapshot.
    fn compare(self, draft: &mut Draft) -> Audited {
        match self {
            Sample::Window(ids) => Audited::Window(ids),
            Sample::Events(ids, plan, bodies) => {
                let mut read = draft.successor();
                bodies.apply(*plan, &mut read);
                let mismatches = audit::compare(draft, &read, &ids);
                draft.packer = std::mem::take(&mut read.packer);
                Audited::Events {
                    count: ids.len(),
                    mismatches,
                }
            }
        }
    }
}

const AUDIT: &str = "auditing";
