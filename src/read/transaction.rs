//! The first query of a read, inside its transaction ([`begin`]) or in one of its own ([`peek`]).

use tokio_postgres::Row;

use crate::{
    config::Config,
    error::Error,
    model::{Micros, PgSnapshot, Server},
    postgres::{
        pipeline::{all_three, both},
        statement::Prepared,
    },
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
    pub(crate) server: Server,
    /// The position in the write-ahead log: written, or replayed on a standby. Never goes back while the server runs.
    pub(crate) wal: i64,
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
    start.pruned_below = text(row, 7)?
        .parse()
        .map_err(|_| Error::unexpected(BEGIN, "log_state.pruned_below is no xid8"))?;
    Ok(start)
}

/// Runs the same query in a transaction of its own, in one round trip. It takes no locks and reads no table, so it
/// leaves `pruned_below` at 0. The answer suffices to see that nothing has been written since a read.
pub(crate) async fn peek(source: Source<'_>) -> Result<ReadStart, Error> {
    let began = Moment::now();
    let Source { client, names, .. } = source;
    // Without the settings of `begin_peek`, a role's time-outs could end the session, and its default isolation could
    // make the query wait for other transactions.
    let run = async |sql| {
        client
            .batch_execute(sql)
            .await
            .map_err(Error::database(BEGIN))
    };
    let peeked = async {
        let rows = client.query_typed(&names.peek, &[]).await;
        rows.map_err(Error::database(BEGIN))
    };
    let ((), rows, ()) = all_three(run(&names.begin_peek), peeked, run("COMMIT")).await?;
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
        let server = server(row).map_err(Error::database(BEGIN))?;
        Ok(ReadStart {
            began,
            pruned_below: 0,
            server: server.clone(),
            wal: row
                .try_get::<_, Option<i64>>(6)
                .map_err(Error::database(BEGIN))?
                .unwrap_or(0),
            window_start,
            server_now: now,
            cut: Cut {
                as_of: now.to_utc(),
                snapshot: snapshot.clone(),
                window_start: window_start.to_utc(),
                standby: row.try_get(2).map_err(Error::database(BEGIN))?,
                server,
            },
            snapshot: PgSnapshot::parse(&snapshot).ok_or_else(|| {
                Error::unexpected(BEGIN, "pg_current_snapshot() is not understood")
            })?,
        })
    }
}

/// Which server, and which run of it, gave the answer of [`begin`] or [`peek`].
pub(crate) fn server(row: &Row) -> Result<Server, tokio_postgres::Error> {
    Ok(Server {
        identity: row.try_get(3)?,
        stats_reset: row.try_get(4)?,
        checkpoint: row.try_get(5)?,
    })
}

fn text(row: &Row, index: usize) -> Result<String, Error> {
    row.try_get(index).map_err(Error::database(BEGIN))
}
