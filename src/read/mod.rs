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
pub(crate) mod transaction;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{join, try_join, try_join3};
use tokio_postgres::Client;

use crate::{
    config::Config,
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
        audit::{Audited, Mismatch},
        change_log::Cursor,
        changed::{Bodies, Newest},
        fingerprint::Watched,
        plan::Plan,
        preflight::Feed,
        rows::{Heads, Reader, Tally},
        schema::{Catalog, Names},
        transaction::Begun,
    },
    store::{
        draft::Draft,
        state::{Cut, Moment},
    },
};

/// What the follower knows after a read, and the next one starts from.
#[derive(Debug)]
pub(crate) struct Known {
    catalog: Catalog,
    watched: Watched,
    fingerprint: String,
    /// What is new in the log, on a primary.
    new_log_rows: Statement,
    server: String,
    /// `None` where no feed is needed.
    cursor: Option<Cursor>,
    window_start: Micros,
    pub(crate) cut: Arc<Cut>,
    /// Why the next read must read everything, if it must.
    pub(crate) reload: Option<Reload>,
    /// What the installed feed says of itself, as of the last read of everything.
    pub(crate) feed: Option<Feed>,
    newest: Newest,
    /// When tables were last locked and looked at.
    looked: Instant,
    /// When the last read began, of whatever kind.
    began: Instant,
    pruned_below: u64,
}

impl Known {
    /// That of the snapshot read last; 0 where no feed is read.
    pub(crate) fn xmin(&self) -> u64 {
        self.cursor.as_ref().map_or(0, Cursor::xmin)
    }

    /// How far the log reaches.
    pub(crate) fn change_log(&self) -> ChangeLog {
        ChangeLog {
            pruned_below: self.pruned_below,
            next_xid: self.cursor.as_ref().map_or(0, Cursor::xmax),
        }
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
fn keep_forward(begun: &mut Begun, known: &Known) {
    begun.window_start = begun.window_start.max(known.window_start);
    begun.cut.window_start = begun.window_start.to_utc();
    begun.cut.as_of = begun.cut.as_of.max(known.cut.as_of);
}

/// A clock that goes back by less is taken for one that is being adjusted.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Reads everything, in the transaction begun: into a new draft, which replaces `draft` only at the end.
pub(crate) async fn everything(
    client: &Client,
    config: &Config,
    names: &Names,
    prepared: Option<&Prepared>,
    draft: &mut Draft,
    reason: Reload,
    begun: Begun,
) -> Result<(Known, Done), Error> {
    client
        .batch_execute(&names.patience)
        .await
        .map_err(Error::database(BEGIN))?;
    // Under this snapshot: the fingerprint that the next reads compare with must be that of a whole feed.
    let feed = preflight::check(client, config).await?;
    let catalog = Catalog::read(client, names).await?;
    let watched = Watched::find(client, names).await?;
    let fingerprint = fingerprint(client, None, &watched).await?;
    let cursor = match names.need_feed {
        true => Some(
            change_log::start(
                client,
                &names.log_table(),
                begun.snapshot.clone(),
                begun.cut.standby,
            )
            .await?,
        ),
        false => None,
    };
    let tally = Tally::default();
    let reader = Reader {
        client,
        catalog: &catalog,
        prepared: None,
        names_malformed: true,
        tally: &tally,
    };
    let exported = parallel::export(client, config, &begun).await?;
    let (heads, helpers) = join(
        reader.all_heads(begun.window_start),
        parallel::open(config, names, &begun, exported.as_deref()),
    )
    .await;
    let heads = heads?;
    let mut newest = Newest::default();
    newest.note(&heads);
    let plan = Plan::whole(heads);
    let helping: Vec<Reader<'_>> = helpers
        .iter()
        .map(|helper| Reader {
            client: &helper.client,
            ..reader
        })
        .collect();
    let patience = config.read_timeout / 2;
    let bodies = Bodies::read_with(&helping, patience, reader, &plan, draft).await?;
    drop(helpers);
    let new_log_rows = change_log::exactly_new(&names.log_table());
    if let Some(prepared) = prepared {
        let once = [&names.cut, &watched.fingerprint, &watched.tables_now];
        let statements = once.into_iter().chain(catalog.prepared());
        let of_log = cursor.is_some().then_some(&new_log_rows);
        prepared.prepare(client, statements.chain(of_log)).await?;
    }
    end(client, None, Some(&watched)).await?;

    // From here on nothing can fail or be cancelled (R2).
    let mut next = draft.successor();
    let snapshots_read = bodies.apply(plan, &mut next);
    next.replace(draft);
    *draft = next;
    let stats = draft.stats();
    let seconds = begun.began.elapsed().as_secs_f64();
    let warmup = WarmupStats {
        events: draft.len(),
        snapshots: stats.total_snapshots,
        markets: stats.total_markets,
        memory_bytes: stats.memory_bytes,
        seconds,
    };
    let done = Done {
        began: begun.began,
        log_rows: 0,
        snapshots_read,
        rows_read: tally.rows(),
        malformed_rows_read: tally.malformed(),
        evicted: 0,
        shown: None,
        took: None,
        warmup: Some((reason, warmup)),
        audited: None,
    };
    let Begun {
        began,
        server,
        window_start,
        cut,
        pruned_below,
        ..
    } = begun;
    Ok((
        Known {
            catalog,
            watched,
            fingerprint,
            new_log_rows,
            server,
            cursor,
            window_start,
            cut: Arc::new(cut),
            reload: None,
            feed,
            newest,
            looked: Instant::now(),
            began: began.monotonic,
            pruned_below,
        },
        done,
    ))
}

/// How far [`changes`] came.
pub(crate) enum Read {
    /// The draft is what the database was at the snapshot.
    Done(Box<Done>),
    /// What changed cannot be told, so [`everything`] must be read, in the transaction begun.
    Reload(Reload, Box<Begun>),
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

/// Reads what changed since `known`, and what the audit asks for. What is prepared is `None` afterwards if the session at
/// hand turns out to know nothing of it.
pub(crate) async fn changes(
    client: &Client,
    config: &Config,
    names: &Names,
    prepared: &mut Option<Prepared>,
    draft: &mut Draft,
    known: &mut Known,
    cause: Cause,
) -> Result<Read, Error> {
    if matches!(cause, Cause::Time)
        && let Some(done) = nothing(client, config, names, draft, known).await?
    {
        return Ok(Read::Done(Box::new(done)));
    }
    let step = match cause {
        Cause::Audit(step) => Some(step),
        Cause::News | Cause::Time => None,
    };
    let read = read_changes(
        client,
        config,
        names,
        prepared.as_ref(),
        draft,
        known,
        step.clone(),
    );
    match read.await {
        // Nothing was applied (R2).
        Err(error) if error.is_unprepared() => *prepared = None,
        read => return read,
    }
    let rollback = client.batch_execute("ROLLBACK").await;
    rollback.map_err(Error::database(BEGIN))?;
    read_changes(client, config, names, None, draft, known, step).await
}

/// Whether nothing at all was written since the last read: then there is nothing to read.
async fn nothing(
    client: &Client,
    config: &Config,
    names: &Names,
    draft: &mut Draft,
    known: &mut Known,
) -> Result<Option<Done>, Error> {
    let Some(cursor) = &known.cursor else {
        return Ok(None);
    };
    if cursor.is_of_standby() || known.reload.is_some() || known.looked.elapsed() > LOOK {
        return Ok(None);
    }
    let mut begun = match transaction::peek(client, config, names).await {
        Ok(begun) => begun,
        // In a pooler's session the role's own time-outs hold outside of a transaction block. A read sets its own.
        Err(error) if error.is_conflict() => return Ok(None),
        Err(error) => return Err(error),
    };
    // R5.
    let same = begun.server == known.server
        && !begun.cut.standby
        && cursor.is_at(&begun.snapshot)
        && begun.window_start >= known.window_start.minus(CLOCK_TOLERANCE);
    if !same {
        return Ok(None);
    }
    keep_forward(&mut begun, known);
    known.window_start = begun.window_start;
    let evicted = draft.evict(known.window_start);
    known.cut = Arc::new(begun.cut);
    known.began = begun.began.monotonic;
    Ok(Some(Done {
        began: begun.began,
        log_rows: 0,
        snapshots_read: 0,
        rows_read: 0,
        malformed_rows_read: 0,
        evicted,
        shown: None,
        took: None,
        warmup: None,
        audited: None,
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

async fn read_changes(
    client: &Client,
    config: &Config,
    names: &Names,
    prepared: Option<&Prepared>,
    draft: &mut Draft,
    known: &mut Known,
    step: Option<audit::Step>,
) -> Result<Read, Error> {
    let looked = Instant::now();
    let log = async {
        match &known.cursor {
            Some(cursor) if !cursor.is_of_standby() => {
                let log = change_log::read(client, prepared, &known.new_log_rows, cursor);
                log.await.map(Some)
            }
            _ => Ok(None),
        }
    };
    // R4.
    let (mut begun, fingerprint, news) = try_join3(
        transaction::begin(client, config, names, prepared),
        fingerprint(client, prepared, &known.watched),
        log,
    )
    .await?;
    let reload = |reason, begun| Ok(Read::Reload(reason, Box::new(begun)));
    if begun.server != known.server {
        return reload(ReloadReason::ServerChanged.into(), begun);
    }
    let cursor = known.cursor.as_ref();
    if cursor.is_some_and(|cursor| cursor.is_after(&begun.snapshot)) {
        return reload(ReloadReason::WentBack.into(), begun);
    }
    if begun.window_start < known.window_start.minus(CLOCK_TOLERANCE) {
        return reload(ReloadReason::ClockWentBack.into(), begun);
    }
    keep_forward(&mut begun, known);
    if let Some(reason) = &known.reload {
        return reload(reason.clone(), begun);
    }
    let Some(cursor) = &known.cursor else {
        return reload(ReloadReason::First.into(), begun);
    };
    if fingerprint != known.fingerprint {
        return reload(ReloadReason::Catalog.into(), begun);
    }
    if cursor.is_pruned(begun.pruned_below) {
        return reload(ReloadReason::Pruned.into(), begun);
    }
    let news = match news {
        // Promoted meanwhile, or another server: no rule of reading on holds.
        _ if cursor.is_of_standby() != begun.cut.standby => {
            Err(ReloadReason::ConnectionLost.into())
        }
        Some(news) => news.map(|changed| (changed, None)),
        None => {
            let log = names.log_table();
            let news = change_log::read_on_standby(client, &log, cursor, &begun.snapshot).await?;
            news.map(|(changed, seen)| (changed, Some(seen)))
        }
    };
    let (changed, seen) = match news {
        Ok(news) => news,
        Err(reason) => return reload(reason, begun),
    };
    let (dirty, for_audit) = (changed.dirty, step.is_some());
    // What is prepared is planned for few keys.
    let few = changed::are_few(&dirty) && step.is_none();
    let replan = async {
        match prepared.is_some() && !few {
            true => client
                .batch_execute(names.replan)
                .await
                .map_err(Error::database(BEGIN)),
            false => Ok(()),
        }
    };
    let prepared = prepared.filter(|_| few);
    let tally = Tally::default();
    let reader = Reader {
        client,
        catalog: &known.catalog,
        prepared,
        names_malformed: true,
        tally: &tally,
    };
    let mut newest = known.newest;
    let window_start = begun.window_start;
    let part = async {
        match dirty.is_empty() {
            true => Ok(None),
            false => changed::changed(reader, draft, &dirty, window_start, &mut newest)
                .await
                .map(Some),
        }
    };
    // In this order, and without waiting in between.
    let ((), part) = try_join(replan, part).await?;
    let sample = match step {
        Some(step) => Some(Sample::read(client, config, reader, step, window_start, draft).await?),
        None => None,
    };
    let rows_read = part.is_some() || sample.is_some();
    end(client, prepared, rows_read.then_some(&known.watched)).await?;

    // From here on nothing can fail or be cancelled (R2).
    let (read_at, anything) = (Instant::now(), part.is_some());
    let snapshots_read = part.map_or(0, |(plan, bodies)| bodies.apply(plan, draft));
    let evicted = draft.evict(begun.window_start);
    let began = begun.began.monotonic;
    let took = Took {
        read: read_at.saturating_duration_since(began),
        decode: tally.decode(),
        apply: anything.then(|| read_at.elapsed()),
    };
    let shown = Shown {
        logged: changed.logged,
        server_now: begun.server_now,
        began,
        unseen: (!begun.cut.standby).then_some(known.began),
    };
    known.began = began;
    known.pruned_below = begun.pruned_below;
    known.cursor = Some(Cursor::new(begun.snapshot, seen));
    known.newest = newest;
    known.looked = looked;
    known.window_start = begun.window_start;
    known.cut = Arc::new(begun.cut);
    let audited = sample.map(|sample| match sample {
        Sample::Window(ids) => Audited::Window(ids),
        Sample::Events(ids, plan, bodies) => Audited::Events {
            count: ids.len(),
            mismatches: compare(draft, &ids, *plan, bodies),
        },
    });
    Ok(Read::Done(Box::new(Done {
        began: begun.began,
        log_rows: changed.rows,
        snapshots_read,
        rows_read: tally.rows(),
        malformed_rows_read: tally.malformed(),
        evicted,
        shown: Some(shown),
        took: (!for_audit).then_some(took),
        warmup: None,
        audited,
    })))
}

/// What the database says for a step of the audit.
enum Sample {
    Window(Vec<i64>),
    /// Events, read in full and independently of what is held.
    Events(Vec<i64>, Box<Plan>, Bodies),
}

impl Sample {
    async fn read(
        client: &Client,
        config: &Config,
        reader: Reader<'_>,
        step: audit::Step,
        window_start: Micros,
        draft: &mut Draft,
    ) -> Result<Sample, Error> {
        // Several statements, which together must not take the time after which a connection counts as dead.
        let bound = format!(
            "SET LOCAL statement_timeout = {}",
            millis(config.read_timeout / 5)
        );
        client
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
        let plan = Plan::whole(Heads {
            kickoffs: reader.kickoffs(window_start, &ids).await?,
            betpawa: reader.betpawa_heads(&ids).await?,
            competitors: reader.competitor_heads(&ids, &[]).await?,
        });
        let bodies = Bodies::read(reader, &plan, draft).await?;
        Ok(Sample::Events(ids, Box::new(plan), bodies))
    }
}

/// Compares what was read of some events with a draft that was brought to the same snapshot.
fn compare(draft: &mut Draft, ids: &[i64], plan: Plan, bodies: Bodies) -> Vec<Mismatch> {
    let mut read = draft.successor();
    bodies.apply(plan, &mut read);
    let mismatches = audit::compare(draft, &read, ids);
    draft.packer = std::mem::take(&mut read.packer);
    mismatches
}

const AUDIT: &str = "auditing";
