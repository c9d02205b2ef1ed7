//! The queries of a history, for the columns that this database has.

use tokio_postgres::types::Type;

use super::OWN;
use crate::{
    error::Error,
    read::schema::{Columns, Kind, Names},
    sql::Table,
};

/// How many columns a market row has in [`Columns::market_columns`]. Those of its snapshot follow.
pub(super) const MARKET_COLUMNS: usize = 11;

/// `(event id, market, line, from, to, limit, bookmaker id or source)` -> the columns of a market row, all null for a
/// snapshot without the market; then snapshot id, captured_at, last_confirmed_at, bookmaker id, source.
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

impl Statements {
    pub(super) fn new(columns: &Columns<'_>, names: &Names) -> Result<Statements, Error> {
        let table = |table| names.table(table);
        let own = |column, kind| columns.required("s", Table::OddsSnapshots, column, kind);
        own("event_id", Kind::Id)?;
        let bookmaker_id = own("bookmaker_id", Kind::Id)?;
        let confirmed =
            columns.optional("s", Table::OddsSnapshots, "last_confirmed_at", Kind::Time)?;
        // Each OFFSET 0 keeps a query apart, so that the planner can find its rows by the one key alone. Otherwise it may
        // walk another index, in the hope to meet the rows of this event soon.
        let snapshots = format!(
            "SELECT {} AS id, {} AS captured_at, {confirmed} AS last_confirmed_at, {bookmaker_id} AS bookmaker_id, \
             '{OWN}' AS source FROM {} s \
             WHERE s.event_id = $1 AND s.captured_at >= $4 AND s.captured_at < $5 \
             AND s.bookmaker_id IS NOT NULL AND ($7::int8 IS NULL OR s.bookmaker_id = $7) OFFSET 0",
            own("id", Kind::Id)?,
            own("captured_at", Kind::Time)?,
            table(Table::OddsSnapshots),
        );
        let own = Side {
            sql: with_markets(columns, names, &snapshots, Table::MarketOdds)?,
            time: time_type(columns, Table::OddsSnapshots),
        };

        let theirs =
            |column, kind| columns.required("l", Table::CompetitorOddsSnapshots, column, kind);
        let event = |column, kind| columns.required("c", Table::CompetitorEvents, column, kind);
        theirs("competitor_event_id", Kind::Id)?;
        event("id", Kind::Id)?;
        event("betpawa_event_id", Kind::Id)?;
        let confirmed = columns.optional(
            "l",
            Table::CompetitorOddsSnapshots,
            "last_confirmed_at",
            Kind::Time,
        )?;
        let live = match columns.get(Table::CompetitorEvents, "deleted_at") {
            Some(_) => "c.deleted_at IS NULL AND ",
            None => "",
        };
        let snapshots = format!(
            "SELECT o.id, o.captured_at, o.last_confirmed_at, 0::int8 AS bookmaker_id, {} AS source FROM {} c \
             CROSS JOIN LATERAL (SELECT {} AS id, {} AS captured_at, {confirmed} AS last_confirmed_at FROM {} l \
             WHERE l.competitor_event_id = c.id AND l.captured_at >= $4 AND l.captured_at < $5 OFFSET 0) o \
             WHERE c.betpawa_event_id = $1 AND {live}c.source IS NOT NULL AND ($7::text IS NULL OR c.source = $7) OFFSET 0",
            event("source", Kind::Text)?,
            table(Table::CompetitorEvents),
            theirs("id", Kind::Id)?,
            theirs("captured_at", Kind::Time)?,
            table(Table::CompetitorOddsSnapshots),
        );
        let competitors = Side {
            sql: with_markets(columns, names, &snapshots, Table::CompetitorMarketOdds)?,
            time: time_type(columns, Table::CompetitorOddsSnapshots),
        };
        Ok(Statements { own, competitors })
    }
}

/// The latest of these snapshots, each with the rows of the market.
fn with_markets(
    columns: &Columns<'_>,
    names: &Names,
    snapshots: &str,
    markets: Table,
) -> Result<String, Error> {
    let line = match columns.get(markets, "line") {
        Some(_) => "AND ($3::float8 IS NULL OR m.line = $3)",
        None => "AND $3::float8 IS NULL",
    };
    Ok(format!(
        "SELECT {}, s.id, s.captured_at, s.last_confirmed_at, s.bookmaker_id, s.source \
         FROM (SELECT * FROM ({snapshots}) a ORDER BY a.captured_at DESC, a.id DESC LIMIT $6) s \
         LEFT JOIN LATERAL (SELECT * FROM {} m WHERE m.snapshot_id = s.id OFFSET 0) m \
         ON m.betpawa_market_id = $2 {line} ORDER BY s.captured_at DESC, s.id DESC",
        columns.market_columns(markets)?,
        names.table(markets),
    ))
}

fn time_type(columns: &Columns<'_>, table: Table) -> Type {
    match columns.get(table, "captured_at") {
        Some("timestamptz") => Type::TIMESTAMPTZ,
        _ => Type::TIMESTAMP,
    }
}
