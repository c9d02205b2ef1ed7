//! The change feed: which log rows are new since the last read, and what they say must be read again.
//!
//! | invariant | |
//! |---|---|
//! | F1 | a log row is read by exactly one read of a cursor's life: the first whose snapshot shows it |
//! | F2 | what cannot be understood or is too much becomes a reload of everything, never a row left out |

use std::{collections::BTreeSet, error::Error as StdError, pin::pin};

use futures_util::TryStreamExt;
use hashbrown::HashSet;
use tokio_postgres::{
    Client, Row, RowStream,
    types::{FromSql, Type},
};

use crate::{
    error::Error,
    metrics::reload::{Reload, ReloadReason},
    model::{Micros, PgSnapshot},
    postgres::statement::{Arg, Prepared, Statement},
    read::rows::time,
    sql::Table,
};

const DOING: &str = "reading the change log";

/// More new log rows than this, or more keys in them, are not looked at one by one.
const MOST_ROWS: usize = 20_000;
const MOST_KEYS: usize = 100_000;

/// Where the next read begins.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    snapshot: PgSnapshot,
    /// On a standby, whose snapshots do not list what was in progress: ids of the log rows from `xmin` on that were read.
    seen: Option<HashSet<LogRow>>,
}

impl Cursor {
    /// Where the next read begins, once what `snapshot` shows is applied.
    pub(crate) fn new(snapshot: PgSnapshot, seen: Option<HashSet<LogRow>>) -> Cursor {
        Cursor { snapshot, seen }
    }

    /// All transactions below had ended, and are read.
    pub(crate) fn xmin(&self) -> u64 {
        self.snapshot.xmin
    }

    /// The first transaction that it does not show, nor any after it.
    pub(crate) fn xmax(&self) -> u64 {
        self.snapshot.xmax
    }

    /// Whether it is of a standby.
    pub(crate) fn is_of_standby(&self) -> bool {
        self.seen.is_some()
    }

    /// Whether `snapshot`, of the same primary, shows nothing but what was read: no transaction has ended since. On a standby
    /// equal snapshots say nothing.
    pub(crate) fn is_at(&self, snapshot: &PgSnapshot) -> bool {
        !self.is_of_standby() && self.snapshot == *snapshot
    }

    /// Whether a snapshot is of an earlier state than the last read, which no server comes to by itself.
    pub(crate) fn is_after(&self, snapshot: &PgSnapshot) -> bool {
        self.snapshot.xmax > snapshot.xmax
    }

    /// Whether rows that this cursor has not read may have been pruned.
    pub(crate) fn is_pruned(&self, pruned_below: u64) -> bool {
        self.snapshot.xmin < pruned_below
    }
}

/// The keys that must be read again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ChangeSet {
    /// Ids of events whose row changed.
    pub(crate) events: BTreeSet<i64>,
    /// Ids of events whose rows in `odds_snapshots` changed.
    pub(crate) betpawa: BTreeSet<i64>,
    /// Ids of events whose linked rows in `competitor_events` changed, or that are or were linked to them.
    pub(crate) competitors: BTreeSet<i64>,
    /// Ids of competitor events whose rows in `competitor_odds_snapshots` changed.
    pub(crate) competitor_events: BTreeSet<i64>,
    /// Ids of snapshots whose rows in `market_odds` changed.
    pub(crate) betpawa_markets: BTreeSet<i64>,
    /// Ids of snapshots whose rows in `competitor_market_odds` changed.
    pub(crate) competitor_markets: BTreeSet<i64>,
}

/// In `table_name`, where no table is meant.
const HEARTBEAT: &str = "heartbeat";
const RESYNC: &str = "resync";

impl ChangeSet {
    pub(crate) fn is_empty(&self) -> bool {
        *self == ChangeSet::default()
    }

    /// Adds what a log row names.
    fn add(
        &mut self,
        table_name: &str,
        keys: Option<Vec<i64>>,
        note: Option<&str>,
    ) -> Result<(), Reload> {
        if table_name == RESYNC {
            return Err(ReloadReason::Asked.into());
        }
        if let Some(note) = note {
            // What follows the SQLSTATE may quote data.
            let code = note.split(' ').next().filter(|code| code.len() == 5);
            return Err(Reload::about(
                ReloadReason::Trouble,
                code.unwrap_or("no SQLSTATE"),
            ));
        }
        let set = match Table::of_name(table_name) {
            Some(Table::Events) => &mut self.events,
            Some(Table::OddsSnapshots) => &mut self.betpawa,
            Some(Table::CompetitorEvents) => &mut self.competitors,
            Some(Table::CompetitorOddsSnapshots) => &mut self.competitor_events,
            Some(Table::MarketOdds) => &mut self.betpawa_markets,
            Some(Table::CompetitorMarketOdds) => &mut self.competitor_markets,
            None if table_name == HEARTBEAT => return Ok(()),
            None => return Err(ReloadReason::NotUnderstood.into()),
        };
        let keys = keys.ok_or_else(|| Reload::about(ReloadReason::WholeTable, table_name))?;
        // At once is faster than one by one, unless it is little: a merge goes through all that are there.
        match keys.len() * 8 > set.len() {
            true => set.append(&mut keys.into_iter().collect()),
            false => set.extend(keys),
        }
        Ok(())
    }
}

/// What the log says.
#[derive(Debug)]
pub(crate) struct Changed {
    /// How many log rows were new.
    pub(crate) rows: usize,
    /// What to read again.
    pub(crate) change_set: ChangeSet,
    /// When the last statement of each transaction was logged, by its server's clock; heartbeats are left out.
    pub(crate) logged: Vec<Micros>,
}

/// The cursor of a read of everything.
pub(crate) async fn start(
    client: &Client,
    log: &str,
    snapshot: PgSnapshot,
    standby: bool,
) -> Result<Cursor, Error> {
    let seen = if standby {
        Some(ids_between(client, log, snapshot.xmin, snapshot.xmax).await?)
    } else {
        None
    };
    Ok(Cursor { snapshot, seen })
}

/// What the log rows say that `cursor` has not read and the transaction under way can see; or why everything must be read.
/// On a primary, by [`exactly_new`]: nothing of the transaction need be known yet.
pub(crate) async fn read(
    client: &Client,
    prepared: Option<&Prepared>,
    exactly_new: &Statement,
    cursor: &Cursor,
) -> Result<Result<Changed, Reload>, Error> {
    let (xmax, in_progress) = cursor.snapshot.bounds();
    let args = [Arg::Text(&xmax), Arg::Text(&in_progress)];
    let new_rows = exactly_new.stream(client, prepared, &args).await;
    collect(new_rows.map_err(Error::database(DOING))?).await
}

/// A log row: the transaction, and the id, which is unique within it.
pub(crate) type LogRow = (u64, i64);

/// The same on a standby, with `snapshot`, that of the transaction; and which rows it shows.
pub(crate) async fn read_on_standby(
    client: &Client,
    log: &str,
    cursor: &Cursor,
    snapshot: &PgSnapshot,
) -> Result<Result<(Changed, HashSet<LogRow>), Reload>, Error> {
    // Promoted meanwhile, or another server: no rule of reading on holds.
    let Some(before) = &cursor.seen else {
        return Ok(Err(ReloadReason::ConnectionLost.into()));
    };
    // Rows below the new xmin come no more, so those from the old one on suffice.
    let (from, to) = (cursor.snapshot.xmin, snapshot.xmax);
    let seen = ids_between(client, log, from, to).await?;
    let new = || seen.difference(before).take(MOST_ROWS + 1);
    let xids: Vec<String> = new().map(|(xid, _)| xid.to_string()).collect();
    let ids: Vec<String> = new().map(|(_, id)| id.to_string()).collect();
    let sql = format!(
        "SELECT {COLUMNS} FROM {log} WHERE xid >= '{from}'::xid8 AND xid < '{to}'::xid8 \
         AND (xid, id) IN (SELECT n.xid, n.id FROM unnest('{{{}}}'::xid8[], '{{{}}}'::int8[]) AS n (xid, id)) ORDER BY xid, id",
        xids.join(","),
        ids.join(",")
    );
    let none: [(&str, Type); 0] = [];
    let new_rows = client.query_typed_raw(&sql, none).await;
    let changed = collect(new_rows.map_err(Error::database(DOING))?).await?;
    Ok(changed.map(|changed| (changed, seen)))
}

async fn collect(new_rows: RowStream) -> Result<Result<Changed, Reload>, Error> {
    let mut new_rows = pin!(new_rows);
    let (mut change_set, mut rows, mut keys) = (ChangeSet::default(), 0, 0);
    let (mut logged, mut last) = (Vec::new(), None);
    while let Some(row) = new_rows.try_next().await.map_err(Error::database(DOING))? {
        let column = || -> Result<_, tokio_postgres::Error> {
            Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
        };
        let (table_name, named, note): (&str, Option<Vec<i64>>, Option<&str>) =
            column().map_err(Error::database(DOING))?;
        if table_name != HEARTBEAT {
            let (xid, at) = written(&row).map_err(Error::database(DOING))?;
            // Rows of a transaction come one after the other.
            match logged.last_mut() {
                Some(logged) if last == Some(xid) => *logged = at.max(*logged),
                _ => logged.push(at),
            }
            last = Some(xid);
        }
        rows += 1;
        keys += named.as_ref().map_or(0, Vec::len);
        if rows > MOST_ROWS || keys > MOST_KEYS {
            return Ok(Err(ReloadReason::TooManyRows.into()));
        }
        if let Err(reload) = change_set.add(table_name, named, note) {
            return Ok(Err(reload));
        }
    }
    Ok(Ok(Changed {
        rows,
        change_set,
        logged,
    }))
}

const COLUMNS: &str = "table_name, keys, note, xid, at";

/// By which transaction, and when.
fn written(row: &Row) -> Result<(u64, Micros), tokio_postgres::Error> {
    Ok((row.try_get::<_, Xid>(3)?.0, time(row, 4)?))
}

/// An `xid8`.
struct Xid(u64);

impl<'a> FromSql<'a> for Xid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Xid, Box<dyn StdError + Sync + Send>> {
        Ok(Xid(u64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::XID8
    }
}

/// On a primary: exactly the transactions that the cursor's snapshot did not show. Its cost does not grow with the age of
/// the oldest transaction, nor with the log.
pub(crate) fn exactly_new(log: &str) -> Statement {
    // The planner must use the primary key even where the log was never analyzed. It takes a range with one end for a third
    // of the table, and a long list for all of it: hence the upper end, above which the snapshot shows nothing anyway, and
    // the look-up of one transaction after the other.
    let sql = format!(
        "(SELECT {COLUMNS} FROM {log} WHERE xid >= $1::xid8 AND xid < pg_snapshot_xmax(pg_current_snapshot()) ORDER BY xid LIMIT {limit}) \
         UNION ALL (SELECT l.* FROM unnest($2::xid8[]) AS writer (id), LATERAL \
         (SELECT {COLUMNS} FROM {log} WHERE xid = writer.id LIMIT {limit}) AS l LIMIT {limit})",
        limit = MOST_ROWS + 1,
    );
    Statement::new("new_log_rows", sql, [Type::TEXT, Type::TEXT])
}

/// On a standby: all rows from the cursor's `xmin` on, among which the caller knows those it has read. Its cost
/// grows with what was logged since the oldest transaction in progress began. The upper end, the snapshot's `xmax`, is there
/// for the planner as in [`exactly_new`].
async fn ids_between(
    client: &Client,
    log: &str,
    from: u64,
    to: u64,
) -> Result<HashSet<LogRow>, Error> {
    let sql =
        format!("SELECT xid, id FROM {log} WHERE xid >= '{from}'::xid8 AND xid < '{to}'::xid8");
    let rows = client
        .query_typed(&sql, &[])
        .await
        .map_err(Error::database(DOING))?;
    rows.iter()
        .map(|row| {
            let row = || Ok((row.try_get::<_, Xid>(0)?.0, row.try_get(1)?));
            row().map_err(Error::database(DOING))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_does_not_say_what_was_in_progress() {
        let primary = PgSnapshot::parse("10:20:10,14").expect("a snapshot");
        let shown: Vec<u64> = (8..22).filter(|xid| primary.shows(*xid, false)).collect();
        assert_eq!(shown, [8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
        let standby = PgSnapshot::parse("10:20:").expect("a snapshot");
        assert!(standby.shows(9, true) && !standby.shows(10, true));
    }

    #[test]
    fn what_is_not_understood_becomes_a_reload() {
        let mut change_set = ChangeSet::default();
        assert_eq!(change_set.add("market_odds", Some(vec![7]), None), Ok(()));
        assert_eq!(change_set.betpawa_markets, BTreeSet::from([7]));
        assert_eq!(
            change_set.add("market_odds", None, None),
            Err(Reload::about(ReloadReason::WholeTable, "market_odds"))
        );
        assert_eq!(
            change_set.add("players", Some(vec![7]), None),
            Err(ReloadReason::NotUnderstood.into())
        );
        assert_eq!(
            change_set.add("events", None, Some("42703")),
            Err(Reload::about(ReloadReason::Trouble, "42703"))
        );
        assert_eq!(
            change_set.add("resync", None, Some("ASKED by hand")),
            Err(ReloadReason::Asked.into())
        );
        assert_eq!(change_set.add("heartbeat", Some(vec![]), None), Ok(()));
    }
}
