//! How a read begins, and how it sees without reading that there is nothing to read.

use futures_util::future::try_join;
use tokio_postgres::Row;

use crate::{
    config::Config,
    error::Error,
    model::{Micros, PgSnapshot},
    postgres::statement::Prepared,
    read::{rows::time, source::Source},
    store::state::{Cut, Moment},
};

/// The first answer within the transaction.
pub(crate) struct ReadStart {
    /// Before its snapshot was taken.
    pub(crate) began: Moment,
    pub(crate) cut: Cut,
    pub(crate) window_start: Micros,
    /// The server's clock, as it said it: the cut's is kept from going back.
    pub(crate) server_now: Micros,
    pub(crate) snapshot: PgSnapshot,
    pub(crate) server: String,
    pub(crate) pruned_below: u64,
}

const BEGIN: &str = "beginning to read";

/// The beginning of any read: its locks, then its snapshot. Both are sent at once, and answered in this order: where the
/// first fails the outcome is its error, or that of the second, which the server then refuses (25P02).
pub(crate) async fn begin(
    source: Source<'_>,
    prepared: Option<&Prepared>,
) -> Result<ReadStart, Error> {
    let Source {
        client,
        config,
        names,
    } = source;
    let began = Moment::now();
    let locks = match prepared {
        Some(_) => &names.begin_prepared,
        None => &names.begin,
    };
    let locked = client.batch_execute(locks);
    let ((), rows) = try_join(locked, names.cut.rows(client, prepared, &[]))
        .await
        .map_err(Error::database(BEGIN))?;
    let row = rows
        .first()
        .ok_or_else(|| Error::unexpected(BEGIN, "no answer"))?;
    let mut start = ReadStart::read(config, row, began)?;
    // Null where the log state has no row.
    start.pruned_below = text(row, 4)?
        .parse()
        .map_err(|_| Error::unexpected(BEGIN, "log_state.pruned_below is no xid8"))?;
    Ok(start)
}

/// The same answer outside of a transaction, without locks or anything read of a table. It says what is needed to see that
/// nothing has been written since a read.
pub(crate) async fn peek(source: Source<'_>) -> Result<ReadStart, Error> {
    let began = Moment::now();
    let rows = source.client.query_typed(&source.names.peek, &[]).await;
    let rows = rows.map_err(Error::database(BEGIN))?;
    let row = rows
        .first()
        .ok_or_else(|| Error::unexpected(BEGIN, "no answer"))?;
    ReadStart::read(source.config, row, began)
}

impl ReadStart {
    fn read(config: &Config, row: &Row, began: Moment) -> Result<ReadStart, Error> {
        let snapshot = text(row, 0)?;
        let now = time(row, 1).map_err(Error::database(BEGIN))?;
        let window_start = now.minus(config.lookback);
        Ok(ReadStart {
            began,
            pruned_below: 0,
            server: text(row, 3)?,
            window_start,
            server_now: now,
            cut: Cut {
                as_of: now.to_utc(),
                snapshot: snapshot.clone(),
                window_start: window_start.to_utc(),
                standby: row.try_get(2).map_err(Error::database(BEGIN))?,
            },
            snapshot: PgSnapshot::parse(&snapshot).ok_or_else(|| {
                Error::unexpected(BEGIN, "pg_current_snapshot() is not understood")
            })?,
        })
    }
}

fn text(row: &Row, index: usize) -> Result<String, Error> {
    row.try_get(index).map_err(Error::database(BEGIN))
}
