//! The queries of a history, for the columns that this database has.

use tokio_postgres::types::Type;

use super::types::OWN;
use crate::{
    error::Error,
    read::schema::{Columns, Kind, Names},
    sql::Table,
};

/// How many columns a market row has in [`Columns::market_columns`]. Those of its snapshot follow.
pub(super) const MARKET_COLUMNS: usize = 11;

/// The most market rows of a side. One more shows that there are too many.
pub(super) const MOST_ROWS: usize = 50_000;

/// `(event id, market, line, from, to, limit, bookmaker id or source)` -> the columns of a market row, all null for a
/// snapshot without the market; then snapshot id, captured_at, last_confirmed_at, bookmaker id, source. The latest
/// snapshots of the time, with all that were captured at the same time as the earliest of them; and of each bookmaker
/// and source the last one before that time.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) own: Side,
    pub(super) competitors: Side,
}

/// The query for one of the two tables of snapshots.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) sql: String,
    /// The type of `captured_at`.
    pub(super) time: Type,
}

// Each OFFSET 0 keeps a query apart, so that the planner can find its rows by the one key alone. Otherwise it may walk
// another index, in the hope to meet the rows of this event soon. For the same reason all other conditions but that on
// `captured_at`, which spares partitions, stand outside.
impl Statements {
    pub(super) fn new(columns: &Columns<'_>, names: &Names) -> Result<Statements, Error> {
        let table = |table| names.table(table);
        let own = |column, kind| columns.required("s", Table::OddsSnapshots, column, kind);
        own("event_id", Kind::Id)?;
        let (id, bookmaker_id) = (own("id", Kind::Id)?, own("bookmaker_id", Kind::Id)?);
        let captured_at = own("captured_at", Kind::Time)?;
        let confirmed =
            columns.optional("s", Table::OddsSnapshots, "last_confirmed_at", Kind::Time)?;
        let snapshots = |time: &str| {
            format!(
                "SELECT a.* FROM (SELECT {id} AS id, {captured_at} AS captured_at, {confirmed} AS last_confirmed_at, \
                 {bookmaker_id} AS bookmaker_id, '{OWN}'::text AS source FROM {} s \
                 WHERE s.event_id = $1 AND {} OFFSET 0) a \
                 WHERE a.bookmaker_id IS NOT NULL AND ($7::int8 IS NULL OR a.bookmaker_id = $7)",
                table(Table::OddsSnapshots),
                time.replace('@', "s.captured_at"),
            )
        };
        let own = Side {
            sql: with_markets(columns, names, &snapshots, Table::MarketOdds)?,
            time: time_type(columns, Table::OddsSnapshots),
        };

        let theirs =
            |column, kind| columns.required("l", Table::CompetitorOddsSnapshots, column, kind);
        let event = |column, kind| columns.required("c", Table::CompetitorEvents, column, kind);
        theirs("competitor_event_id", Kind::Id)?;
        event("betpawa_event_id", Kind::Id)?;
        event("id", Kind::Id)?;
        let source = event("source", Kind::Text)?;
        let (id, captured_at) = (theirs("id", Kind::Id)?, theirs("captured_at", Kind::Time)?);
        let confirmed = columns.optional(
            "l",
            Table::CompetitorOddsSnapshots,
            "last_confirmed_at",
            Kind::Time,
        )?;
        let live = match columns.get(Table::CompetitorEvents, "deleted_at") {
            Some(_) => "c.deleted_at",
            None => "NULL",
        };
        let snapshots = |time: &str| {
            format!(
                "SELECT o.id, o.captured_at, o.last_confirmed_at, 0::int8 AS bookmaker_id, e.source FROM \
                 (SELECT c.id, {source} AS source, {live} AS deleted_at FROM {} c WHERE c.betpawa_event_id = $1 OFFSET 0) e \
                 CROSS JOIN LATERAL (SELECT {id} AS id, {captured_at} AS captured_at, {confirmed} AS last_confirmed_at \
                 FROM {} l WHERE l.competitor_event_id = e.id AND {} OFFSET 0) o \
                 WHERE e.deleted_at IS NULL AND e.source IS NOT NULL AND ($7::text IS NULL OR e.source = $7)",
                table(Table::CompetitorEvents),
                table(Table::CompetitorOddsSnapshots),
                time.replace('@', "l.captured_at"),
            )
        };
        let competitors = Side {
            sql: with_markets(columns, names, &snapshots, Table::CompetitorMarketOdds)?,
            time: time_type(columns, Table::CompetitorOddsSnapshots),
        };
        Ok(Statements { own, competitors })
    }
}

/// The snapshots, each with the rows of the market. `snapshots` makes the query for those whose captured_at, written as
/// `@`, satisfies a condition.
fn with_markets(
    columns: &Columns<'_>,
    names: &Names,
    snapshots: &dyn Fn(&str) -> String,
    markets: Table,
) -> Result<String, Error> {
    let market = columns.required("m", markets, "betpawa_market_id", Kind::Text)?;
    let line = columns.optional("m", markets, "line", Kind::Number)?;
    Ok(format!(
        "SELECT {}, s.id, s.captured_at, s.last_confirmed_at, s.bookmaker_id, s.source \
         FROM ((SELECT * FROM ({}) r ORDER BY r.captured_at DESC FETCH FIRST ($6) ROWS WITH TIES) UNION ALL \
         (SELECT DISTINCT ON (b.source, b.bookmaker_id) * FROM ({}) b \
         ORDER BY b.source, b.bookmaker_id, b.captured_at DESC, b.id DESC)) s \
         LEFT JOIN LATERAL (SELECT * FROM {} m WHERE m.snapshot_id = s.id OFFSET 0) m \
         ON {market} = $2 AND ($3::float8 IS NULL OR {line} = $3) \
         ORDER BY s.captured_at DESC, s.id DESC, s.source LIMIT {MOST_ROWS} + 1",
        columns.market_columns(markets)?,
        snapshots("@ >= $4 AND @ < $5"),
        snapshots("@ < $4 AND @ < $5"),
        names.table(markets),
    ))
}

fn time_type(columns: &Columns<'_>, table: Table) -> Type {
    match columns.get(table, "captured_at") {
        Some("timestamptz") => Type::TIMESTAMPTZ,
        _ => Type::TIMESTAMP,
    }
}
