//! Finds rows that the server cannot send, and reads all others: see [`crate::read::unreadable`].

use std::sync::Arc;

use hashbrown::HashMap;
use tokio_postgres::Row;

use crate::{
    error::Error,
    model::{Micros, PackedMarkets},
    postgres::statement::{Answer, Arg, Statement},
    read::{
        rows::{EVENTS, EventRow, MARKETS, Reader, Side, kickoffs, latest},
        unreadable::Search,
    },
    sql::Table,
    store::draft::Draft,
};

const DOING: &str = "reading around a row";

/// The most keys that one statement reads.
const SHARE: usize = 1_000;

/// The same for markets, whose rows are collected before they are packed.
const SHARE_OF_MARKETS: usize = 100;

/// If a snapshot has more unreadable rows, all that are left count as such. This bounds the time.
const MOST_ROWS: usize = 32;

impl Reader<'_> {
    /// Runs a statement inside a savepoint. If the server cannot send a row, returns `Ok(Err(_))` and rolls back to the
    /// savepoint, so the transaction is usable.
    async fn in_savepoint<T>(
        &self,
        statement: impl Future<Output = Result<T, Error>>,
    ) -> Result<Result<T, Error>, Error> {
        let run = async |sql| {
            self.client
                .batch_execute(sql)
                .await
                .map_err(Error::database(DOING))
        };
        run("SAVEPOINT row").await?;
        match statement.await {
            Ok(rows) => {
                run("RELEASE SAVEPOINT row").await?;
                Ok(Ok(rows))
            }
            Err(error @ Error::UnreadableRow { .. }) => {
                run("ROLLBACK TO SAVEPOINT row; RELEASE SAVEPOINT row").await?;
                Ok(Err(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Runs a statement for the ids among its arguments. If it fails, runs it for each half of them, and so on. Notes
    /// the ids at fault.
    pub(super) async fn by_halves<T>(
        &self,
        search: &Search,
        (doing, table): (&'static str, Table),
        statement: &Statement,
        args: &[Arg<'_>],
        read: impl Fn(&Answer) -> Result<Vec<T>, tokio_postgres::Error>,
    ) -> Result<Vec<T>, Error> {
        let is_list = |arg: &Arg<'_>| matches!(arg, Arg::Ids(ids) if !ids.is_empty());
        let Some((position, Arg::Ids(ids))) =
            args.iter().position(is_list).map(|at| (at, args[at]))
        else {
            return self.at_once(doing, statement, args, read).await;
        };
        let mut found = Vec::new();
        let mut left = search.shares(table, ids, SHARE);
        while let Some(mut ids) = left.pop() {
            let answer = {
                let mut args = args.to_vec();
                args[position] = Arg::Ids(&ids);
                let rows = self.at_once(doing, statement, &args, &read);
                self.in_savepoint(rows).await?
            };
            match (answer, ids.as_slice()) {
                (Ok(rows), _) => found.extend(rows),
                (Err(error), [id]) => search.note((table, *id), Vec::new(), &error)?,
                (Err(_), _) => left.extend([ids.split_off(ids.len() / 2), ids]),
            }
        }
        Ok(found)
    }

    /// The kickoffs and names of all events in the window, except those whose row cannot be read. Halves ranges of ids,
    /// because it does not know the ids.
    pub(super) async fn kickoffs_by_halves(
        &self,
        search: &Search,
        window_start: Micros,
    ) -> Result<HashMap<i64, EventRow>, Error> {
        let (mut found, mut left) = (HashMap::new(), vec![(i64::MIN, i64::MAX)]);
        while let Some((first, last)) = left.pop() {
            let range = [first, last];
            let args = [Arg::Time(window_start), Arg::Ids(&range)];
            let statement = &self.catalog.kickoffs_between;
            match self
                .in_savepoint(self.at_once(EVENTS, statement, &args, kickoffs))
                .await?
            {
                Ok(kickoffs) => found.extend(latest(kickoffs)),
                Err(error) if first == last => {
                    search.note((Table::Events, first), Vec::new(), &error)?;
                }
                Err(_) => {
                    let middle = first.midpoint(last);
                    // The midpoint of two negative numbers is rounded up.
                    let middle = if middle == last { first } else { middle };
                    left.extend([(first, middle), (middle + 1, last)]);
                }
            }
        }
        Ok(found)
    }

    /// The packed markets of the given snapshots, without the rows that cannot be read.
    pub(super) async fn markets_by_halves(
        &self,
        search: &Search,
        side: Side,
        ids: &[i64],
        draft: &mut Draft,
    ) -> Result<HashMap<i64, Arc<PackedMarkets>>, Error> {
        let (table, catalog) = (side.markets(), self.catalog);
        let (statement, listing, some) = match side {
            Side::Betpawa => (
                &catalog.betpawa_markets,
                &catalog.betpawa_market_ids,
                &catalog.some_betpawa_markets,
            ),
            Side::Competitors => (
                &catalog.competitor_markets,
                &catalog.competitor_market_ids,
                &catalog.some_competitor_markets,
            ),
        };
        let mut found = HashMap::with_capacity(ids.len());
        let mut left = search.shares(table, ids, SHARE_OF_MARKETS);
        while let Some(mut ids) = left.pop() {
            let answer = self
                .in_savepoint(self.rows(statement, &[Arg::Ids(&ids)]))
                .await?;
            match (answer, ids.as_slice()) {
                (Ok(rows), ids) => {
                    found.extend(self.pack(side, &rows, draft)?);
                    self.note_read(ids.len());
                }
                (Err(error), [id]) => {
                    let snapshot = [*id];
                    let listed = self
                        .in_savepoint(self.rows(listing, &[Arg::Ids(&snapshot)]))
                        .await?;
                    let (rows, unreadable) = match listed {
                        Ok(listed) => self.rows_by_halves(some, *id, &listed).await?,
                        Err(_) => (Vec::new(), Vec::new()),
                    };
                    search.note((table, *id), unreadable, &error)?;
                    found.extend(self.pack(side, &rows, draft)?);
                    self.note_read(1);
                }
                (Err(_), _) => left.extend([ids.split_off(ids.len() / 2), ids]),
            }
        }
        Ok(found)
    }

    /// The market rows of a snapshot, and the ids of those that cannot be read.
    async fn rows_by_halves(
        &self,
        statement: &Statement,
        snapshot: i64,
        listed: &[Row],
    ) -> Result<(Vec<Row>, Vec<i64>), Error> {
        // A table without a primary key may have rows without an id.
        let ids = listed.iter().map(|row| row.try_get::<_, Option<i64>>(0));
        let ids: Vec<Option<i64>> = ids
            .collect::<Result<_, _>>()
            .map_err(Error::database(MARKETS))?;
        let ids: Vec<i64> = ids.into_iter().flatten().collect();
        let (mut found, mut unreadable, mut left) = (Vec::new(), Vec::new(), vec![ids]);
        let snapshot = [snapshot];
        while let Some(mut ids) = left.pop() {
            if unreadable.len() >= MOST_ROWS {
                unreadable.append(&mut ids);
                continue;
            }
            let args = [Arg::Ids(&snapshot), Arg::Ids(&ids)];
            match (
                self.in_savepoint(self.rows(statement, &args)).await?,
                ids.as_slice(),
            ) {
                (Ok(rows), _) => found.extend(rows),
                (Err(_), [] | [_]) => unreadable.append(&mut ids),
                (Err(_), _) => left.extend([ids.split_off(ids.len() / 2), ids]),
            }
        }
        Ok((found, unreadable))
    }

    async fn rows(&self, statement: &Statement, args: &[Arg<'_>]) -> Result<Vec<Row>, Error> {
        let rows = statement.rows(self.client, None, args).await;
        let rows = rows.map_err(Error::of_rows(MARKETS))?;
        self.row_counters.read(rows.len());
        Ok(rows)
    }
}
