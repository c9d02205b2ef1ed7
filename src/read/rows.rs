//! Reads rows in the transaction under way. What they say is all of one snapshot; memory is touched after COMMIT only.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{TryStreamExt, future::try_join_all, stream::select_all};
use hashbrown::{HashMap, HashSet};
use tokio_postgres::{
    Client, Row, RowStream,
    types::{FromSql, Type},
};

use crate::{
    decode::packer::{Bodies, MarketRow, Packer},
    error::Error,
    model::{Body, Micros, Source},
    postgres::{
        connection::within,
        statement::{Answer, Arg, Prepared, Statement},
    },
    read::schema::Catalog,
    sql::Table,
};

/// A `timestamp` (naive, in UTC) or `timestamptz`: on the wire both are microseconds since 2000.
#[derive(Debug, Clone, Copy)]
struct PostgresTime(Micros);

impl<'a> FromSql<'a> for PostgresTime {
    fn from_sql(
        ty: &Type,
        raw: &'a [u8],
    ) -> Result<PostgresTime, Box<dyn std::error::Error + Sync + Send>> {
        Ok(PostgresTime(Micros::from_postgres(i64::from_sql(ty, raw)?)))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::TIMESTAMP | Type::TIMESTAMPTZ)
    }
}

/// Of one column.
pub(crate) fn time(row: &Row, index: usize) -> Result<Micros, tokio_postgres::Error> {
    Ok(row.try_get::<_, PostgresTime>(index)?.0)
}

/// The latest snapshot of an event and bookmaker, without its markets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotHeader<K> {
    pub(crate) event_id: i64,
    /// Bookmaker id, or source.
    pub(crate) key: K,
    pub(crate) snapshot_id: i64,
    pub(crate) captured_at: Micros,
    pub(crate) last_confirmed_at: Option<Micros>,
}

/// What a read found of events and their latest snapshots.
#[derive(Debug, Default)]
pub(crate) struct SnapshotHeaders {
    /// Of the events asked for those within the window.
    pub(crate) kickoffs: HashMap<i64, Micros>,
    pub(crate) betpawa: Vec<SnapshotHeader<i64>>,
    pub(crate) competitors: Vec<SnapshotHeader<Source>>,
}

/// Market rows of this many snapshots are asked for at a time.
const SNAPSHOTS_PER_READ: usize = 1_000;

/// Malformed rows are named one by one up to here, per read.
const MOST_NAMED: usize = 20;

/// What was read, counted: by the statement, not by the row.
#[derive(Debug, Default)]
pub(crate) struct RowCounters {
    rows: AtomicU64,
    malformed: AtomicU64,
    decode_nanos: AtomicU64,
}

impl RowCounters {
    fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Rows of the application's tables.
    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Those of them that did not read as they should.
    pub(crate) fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    /// How long market rows that were at hand took to pack, if there were any.
    pub(crate) fn decode(&self) -> Option<Duration> {
        let nanos = self.decode_nanos.load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }
}

/// One transaction's eyes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'c> {
    pub(crate) client: &'c Client,
    pub(crate) catalog: &'c Catalog,
    /// For a read with few keys: how the session knows the statements for these.
    pub(crate) prepared: Option<&'c Prepared>,
    /// Whether malformed rows are named in the log: where they are read for the first time.
    pub(crate) names_malformed: bool,
    pub(crate) row_counters: &'c RowCounters,
}

impl Reader<'_> {
    async fn ask<T>(
        &self,
        doing: &'static str,
        statement: &Statement,
        args: &[Arg<'_>],
        read: impl FnOnce(&Answer) -> Result<Vec<T>, tokio_postgres::Error>,
    ) -> Result<Vec<T>, Error> {
        let answer = statement.answer(doing, self.client, self.prepared, args);
        let rows = read(&answer.await?).map_err(Error::database(doing))?;
        RowCounters::add(&self.row_counters.rows, rows.len());
        Ok(rows)
    }

    /// Everything within the window.
    pub(crate) async fn all_headers(&self, window_start: Micros) -> Result<SnapshotHeaders, Error> {
        let window = [Arg::Time(window_start)];
        Ok(SnapshotHeaders {
            kickoffs: self.all_kickoffs(window_start).await?,
            betpawa: self
                .headers(&self.catalog.all_betpawa_headers, &window, bookmakers)
                .await?,
            competitors: self
                .headers(&self.catalog.all_competitor_headers, &window, sources)
                .await?,
        })
    }

    /// The kickoffs of all events within the window.
    pub(crate) async fn all_kickoffs(
        &self,
        window_start: Micros,
    ) -> Result<HashMap<i64, Micros>, Error> {
        let window = [Arg::Time(window_start)];
        let all = &self.catalog.all_kickoffs;
        let kickoffs = self.ask(EVENTS, all, &window, kickoffs).await?;
        Ok(kickoffs.into_iter().collect())
    }

    /// The kickoffs of those of the given events that are within the window.
    pub(crate) async fn kickoffs(
        &self,
        window_start: Micros,
        event_ids: &[i64],
    ) -> Result<HashMap<i64, Micros>, Error> {
        if event_ids.is_empty() {
            return Ok(HashMap::new());
        }
        let parameters = [Arg::Time(window_start), Arg::Ids(event_ids)];
        let some = &self.catalog.some_kickoffs;
        let kickoffs = self.ask(EVENTS, some, &parameters, kickoffs).await?;
        Ok(kickoffs.into_iter().collect())
    }

    /// The latest snapshots of the given events in `odds_snapshots`.
    pub(crate) async fn betpawa_headers(
        &self,
        event_ids: &[i64],
    ) -> Result<Vec<SnapshotHeader<i64>>, Error> {
        if event_ids.is_empty() {
            return Ok(Vec::new());
        }
        let headers = &self.catalog.some_betpawa_headers;
        self.headers(headers, &[Arg::Ids(event_ids)], bookmakers)
            .await
    }

    /// The latest snapshots in `competitor_odds_snapshots` linked to the given events, and to those that the given competitor
    /// events are linked to.
    pub(crate) async fn competitor_headers(
        &self,
        event_ids: &[i64],
        competitor_event_ids: &[i64],
    ) -> Result<Vec<SnapshotHeader<Source>>, Error> {
        if event_ids.is_empty() && competitor_event_ids.is_empty() {
            return Ok(Vec::new());
        }
        let args = [Arg::Ids(event_ids), Arg::Ids(competitor_event_ids)];
        let headers = &self.catalog.some_competitor_headers;
        self.headers(headers, &args, sources).await
    }

    /// Latest snapshots. Names those that are malformed.
    async fn headers<K>(
        &self,
        statement: &Statement,
        args: &[Arg<'_>],
        keys: impl FnOnce(&Answer) -> Result<Vec<K>, tokio_postgres::Error>,
    ) -> Result<Vec<SnapshotHeader<K>>, Error> {
        let read = |answer: &Answer| headers(answer, keys);
        let headers = self.ask(HEADS, statement, args, read).await?;
        if self.names_malformed {
            let unknown = |header: &&SnapshotHeader<K>| header.captured_at == Micros::UNKNOWN;
            let malformed = headers.iter().filter(unknown).count();
            RowCounters::add(&self.row_counters.malformed, malformed);
            for header in headers.iter().filter(unknown).take(MOST_NAMED) {
                let snapshot_id = header.snapshot_id;
                tracing::warn!(
                    snapshot_id,
                    "malformed row: captured_at is null; it reads as 1970"
                );
            }
        }
        Ok(headers)
    }

    /// The events that the given competitor events are linked to; with kickoffs, where these are within the window.
    pub(crate) async fn linked_events(
        &self,
        window_start: Micros,
        competitor_event_ids: &[i64],
    ) -> Result<Vec<(i64, Option<Micros>)>, Error> {
        if competitor_event_ids.is_empty() {
            return Ok(Vec::new());
        }
        let args = [Arg::Time(window_start), Arg::Ids(competitor_event_ids)];
        let linked = &self.catalog.linked_events;
        let events = |answer: &Answer| {
            let kickoffs = answer.column::<Option<PostgresTime>>(1)?.into_iter();
            let kickoffs = kickoffs.map(|time| Some(time?.0));
            Ok(answer.column(0)?.into_iter().zip(kickoffs).collect())
        };
        self.ask(EVENTS, linked, &args, events).await
    }

    /// The market rows of a few snapshots, to be packed later.
    pub(crate) async fn market_rows(&self, side: Side, ids: &[i64]) -> Result<Vec<Row>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.market_stream(side, ids).await?;
        let rows: Vec<Row> = rows.try_collect().await.map_err(Error::database(MARKETS))?;
        RowCounters::add(&self.row_counters.rows, rows.len());
        Ok(rows)
    }

    async fn market_stream(&self, side: Side, ids: &[i64]) -> Result<RowStream, Error> {
        let statement = match side {
            Side::Betpawa => &self.catalog.betpawa_markets,
            Side::Competitors => &self.catalog.competitor_markets,
        };
        // The server keeps the whole answer of what is prepared before it sends the first row.
        let prepared = self.prepared.filter(|_| ids.len() <= MOST_PREPARED);
        let args = [Arg::Ids(ids)];
        let rows = statement.stream(self.client, prepared, &args).await;
        rows.map_err(Error::database(MARKETS))
    }

    /// The bodies of market rows.
    pub(crate) fn pack(
        &self,
        side: Side,
        rows: &[Row],
        packer: &mut Packer,
    ) -> Result<HashMap<i64, Arc<Body>>, Error> {
        if rows.is_empty() {
            return Ok(HashMap::new());
        }
        let begun_at = Instant::now();
        let mut packing = Packing::new(side, self.names_malformed);
        let mut bodies = Bodies::new(packer);
        for row in rows {
            packing.push(row, &mut bodies)?;
        }
        packing.end(self.row_counters);
        let bodies = bodies.finish();
        let nanos = usize::try_from(begun_at.elapsed().as_nanos()).unwrap_or(usize::MAX);
        RowCounters::add(&self.row_counters.decode_nanos, nanos);
        Ok(bodies)
    }

    /// The markets of snapshots, packed as they come; snapshots without any are absent. Each of the `helpers` reads a share;
    /// where there are any, an error if nothing comes for longer than `patience`.
    pub(crate) async fn markets(
        &self,
        helpers: &[Reader<'_>],
        patience: Duration,
        side: Side,
        ids: &[i64],
        packer: &mut Packer,
    ) -> Result<HashMap<i64, Arc<Body>>, Error> {
        let mut found = HashMap::with_capacity(ids.len());
        let mut packing = Packing::new(side, self.names_malformed);
        let readers = helpers.len() + 1;
        for ids in ids.chunks(SNAPSHOTS_PER_READ * readers) {
            let mut bodies = Bodies::new(packer);
            let shares = ids.chunks(ids.len().div_ceil(readers));
            let asked = std::iter::once(self).chain(helpers).zip(shares);
            let streams = asked.map(|(reader, share)| reader.market_stream(side, share));
            let asked = try_join_all(streams);
            let streams = match helpers {
                [] => asked.await?,
                _ => within(patience, MARKETS, asked).await?,
            };
            let mut rows = select_all(streams.into_iter().map(Box::pin));
            loop {
                let next = async { rows.try_next().await.map_err(Error::database(MARKETS)) };
                let row = match helpers {
                    [] => next.await?,
                    _ => within(patience, MARKETS, next).await?,
                };
                let Some(row) = row else { break };
                packing.push(&row, &mut bodies)?;
            }
            found.extend(bodies.finish());
        }
        RowCounters::add(&self.row_counters.rows, packing.rows);
        packing.end(self.row_counters);
        Ok(found)
    }
}

/// Of more snapshots the markets are not asked for by what is prepared.
const MOST_PREPARED: usize = 16;

/// Which of the two kinds of snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// `odds_snapshots`, `market_odds`.
    Betpawa,
    /// `competitor_odds_snapshots`, `competitor_market_odds`.
    Competitors,
}

/// Names malformed rows as they are packed.
struct Packing {
    table: &'static str,
    names_malformed: bool,
    malformed: usize,
    rows: usize,
}

impl Packing {
    fn new(side: Side, names_malformed: bool) -> Packing {
        Packing {
            table: match side {
                Side::Betpawa => Table::MarketOdds.name(),
                Side::Competitors => Table::CompetitorMarketOdds.name(),
            },
            names_malformed,
            malformed: 0,
            rows: 0,
        }
    }

    fn push(&mut self, row: &Row, bodies: &mut Bodies<'_>) -> Result<(), Error> {
        let (snapshot_id, row) = market(row).map_err(Error::database(MARKETS))?;
        self.rows += 1;
        if let Some(problem) = bodies.push(snapshot_id, row) {
            self.malformed += 1;
            if self.malformed <= MOST_NAMED && self.names_malformed {
                let (table, row_id) = (self.table, row.row_id);
                tracing::warn!(table, row_id, snapshot_id, %problem, "malformed row; what can be read of it is served");
            }
        }
        Ok(())
    }

    fn end(self, row_counters: &RowCounters) {
        let (table, malformed) = (self.table, self.malformed);
        if self.names_malformed {
            RowCounters::add(&row_counters.malformed, malformed);
        }
        if malformed > MOST_NAMED && self.names_malformed {
            tracing::warn!(
                table,
                rows = malformed,
                "malformed rows in one read; the first {MOST_NAMED} were named"
            );
        }
    }
}

const EVENTS: &str = "reading events";
const HEADS: &str = "reading the latest snapshots";
const MARKETS: &str = "reading markets";

fn kickoffs(answer: &Answer) -> Result<Vec<(i64, Micros)>, tokio_postgres::Error> {
    let kickoffs = answer.column::<PostgresTime>(1)?.into_iter();
    let kickoffs = kickoffs.map(|time| time.0);
    Ok(answer.column(0)?.into_iter().zip(kickoffs).collect())
}

fn headers<K>(
    answer: &Answer,
    keys: impl FnOnce(&Answer) -> Result<Vec<K>, tokio_postgres::Error>,
) -> Result<Vec<SnapshotHeader<K>>, tokio_postgres::Error> {
    let times = |index| answer.column::<Option<PostgresTime>>(index);
    let ids = answer.column(0)?.into_iter().zip(answer.column(2)?);
    let times = times(3)?.into_iter().zip(times(4)?);
    let headers = ids.zip(keys(answer)?).zip(times).map(
        |(((event_id, snapshot_id), key), (captured_at, last_confirmed_at))| SnapshotHeader {
            event_id,
            key,
            snapshot_id,
            captured_at: captured_at.map_or(Micros::UNKNOWN, |time| time.0),
            last_confirmed_at: last_confirmed_at.map(|time| time.0),
        },
    );
    Ok(headers.collect())
}

fn bookmakers(answer: &Answer) -> Result<Vec<i64>, tokio_postgres::Error> {
    answer.column(1)
}

/// One allocation for each source that there is.
fn sources(answer: &Answer) -> Result<Vec<Source>, tokio_postgres::Error> {
    let mut seen: HashSet<Source> = HashSet::new();
    let source = |name: &str| {
        seen.get_or_insert_with(name, |name| Source::from(name))
            .clone()
    };
    let names = answer.column(1)?.into_iter();
    Ok(names.map(source).collect())
}

fn market(row: &Row) -> Result<(i64, MarketRow<'_>), tokio_postgres::Error> {
    let market = MarketRow {
        row_id: row.try_get(0)?,
        betpawa_market_id: row.try_get(2)?,
        betpawa_market_name: row.try_get(3)?,
        line: row.try_get(4)?,
        handicap_type: row.try_get(5)?,
        handicap_home: row.try_get(6)?,
        handicap_away: row.try_get(7)?,
        outcomes: row.try_get(8)?,
        market_groups: row.try_get(9)?,
        unavailable_at: row
            .try_get::<_, Option<PostgresTime>>(10)?
            .map(|time| time.0),
    };
    Ok((row.try_get(1)?, market))
}
