//! The connections of a history, and a question on one of them.
//!
//! The pool is deadpool's. Its connections are opened as the follower's are, by our own code, because that knows
//! several hosts, password files and TLS. So the manager is ours, and not that of `deadpool-postgres`.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use deadpool::managed::{self, Metrics, PoolError, RecycleError, RecycleResult};
use tokio_postgres::{
    Row,
    error::SqlState,
    types::{ToSql, Type},
};

use super::{
    error::HistoryError,
    index,
    statement::{MARKET_COLUMNS, MOST_ROWS, Side, Statements},
    types::{HistoryQuery, MarketHistory, PastSnapshot},
};
use crate::{
    config::Config,
    decode::packer::{MarketCollector, Packer},
    error::Error,
    model::{CachedSnapshot, Micros},
    postgres::connection::{Access, Connection, millis},
    read::{
        rows,
        schema::{Columns, Names},
    },
};

pub(super) const DOING: &str = "reading the history of a market";

/// How long the columns and indexes of the tables may be taken for what they were.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// A connection that nobody used for so long is replaced.
const IDLE: Duration = Duration::from_secs(60);

/// The first time that PostgreSQL has: 4713 BC, in microseconds since 2000.
const EARLIEST: i64 = -211_813_488_000_000_000;

/// Opens the pool's connections.
#[derive(Debug)]
pub(super) struct Manager {
    pub(super) config: Config,
    /// How long a question may take.
    pub(super) within: Duration,
}

/// A connection with the statements for its database.
#[derive(Debug)]
pub(super) struct Session {
    connection: Connection,
    names: Names,
    within: Duration,
    /// The statements, and when the columns and indexes were looked up.
    statements: Option<(Statements, Instant)>,
}

impl managed::Manager for Manager {
    type Type = Session;
    type Error = HistoryError;

    async fn create(&self) -> Result<Session, HistoryError> {
        let connection = Connection::open(&self.config.connect, "history").await?;
        let names = Names::new(&self.config, false, connection.settings_after_begin());
        Ok(Session {
            connection,
            names,
            within: self.within,
            statements: None,
        })
    }

    async fn recycle(
        &self,
        session: &mut Session,
        metrics: &Metrics,
    ) -> RecycleResult<HistoryError> {
        // An idle connection may be dead, or lead to a server that is no longer the primary.
        match session.connection.is_closed() || metrics.last_used() > IDLE {
            true => Err(RecycleError::message("the connection is closed or idle")),
            false => Ok(()),
        }
    }
}

/// What the pool says, as an error of ours.
pub(super) fn reason(error: PoolError<HistoryError>) -> HistoryError {
    match error {
        PoolError::Backend(error) => error,
        error => Error::unexpected(DOING, error.to_string()).into(),
    }
}

impl Session {
    /// Afterwards the session's transaction has ended, unless this returns an error or is dropped.
    pub(super) async fn read(
        &mut self,
        query: &HistoryQuery,
    ) -> Result<MarketHistory, HistoryError> {
        let read = self.transaction(query).await;
        read.map_err(|error| match error.sqlstate() {
            Some(code) if code == SqlState::LOCK_NOT_AVAILABLE.code() => HistoryError::Locked,
            Some(code) if code == SqlState::QUERY_CANCELED.code() => HistoryError::TimedOut {
                seconds: self.within.as_secs_f64(),
            },
            _ => error,
        })
    }

    async fn transaction(&mut self, query: &HistoryQuery) -> Result<MarketHistory, HistoryError> {
        let client = &self.connection.client;
        let run = async |sql: &str| {
            let done = client.batch_execute(sql).await;
            done.map_err(Error::database(DOING))
        };
        // Each lookup is by an index that `check` has found. The planner must not choose otherwise for tables whose
        // statistics are missing.
        let begin = format!(
            "{}; SET LOCAL lock_timeout = '300ms'; SET LOCAL tcp_user_timeout = {}; SET LOCAL enable_seqscan = off",
            self.connection.begin(Access::Read, self.within),
            millis(self.within),
        );
        run(&begin).await?;
        let statements = match self.statements.take() {
            Some((statements, at)) if at.elapsed() < LOOK_AGAIN => (statements, at),
            _ => {
                let looked_up_at = Instant::now();
                index::check(client, &self.names.app_schema).await?;
                let columns = Columns::read(client, None, &self.names).await?;
                (Statements::new(&columns, &self.names)?, looked_up_at)
            }
        };
        let (own, competitors) = (
            query.wants_own().then_some(&statements.0.own),
            query
                .wants_competitors()
                .then_some(&statements.0.competitors),
        );
        let bookmaker: &(dyn ToSql + Sync) = &query.bookmaker_id;
        let competitor: &(dyn ToSql + Sync) = &query.source;
        // Sent at once. After one fails, the server refuses the next ones, so the first error is the one that says why.
        let (now, own, competitors) = tokio::join!(
            async { client.query_typed("SELECT now()", &[]).await },
            self.side(own, query, (bookmaker, Type::INT8)),
            self.side(competitors, query, (competitor, Type::TEXT)),
        );
        let now = now.map_err(Error::database(DOING))?;
        let own = own.map_err(Error::database(DOING))?;
        let competitors = competitors.map_err(Error::database(DOING))?;
        run("COMMIT").await?;
        if own.len().max(competitors.len()) > MOST_ROWS {
            return Err(HistoryError::TooLarge { most: MOST_ROWS });
        }
        self.statements = Some(statements);
        let answer = || -> Result<MarketHistory, tokio_postgres::Error> {
            let as_of = now.first().map(|row| rows::time(row, 0)).transpose()?;
            let mut found = Vec::new();
            let mut is_cut = false;
            for rows in [own, competitors] {
                let side = snapshots(query.event_id, &rows)?;
                let in_time = side.iter().filter(|past| !is_before(past, query));
                is_cut |= in_time.count() > query.limit.max(1);
                found.extend(side);
            }
            let as_of = as_of.unwrap_or(Micros::UNKNOWN).to_utc();
            Ok(latest(found, query, is_cut, as_of))
        };
        Ok(answer().map_err(Error::database(DOING))?)
    }

    /// The rows of one side, if it is wanted.
    async fn side(
        &self,
        side: Option<&Side>,
        query: &HistoryQuery,
        last: (&(dyn ToSql + Sync), Type),
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let Some(side) = side else {
            return Ok(Vec::new());
        };
        // PostgreSQL's own `-infinity` and `infinity`. The first stands for times that PostgreSQL does not have, too.
        let micros = |time: Option<DateTime<Utc>>, or| {
            let time = time.map(|time| Micros::from_utc(time).to_postgres());
            time.map_or(or, |time| if time < EARLIEST { i64::MIN } else { time })
        };
        let (from, to) = (micros(query.from, i64::MIN), micros(query.to, i64::MAX));
        // One more tells whether there are older ones.
        let limit = i64::try_from(query.limit)
            .unwrap_or(i64::MAX)
            .saturating_add(1);
        let time = side.time.clone();
        // No text of PostgreSQL has this character, and null equals no market.
        let market = Some(&query.betpawa_market_id).filter(|market| !market.contains('\0'));
        let client = &self.connection.client;
        client
            .query_typed(
                &side.sql,
                &[
                    (&query.event_id, Type::INT8),
                    (&market, Type::TEXT),
                    (&query.line, Type::FLOAT8),
                    (&RawTime(from), time.clone()),
                    (&RawTime(to), time),
                    (&limit, Type::INT8),
                    last,
                ],
            )
            .await
    }
}

/// The snapshots of one side. The rows of a snapshot come together.
fn snapshots(event_id: i64, rows: &[Row]) -> Result<Vec<PastSnapshot>, tokio_postgres::Error> {
    let (mut packer, mut markets) = (Packer::default(), MarketCollector::default());
    let mut found: Vec<PastSnapshot> = Vec::new();
    let empty = MarketCollector::empty(&mut packer);
    for row in rows {
        let column = |index| MARKET_COLUMNS + index;
        let snapshot_id: i64 = row.try_get(column(0))?;
        let captured_at = rows::time(row, column(1))?;
        // A partitioned table may have an id twice.
        let is_new = found.last().is_none_or(|last| {
            (last.snapshot.snapshot_id, last.snapshot.captured_at) != (snapshot_id, captured_at)
        });
        if is_new {
            let confirmed_at = rows::optional_time(row, column(2))?;
            found.push(PastSnapshot {
                source: packer.source(row.try_get(column(4))?),
                snapshot: CachedSnapshot {
                    snapshot_id,
                    event_id,
                    bookmaker_id: row.try_get(column(3))?,
                    captured_at,
                    last_confirmed_at: confirmed_at.unwrap_or(captured_at),
                    packed: empty.clone(),
                },
            });
        }
        // Null for a snapshot without the market.
        if row.try_get::<_, Option<&str>>(2)?.is_some() {
            let (_, market) = rows::market(row)?;
            let place = i64::try_from(found.len()).unwrap_or(i64::MAX);
            // The follower counts malformed rows and says what is wrong with them.
            let _ = markets.push(&mut packer, place, market);
        }
    }
    let mut packed = markets.finish(&mut packer);
    for (place, past) in (1..).zip(&mut found) {
        if let Some(packed) = packed.remove(&place) {
            past.snapshot.packed = packed;
        }
    }
    Ok(found)
}

/// Whether a snapshot is from before the time that is asked for. Its prices held at the beginning of that time.
fn is_before(past: &PastSnapshot, query: &HistoryQuery) -> bool {
    let from = query.from.map(Micros::from_utc);
    from.is_some_and(|from| past.snapshot.captured_at < from)
}

/// The latest of these, in the order of time: `limit`, and those that were captured together with the earliest of them.
/// If these are all of the time that is asked for, then also those that held at its beginning. `is_cut`: the database may
/// have older ones.
fn latest(
    mut found: Vec<PastSnapshot>,
    query: &HistoryQuery,
    is_cut: bool,
    as_of: DateTime<Utc>,
) -> MarketHistory {
    let at = |past: &PastSnapshot| past.snapshot.captured_at;
    found.sort_by(|a, b| {
        let place = |past: &PastSnapshot| (at(past), past.snapshot.snapshot_id);
        place(a)
            .cmp(&place(b))
            .then_with(|| a.source.cmp(&b.source))
    });
    let before = found.partition_point(|past| is_before(past, query));
    let mut first = found.len().saturating_sub(query.limit.max(1)).max(before);
    while first > before && first < found.len() && at(&found[first - 1]) == at(&found[first]) {
        first -= 1;
    }
    let is_all = first == before && !is_cut;
    let snapshots = found.split_off(if is_all { 0 } else { first });
    let earliest = snapshots.first().filter(|_| !is_all);
    MarketHistory {
        as_of,
        next_to: earliest.map(|earliest| earliest.snapshot.captured_at()),
        snapshots,
    }
}

/// A time in PostgreSQL's own form, which has more values than chrono.
#[derive(Debug)]
struct RawTime(i64);

impl ToSql for RawTime {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut bytes::BytesMut,
    ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.0.to_sql(&Type::INT8, out)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::TIMESTAMP | Type::TIMESTAMPTZ)
    }

    tokio_postgres::types::to_sql_checked!();
}
