//! Reads rows in the transaction under way. What they say is all of one snapshot; memory is touched after COMMIT only.

use std::{pin::pin, sync::Arc};

use bytes::BytesMut;
use futures_util::TryStreamExt;
use hashbrown::HashMap;
use tokio_postgres::{
    Client, Row,
    types::{FromSql, IsNull, ToSql, Type, to_sql_checked},
};

use crate::{
    Error,
    catalog::Catalog,
    model::{Body, Micros},
    pack::{Bodies, MarketRow, Packer},
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

impl ToSql for PostgresTime {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.0.to_postgres().to_sql(ty, out)
    }

    fn accepts(ty: &Type) -> bool {
        <PostgresTime as FromSql>::accepts(ty)
    }

    to_sql_checked!();
}

/// Of one column.
pub(crate) fn time(row: &Row, index: usize) -> Result<Micros, tokio_postgres::Error> {
    Ok(row.try_get::<_, PostgresTime>(index)?.0)
}

/// The latest snapshot of an event and bookmaker, without its markets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head<K> {
    pub(crate) event_id: i64,
    /// Bookmaker id, or source.
    pub(crate) key: K,
    pub(crate) snapshot_id: i64,
    pub(crate) captured_at: Micros,
    pub(crate) last_confirmed_at: Option<Micros>,
}

/// What a read found of events and their latest snapshots.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    /// Of the events asked for those within the window.
    pub(crate) kickoffs: HashMap<i64, Micros>,
    pub(crate) betpawa: Vec<Head<i64>>,
    pub(crate) competitors: Vec<Head<String>>,
}

/// Market rows of this many snapshots are asked for at a time.
const SNAPSHOTS_PER_READ: usize = 1_000;

/// Malformed rows are named one by one up to here, per read.
const MOST_NAMED: usize = 20;

/// One transaction's eyes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'c> {
    pub(crate) client: &'c Client,
    pub(crate) catalog: &'c Catalog,
    /// Whether malformed rows are named in the log: where they are read for the first time.
    pub(crate) names_malformed: bool,
}

impl Reader<'_> {
    async fn rows(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, Error> {
        self.client
            .query_typed(sql, parameters)
            .await
            .map_err(Error::database(doing))
    }

    /// Everything within the window.
    pub(crate) async fn all_heads(&self, window_start: Micros) -> Result<Heads, Error> {
        let window = PostgresTime(window_start);
        let window: [(&(dyn ToSql + Sync), Type); 1] =
            [(&window, self.catalog.kickoff_type.clone())];
        Ok(Heads {
            kickoffs: self.all_kickoffs(window_start).await?,
            betpawa: self.named(
                &self
                    .rows(HEADS, &self.catalog.all_betpawa_heads, &window)
                    .await?,
            )?,
            competitors: self.named(
                &self
                    .rows(HEADS, &self.catalog.all_competitor_heads, &window)
                    .await?,
            )?,
        })
    }

    /// The kickoffs of all events within the window.
    pub(crate) async fn all_kickoffs(
        &self,
        window_start: Micros,
    ) -> Result<HashMap<i64, Micros>, Error> {
        let window = PostgresTime(window_start);
        let window: [(&(dyn ToSql + Sync), Type); 1] =
            [(&window, self.catalog.kickoff_type.clone())];
        kickoffs(
            &self
                .rows(EVENTS, &self.catalog.all_kickoffs, &window)
                .await?,
        )
    }

    /// The kickoffs of those of the given events that are within the window.
    pub(crate) async fn kickoffs(
        &self,
        window_start: Micros,
        event_ids: &[i64],
    ) -> Result<HashMap<i64, Micros>, Error> {
        let window = PostgresTime(window_start);
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [
            (&window, self.catalog.kickoff_type.clone()),
            (&event_ids, Type::INT8_ARRAY),
        ];
        kickoffs(
            &self
                .rows(EVENTS, &self.catalog.some_kickoffs, &parameters)
                .await?,
        )
    }

    /// The latest snapshots of the given events in `odds_snapshots`.
    pub(crate) async fn betpawa_heads(&self, event_ids: &[i64]) -> Result<Vec<Head<i64>>, Error> {
        self.heads(&self.catalog.some_betpawa_heads, event_ids)
            .await
    }

    /// The latest snapshots linked to the given events in `competitor_odds_snapshots`.
    pub(crate) async fn competitor_heads(
        &self,
        event_ids: &[i64],
    ) -> Result<Vec<Head<String>>, Error> {
        self.heads(&self.catalog.some_competitor_heads, event_ids)
            .await
    }

    async fn heads<K: for<'a> FromSql<'a>>(
        &self,
        sql: &str,
        event_ids: &[i64],
    ) -> Result<Vec<Head<K>>, Error> {
        if event_ids.is_empty() {
            return Ok(Vec::new());
        }
        self.named(
            &self
                .rows(HEADS, sql, &[(&event_ids, Type::INT8_ARRAY)])
                .await?,
        )
    }

    /// The heads in rows; names those that are malformed.
    fn named<K: for<'a> FromSql<'a>>(&self, rows: &[Row]) -> Result<Vec<Head<K>>, Error> {
        let heads = heads(rows)?;
        if self.names_malformed {
            let unknown = |head: &&Head<K>| head.captured_at == Micros::UNKNOWN;
            for head in heads.iter().filter(unknown).take(MOST_NAMED) {
                let snapshot_id = head.snapshot_id;
                tracing::warn!(
                    snapshot_id,
                    "malformed row: captured_at is null; it reads as 1970"
                );
            }
        }
        Ok(heads)
    }

    /// The events that the given competitor events are linked to.
    pub(crate) async fn linked_events(
        &self,
        competitor_event_ids: &[i64],
    ) -> Result<Vec<i64>, Error> {
        if competitor_event_ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self
            .rows(
                EVENTS,
                &self.catalog.linked_events,
                &[(&competitor_event_ids, Type::INT8_ARRAY)],
            )
            .await?;
        rows.iter()
            .map(|row| row.try_get(0).map_err(Error::database(EVENTS)))
            .collect()
    }

    /// The markets of snapshots in `odds_snapshots`; those without any are absent.
    pub(crate) async fn betpawa_markets(
        &self,
        ids: &[i64],
        packer: &mut Packer,
    ) -> Result<HashMap<i64, Arc<Body>>, Error> {
        self.markets("market_odds", &self.catalog.betpawa_markets, ids, packer)
            .await
    }

    /// The markets of snapshots in `competitor_odds_snapshots`; those without any are absent.
    pub(crate) async fn competitor_markets(
        &self,
        ids: &[i64],
        packer: &mut Packer,
    ) -> Result<HashMap<i64, Arc<Body>>, Error> {
        self.markets(
            "competitor_market_odds",
            &self.catalog.competitor_markets,
            ids,
            packer,
        )
        .await
    }

    async fn markets(
        &self,
        table: &'static str,
        sql: &str,
        ids: &[i64],
        packer: &mut Packer,
    ) -> Result<HashMap<i64, Arc<Body>>, Error> {
        let mut found = HashMap::with_capacity(ids.len());
        let mut malformed = 0;
        for ids in ids.chunks(SNAPSHOTS_PER_READ) {
            let mut bodies = Bodies::new(packer);
            let rows = self
                .client
                .query_typed_raw(sql, [(ids, Type::INT8_ARRAY)])
                .await
                .map_err(Error::database(MARKETS))?;
            let mut rows = pin!(rows);
            while let Some(row) = rows.try_next().await.map_err(Error::database(MARKETS))? {
                let (snapshot_id, row) = market(&row).map_err(Error::database(MARKETS))?;
                if let Some(problem) = bodies.push(snapshot_id, row) {
                    malformed += 1;
                    if malformed <= MOST_NAMED && self.names_malformed {
                        let row_id = row.row_id;
                        tracing::warn!(table, row_id, snapshot_id, %problem, "malformed row; what can be read of it is served");
                    }
                }
            }
            found.extend(bodies.finish());
        }
        if malformed > MOST_NAMED && self.names_malformed {
            tracing::warn!(
                table,
                rows = malformed,
                "malformed rows in one read; the first {MOST_NAMED} were named"
            );
        }
        Ok(found)
    }
}

const EVENTS: &str = "reading events";
const HEADS: &str = "reading the latest snapshots";
const MARKETS: &str = "reading markets";

fn kickoffs(rows: &[Row]) -> Result<HashMap<i64, Micros>, Error> {
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, time(row, 1)?)))
        .collect::<Result<_, _>>()
        .map_err(Error::database(EVENTS))
}

fn heads<K: for<'a> FromSql<'a>>(rows: &[Row]) -> Result<Vec<Head<K>>, Error> {
    let head = |row: &Row| -> Result<Head<K>, tokio_postgres::Error> {
        let time = |index| {
            Ok::<_, tokio_postgres::Error>(
                row.try_get::<_, Option<PostgresTime>>(index)?
                    .map(|time| time.0),
            )
        };
        let (captured_at, last_confirmed_at) = (time(3)?, time(4)?);
        Ok(Head {
            event_id: row.try_get(0)?,
            key: row.try_get(1)?,
            snapshot_id: row.try_get(2)?,
            captured_at: captured_at.unwrap_or(Micros::UNKNOWN),
            last_confirmed_at,
        })
    };
    rows.iter()
        .map(head)
        .collect::<Result<_, _>>()
        .map_err(Error::database(HEADS))
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
