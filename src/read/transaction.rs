//! The first query of a read, inside its transaction ([`begin`]) or without one ([`peek`]).

use tokio_postgres::Row;

use crate::{
    config::Config,
    error::Error,
    model::{Micros, PgSnapshot},
    postgres::{pipeline::both, statement::Prepared},
    read::{rows::time, source::Source},
    store::state::{Cut, Moment},
};

/// The answer to the first query of a read. All times are UTC.
pub(crate) struct ReadStart {
    /// A moment before the server took the snapshot. Ages are measured from it.
    pub(crate) began: Moment,
    pub(crate) cut: Cut,
    /// The server's clock less [`Config::lookback`]. Events with a later kickoff are held.
    pub(crate) window_start: Micros,
    /// The server's clock. It may go back; the cut's time may not.
    pub(crate) server_now: Micros,
    pub(crate) snapshot: PgSnapshot,
    /// Identifies the server and its run. Another value means that commits may have been taken back.
    pub(crate) server: String,
    /// Log rows of transactions below this id may be pruned. 0 where no feed is read.
    pub(crate) pruned_below: u64,
}

const BEGIN: &str = "beginning to read";

/// Begins the transaction of a read: takes the locks, then the snapshot (R1 of [`crate::read`]).
///
/// Both are sent at once, in one round trip.
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
    let locked = async {
        client
            .batch_execute(locks)
            .await
            .map_err(Error::database(BEGIN))
    };
    let cut = async {
        names
            .cut
            .rows(client, prepared, &[])
            .await
            .map_err(Error::database(BEGIN))
    };
    let ((), rows) = both(locked, cut).await?;
    let row = rows
        .first()
        .ok_or_else(|| Error::unexpected(BEGIN, "no answer"))?;
    let mut start = ReadStart::read(config, row, began)?;
    // Null if `log_state` has no row; that is an error.
    start.pruned_below = text(row, 4)?
        .parse()
        .map_err(|_| Error::unexpected(BEGIN, "log_state.pruned_below is no xid8"))?;
    Ok(start)
}

/// Runs the same query outside of a transaction. It takes no locks and reads no table, so it leaves `pruned_below` at
/// 0. The answer suffices to see that nothing has been written since a read.
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
