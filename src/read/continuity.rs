//! Proves, after a lost connection, that the server still has the history that was read. The follower then goes on from
//! its cursor, in the same epoch. Otherwise it reads everything into a new epoch.
//!
//! A server may lose history by a crash, a restore or a failover. The run of the server tells these (CC1). It does not
//! tell that a machine was put back to a snapshot with its memory, because the processes then go on as if nothing had
//! happened: transactions are gone, and others get their ids. The other conditions find that out.
//!
//! # Invariants
//! The follower goes on only if all of these hold. The transaction that reads the changes checks them, so what is proven
//! is what is read.
//!
//! - CC1: The server has run on: [`Server::has_run_on_since`](crate::model::Server::has_run_on_since).
//! - CC2: Nothing has gone back: the snapshot shows every transaction that the cursor's snapshot shows, and neither the
//!   position in the write-ahead log, nor the clock (beyond a small correction), nor `pruned_below` is less than at the
//!   last read.
//! - CC3: The log rows of the last read that found any are still there, with the same transaction, id, time and table. An
//!   id is a position in the write-ahead log, and a time has microseconds, so no other history repeats them. If the
//!   machine was put back to a time before that read, then the rows that were committed in between are gone. If it was
//!   put back to a later time, then no log row is gone.
//! - CC4: There is no log row that the cursor takes for read, though nobody read it. If no log row is gone, then each id
//!   that was assigned again is greater than that of every log row read. So it suffices to look between these and the
//!   cursor.
//! - CC5: No log row that CC3 or CC4 looks for can have been pruned since the last read.
//!
//! A quiet database may have pruned all log rows before the last read. Then CC3 asks for none. If the machine was put
//! back to a time before these rows were pruned, then `pruned_below` differs (CC2, CC5).
//!
//! After a read of everything nothing tells which log rows were committed last. The [`NEWEST`] rows with the greatest
//! ids stand for them. So one case remains, until a read of changes finds a log row: a machine is put back with its
//! memory, the only transaction that it loses began before [`NEWEST`] others, and the ids have caught up with the cursor.
//! The audit would find that change.

use hashbrown::HashSet;
use tokio_postgres::Client;

use crate::{
    error::Error,
    read::change_log::{Cursor, LogEntry},
};

const DOING: &str = "proving continuity";

/// How many log rows to remember after a read of everything.
const NEWEST: usize = 64;

/// Log rows that the server must still have.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// The log rows of the last read that found any.
    rows: Vec<LogEntry>,
    /// The greatest transaction id of a log row that was read; 0 without any.
    newest_xid: u64,
}

/// Why continuity is not proven.
pub(crate) type Doubt = &'static str;

impl Evidence {
    /// The evidence after a read of everything in the current transaction.
    pub(crate) async fn newest(client: &Client, log: &str) -> Result<Evidence, Error> {
        let columns = LogEntry::COLUMNS;
        let sql = format!("SELECT {columns} FROM {log} ORDER BY xid DESC, id DESC LIMIT {NEWEST}");
        let mut evidence = Evidence::default();
        evidence.read(entries(client, &sql).await?);
        Ok(evidence)
    }

    /// Notes the log rows that a read of changes found. Call it once the read is applied.
    pub(crate) fn read(&mut self, rows: Vec<LogEntry>) {
        if let Some(newest) = rows.iter().map(|row| row.xid).max() {
            self.newest_xid = self.newest_xid.max(newest);
            self.rows = rows;
        }
    }

    /// The rows that had not been pruned at the last read.
    fn rows_from(&self, pruned_below: u64) -> impl Iterator<Item = &LogEntry> {
        self.rows.iter().filter(move |row| row.xid >= pruned_below)
    }

    /// Whether a log row may be pruned now that CC3 or CC4 looks for (CC5), or whether `pruned_below` went back (CC2).
    fn is_pruned(&self, before: u64, now: u64) -> bool {
        let xids = self.rows_from(before).map(|row| row.xid);
        let first = xids.min().unwrap_or(self.newest_xid + 1);
        now < before || now > before && now > first
    }

    /// Looks in the log, in the current transaction (CC3, CC4, CC5). `pruned_below` is that of the last read and that
    /// of this transaction. Takes two round trips. The cost grows with the log rows of one read.
    pub(crate) async fn prove(
        &self,
        client: &Client,
        log: &str,
        cursor: &Cursor,
        pruned_below: (u64, u64),
    ) -> Result<Result<(), Doubt>, Error> {
        let (before, now) = pruned_below;
        if self.is_pruned(before, now) {
            return Ok(Err("the change log was pruned meanwhile"));
        }
        let expected: HashSet<&LogEntry> = self.rows_from(before).collect();
        let list = |value: fn(&LogEntry) -> String| {
            let values: Vec<String> = expected.iter().map(|row| value(row)).collect();
            format!("'{{{}}}'", values.join(","))
        };
        // The range is for the planner, which knows nothing of a list.
        let xids = || expected.iter().map(|row| row.xid);
        let sql = format!(
            "SELECT {columns} FROM {log} WHERE xid >= '{first}'::xid8 AND xid <= '{last}'::xid8 \
             AND (xid, id) IN (SELECT n.xid, n.id FROM unnest({}::xid8[], {}::int8[]) AS n (xid, id))",
            list(|row| row.xid.to_string()),
            list(|row| row.id.to_string()),
            columns = LogEntry::COLUMNS,
            first = xids().min().unwrap_or(0),
            last = xids().max().unwrap_or(0),
        );
        let found = entries(client, &sql).await?;
        if found.iter().filter(|row| expected.contains(row)).count() < expected.len() {
            return Ok(Err("log rows that were read are gone"));
        }
        let (end, in_progress) = cursor.read_below();
        let sql = format!(
            "SELECT EXISTS (SELECT FROM {log} WHERE xid > '{}'::xid8 AND xid < '{end}'::xid8 \
             AND xid <> ALL ('{in_progress}'::xid8[]))",
            self.newest_xid
        );
        let rows = client.query_typed(&sql, &[]).await;
        let rows = rows.map_err(Error::database(DOING))?;
        let row = rows
            .first()
            .ok_or_else(|| Error::unexpected(DOING, "no answer"))?;
        match row.try_get(0).map_err(Error::database(DOING))? {
            true => Ok(Err("transaction ids were assigned again")),
            false => Ok(Ok(())),
        }
    }
}

async fn entries(client: &Client, sql: &str) -> Result<Vec<LogEntry>, Error> {
    let rows = client.query_typed(sql, &[]).await;
    let rows = rows.map_err(Error::database(DOING))?;
    rows.iter()
        .map(|row| LogEntry::read(row).map_err(Error::database(DOING)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Micros;

    #[test]
    fn evidence_that_was_pruned_meanwhile_proves_nothing() {
        let row = |xid| LogEntry {
            xid,
            id: 1,
            at: Micros(0),
            table: None,
        };
        let mut evidence = Evidence::default();
        evidence.read(vec![row(20), row(12)]);
        evidence.read(Vec::new());
        assert!(!evidence.is_pruned(10, 10), "nothing was pruned");
        assert!(!evidence.is_pruned(10, 12), "only older rows");
        assert!(evidence.is_pruned(10, 13), "a row that is expected");
        assert!(evidence.is_pruned(10, 9), "went back");
        // All rows were pruned before the last read.
        assert!(!evidence.is_pruned(21, 21));
        assert!(evidence.is_pruned(21, 22), "rows that nobody read may be");
        assert!(!evidence.is_pruned(13, 20), "the older of the two");
    }
}
