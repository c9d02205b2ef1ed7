//! Reads rows in the current transaction, so all of them belong to one database snapshot. Changes no draft: that
//! happens after COMMIT, in [`crate::read::plan`].

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt, Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream, Fuse},
};
use hashbrown::{HashMap, HashSet};
use tokio::task::yield_now;
use tokio_postgres::{
    Client, Row, RowStream,
    types::{FromSql, Type},
};

use crate::{
    decode::packer::{MarketCollector, MarketRow, Packer},
    error::Error,
    metrics::progress::Progress,
    model::{CachedEvent, EventHeader, EventNames, Micros, PackedMarkets, Source, Tournament},
    postgres::{
        connection::within,
        statement::{Answer, Arg, Prepared, Statement},
    },
    read::{schema::Catalog, unreadable::Search},
    sql::Table,
    store::draft::Draft,
};

/// A `timestamp` (naive, in UTC) or `timestamptz`. PostgreSQL sends both as microseconds since 2000.
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

/// A text, or the text of a `json` or `jsonb`.
struct JsonText<'a>(&'a str);

impl<'a> FromSql<'a> for JsonText<'a> {
    fn from_sql(
        ty: &Type,
        raw: &'a [u8],
    ) -> Result<JsonText<'a>, Box<dyn std::error::Error + Sync + Send>> {
        let text = match (ty == &Type::JSONB, raw) {
            // PostgreSQL sends the version of the form before the text of a jsonb. There is only this one.
            (true, [1, text @ ..]) => text,
            (true, _) => return Err("a jsonb of another version".into()),
            (false, text) => text,
        };
        Ok(JsonText(str::from_utf8(text)?))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::JSON | Type::JSONB | Type::TEXT)
    }
}

/// Reads a column of either type.
pub(crate) fn time(row: &Row, index: usize) -> Result<Micros, tokio_postgres::Error> {
    Ok(row.try_get::<_, PostgresTime>(index)?.0)
}

/// Reads a column of either type that may be null.
pub(crate) fn optional_time(
    row: &Row,
    index: usize,
) -> Result<Option<Micros>, tokio_postgres::Error> {
    let time: Option<PostgresTime> = row.try_get(index)?;
    Ok(time.map(|time| time.0))
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

/// A row of `competitor_odds_snapshots`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CompetitorRow {
    pub(crate) snapshot_id: i64,
    pub(crate) competitor_event_id: i64,
    captured_at: Micros,
    last_confirmed_at: Option<Micros>,
}

impl CompetitorRow {
    /// The header of the snapshot for the event to which its competitor event is linked.
    pub(crate) fn header(self, event_id: i64, source: Source) -> SnapshotHeader<Source> {
        SnapshotHeader {
            event_id,
            key: source,
            snapshot_id: self.snapshot_id,
            captured_at: self.captured_at,
            last_confirmed_at: self.last_confirmed_at,
        }
    }
}

/// A snapshot's id, its event, and its bookmaker id or source. The last two are `None` where a row has none.
pub(crate) type NewSnapshot<K> = (i64, (Option<i64>, Option<K>));

/// A row of `events`. Of two rows of one event the greater one counts, which has the later kickoff.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EventRow {
    pub(crate) kickoff: Micros,
    pub(crate) names: EventNames,
    pub(crate) tournament_id: Option<i64>,
}

impl EventRow {
    /// The row that a held event shows. `None` if its kickoff is not known.
    pub(crate) fn held(event: &CachedEvent) -> Option<EventRow> {
        Some(EventRow {
            kickoff: event.kickoff?,
            names: event.names.clone(),
            tournament_id: event.tournament().map(Tournament::id),
        })
    }

    /// The same with the shared tournament.
    pub(crate) fn header(self, packer: &mut Packer) -> EventHeader {
        let lookup = &mut packer.lookup;
        EventHeader {
            kickoff: Some(self.kickoff),
            names: self.names,
            tournament: self.tournament_id.map(|id| lookup.tournament(id)),
        }
    }
}

/// The events and the headers of their latest snapshots, as a read found them.
#[derive(Debug, Default)]
pub(crate) struct SnapshotHeaders {
    /// The kickoffs and names of those requested events that are in the window.
    pub(crate) kickoffs: HashMap<i64, EventRow>,
    pub(crate) betpawa: Vec<SnapshotHeader<i64>>,
    pub(crate) competitors: Vec<SnapshotHeader<Source>>,
}

/// The most snapshots whose market rows one query reads. This bounds the answer.
const SNAPSHOTS_PER_READ: usize = 500;

/// The most malformed rows of a read that the log names. It only counts the rest.
const MOST_NAMED: usize = 20;

/// Counts the rows of a read. It is updated once for each statement, not for each row.
#[derive(Debug, Default)]
pub(crate) struct RowCounters {
    rows: AtomicU64,
    malformed: AtomicU64,
    decode_nanos: AtomicU64,
}

impl RowCounters {
    /// Counts rows of the application's tables.
    pub(crate) fn read(&self, rows: usize) {
        RowCounters::add(&self.rows, rows);
    }

    fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Rows of the application's tables.
    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// The malformed rows among them. Leaves out rows that an earlier read has counted; see
    /// [`Reader::names_malformed`].
    pub(crate) fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    /// How long it took to pack the market rows of a read of changes. `None` if there were none.
    pub(crate) fn decode(&self) -> Option<Duration> {
        let nanos = self.decode_nanos.load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }
}

/// Runs the queries of a read on one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'c> {
    pub(crate) client: &'c Client,
    pub(crate) catalog: &'c Catalog,
    /// The statements that the session has prepared. Given for a read of few keys only.
    pub(crate) prepared: Option<&'c Prepared>,
    /// Whether to log and count malformed rows. Off for the audit, which reads rows that were read before.
    pub(crate) names_malformed: bool,
    pub(crate) row_counters: &'c RowCounters,
    /// Given if the read looks for rows that the server cannot send. It then leaves them out, on one connection and
    /// without prepared statements.
    pub(crate) search: Option<&'c Search>,
    /// Given if the read reads everything.
    pub(crate) progress: Option<&'c Progress>,
}

impl Reader<'_> {
    /// Runs a statement, decodes its answer with `read`, and counts the rows. The ids among its arguments are keys of
    /// `table`.
    async fn query<T>(
        &self,
        (doing, table): (&'static str, Table),
        statement: &Statement,
        args: &[Arg<'_>],
        read: impl Fn(&Answer) -> Result<Vec<T>, tokio_postgres::Error>,
    ) -> Result<Vec<T>, Error> {
        match self.search {
            None => self.at_once(doing, statement, args, read).await,
            Some(search) => {
                self.by_halves(search, (doing, table), statement, args, read)
                    .await
            }
        }
    }

    pub(super) async fn at_once<T>(
        &self,
        doing: &'static str,
        statement: &Statement,
        args: &[Arg<'_>],
        read: impl FnOnce(&Answer) -> Result<Vec<T>, tokio_postgres::Error>,
    ) -> Result<Vec<T>, Error> {
        let answer = statement.answer(doing, self.client, self.prepared, args);
        let rows = read(&answer.await?).map_err(Error::of_rows(doing))?;
        self.row_counters.read(rows.len());
        Ok(rows)
    }

    /// The events in the window, and the headers of all their latest snapshots.
    pub(crate) async fn all_headers(&self, window_start: Micros) -> Result<SnapshotHeaders, Error> {
        let kickoffs = self.all_kickoffs(window_start).await?;
        if self.search.is_some() {
            // By keys, so that they can be halved.
            let mut ids: Vec<i64> = kickoffs.keys().copied().collect();
            ids.sort_unstable();
            return Ok(SnapshotHeaders {
                kickoffs,
                betpawa: self.betpawa_headers(&ids).await?,
                competitors: self.competitor_headers(&ids, &[]).await?,
            });
        }
        Ok(SnapshotHeaders {
            kickoffs,
            betpawa: self.all_betpawa_headers(window_start).await?,
            competitors: self.all_competitor_headers(window_start).await?,
        })
    }

    /// The headers of the latest snapshots of all events of the window in `odds_snapshots`. Cannot leave out rows that
    /// cannot be read.
    pub(crate) async fn all_betpawa_headers(
        &self,
        window_start: Micros,
    ) -> Result<Vec<SnapshotHeader<i64>>, Error> {
        let headers = &self.catalog.all_betpawa_headers;
        let window = [Arg::Time(window_start)];
        self.headers(Table::OddsSnapshots, headers, &window, bookmakers)
            .await
    }

    /// The same in `competitor_odds_snapshots`.
    pub(crate) async fn all_competitor_headers(
        &self,
        window_start: Micros,
    ) -> Result<Vec<SnapshotHeader<Source>>, Error> {
        let headers = &self.catalog.all_competitor_headers;
        let window = [Arg::Time(window_start)];
        let sources = |answer: &Answer| sources(answer, 1);
        self.headers(Table::CompetitorEvents, headers, &window, sources)
            .await
    }

    /// The kickoffs and names of all events in the window.
    pub(crate) async fn all_kickoffs(
        &self,
        window_start: Micros,
    ) -> Result<HashMap<i64, EventRow>, Error> {
        if let Some(search) = self.search {
            return self.kickoffs_by_halves(search, window_start).await;
        }
        let window = [Arg::Time(window_start)];
        let all = &self.catalog.all_kickoffs;
        let kickoffs = self.at_once(EVENTS, all, &window, kickoffs).await?;
        Ok(latest(kickoffs))
    }

    /// The kickoffs and names of those given events that are in the window.
    pub(crate) async fn kickoffs(
        &self,
        window_start: Micros,
        event_ids: &[i64],
    ) -> Result<HashMap<i64, EventRow>, Error> {
        if event_ids.is_empty() {
            return Ok(HashMap::new());
        }
        let parameters = [Arg::Time(window_start), Arg::Ids(event_ids)];
        let some = &self.catalog.some_kickoffs;
        let of = (EVENTS, Table::Events);
        let kickoffs = self.query(of, some, &parameters, kickoffs).await?;
        Ok(latest(kickoffs))
    }

    /// The headers of the latest snapshots of the given events in `odds_snapshots`.
    pub(crate) async fn betpawa_headers(
        &self,
        event_ids: &[i64],
    ) -> Result<Vec<SnapshotHeader<i64>>, Error> {
        if event_ids.is_empty() {
            return Ok(Vec::new());
        }
        let headers = &self.catalog.some_betpawa_headers;
        let ids = [Arg::Ids(event_ids)];
        self.headers(Table::OddsSnapshots, headers, &ids, bookmakers)
            .await
    }

    /// The headers of the latest snapshots in `competitor_odds_snapshots` of the given events, and of the events to
    /// which the given competitor events are linked.
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
        self.headers(Table::CompetitorEvents, headers, &args, |answer| {
            sources(answer, 1)
        })
        .await
    }

    /// Reads headers, and logs those without a time.
    async fn headers<K>(
        &self,
        table: Table,
        statement: &Statement,
        args: &[Arg<'_>],
        keys: impl Fn(&Answer) -> Result<Vec<K>, tokio_postgres::Error>,
    ) -> Result<Vec<SnapshotHeader<K>>, Error> {
        let read = |answer: &Answer| headers(answer, &keys);
        let headers = self.query((HEADERS, table), statement, args, read).await?;
        if self.names_malformed {
            let unknown = |header: &&SnapshotHeader<K>| header.captured_at == Micros::UNKNOWN;
            let malformed = headers.iter().filter(unknown).count();
            RowCounters::add(&self.row_counters.malformed, malformed);
            for header in headers.iter().filter(unknown).take(MOST_NAMED) {
                let snapshot_id = header.snapshot_id;
                tracing::warn!(
                    snapshot_id,
                    "malformed row: captured_at is null; the cache serves it as 1970-01-01"
                );
            }
        }
        Ok(headers)
    }

    /// The greatest snapshot ids; 0 for an empty table.
    pub(crate) async fn greatest_ids(&self) -> Result<(i64, i64), Error> {
        let read = |answer: &Answer| {
            let ids = |index| answer.column::<Option<i64>>(index);
            Ok(ids(0)?.into_iter().zip(ids(1)?).collect())
        };
        let greatest = &self.catalog.greatest_ids;
        let rows: Vec<(Option<i64>, Option<i64>)> =
            self.at_once(HEADERS, greatest, &[], read).await?;
        let (own, others) = rows.first().copied().unwrap_or_default();
        Ok((own.unwrap_or_default(), others.unwrap_or_default()))
    }

    /// The rows of `odds_snapshots` with these ids and times. Each is looked up by the primary key.
    pub(crate) async fn betpawa_snapshots(
        &self,
        ids: &[i64],
        captured_at: &[Micros],
    ) -> Result<Vec<SnapshotHeader<i64>>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let args = [Arg::Ids(ids), Arg::Times(captured_at)];
        let read = |answer: &Answer| headers(answer, bookmakers);
        let snapshots = &self.catalog.betpawa_snapshots;
        self.at_once(HEADERS, snapshots, &args, read).await
    }

    /// The rows of `competitor_odds_snapshots` with these ids that belong to a competitor event. Each is looked up
    /// by the primary key.
    pub(crate) async fn competitor_snapshots(
        &self,
        ids: &[i64],
    ) -> Result<Vec<CompetitorRow>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let read = |answer: &Answer| {
            let times = |index| answer.column::<Option<PostgresTime>>(index);
            let ids = answer.column(0)?.into_iter().zip(answer.column(1)?);
            let times = times(2)?.into_iter().zip(times(3)?);
            let rows = ids.zip(times).map(
                |((snapshot_id, competitor_event_id), (captured_at, confirmed_at))| CompetitorRow {
                    snapshot_id,
                    competitor_event_id,
                    captured_at: captured_at.map_or(Micros::UNKNOWN, |time| time.0),
                    last_confirmed_at: confirmed_at.map(|time| time.0),
                },
            );
            Ok(rows.collect())
        };
        let snapshots = &self.catalog.competitor_snapshots;
        self.at_once(HEADERS, snapshots, &[Arg::Ids(ids)], read)
            .await
    }

    /// The competitor events that are linked to one of these events: their ids, the event's id, and the source.
    pub(crate) async fn links(
        &self,
        event_ids: &[i64],
    ) -> Result<HashMap<i64, (i64, Source)>, Error> {
        if event_ids.is_empty() {
            return Ok(HashMap::new());
        }
        let read = |answer: &Answer| {
            let ids: Vec<i64> = answer.column(0)?;
            let events: Vec<i64> = answer.column(1)?;
            let of = events.into_iter().zip(sources(answer, 2)?);
            Ok(ids.into_iter().zip(of).collect())
        };
        let args = [Arg::Ids(event_ids)];
        let links = self.at_once(HEADERS, &self.catalog.links, &args, read);
        Ok(links.await?.into_iter().collect())
    }

    /// The next snapshots in `odds_snapshots` with ids greater than `after`, ascending: id, event, bookmaker. Fewer than
    /// [`NEW_SNAPSHOTS`](crate::read::schema::NEW_SNAPSHOTS) if there are no more.
    pub(crate) async fn new_betpawa(&self, after: i64) -> Result<Vec<NewSnapshot<i64>>, Error> {
        let read = |answer: &Answer| {
            let ids: Vec<i64> = answer.column(0)?;
            let of = answer.column(1)?.into_iter().zip(answer.column(2)?);
            Ok(ids.into_iter().zip(of).collect())
        };
        let args = [Arg::Ids(&[after])];
        self.at_once(HEADERS, &self.catalog.new_betpawa, &args, read)
            .await
    }

    /// The same for `competitor_odds_snapshots`, with sources.
    pub(crate) async fn new_competitors(
        &self,
        after: i64,
    ) -> Result<Vec<NewSnapshot<Source>>, Error> {
        let read = |answer: &Answer| {
            let ids: Vec<i64> = answer.column(0)?;
            let names = answer.column::<Option<&str>>(2)?.into_iter();
            let names = names.map(|name| name.map(Source::from));
            let of = answer.column(1)?.into_iter().zip(names);
            Ok(ids.into_iter().zip(of).collect())
        };
        let args = [Arg::Ids(&[after])];
        self.at_once(HEADERS, &self.catalog.new_competitors, &args, read)
            .await
    }

    /// The events to which the given competitor events are linked, with the kickoffs and names of those in the window.
    pub(crate) async fn linked_events(
        &self,
        window_start: Micros,
        competitor_event_ids: &[i64],
    ) -> Result<Vec<(i64, Option<EventRow>)>, Error> {
        if competitor_event_ids.is_empty() {
            return Ok(Vec::new());
        }
        let args = [Arg::Time(window_start), Arg::Ids(competitor_event_ids)];
        let linked = &self.catalog.linked_events;
        let of = (EVENTS, Table::CompetitorOddsSnapshots);
        self.query(of, linked, &args, event_rows).await
    }

    /// For each of the given snapshots that has market rows: how many, and whether one of them was written by transaction
    /// `xid` or a later one.
    pub(crate) async fn market_versions(
        &self,
        side: Side,
        ids: &[i64],
        xid: u64,
    ) -> Result<Vec<(i64, i64, bool)>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let statement = match side {
            Side::Betpawa => &self.catalog.betpawa_versions,
            Side::Competitors => &self.catalog.competitor_versions,
        };
        let xid = [xid.cast_signed()];
        let args = [Arg::Ids(ids), Arg::Ids(&xid)];
        let answer = statement.answer(MARKETS, self.client, None, &args).await?;
        let columns = || Ok((answer.column(0)?, answer.column(1)?, answer.column(2)?));
        let (ids, counts, are_written) = columns().map_err(Error::of_rows(MARKETS))?;
        let rows = ids.into_iter().zip(counts).zip(are_written);
        Ok(rows
            .map(|((id, count), is_written): ((i64, i64), bool)| (id, count, is_written))
            .collect())
    }

    /// The market rows of a few snapshots, to be packed later.
    pub(crate) async fn market_rows(&self, side: Side, ids: &[i64]) -> Result<Vec<Row>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.market_stream(side, ids).await?;
        let rows: Vec<Row> = rows.try_collect().await.map_err(Error::of_rows(MARKETS))?;
        self.row_counters.read(rows.len());
        Ok(rows)
    }

    async fn market_stream(&self, side: Side, ids: &[i64]) -> Result<RowStream, Error> {
        let statement = match side {
            Side::Betpawa => &self.catalog.betpawa_markets,
            Side::Competitors => &self.catalog.competitor_markets,
        };
        // The server collects the whole answer of a prepared statement before it sends the first row.
        let prepared = self.prepared.filter(|_| ids.len() <= MOST_PREPARED);
        let args = [Arg::Ids(ids)];
        let rows = statement.stream(self.client, prepared, &args).await;
        rows.map_err(Error::of_rows(MARKETS))
    }

    /// Notes that the markets of so many snapshots are read next.
    pub(crate) fn expect(&self, snapshots: usize) {
        if let Some(progress) = self.progress {
            progress.expect(snapshots);
        }
    }

    /// Notes that the markets of so many further snapshots were read.
    pub(super) fn note_read(&self, snapshots: usize) {
        if let Some(progress) = self.progress {
            progress.read(snapshots);
        }
    }

    /// Packs market rows; returns the packed markets by snapshot id.
    pub(crate) fn pack(
        &self,
        side: Side,
        rows: &[Row],
        draft: &mut Draft,
    ) -> Result<HashMap<i64, Arc<PackedMarkets>>, Error> {
        if rows.is_empty() {
            return Ok(HashMap::new());
        }
        let begun_at = Instant::now();
        let mut packing = Packing::new(side, self.names_malformed);
        let mut collector = MarketCollector::default();
        for row in rows {
            packing.push(row, &mut collector, &mut draft.packer)?;
        }
        packing.end(self.row_counters);
        let packed_markets = finish(side, &mut collector, draft).collect();
        let nanos = usize::try_from(begun_at.elapsed().as_nanos()).unwrap_or(usize::MAX);
        RowCounters::add(&self.row_counters.decode_nanos, nanos);
        Ok(packed_markets)
    }

    /// Reads the markets of the given snapshots and packs each row as it comes. Snapshots without markets are absent.
    ///
    /// `self` and each of the `helpers` read a share. If there are helpers, it is an error if no row comes for
    /// `silence`.
    pub(crate) async fn markets(
        &self,
        helpers: &[Reader<'_>],
        silence: Duration,
        side: Side,
        ids: &[i64],
        draft: &mut Draft,
    ) -> Result<HashMap<i64, Arc<PackedMarkets>>, Error> {
        if let Some(search) = self.search {
            return self.markets_by_halves(search, side, ids, draft).await;
        }
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let mut found = HashMap::with_capacity(ids.len());
        let mut packing = Packing::new(side, self.names_malformed);
        let part = match helpers.len() {
            0 => SNAPSHOTS_PER_READ,
            helpers => SNAPSHOTS_PER_READ.min(ids.len().div_ceil(LEAST_PARTS * (helpers + 1))),
        };
        // A connection takes the next part when it is free, so all end at about the same time. The server would end one
        // that idles in its transaction.
        let parts = Mutex::new(ids.chunks(part));
        let next_part = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
        let readers = std::iter::once(self).chain(helpers);
        let shares = readers.map(|reader| Share {
            stream: reader
                .sent(side, std::iter::from_fn(next_part))
                .boxed()
                .fuse(),
            collector: MarketCollector::default(),
        });
        let (mut shares, mut at): (Vec<Share<'_>>, _) = (shares.collect(), 0);
        loop {
            let next = match next(&mut shares, &mut at).now_or_never() {
                Some(next) => next,
                // A time limit costs about as much as packing a row, so only a wait has one.
                None if helpers.is_empty() => next(&mut shares, &mut at).await,
                None => within(silence, MARKETS, next(&mut shares, &mut at)).await,
            };
            let Some(sent) = next? else { break };
            let collector = &mut shares[at].collector;
            match sent {
                Sent::Row(row) => {
                    packing.push(&row, collector, &mut draft.packer)?;
                    if packing.rows.is_multiple_of(ROWS_IN_A_ROW) {
                        // The other connections and the other tasks of this thread have their turn.
                        at = (at + 1) % shares.len();
                        yield_now().await;
                    }
                }
                Sent::End { snapshots } => {
                    found.extend(finish(side, collector, draft));
                    self.note_read(snapshots);
                }
            }
        }
        self.row_counters.read(packing.rows);
        packing.end(self.row_counters);
        Ok(found)
    }

    /// What the server sends for each of the `parts`, which are lists of snapshot ids. The connection requests the next
    /// part while the server still sends the one before.
    fn sent<'a>(
        &'a self,
        side: Side,
        parts: impl Iterator<Item = &'a [i64]> + Send + 'a,
    ) -> impl Stream<Item = Result<Sent, Error>> + Send + 'a {
        let answers = parts.map(move |ids| async move {
            let rows = self.market_stream(side, ids).await?;
            let end = Sent::End {
                snapshots: ids.len(),
            };
            let rows = rows
                .map_ok(Sent::Row)
                .map_err(|error| Error::of_rows(MARKETS)(error));
            Ok::<_, Error>(rows.chain(stream::iter([Ok(end)])))
        });
        stream::iter(answers).buffered(PARTS_AT_ONCE).try_flatten()
    }
}

/// How many parts a connection requests at once.
const PARTS_AT_ONCE: usize = 2;

/// If several connections read, there are at least so many parts for each. Otherwise the first one could take all.
const LEAST_PARTS: usize = 2 * PARTS_AT_ONCE;

/// How many rows are packed before other connections and tasks have their turn. That takes a quarter of a millisecond.
const ROWS_IN_A_ROW: usize = 256;

/// What a connection sends while it reads markets.
enum Sent {
    Row(Row),
    /// The answer to one statement is complete: all rows of so many snapshots have come.
    End {
        snapshots: usize,
    },
}

/// What one connection reads. All rows of a snapshot come in one answer, so each connection has its own collector.
struct Share<'a> {
    stream: Fuse<BoxStream<'a, Result<Sent, Error>>>,
    collector: MarketCollector,
}

/// What comes next on any of the connections; `None` after the last. Sets `at` to the connection, and stays with it as
/// long as something has come there.
async fn next(shares: &mut [Share<'_>], at: &mut usize) -> Result<Option<Sent>, Error> {
    let sent = poll_fn(|context| {
        let mut is_waiting = false;
        for _ in 0..shares.len() {
            match shares[*at].stream.poll_next_unpin(context) {
                Poll::Ready(Some(sent)) => return Poll::Ready(Some(sent)),
                Poll::Ready(None) => {}
                Poll::Pending => is_waiting = true,
            }
            *at = (*at + 1) % shares.len();
        }
        match is_waiting {
            true => Poll::Pending,
            false => Poll::Ready(None),
        }
    });
    sent.await.transpose()
}

/// The packed markets that a collector holds, by snapshot id. Those that equal the held ones share their memory, so
/// that a read of everything needs no second copy of what has not changed (A4 of [`crate::read::plan`]).
fn finish(
    side: Side,
    collector: &mut MarketCollector,
    draft: &mut Draft,
) -> impl Iterator<Item = (i64, Arc<PackedMarkets>)> {
    let packed_markets = collector.finish(&mut draft.packer);
    packed_markets.into_iter().map(move |(id, packed)| {
        let held = match side {
            Side::Betpawa => draft.betpawa_markets(id),
            Side::Competitors => draft.competitor_markets(id),
        };
        let packed = match held.filter(|held| held.same(&packed)) {
            Some(held) => Arc::clone(held),
            None => packed,
        };
        (id, packed)
    })
}

/// For the markets of more snapshots than this, no prepared statement is used.
const MOST_PREPARED: usize = 16;

/// One of the two kinds of snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// `odds_snapshots`, `market_odds`.
    Betpawa,
    /// `competitor_odds_snapshots`, `competitor_market_odds`.
    Competitors,
}

impl Side {
    /// The table of its markets.
    pub(crate) fn markets(self) -> Table {
        match self {
            Side::Betpawa => Table::MarketOdds,
            Side::Competitors => Table::CompetitorMarketOdds,
        }
    }
}

/// Counts market rows as they are packed, and logs the malformed ones.
struct Packing {
    table: &'static str,
    names_malformed: bool,
    malformed: usize,
    rows: usize,
}

impl Packing {
    fn new(side: Side, names_malformed: bool) -> Packing {
        Packing {
            table: side.markets().name(),
            names_malformed,
            malformed: 0,
            rows: 0,
        }
    }

    fn push(
        &mut self,
        row: &Row,
        collector: &mut MarketCollector,
        packer: &mut Packer,
    ) -> Result<(), Error> {
        let (snapshot_id, row) = market(row).map_err(Error::of_rows(MARKETS))?;
        self.rows += 1;
        if let Some(problem) = collector.push(packer, snapshot_id, row) {
            self.malformed += 1;
            if self.malformed <= MOST_NAMED && self.names_malformed {
                let (table, row_id) = (self.table, row.row_id);
                tracing::warn!(table, row_id, snapshot_id, %problem, "malformed row; the cache serves the fields that it can read");
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
                "malformed rows in one read; the log names the first {MOST_NAMED}"
            );
        }
    }
}

pub(super) const EVENTS: &str = "reading events";
const HEADERS: &str = "reading the latest snapshots";
pub(super) const MARKETS: &str = "reading markets";

/// The kickoffs and names of events, and their ids.
pub(super) fn kickoffs(answer: &Answer) -> Result<Vec<(i64, EventRow)>, tokio_postgres::Error> {
    let rows = event_rows(answer)?.into_iter();
    Ok(rows.filter_map(|(id, row)| Some((id, row?))).collect())
}

/// The same, also of events without a kickoff.
fn event_rows(answer: &Answer) -> Result<Vec<(i64, Option<EventRow>)>, tokio_postgres::Error> {
    let kickoffs = answer.column::<Option<PostgresTime>>(1)?.into_iter();
    let text = |index| answer.column::<Option<&str>>(index);
    let teams = text(3)?.into_iter().zip(text(4)?);
    let names = text(2)?.into_iter().zip(teams).zip(text(5)?);
    let tournaments = answer.column::<Option<i64>>(6)?.into_iter();
    let rows = kickoffs.zip(names).zip(tournaments);
    let rows = rows.map(|((kickoff, ((name, (home, away)), id)), tournament_id)| {
        Some(EventRow {
            kickoff: kickoff?.0,
            names: EventNames::new([name, home, away, id]),
            tournament_id,
        })
    });
    Ok(answer.column(0)?.into_iter().zip(rows).collect())
}

/// The row of each event. If a partitioned table has an event twice, the latest kickoff counts.
pub(super) fn latest(rows: Vec<(i64, EventRow)>) -> HashMap<i64, EventRow> {
    let mut latest = HashMap::with_capacity(rows.len());
    for (event_id, row) in rows {
        note_kickoff(&mut latest, event_id, row);
    }
    latest
}

/// Adds the row of an event, unless the event has one with a later kickoff.
pub(crate) fn note_kickoff(latest: &mut HashMap<i64, EventRow>, event_id: i64, row: EventRow) {
    match latest.get(&event_id) {
        Some(held) if *held >= row => {}
        _ => drop(latest.insert(event_id, row)),
    }
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

/// Reads source names, and allocates each distinct name once.
fn sources(answer: &Answer, column: usize) -> Result<Vec<Source>, tokio_postgres::Error> {
    let mut seen: HashSet<Source> = HashSet::new();
    let source = |name: &str| {
        seen.get_or_insert_with(name, |name| Source::from(name))
            .clone()
    };
    let names = answer.column(column)?.into_iter();
    Ok(names.map(source).collect())
}

/// A market row, of columns in the order of [`Columns::market_columns`](crate::read::schema::Columns::market_columns).
pub(crate) fn market(row: &Row) -> Result<(i64, MarketRow<'_>), tokio_postgres::Error> {
    let market = MarketRow {
        // Null counts as 0, because a table without a primary key may have null ids, and nothing depends on the id.
        row_id: row.try_get::<_, Option<i64>>(0)?.unwrap_or_default(),
        betpawa_market_id: row.try_get(2)?,
        betpawa_market_name: row.try_get(3)?,
        line: row.try_get(4)?,
        handicap_type: row.try_get(5)?,
        handicap_home: row.try_get(6)?,
        handicap_away: row.try_get(7)?,
        outcomes: row
            .try_get::<_, Option<JsonText<'_>>>(8)?
            .map(|json| json.0),
        market_groups: row
            .try_get::<_, Option<JsonText<'_>>>(9)?
            .map(|json| json.0),
        unavailable_at: row
            .try_get::<_, Option<PostgresTime>>(10)?
            .map(|time| time.0),
    };
    Ok((row.try_get(1)?, market))
}
