//! One read: a transaction that brings the draft to one committed state of the database.
//!
//! # Invariants
//! - R1: A read takes all its locks before its snapshot. It reads all rows under that snapshot, also on the helper
//!   connections that import it.
//! - R2: The draft and the cursor change together, after COMMIT. An error or a cancellation before COMMIT leaves both
//!   unchanged.
//! - R3: Within an epoch neither the time of the cut nor the start of the window goes back.
//! - R4: Queries are pipelined: a query is sent before the answer to the one before it has come. Its answer is used
//!   only if every query before it succeeded.
//! - R5: Two equal snapshots of the same primary show equal rows, because no transaction ended between them.

pub(crate) mod audit;
pub(crate) mod change_log;
pub(crate) mod changed;
pub(crate) mod continuity;
pub(crate) mod fingerprint;
mod halves;
pub(crate) mod keys;
pub(crate) mod lookup;
pub(crate) mod parallel;
pub(crate) mod partitions;
pub(crate) mod plan;
pub(crate) mod preflight;
pub(crate) mod rows;
mod sample;
pub(crate) mod schema;
pub(crate) mod source;
pub(crate) mod transaction;
pub(crate) mod turn;
pub(crate) mod unreadable;
pub(crate) mod versions;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join;
use tokio_postgres::Client;

use crate::{
    error::Error,
    metrics::{
        progress::Progress,
        reload::{Reload, ReloadReason},
        stats::WarmupStats,
        status::ChangeLog,
        timing::{Shown, Took},
    },
    model::{Micros, Server},
    postgres::{
        pipeline::{all_three, both},
        statement::{Prepared, Statement},
    },
    read::{
        audit::Audited,
        change_log::{ChangeSet, Changed, Cursor},
        changed::{Newest, PlanMarkets},
        continuity::{Doubt, Evidence},
        fingerprint::Watched,
        lookup::LookupState,
        partitions::{Partitions, Touched},
        plan::Plan,
        preflight::Feed,
        rows::{Reader, RowCounters},
        sample::Sample,
        schema::{Catalog, Columns},
        source::Source,
        transaction::ReadStart,
        unreadable::{Key, Search, Unreadable},
        versions::Since,
    },
    sql::Table,
    store::{
        draft::Draft,
        state::{Cut, Moment},
    },
};

/// What a follower knows after a read. The next read starts from it.
#[derive(Debug)]
pub(crate) struct ReadState {
    schema: Schema,
    at: Position,
    newest: Newest,
    evidence: Evidence,
    /// When the draft equalled the database: at the last read, or earlier if changes since then may not have been logged.
    whole_at: Since,
    lookup: LookupState,
    /// Set after a lost connection, until a read has proven continuity ([`continuity`]).
    unproven: bool,
    /// Set if the next read must read everything; says why.
    pub(crate) reload: Option<Reload>,
}

/// The tables as the last read of everything found them, and the statements built for them.
#[derive(Debug)]
struct Schema {
    /// `None` where no feed is needed.
    feed: Option<Feed>,
    catalog: Catalog,
    watched: Watched,
    partitions: Partitions,
    /// Selects the log rows that are new, on a primary.
    new_log_rows: Statement,
}

/// The state of the database that the last read reached.
#[derive(Debug)]
struct Position {
    /// `None` where no feed is needed.
    cursor: Option<Cursor>,
    server: Server,
    wal: i64,
    window_start: Micros,
    cut: Arc<Cut>,
    /// When the last read began, even if it only compared snapshots.
    began: Instant,
    /// When the last read that locked the tables began.
    locked_at: Instant,
    /// Log rows of transactions below this id may be pruned.
    pruned_below: u64,
}

impl Position {
    fn of(start: ReadStart, cursor: Option<Cursor>, locked_at: Instant) -> Position {
        Position {
            cursor,
            server: start.server,
            wal: start.wal,
            window_start: start.window_start,
            cut: Arc::new(start.cut),
            began: start.began.monotonic,
            locked_at,
            pruned_below: start.pruned_below,
        }
    }
}

impl ReadState {
    /// Every transaction with a smaller id had ended at the last read. 0 where no feed is read.
    pub(crate) fn xmin(&self) -> u64 {
        self.at.cursor.as_ref().map_or(0, Cursor::xmin)
    }

    /// Which transaction ids the log covers.
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

    /// The connection was lost. The next read proves continuity, or reads everything.
    pub(crate) fn doubt(&mut self) {
        self.unproven = true;
    }

    /// Whether the connection was lost since the last read.
    pub(crate) fn is_unproven(&self) -> bool {
        self.unproven
    }

    /// The feed, as of the last read of everything.
    pub(crate) fn feed(&self) -> Option<&Feed> {
        self.schema.feed.as_ref()
    }
}

/// What a read did.
#[derive(Debug)]
pub(crate) struct Done {
    /// A moment before the server took the snapshot.
    pub(crate) began: Moment,
    pub(crate) log_rows: usize,
    /// The greatest transaction id of the log rows that were read; 0 without any.
    pub(crate) newest_xid: u64,
    pub(crate) snapshots_read: usize,
    pub(crate) rows_read: u64,
    pub(crate) malformed_rows_read: u64,
    /// Rows that the server cannot send, and that no read found before.
    pub(crate) unreadable_rows_found: usize,
    pub(crate) evicted: usize,
    /// Whether a read of changes also read all that may have changed without a log row.
    pub(crate) is_whole: bool,
    /// Whether to read everything again, beside following.
    pub(crate) is_requested: bool,
    /// Set if this was a read of changes.
    pub(crate) shown: Option<Shown>,
    /// Set if this was a read of changes without a step of the audit.
    pub(crate) took: Option<Took>,
    /// Set if everything was read.
    pub(crate) warmup: Option<(Reload, WarmupStats)>,
    /// Whether it was the last step of a resync.
    pub(crate) is_resynced: bool,
    /// Set if the log did not name each row that changed.
    pub(crate) wide: Option<Reload>,
    /// Set if the read made a step of the audit.
    pub(crate) audited: Option<Audited>,
}

impl Done {
    /// A read that found no change.
    fn unchanged(began: Moment) -> Done {
        Done {
            began,
            log_rows: 0,
            newest_xid: 0,
            snapshots_read: 0,
            rows_read: 0,
            malformed_rows_read: 0,
            unreadable_rows_found: 0,
            evicted: 0,
            is_whole: false,
            is_requested: false,
            shown: None,
            took: None,
            warmup: None,
            is_resynced: false,
            wide: None,
            audited: None,
        }
    }
}

const BEGIN: &str = "beginning to read";
const END: &str = "ending a read";

/// Ends a read with COMMIT. `watched` is given if rows were read. The read then fails if the list of partitions
/// changed.
///
/// A query reads the partitions that exist when it runs, not those that existed at the snapshot. A partition attached
/// after the snapshot would mix two states. Locks prevent that only where the table has a default partition.
async fn end(
    client: &Client,
    prepared: Option<&Prepared>,
    watched: Option<&Watched>,
) -> Result<(), Error> {
    let tables_now = async {
        match watched {
            Some(watched) => watched.tables_now.all(END, client, prepared).await,
            None => Ok(Vec::new()),
        }
    };
    let commit = async {
        client
            .batch_execute("COMMIT")
            .await
            .map_err(Error::database(END))
    };
    // In one round trip (R4). The server runs the query before COMMIT, while the locks are still held.
    let (now, ()) = both(tables_now, commit).await?;
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
            "meanwhile a partition was attached or detached, or a label of an enum was renamed",
        ))
    }
}

/// The server's clock may have gone back a little. Raises the times of a read to at least those of the read before
/// (R3).
fn keep_forward(start: &mut ReadStart, at: &Position) {
    start.window_start = start.window_start.max(at.window_start);
    start.cut.window_start = start.window_start.to_utc();
    start.cut.as_of = start.cut.as_of.max(at.cut.as_of);
}

/// A clock that goes back by less was only adjusted. If it goes back by more, somebody set it, and everything is read
/// again.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Reads everything in the current transaction. Changes `draft` after COMMIT, and only where it differs from the rows:
/// what is equal keeps its memory (A4 of [`plan`]).
pub(crate) async fn everything(
    source: Source<'_>,
    prepared: Option<&Prepared>,
    draft: &mut Draft,
    unreadable: &mut Unreadable,
    reason: Reload,
    start: ReadStart,
    progress: &Progress,
) -> Result<(ReadState, Done), Error> {
    let search = unreadable.begin();
    let row_counters = RowCounters::default();
    let schema = Box::pin(Schema::load(source, None)).await?;
    let cursor = match source.names.need_feed {
        true => Some(start_of_log(source, &start).await?),
        false => None,
    };
    let evidence = match cursor {
        Some(_) => Evidence::newest(source.client, &source.names.log_table()).await?,
        None => Evidence::default(),
    };
    let rows = all_rows(
        source,
        &schema.catalog,
        &start,
        draft,
        (&row_counters, search.as_ref()),
        progress,
    );
    let (plan, packed_markets, newest) = Box::pin(rows).await?;
    if let Some(prepared) = prepared {
        schema.prepare(source, prepared, cursor.is_some()).await?;
    }
    let (tournament_ids, bookmaker_ids) = (plan.tournament_ids(), plan.bookmaker_ids());
    let lookup = LookupState::read(source, None, draft, tournament_ids, bookmaker_ids);
    let (lookup, named) = Box::pin(lookup).await?;
    end(source.client, None, Some(&schema.watched)).await?;

    // The rest cannot fail and has no await, so it happens whole or not at all (R2).
    if let Some(named) = named {
        named.apply(draft);
    }
    let snapshots_read = packed_markets.apply(plan, draft);
    let unreadable_rows_found = note_unreadable(unreadable, search, draft, |_| true);
    let done = Done {
        snapshots_read,
        unreadable_rows_found,
        rows_read: row_counters.rows(),
        malformed_rows_read: row_counters.malformed(),
        warmup: Some((reason, warmup_stats(draft, &start))),
        ..Done::unchanged(start.began)
    };
    let whole_at = Since::new(&start.snapshot);
    let at = Position::of(start, cursor, Instant::now());
    let state = ReadState {
        schema,
        at,
        newest,
        evidence,
        whole_at,
        lookup,
        unproven: false,
        reload: None,
    };
    Ok((state, done))
}

/// The cursor where the read after a read of everything begins.
async fn start_of_log(source: Source<'_>, start: &ReadStart) -> Result<Cursor, Error> {
    let log = source.names.log_table();
    change_log::start(
        source.client,
        &log,
        start.snapshot.clone(),
        start.cut.standby,
    )
    .await
}

impl Schema {
    /// Checks the feed and reads the catalog in the current transaction.
    ///
    /// Later reads only compare fingerprints. So this fingerprint must come from the transaction in which the feed was
    /// checked and found complete.
    ///
    /// `prepared` is given if the session knows the [`Schema::statements`].
    async fn load(source: Source<'_>, prepared: Option<&Prepared>) -> Result<Schema, Error> {
        let Source {
            client,
            config,
            names,
        } = source;
        // First of all: the time-outs of a read of changes are too short for what follows.
        client
            .batch_execute(&names.warmup_bounds)
            .await
            .map_err(Error::database(BEGIN))?;
        let feed = preflight::check(client, prepared, config, names.need_feed).await?;
        let catalog = Catalog::read(client, prepared, names).await?;
        let watched = Watched::find(client, prepared, names).await?;
        let partitions = Partitions::read(client, prepared, names, &watched).await?;
        Ok(Schema {
            feed,
            catalog,
            watched,
            partitions,
            new_log_rows: change_log::exactly_new(&names.log_table()),
        })
    }

    /// Whether the feed logs every change.
    fn is_whole(&self) -> bool {
        let feed = self.feed.as_ref();
        feed.is_some_and(|feed| feed.faults.is_empty())
    }

    /// The rows that may have changed without a log row, because the feed does not cover all partitions. `None` if any
    /// row may have.
    fn not_logged(&self) -> Option<Touched> {
        self.partitions.all_of(self.feed.as_ref()?.gaps.as_ref()?)
    }

    /// What [`Schema::load`] runs, but what depends on the state of the tables. To plan these takes several times as long
    /// as to run them.
    fn statements(source: Source<'_>) -> impl Iterator<Item = Statement> {
        let names = source.names;
        let others = [
            Columns::statement(names),
            Watched::statement(names),
            Partitions::statement(names),
        ];
        preflight::statements(source.config)
            .into_iter()
            .chain(others)
    }

    /// Prepares the statements of a read of changes.
    async fn prepare(
        &self,
        source: Source<'_>,
        prepared: &Prepared,
        reads_log: bool,
    ) -> Result<(), Error> {
        let watched = &self.watched;
        let per_read = [&source.names.cut, &watched.fingerprint, &watched.tables_now];
        let statements = per_read.into_iter().chain(self.catalog.prepared());
        let log = reads_log.then_some(&self.new_log_rows);
        let of_load: Vec<Statement> = Schema::statements(source).collect();
        let statements = statements.chain(log).chain(&of_load);
        prepared.prepare(source.client, statements).await
    }
}

/// Reads all rows of the window, on as many connections as [`Config::warmup_connections`](crate::config::Config)
/// allows.
async fn all_rows(
    source: Source<'_>,
    catalog: &Catalog,
    start: &ReadStart,
    draft: &mut Draft,
    (row_counters, search): (&RowCounters, Option<&Search>),
    progress: &Progress,
) -> Result<(Plan, PlanMarkets, Newest), Error> {
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
        search,
        progress: Some(progress),
    };
    // The helpers connect while this connection reads the headers, so opening them costs no time.
    let exported = match search {
        Some(_) => None,
        None => parallel::export(client, config, start).await?,
    };
    let (headers, helpers) = join(
        reader.all_headers(start.window_start),
        parallel::open(config, names, start, exported.as_deref()),
    )
    .await;
    let headers = headers?;
    let mut newest = Newest::default();
    newest.note(&headers);
    let kept = search.map(Search::kept).unwrap_or_default();
    let plan = Plan::whole(draft.ids_in(..), headers, kept);
    let packed_markets = PlanMarkets::read_with(&helpers, config, reader, &plan, draft).await?;
    Ok((plan, packed_markets, newest))
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

/// The result of [`changes`].
pub(crate) enum Read {
    /// The draft equals the database at the snapshot of this read.
    Done(Box<Done>),
    /// The log does not name each row that changed, so many rows may have. The caller must read them with [`wide`] in
    /// the transaction that is still open. Without a reason if partitions came or went.
    Wide(Option<Reload>, Box<News>),
    /// The log does not tell what changed. The caller must read [`everything`] in the transaction that is still open.
    Reload(Reload, Box<ReadStart>),
}

/// Why a read of changes is made.
pub(crate) enum Cause {
    /// A notification or a request says that there may be changes.
    News,
    /// The poll interval has passed.
    Time,
    Audit(audit::Step),
}

/// At the latest after this time a read locks the tables and compares the fingerprint, even if the snapshot did not
/// change. This is a precaution: no change without a transaction is known.
const LOCKED_READ_INTERVAL: Duration = Duration::from_secs(10);

/// Reads what changed since the last read, and the rows for a step of the audit if `cause` is one.
///
/// Sets `prepared` to `None` if the session does not know the prepared statements. That is so behind a pooler that
/// hands out sessions by the transaction.
pub(crate) async fn changes(
    source: Source<'_>,
    prepared: &mut Option<Prepared>,
    draft: &mut Draft,
    state: &mut ReadState,
    unreadable: &mut Unreadable,
    cause: Cause,
) -> Result<Read, Error> {
    let now = Instant::now();
    let is_due = unreadable.until_due(now).is_some_and(|due| due.is_zero());
    if matches!(cause, Cause::Time)
        && !is_due
        && let Some(done) = prove_unchanged(source, draft, state).await?
    {
        return Ok(Read::Done(Box::new(done)));
    }
    let step = match cause {
        Cause::Audit(step) => Some(step),
        Cause::News | Cause::Time => None,
    };
    let read = read_changes(
        source,
        prepared.as_ref(),
        draft,
        state,
        unreadable,
        step.clone(),
    );
    match read.await {
        // Nothing was applied (R2), so the same read can be made again.
        Err(error) if error.is_unprepared() => *prepared = None,
        read => return read,
    }
    let rollback = source.client.batch_execute("ROLLBACK").await;
    rollback.map_err(Error::database(BEGIN))?;
    read_changes(source, None, draft, state, unreadable, step).await
}

/// Compares the server's snapshot with that of the last read. If both are equal, no transaction has ended since (R5):
/// the view is proven current without locks and without reading a table. `None` if that proves nothing, and a read is
/// needed.
async fn prove_unchanged(
    source: Source<'_>,
    draft: &mut Draft,
    state: &mut ReadState,
) -> Result<Option<Done>, Error> {
    let at = &mut state.at;
    let Some(cursor) = &at.cursor else {
        return Ok(None);
    };
    let is_due = at.locked_at.elapsed() > LOCKED_READ_INTERVAL;
    if cursor.is_of_standby() || state.reload.is_some() || state.unproven || is_due {
        return Ok(None);
    }
    let mut start = transaction::peek(source).await?;
    // R5 holds for the same server and the same primary only.
    let same = start.server.has_run_on_since(&at.server)
        && !start.cut.standby
        && cursor.is_at(&start.snapshot)
        && start.window_start >= at.window_start.minus(CLOCK_TOLERANCE);
    if !same {
        return Ok(None);
    }
    // Events may have left the window since, because time has passed.
    keep_forward(&mut start, at);
    at.window_start = start.window_start;
    let evicted = draft.evict(at.window_start);
    at.cut = Arc::new(start.cut);
    at.server = start.server;
    at.wal = start.wal;
    at.began = start.began.monotonic;
    Ok(Some(Done {
        evicted,
        ..Done::unchanged(start.began)
    }))
}

async fn fingerprint(
    client: &Client,
    prepared: Option<&Prepared>,
    watched: &Watched,
) -> Result<String, Error> {
    let rows = watched.fingerprint.all(BEGIN, client, prepared).await?;
    rows.first()
        .ok_or_else(|| Error::unexpected(BEGIN, "no answer"))?
        .try_get(0)
        .map_err(Error::database(BEGIN))
}

/// The sequence of a read: [`open`] -> [`Opened::news`] -> [`Rows::read`] -> [`end`] -> apply.
async fn read_changes(
    source: Source<'_>,
    prepared: Option<&Prepared>,
    draft: &mut Draft,
    state: &mut ReadState,
    unreadable: &mut Unreadable,
    step: Option<audit::Step>,
) -> Result<Read, Error> {
    // A new session does not know the statements yet.
    let known = prepared.filter(|_| !state.unproven);
    let opened = open(source, known, state).await?;
    let news = match Box::pin(opened.news(source, known, state, draft)).await? {
        Ok(news) => news,
        Err((reason, start)) => return Ok(Read::Reload(reason, start)),
    };
    if let Some(reason) = &news.unnamed {
        return Ok(Read::Wide(Some(reason.clone()), Box::new(news)));
    }
    let coarse: Vec<&str> = news.changed.change_set.coarse().map(Table::name).collect();
    if !coarse.is_empty() {
        let reason = Reload::about(ReloadReason::WholeTable, coarse.join(", "));
        return Ok(Read::Wide(Some(reason), Box::new(news)));
    }
    if news.is_whole {
        return Ok(Read::Wide(None, Box::new(news)));
    }
    let done = read_rows(source, prepared, draft, state, unreadable, step, news);
    let done = Box::pin(done).await?;
    Ok(Read::Done(Box::new(done)))
}

/// Reads what changed where the log names whole tables or blocks of snapshots. Goes on in the transaction of
/// [`changes`]. It reads no markets of a snapshot that is still the latest and whose markets the log does not mean.
pub(crate) async fn wide(
    source: Source<'_>,
    prepared: Option<&Prepared>,
    draft: &mut Draft,
    state: &mut ReadState,
    unreadable: &mut Unreadable,
    reason: Option<Reload>,
    mut news: News,
) -> Result<Done, Error> {
    let bounds = source.client.batch_execute(&source.names.warmup_bounds);
    bounds.await.map_err(Error::database(BEGIN))?;
    if news.unnamed.is_some() {
        let tables = news.schema.as_ref().unwrap_or(&state.schema);
        let search = unreadable.begin();
        let reader = Reader {
            client: source.client,
            catalog: &tables.catalog,
            prepared: None,
            names_malformed: true,
            row_counters: &RowCounters::default(),
            search: search.as_ref(),
            progress: None,
        };
        let change_set = &mut news.changed.change_set;
        state.whole_at.add_to(change_set, reader, draft).await?;
    }
    let done = read_rows(source, prepared, draft, state, unreadable, None, news);
    let done = Box::pin(done).await?;
    Ok(Done {
        wide: reason,
        ..done
    })
}

/// Reads the rows that `news` names, ends the transaction, and applies the rows.
async fn read_rows(
    source: Source<'_>,
    prepared: Option<&Prepared>,
    draft: &mut Draft,
    state: &mut ReadState,
    unreadable: &mut Unreadable,
    step: Option<audit::Step>,
    news: News,
) -> Result<Done, Error> {
    let News {
        start,
        mut changed,
        cursor,
        schema,
        is_whole,
        unnamed: _,
    } = news;
    let tables = schema.as_ref().unwrap_or(&state.schema);
    if let Some(prepared) = prepared.filter(|_| schema.is_some() || state.unproven) {
        Box::pin(tables.prepare(source, prepared, true)).await?;
    }
    let locked_at = start.began.monotonic;
    let search = unreadable.begin();
    for (table, id) in unreadable.due(locked_at) {
        changed.change_set.of(table).insert(id);
    }
    // If the row of an event can be read again, both its sides may have changed meanwhile (X4 of `unreadable`).
    for id in unreadable.events() {
        if changed.change_set.events.contains(id) {
            changed.change_set.betpawa.insert(id);
            changed.change_set.competitors.insert(id);
        }
    }
    let row_counters = RowCounters::default();
    let for_audit = step.is_some();
    let is_resync = matches!(step, Some(audit::Step::Resync(_)));
    let rows = Rows::read(
        source,
        prepared,
        draft,
        (&tables.catalog, state.newest),
        &start,
        &changed.change_set,
        step,
        (&row_counters, search.as_ref()),
    );
    let rows = Box::pin(rows).await?;
    let plan = rows.part.iter().map(|(plan, _)| plan);
    let tournament_ids = || plan.clone().flat_map(Plan::tournament_ids);
    let bookmaker_ids = || plan.clone().flat_map(Plan::bookmaker_ids);
    let is_due = is_resync
        || state
            .lookup
            .is_due(source.config, draft, tournament_ids(), bookmaker_ids());
    let (lookup, named) = match is_due {
        true => {
            let before = Some(&state.lookup);
            let read = LookupState::read(source, before, draft, tournament_ids(), bookmaker_ids());
            Box::pin(read).await?
        }
        false => (state.lookup.clone(), None),
    };
    let watched = rows.any().then_some(&tables.watched);
    end(source.client, rows.prepared, watched).await?;

    // The rest cannot fail and has no await, so draft and cursor change together (R2).
    let read_at = Instant::now();
    let has_changes = rows.part.is_some();
    if let Some(named) = named {
        named.apply(draft);
    }
    let snapshots_read = rows.part.map_or(0, |(plan, packed_markets)| {
        packed_markets.apply(plan, draft)
    });
    let evicted = draft.evict(start.window_start);
    // The sample is of the same snapshot, so it is compared once the changes are applied.
    let audited = rows
        .sample
        .map(|sample| sample.compare(draft, search.as_ref()));
    let is_tried = |(table, id)| changed.change_set.of(table).contains(id);
    let unreadable_rows_found = note_unreadable(unreadable, search, draft, is_tried);
    let began = start.began.monotonic;
    let took = Took {
        read: read_at.saturating_duration_since(began),
        decode: row_counters.decode(),
        apply: has_changes.then(|| read_at.elapsed()),
    };
    let shown = Shown {
        logged: changed.logged,
        server_now: start.server_now,
        began,
        // On a primary, what this read sees for the first time was committed after the last read began. On a standby it
        // may have been committed long before, and replayed late.
        unseen: (!start.cut.standby).then_some(state.at.began),
    };
    let done = Done {
        log_rows: changed.rows,
        newest_xid: changed.newest_xid,
        snapshots_read,
        rows_read: row_counters.rows(),
        malformed_rows_read: row_counters.malformed(),
        unreadable_rows_found,
        evicted,
        is_whole,
        is_requested: changed.is_requested,
        shown: Some(shown),
        took: (!for_audit).then_some(took),
        audited,
        ..Done::unchanged(start.began)
    };
    if is_whole || state.schema.is_whole() {
        state.whole_at = Since::new(&start.snapshot);
    }
    if let Some(schema) = schema {
        state.schema = schema;
    }
    if is_whole {
        state.reload = None;
    }
    state.newest = rows.newest;
    state.lookup = lookup;
    state.evidence.read(changed.entries);
    state.unproven = false;
    state.at = Position::of(start, Some(cursor), locked_at);
    Ok(done)
}

/// Notes which rows the server could not send. Call it once the read is applied. Returns how many of them are new.
fn note_unreadable(
    unreadable: &mut Unreadable,
    search: Option<Search>,
    draft: &Draft,
    is_tried: impl FnMut(Key) -> bool,
) -> usize {
    let found = search.map_or(0, |search| {
        let kept = search.kept();
        let is_kept = |(table, id)| match table {
            Table::MarketOdds => draft
                .events_of_betpawa_snapshot(id)
                .any(|event_id| kept.has_betpawa(event_id)),
            Table::CompetitorMarketOdds => draft
                .events_of_competitor_snapshot(id)
                .any(|event_id| kept.has_competitors(event_id)),
            _ => false,
        };
        unreadable.ended(search, is_tried, is_kept, Instant::now())
    });
    unreadable.keep_held(|table, id| match table {
        Table::MarketOdds => draft.events_of_betpawa_snapshot(id).next().is_some(),
        _ => draft.events_of_competitor_snapshot(id).next().is_some(),
    });
    found
}

/// The answers to the queries at the beginning of a read.
struct Opened {
    start: ReadStart,
    fingerprint: String,
    /// `None` for a standby's cursor: to read the log there, [`Opened::news`] needs the snapshot first.
    log: Option<Result<Changed, Reload>>,
}

/// Begins the transaction, takes locks and snapshot, and reads fingerprint and log, in one round trip (R4).
async fn open(
    source: Source<'_>,
    prepared: Option<&Prepared>,
    state: &ReadState,
) -> Result<Opened, Error> {
    let log = async {
        match &state.at.cursor {
            Some(cursor) if !cursor.is_of_standby() => {
                let statement = &state.schema.new_log_rows;
                let log = change_log::read(source.client, prepared, statement, cursor);
                log.await.map(Some)
            }
            _ => Ok(None),
        }
    };
    // `begin` is polled first, so the server runs the other two inside its transaction.
    let (start, fingerprint, log) = all_three(
        transaction::begin(source, prepared),
        fingerprint(source.client, prepared, &state.schema.watched),
        log,
    )
    .await?;
    Ok(Opened {
        start,
        fingerprint,
        log,
    })
}

/// The start of a read, and what changed since the last one.
pub(crate) struct News {
    start: ReadStart,
    changed: Changed,
    /// Where the next read begins.
    cursor: Cursor,
    /// The tables as they are now, if they changed.
    schema: Option<Schema>,
    /// Whether the change set has all that may have changed without a log row.
    is_whole: bool,
    /// Why rows may have changed that neither the log nor the catalog names: the feed is or was not whole. [`wide`] finds
    /// them ([`versions`]).
    unnamed: Option<Reload>,
}

impl Opened {
    /// Decides whether the log since the cursor tells all that changed, and returns it. Or: why everything must be read.
    async fn news(
        self,
        source: Source<'_>,
        prepared: Option<&Prepared>,
        state: &ReadState,
        draft: &Draft,
    ) -> Result<Result<News, (Reload, Box<ReadStart>)>, Error> {
        let Opened {
            mut start,
            fingerprint,
            log,
        } = self;
        let at = &state.at;
        let reload = |reason: Reload, start| Ok(Err((reason, Box::new(start))));
        // First: has the server lost history that was read? These reasons begin a new epoch. They come before
        // `keep_forward`, which would carry over the times of the lost history.
        // A restored server has restarted, too. That it went back says more, so this comes before the restart.
        let cursor = at.cursor.as_ref();
        if cursor.is_some_and(|cursor| cursor.is_after(&start.snapshot)) {
            return reload(ReloadReason::WentBack.into(), start);
        }
        if !start.server.has_run_on_since(&at.server) {
            return reload(ReloadReason::ServerChanged.into(), start);
        }
        if start.window_start < at.window_start.minus(CLOCK_TOLERANCE) {
            return reload(ReloadReason::ClockWentBack.into(), start);
        }
        if state.unproven
            && let Some(cursor) = cursor
        {
            let proof = Box::pin(prove(source, state, cursor, &start)).await?;
            if let Err(doubt) = proof {
                let reason = Reload::about(ReloadReason::ConnectionLost, doubt);
                return reload(reason, start);
            }
        }
        keep_forward(&mut start, at);
        let Some(cursor) = cursor else {
            let reason = state.reload.clone();
            return reload(reason.unwrap_or(ReloadReason::First.into()), start);
        };
        // The server was promoted or replaced, so the cursor cannot be trusted.
        if cursor.is_of_standby() != start.cut.standby {
            return reload(ReloadReason::ConnectionLost.into(), start);
        }
        // Then: is everything to be read anyway, or did rows change that the log does not name?
        let before = &state.schema;
        let is_same = fingerprint == before.partitions.fingerprint;
        let mut touched = Touched::default();
        let mut unnamed = None;
        if let Some(reason) = &state.reload {
            if reason.reason != ReloadReason::FeedNotWhole || !source.names.need_feed {
                return reload(reason.clone(), start);
            }
            let not_logged = before.not_logged().filter(|_| is_same);
            match not_logged.filter(|touched| !touched.is_empty()) {
                Some(not_logged) => touched = not_logged,
                None => unnamed = Some(reason.clone()),
            }
        }
        let mut schema = None;
        if !is_same {
            // `touched` explains each difference between the old and the new facts (KP1 of `partitions`).
            let now = Box::pin(Schema::load(source, prepared)).await?;
            let reads = |table, column: &str| now.catalog.reads(table, column);
            let Some(changed) = before.partitions.touched(&now.partitions, reads) else {
                return reload(ReloadReason::Catalog.into(), start);
            };
            touched.append(changed);
            let mut is_unlogged = touched.is_unlogged();
            for not_logged in [before.not_logged(), now.not_logged()] {
                match not_logged {
                    Some(rows) => touched.append(rows),
                    None => is_unlogged = true,
                }
            }
            if is_unlogged {
                unnamed = Some(unnamed.unwrap_or(ReloadReason::Catalog.into()));
            }
            schema = Some(now);
        }
        if cursor.is_pruned(start.pruned_below) {
            return reload(ReloadReason::Pruned.into(), start);
        }
        let news = match log {
            Some(log) => log.map(|changed| (changed, None)),
            None => {
                let table = source.names.log_table();
                let log =
                    change_log::read_on_standby(source.client, &table, cursor, &start.snapshot);
                log.await?.map(|(changed, seen)| (changed, Some(seen)))
            }
        };
        let (mut changed, seen) = match news {
            Ok(news) => news,
            Err(reason) => return reload(reason, start),
        };
        let cursor = Cursor::new(start.snapshot.clone(), seen);
        if let Some(reason) = &unnamed {
            let partitions = &schema.as_ref().unwrap_or(before).partitions;
            if !partitions.have_versions() || !state.whole_at.reaches(&start.snapshot) {
                return reload(reason.clone(), start);
            }
        }
        let is_whole = schema.is_some() || unnamed.is_some() || !touched.is_empty();
        let window_start = start.window_start;
        let on = (source.client, source.names);
        let change_set = &mut changed.change_set;
        touched.add_to(change_set, on, draft, window_start).await?;
        if schema.is_some() && unnamed.is_none() {
            let tables = touched.tables();
            tracing::info!(%tables, "tables or partitions changed; reading what came or went with them");
        }
        Ok(Ok(News {
            start,
            changed,
            cursor,
            schema,
            is_whole,
            unnamed,
        }))
    }
}

/// Proves continuity after a lost connection: what [`Opened::news`] does not check anyway (CC2 to CC5 of
/// [`continuity`]).
async fn prove(
    source: Source<'_>,
    state: &ReadState,
    cursor: &Cursor,
    start: &ReadStart,
) -> Result<Result<(), Doubt>, Error> {
    let at = &state.at;
    if start.wal < at.wal {
        return Ok(Err("the position in the write-ahead log went back"));
    }
    if !cursor.is_shown_by(&start.snapshot) {
        return Ok(Err("transactions that were read have not ended"));
    }
    let log = source.names.log_table();
    let pruned_below = (at.pruned_below, start.pruned_below);
    let proof = state
        .evidence
        .prove(source.client, &log, cursor, pruned_below);
    proof.await
}

/// The rows that changed, and those of a step of the audit.
struct Rows<'p> {
    part: Option<(Plan, PlanMarkets)>,
    newest: Newest,
    sample: Option<Sample>,
    /// The prepared statements, if this read used them. They are planned for few keys.
    prepared: Option<&'p Prepared>,
}

impl<'p> Rows<'p> {
    #[expect(
        clippy::too_many_arguments,
        reason = "one transaction reads by all of these"
    )]
    async fn read(
        source: Source<'_>,
        prepared: Option<&'p Prepared>,
        draft: &mut Draft,
        (catalog, mut newest): (&Catalog, Newest),
        start: &ReadStart,
        change_set: &ChangeSet,
        step: Option<audit::Step>,
        (row_counters, search): (&RowCounters, Option<&Search>),
    ) -> Result<Rows<'p>, Error> {
        let few = changed::are_few(change_set) && step.is_none() && search.is_none();
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
            catalog,
            prepared,
            names_malformed: true,
            row_counters,
            search,
            progress: None,
        };
        let part = async {
            match change_set.is_empty() {
                true => Ok(None),
                false => {
                    let changed =
                        changed::changed(reader, draft, change_set, start, &mut newest, source);
                    Box::pin(changed).await.map(Some)
                }
            }
        };
        // `replan` must reach the server before the queries do. `both` sends in this order, and does not wait in
        // between.
        let ((), part) = both(replan, part).await?;
        let sample = match step {
            Some(step) => {
                let sample = Sample::read(source, reader, step, start, draft);
                Some(Box::pin(sample).await?)
            }
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
