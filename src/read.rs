//! One read: a transaction that brings the draft to one committed state of the database.
//!
//! | invariant | |
//! |---|---|
//! | R1 | all locks are taken before the snapshot, all rows are read under that snapshot |
//! | R2 | the draft and the cursor move together, after COMMIT; an error or a cancellation before leaves both as they were |
//! | R3 | within an epoch time never goes back: not that of the cut, nor the start of the window |

use std::{sync::Arc, time::Duration};

use hashbrown::HashMap;
use tokio_postgres::{Client, Row};

use crate::{
    Config, Error,
    apply::{Plan, Scope},
    audit::{self, Audited, Mismatch},
    catalog::{Catalog, Names, millis},
    draft::Draft,
    feed::{self, Cursor, Dirty, Reload, Snapshot},
    fetch::{Heads, Reader, time},
    model::{Body, Micros},
    preflight::{self, Feed},
    stats::WarmupStats,
    view::{Cut, Moment},
};

/// What the follower knows after a read, and the next one starts from.
#[derive(Debug)]
pub(crate) struct Known {
    catalog: Catalog,
    fingerprint: String,
    server: String,
    /// `None` where no feed is needed.
    cursor: Option<Cursor>,
    window_start: Micros,
    pub(crate) cut: Arc<Cut>,
    /// Why the next read must read everything, if it must.
    pub(crate) reload: Option<Reload>,
    /// What the installed feed says of itself, as of the last read of everything.
    pub(crate) feed: Option<Feed>,
}

/// What a read did.
#[derive(Debug)]
pub(crate) struct Done {
    /// Before its snapshot was taken.
    pub(crate) began: Moment,
    pub(crate) log_rows: usize,
    pub(crate) snapshots_read: usize,
    pub(crate) evicted: usize,
    /// If everything was read.
    pub(crate) warmup: Option<(Reload, WarmupStats)>,
    /// If a slice was to be audited.
    pub(crate) audited: Option<Audited>,
}

/// The first answer within the transaction.
pub(crate) struct Begun {
    began: Moment,
    cut: Cut,
    window_start: Micros,
    snapshot: Snapshot,
    standby: bool,
    pruned_below: u64,
    fingerprint: String,
    server: String,
    tables: String,
}

const BEGIN: &str = "beginning to read";

/// The beginning of any read: its locks, then its snapshot.
pub(crate) async fn begin(client: &Client, config: &Config, names: &Names) -> Result<Begun, Error> {
    let began = Moment::now();
    client
        .batch_execute(&names.begin)
        .await
        .map_err(Error::database(BEGIN))?;
    let rows = client
        .query_typed(&names.cut, &[])
        .await
        .map_err(Error::database(BEGIN))?;
    let row = rows
        .first()
        .ok_or_else(|| Error::unexpected(BEGIN, "no answer"))?;
    let column = |index| -> Result<String, Error> { text(row, index) };
    let snapshot = column(0)?;
    let now = time(row, 1).map_err(Error::database(BEGIN))?;
    let window_start = now.minus(config.lookback);
    let standby = row.try_get(2).map_err(Error::database(BEGIN))?;
    let pruned_below = column(3)?;
    Ok(Begun {
        began,
        standby,
        pruned_below: pruned_below
            .parse()
            .map_err(|_| Error::unexpected(BEGIN, "log_state.pruned_below is no xid8"))?,
        fingerprint: column(4)?,
        server: column(5)?,
        tables: column(6)?,
        window_start,
        cut: Cut {
            as_of: now.to_utc(),
            snapshot: snapshot.clone(),
            window_start: window_start.to_utc(),
            standby,
        },
        snapshot: Snapshot::parse(&snapshot)
            .ok_or_else(|| Error::unexpected(BEGIN, "pg_current_snapshot() is not understood"))?,
    })
}

/// `pruned_below` is null where the log state has no row.
fn text(row: &Row, index: usize) -> Result<String, Error> {
    row.try_get(index).map_err(Error::database(BEGIN))
}

/// Whether all that was read was of the snapshot: what a query reads of a partitioned table takes in a partition that was
/// attached since. Where a default partition is locked, none can be.
async fn same_tables(client: &Client, names: &Names, tables: &str) -> Result<(), Error> {
    let now = client
        .query_typed(&names.tables_now, &[])
        .await
        .map_err(Error::database(END))?;
    let now: Option<&str> = now
        .first()
        .map_or(Ok(None), |row| row.try_get(0))
        .map_err(Error::database(END))?;
    if now == Some(tables) {
        Ok(())
    } else {
        Err(Error::conflict(
            END,
            "a partition was attached or detached meanwhile",
        ))
    }
}

const END: &str = "ending a read";

async fn commit(client: &Client) -> Result<(), Error> {
    client
        .batch_execute("COMMIT")
        .await
        .map_err(Error::database(END))
}

impl Begun {
    /// R3.
    fn keep_forward(&mut self, known: &Known) {
        self.window_start = self.window_start.max(known.window_start);
        self.cut.window_start = self.window_start.to_utc();
        self.cut.as_of = self.cut.as_of.max(known.cut.as_of);
    }
}

/// A clock that goes back by less is taken for one that is being adjusted.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Reads everything, in the transaction begun: into a new draft, which replaces `draft` only at the end.
pub(crate) async fn everything(
    client: &Client,
    config: &Config,
    names: &Names,
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
    let cursor = match names.need_feed {
        true => Some(
            feed::start(
                client,
                &names.log_table(),
                begun.snapshot.clone(),
                begun.standby,
            )
            .await?,
        ),
        false => None,
    };
    let reader = Reader {
        client,
        catalog: &catalog,
        names_malformed: true,
    };
    let plan = Plan::whole(reader.all_heads(begun.window_start).await?);
    let bodies = Bodies::read(reader, &plan, draft).await?;
    same_tables(client, names, &begun.tables).await?;
    commit(client).await?;

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
        evicted: 0,
        warmup: Some((reason, warmup)),
        audited: None,
    };
    let Begun {
        fingerprint,
        server,
        window_start,
        cut,
        ..
    } = begun;
    Ok((
        Known {
            catalog,
            fingerprint,
            server,
            cursor,
            window_start,
            cut: Arc::new(cut),
            reload: None,
            feed,
        },
        done,
    ))
}

/// How far [`changes`] came.
pub(crate) enum Read {
    /// The draft is what the database was at the snapshot.
    Done(Done),
    /// What changed cannot be told, so [`everything`] must be read, in the transaction begun.
    Reload(Reload, Box<Begun>),
}

/// Reads what changed since `known`, and what the audit asks for.
pub(crate) async fn changes(
    client: &Client,
    config: &Config,
    names: &Names,
    draft: &mut Draft,
    known: &mut Known,
    step: Option<audit::Step>,
) -> Result<Read, Error> {
    let mut begun = begin(client, config, names).await?;
    let reload = |reason, begun| Ok(Read::Reload(reason, Box::new(begun)));
    if begun.server != known.server {
        return reload(Reload::ServerChanged, begun);
    }
    let cursor = known.cursor.as_ref();
    if cursor.is_some_and(|cursor| cursor.is_after(&begun.snapshot)) {
        return reload(Reload::WentBack, begun);
    }
    if begun.window_start < known.window_start.minus(CLOCK_TOLERANCE) {
        return reload(Reload::ClockWentBack, begun);
    }
    begun.keep_forward(known);
    if let Some(reason) = &known.reload {
        return reload(reason.clone(), begun);
    }
    let Some(cursor) = &known.cursor else {
        return reload(Reload::First, begun);
    };
    if begun.fingerprint != known.fingerprint {
        return reload(Reload::Catalog, begun);
    }
    if cursor.is_pruned(begun.pruned_below) {
        return reload(Reload::Pruned, begun);
    }
    let snapshot = begun.snapshot.clone();
    let news = match feed::read(client, &names.log_table(), cursor, snapshot, begun.standby).await?
    {
        Ok(news) => news,
        Err(reason) => return reload(reason, begun),
    };
    let dirty = news.dirty;
    let reader = Reader {
        client,
        catalog: &known.catalog,
        names_malformed: true,
    };
    let mut part = None;
    if !dirty.is_empty() {
        let plan = plan(reader, draft, &dirty, begun.window_start).await?;
        let bodies = Bodies::read(reader, &plan, draft).await?;
        part = Some((plan, bodies));
    }
    let sample = match step {
        Some(step) => {
            let window_start = begun.window_start;
            Some(Sample::read(client, config, reader, step, window_start, draft).await?)
        }
        None => None,
    };
    if part.is_some() || sample.is_some() {
        same_tables(client, names, &begun.tables).await?;
    }
    commit(client).await?;

    // From here on nothing can fail or be cancelled (R2).
    let snapshots_read = part.map_or(0, |(plan, bodies)| bodies.apply(plan, draft));
    let evicted = draft.evict(begun.window_start);
    known.cursor = Some(news.next);
    known.window_start = begun.window_start;
    known.cut = Arc::new(begun.cut);
    let audited = sample.map(|sample| match sample {
        Sample::Window(ids) => Audited::Window(ids),
        Sample::Events(ids, plan, bodies) => Audited::Events {
            count: ids.len(),
            mismatches: compare(draft, &ids, *plan, bodies),
        },
    });
    Ok(Read::Done(Done {
        began: begun.began,
        log_rows: news.rows,
        snapshots_read,
        evicted,
        warmup: None,
        audited,
    }))
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
            competitors: reader.competitor_heads(&ids).await?,
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

async fn plan(
    reader: Reader<'_>,
    draft: &Draft,
    dirty: &Dirty,
    window_start: Micros,
) -> Result<Plan, Error> {
    let competitor_events: Vec<i64> = dirty.competitor_events.iter().copied().collect();
    let linked_events = reader.linked_events(&competitor_events).await?;
    let mut scope = Scope::new(draft, dirty, &linked_events);
    let events: Vec<i64> = scope.events.iter().copied().collect();
    let kickoffs = match events.as_slice() {
        [] => HashMap::new(),
        events => reader.kickoffs(window_start, events).await?,
    };
    scope.narrow(draft, &kickoffs);
    let betpawa: Vec<i64> = scope.betpawa.iter().copied().collect();
    let competitors: Vec<i64> = scope.competitors.iter().copied().collect();
    let heads = Heads {
        kickoffs,
        betpawa: reader.betpawa_heads(&betpawa).await?,
        competitors: reader.competitor_heads(&competitors).await?,
    };
    Ok(Plan::part(draft, dirty, scope, heads))
}

/// The bodies that a plan needs.
struct Bodies {
    /// How many snapshots' markets were read for them.
    snapshots_read: usize,
    betpawa: HashMap<i64, Arc<Body>>,
    competitors: HashMap<i64, Arc<Body>>,
}

impl Bodies {
    async fn read(reader: Reader<'_>, plan: &Plan, draft: &mut Draft) -> Result<Bodies, Error> {
        let (betpawa, competitors) = (plan.betpawa_to_read(), plan.competitors_to_read());
        Ok(Bodies {
            snapshots_read: betpawa.len() + competitors.len(),
            betpawa: reader.betpawa_markets(&betpawa, &mut draft.packer).await?,
            competitors: reader
                .competitor_markets(&competitors, &mut draft.packer)
                .await?,
        })
    }

    /// Returns `snapshots_read`.
    fn apply(self, plan: Plan, draft: &mut Draft) -> usize {
        plan.apply(draft, &self.betpawa, &self.competitors);
        self.snapshots_read
    }
}
