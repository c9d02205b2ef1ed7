//! The change log: which of its rows are new since the last read, and which keys they name.
//!
//! # Invariants
//! - F1: After a read of everything, each new log row is read exactly once: by the first read whose snapshot shows it.
//! - F2: No log row is left out. If a row does not name its keys, they count as all keys of its table. If a row is not
//!   understood, or there are too many, everything is read again.

use std::{error::Error as StdError, pin::pin};

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
    read::{
        keys::{Coarser, Keys},
        rows::time,
    },
    sql::Table,
};

const DOING: &str = "reading the change log";

/// If there are more new log rows than this, everything is read again. This bounds memory.
const MOST_ROWS: usize = 20_000;

/// Where the next read of the log begins: at the `pg_snapshot` of the last read. A log row is new if its transaction
/// was not visible in that snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    snapshot: PgSnapshot,
    /// The keys of the log rows from `xmin` on that were read. Set only on a standby: its snapshots do not list the
    /// transactions in progress, so without these keys the next read could not tell which rows are new.
    seen: Option<HashSet<LogRow>>,
}

impl Cursor {
    /// The cursor after a read at `snapshot` was applied.
    pub(crate) fn new(snapshot: PgSnapshot, seen: Option<HashSet<LogRow>>) -> Cursor {
        Cursor { snapshot, seen }
    }

    /// Every transaction with a smaller id had ended, and its log rows were read.
    pub(crate) fn xmin(&self) -> u64 {
        self.snapshot.xmin
    }

    /// No transaction with this id or a greater one was visible.
    pub(crate) fn xmax(&self) -> u64 {
        self.snapshot.xmax
    }

    /// Whether the last read was made on a standby.
    pub(crate) fn is_of_standby(&self) -> bool {
        self.seen.is_some()
    }

    /// Whether no transaction has ended on the same primary between the last read and `snapshot`. False on a standby,
    /// where equal snapshots prove nothing.
    pub(crate) fn is_at(&self, snapshot: &PgSnapshot) -> bool {
        !self.is_of_standby() && self.snapshot == *snapshot
    }

    /// Whether `snapshot` is older than the last read. No server goes back by itself: it was restored or replaced.
    pub(crate) fn is_after(&self, snapshot: &PgSnapshot) -> bool {
        self.snapshot.xmax > snapshot.xmax
    }

    /// Whether `snapshot`, of the same server, shows every transaction that the last read saw. A standby's snapshots do not
    /// tell.
    pub(crate) fn is_shown_by(&self, snapshot: &PgSnapshot) -> bool {
        self.is_of_standby() || snapshot.shows_all_of(&self.snapshot)
    }

    /// Every log row of a transaction below the first id was read, except of those in the second, an array. On a standby
    /// further rows may have been read.
    pub(crate) fn read_below(&self) -> (String, String) {
        match self.is_of_standby() {
            true => (self.xmin().to_string(), "{}".to_owned()),
            false => self.snapshot.bounds(),
        }
    }

    /// Whether somebody may have pruned log rows that this cursor has not read.
    pub(crate) fn is_pruned(&self, pruned_below: u64) -> bool {
        self.snapshot.xmin < pruned_below
    }
}

/// The keys that must be read again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ChangeSet {
    /// Ids of events whose row changed.
    pub(crate) events: Keys,
    /// Ids of events whose rows in `odds_snapshots` changed.
    pub(crate) betpawa: Keys,
    /// Ids of events to which a changed row of `competitor_events` is or was linked.
    pub(crate) competitors: Keys,
    /// Ids of competitor events whose rows in `competitor_odds_snapshots` changed.
    pub(crate) competitor_events: Keys,
    /// Ids of snapshots whose rows in `market_odds` changed.
    pub(crate) betpawa_markets: Keys,
    /// Ids of snapshots whose rows in `competitor_market_odds` changed.
    pub(crate) competitor_markets: Keys,
}

/// The `note` of a log row whose keys are numbers of blocks of keys.
const BLOCKS: &str = "BLOCKS";

/// Values of `table_name` that name no table: a heartbeat of an older follower, and a call of `oddscache.resync()`.
const HEARTBEAT: &str = "heartbeat";
const RESYNC: &str = "resync";

impl ChangeSet {
    pub(crate) fn is_empty(&self) -> bool {
        *self == ChangeSet::default()
    }

    /// The changed keys of a table.
    pub(crate) fn of(&mut self, table: Table) -> &mut Keys {
        match table {
            Table::Events => &mut self.events,
            Table::OddsSnapshots => &mut self.betpawa,
            Table::CompetitorEvents => &mut self.competitors,
            Table::CompetitorOddsSnapshots => &mut self.competitor_events,
            Table::MarketOdds => &mut self.betpawa_markets,
            Table::CompetitorMarketOdds => &mut self.competitor_markets,
        }
    }

    fn sets(&self) -> [(Table, &Keys); 6] {
        [
            (Table::Events, &self.events),
            (Table::OddsSnapshots, &self.betpawa),
            (Table::CompetitorEvents, &self.competitors),
            (Table::CompetitorOddsSnapshots, &self.competitor_events),
            (Table::MarketOdds, &self.betpawa_markets),
            (Table::CompetitorMarketOdds, &self.competitor_markets),
        ]
    }

    /// The tables of which the log does not name each changed key.
    pub(crate) fn coarse(&self) -> impl Iterator<Item = Table> {
        let sets = self.sets().into_iter();
        sets.filter(|(_, keys)| keys.is_coarse())
            .map(|(table, _)| table)
    }

    /// Whether the latest snapshots of all events must be looked up again.
    pub(crate) fn has_all_headers(&self) -> bool {
        let sets = self.sets().into_iter();
        let headers = sets.filter(|(table, _)| !table.has_markets());
        headers.into_iter().any(|(_, keys)| keys.is_all())
    }

    /// Adds all keys of the tables that have no markets.
    pub(crate) fn add_all_headers(&mut self) {
        for table in Table::ALL {
            if !table.has_markets() {
                self.of(table).add_all();
            }
        }
    }

    /// How many keys are named one by one.
    pub(crate) fn named(&self) -> usize {
        self.sets().iter().map(|(_, keys)| keys.named().len()).sum()
    }

    /// Adds the keys that a log row names. An error is the reason to read everything (F2).
    fn add(
        &mut self,
        table_name: &str,
        keys: Option<Vec<i64>>,
        note: Option<&str>,
    ) -> Result<(), Reload> {
        let Some(table) = Table::of_name(table_name) else {
            return match table_name {
                HEARTBEAT => Ok(()),
                _ => Err(ReloadReason::NotUnderstood.into()),
            };
        };
        // An event or a link has no neighbours by id, so blocks of their keys would name nothing.
        let coarser = match table.has_markets() {
            true => Coarser::Blocks,
            false => Coarser::All,
        };
        match (note, keys) {
            (None, Some(keys)) => self.of(table).extend(keys, coarser),
            (Some(BLOCKS), Some(blocks)) if coarser == Coarser::Blocks => {
                self.of(table).add_blocks(blocks);
            }
            (None | Some(BLOCKS), _) => self.of(table).add_all(),
            (Some(note), _) => {
                // Keep only the SQLSTATE: the rest of the note may quote data of a row, and anybody can see this text.
                let code = note.split(' ').next().filter(|code| code.len() == 5);
                return Err(Reload::about(
                    ReloadReason::Trouble,
                    code.unwrap_or("no SQLSTATE"),
                ));
            }
        }
        Ok(())
    }
}

/// What the new log rows say.
#[derive(Debug)]
pub(crate) struct Changed {
    /// How many log rows were new.
    pub(crate) rows: usize,
    /// The greatest transaction id among them; 0 without any. Heartbeats are left out.
    pub(crate) newest_xid: u64,
    /// What identifies each of them.
    pub(crate) entries: Vec<LogEntry>,
    /// The keys that must be read again.
    pub(crate) change_set: ChangeSet,
    /// Whether somebody called `oddscache.resync()`.
    pub(crate) is_requested: bool,
    /// For each transaction the time of its last log row, by the server's clock in UTC. Heartbeats are left out.
    pub(crate) logged: Vec<Micros>,
}

/// The cursor after a read of everything at `snapshot`.
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

/// Reads on a primary the log rows that the current transaction sees and `cursor` has not read, or returns why
/// everything must be read. Runs the statement of [`exactly_new`], which does not need to know the snapshot of the
/// transaction.
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

/// The primary key of a log row: transaction id and row id.
pub(crate) type LogRow = (u64, i64);

/// Reads the same on a standby, where `snapshot` is that of the current transaction. Returns also the keys of the
/// visible log rows, which become [`Cursor::seen`].
///
/// A standby's snapshot does not say which transactions were in progress. So this reads the keys of all log rows since
/// the cursor's `xmin`, and compares them with the keys seen before.
pub(crate) async fn read_on_standby(
    client: &Client,
    log: &str,
    cursor: &Cursor,
    snapshot: &PgSnapshot,
) -> Result<Result<(Changed, HashSet<LogRow>), Reload>, Error> {
    // The cursor is of a primary, so the server was replaced, and the cursor cannot be trusted.
    let Some(before) = &cursor.seen else {
        return Ok(Err(ReloadReason::ConnectionLost.into()));
    };
    // Every transaction below the old xmin had ended, so it can add no rows.
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
    let (mut change_set, mut rows, mut is_requested) = (ChangeSet::default(), 0, false);
    let (mut logged, mut last, mut newest_xid) = (Vec::new(), None, 0);
    let mut entries = Vec::new();
    while let Some(row) = new_rows.try_next().await.map_err(Error::database(DOING))? {
        let column = || -> Result<_, tokio_postgres::Error> {
            Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
        };
        let (table_name, named, note): (&str, Option<Vec<i64>>, Option<&str>) =
            column().map_err(Error::database(DOING))?;
        let entry = LogEntry::of(table_name, &row).map_err(Error::database(DOING))?;
        let LogEntry { xid, at, .. } = entry;
        entries.push(entry);
        if table_name != HEARTBEAT {
            // The rows of a transaction follow each other, so comparing with the row before tells transactions apart.
            match logged.last_mut() {
                Some(logged) if last == Some(xid) => *logged = at.max(*logged),
                _ => logged.push(at),
            }
            last = Some(xid);
            newest_xid = newest_xid.max(xid);
        }
        // Checked for each row, so that memory stays bounded however much the server sends (F2).
        rows += 1;
        if rows > MOST_ROWS {
            return Ok(Err(ReloadReason::TooManyRows.into()));
        }
        if table_name == RESYNC {
            is_requested = true;
            continue;
        }
        if let Err(reload) = change_set.add(table_name, named, note) {
            return Ok(Err(reload));
        }
    }
    Ok(Ok(Changed {
        rows,
        newest_xid,
        entries,
        change_set,
        is_requested,
        logged,
    }))
}

const COLUMNS: &str = "table_name, keys, note, xid, at, id";

/// What identifies a log row: no other row, of whatever history, has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LogEntry {
    pub(crate) xid: u64,
    /// A position in the write-ahead log.
    pub(crate) id: i64,
    /// When the row was logged.
    pub(crate) at: Micros,
    /// `None` for a row that names no table.
    pub(crate) table: Option<Table>,
}

impl LogEntry {
    /// The columns that [`LogEntry::read`] takes: those of [`COLUMNS`] without the long ones.
    pub(crate) const COLUMNS: &str = "table_name, NULL, NULL, xid, at, id";

    pub(crate) fn read(row: &Row) -> Result<LogEntry, tokio_postgres::Error> {
        LogEntry::of(row.try_get(0)?, row)
    }

    fn of(table_name: &str, row: &Row) -> Result<LogEntry, tokio_postgres::Error> {
        Ok(LogEntry {
            xid: row.try_get::<_, Xid>(3)?.0,
            id: row.try_get(5)?,
            at: time(row, 4)?,
            table: Table::of_name(table_name),
        })
    }
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

/// The statement for a primary: `(xmax of the cursor, its transactions in progress)` -> log rows of exactly the
/// transactions that were not visible in the cursor's snapshot.
///
/// A transaction was not visible if its id is at least `xmax`, or if it was in progress. The cost grows with the new
/// rows. It does not grow with the size of the log, nor with the age of the oldest transaction.
pub(crate) fn exactly_new(log: &str) -> Statement {
    // The planner must use the primary key even if the log was never analyzed. Without statistics it assumes that an
    // open range selects a third of the table. So the range has an upper end; no row is visible beyond it anyway. The
    // planner also assumes that a long list selects the whole table. So LATERAL looks up one transaction after the
    // other.
    let sql = format!(
        "(SELECT {COLUMNS} FROM {log} WHERE xid >= $1::xid8 AND xid < pg_snapshot_xmax(pg_current_snapshot()) ORDER BY xid LIMIT {limit}) \
         UNION ALL (SELECT l.* FROM unnest($2::xid8[]) AS writer (id), LATERAL \
         (SELECT {COLUMNS} FROM {log} WHERE xid = writer.id LIMIT {limit}) AS l LIMIT {limit})",
        limit = MOST_ROWS + 1,
    );
    Statement::new("new_log_rows", sql, [Type::TEXT, Type::TEXT])
}

/// The keys of all visible log rows of the transactions from `from` to before `to`.
///
/// The cost grows with the rows logged since the oldest transaction in progress began. `to` is the snapshot's `xmax`.
/// No row from it on is visible, so it only helps the planner, as in [`exactly_new`].
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
    fn a_snapshot_of_a_standby_shows_nothing_from_xmin_on() {
        let primary = PgSnapshot::parse("10:20:10,14").expect("a snapshot");
        let shown: Vec<u64> = (8..22).filter(|xid| primary.shows(*xid, false)).collect();
        assert_eq!(shown, [8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
        let standby = PgSnapshot::parse("10:20:").expect("a snapshot");
        assert!(standby.shows(9, true) && !standby.shows(10, true));
    }

    #[test]
    fn a_log_row_that_is_not_understood_becomes_a_reload() {
        let mut change_set = ChangeSet::default();
        for (table, note, reason) in [
            ("players", None, ReloadReason::NotUnderstood.into()),
            (
                "events",
                Some("42703 no such column"),
                Reload::about(ReloadReason::Trouble, "42703"),
            ),
        ] {
            assert_eq!(change_set.add(table, Some(vec![7]), note), Err(reason));
        }
        assert_eq!(change_set.add("heartbeat", Some(vec![]), None), Ok(()));
        assert!(change_set.is_empty());
    }

    #[test]
    fn a_log_row_without_keys_names_all_of_its_table() {
        let mut change_set = ChangeSet::default();
        let mut add = |table, keys, note| change_set.add(table, keys, note).expect("understood");
        add("market_odds", Some(vec![7]), None);
        add("competitor_market_odds", Some(vec![1]), Some(BLOCKS));
        add("events", None, None);
        // Only snapshots are logged in blocks.
        add("odds_snapshots", Some(vec![1]), Some(BLOCKS));
        assert_eq!(change_set.betpawa_markets, Keys::from([7]));
        assert!(change_set.competitor_markets.contains(1024));
        assert!(!change_set.competitor_markets.contains(1023));
        assert!(change_set.events.is_all() && change_set.betpawa.is_all());
        let coarse: Vec<Table> = change_set.coarse().collect();
        assert_eq!(
            coarse,
            [
                Table::Events,
                Table::OddsSnapshots,
                Table::CompetitorMarketOdds
            ]
        );
        assert!(change_set.has_all_headers());
    }
}
