//! Helpers: further connections for a read of everything. Each imports the snapshot of the first connection and reads a
//! share of the markets.
//!
//! # Invariants
//! - E1: A helper reads the same state. It imports the snapshot of the first connection, whose transaction took all
//!   locks before that snapshot and still holds them.
//! - E2: A helper can fail without harm: the first connection then reads everything by itself. Only a refused
//!   [`export`] aborts the transaction; the follower then reads again without helpers.
//! - E3: A helper waits for a lock only as long as any read does. Otherwise three could wait in a circle: the helper
//!   for a migration, the migration for the first connection, and that one for the helper.

use std::time::Duration;

use futures_util::future::join_all;
use tokio_postgres::Client;

use crate::{
    config::Config,
    error::Error,
    postgres::{
        connection::{Connection, within},
        quote::literal,
    },
    read::{
        schema::Names,
        transaction::{self, ReadStart},
    },
};

/// Waiting longer for a helper would cost more time than the helper saves.
const OPENING: Duration = Duration::from_secs(1);

const DOING: &str = "reading on a further connection";

/// The name of a step that fails if the server cannot write the snapshot's file, or lacks the function.
pub(crate) const EXPORTING: &str = "exporting a snapshot";

/// Exports the snapshot of the current transaction, so that helpers can import it. `None` if no helper is wanted.
pub(crate) async fn export(
    client: &Client,
    config: &Config,
    start: &ReadStart,
) -> Result<Option<String>, Error> {
    // Some standbys refuse to export a snapshot, and the error would abort the transaction.
    if start.cut.standby || config.warmup_connections < 2 {
        return Ok(None);
    }
    let export = client.query_typed("SELECT pg_export_snapshot()", &[]);
    let rows = export.await.map_err(Error::database(EXPORTING))?;
    let row = rows.first();
    row.map(|row| row.try_get(0))
        .transpose()
        .map_err(Error::database(EXPORTING))
}

/// Opens as many helpers as the configuration allows. Leaves out those that fail (E2).
pub(crate) async fn open(
    config: &Config,
    names: &Names,
    start: &ReadStart,
    exported: Option<&str>,
) -> Vec<Connection> {
    let Some(exported) = exported else {
        return Vec::new();
    };
    // Meanwhile the transaction of the first connection may be idle, which the server allows for the read time-out
    // only.
    let bound = OPENING.min(config.read_timeout / 2);
    let helper = async || {
        let opened = within(bound, DOING, import(config, names, start, exported)).await;
        opened
            .inspect_err(|error| tracing::debug!(%error, "reading with fewer connections"))
            .ok()
    };
    let opened = join_all((1..config.warmup_connections).map(|_| helper())).await;
    opened.into_iter().flatten().collect()
}

async fn import(
    config: &Config,
    names: &Names,
    start: &ReadStart,
    exported: &str,
) -> Result<Connection, Error> {
    let connection = Connection::open(&config.connect, "warmup").await?;
    let import = names.import.replace("{}", &literal(exported));
    let client = &connection.client;
    let begin = client.batch_execute(&import).await;
    begin.map_err(Error::database(DOING))?;
    // A connection string may name several hosts, and another one may have answered.
    let rows = client.query_typed(&names.peek, &[]).await;
    let rows = rows.map_err(Error::database(DOING))?;
    let found = rows.first().map(|row| row.try_get(0)).transpose();
    let snapshot: Option<&str> = found.map_err(Error::database(DOING))?;
    let server = rows.first().map(transaction::server).transpose();
    let server = server.map_err(Error::database(DOING))?;
    let runs_on = server.is_some_and(|server| server.has_run_on_since(&start.server));
    match snapshot == Some(start.cut.snapshot.as_str()) && runs_on {
        true => Ok(connection),
        false => Err(Error::unexpected(DOING, "another server answered")),
    }
}
