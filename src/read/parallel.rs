//! Further connections for reading everything: they import the snapshot of the first, and read a share of the markets.
//!
//! | invariant | |
//! |---|---|
//! | E1 | a helper reads the same state: it imports the snapshot of a transaction that holds all locks since before it was taken |
//! | E2 | nothing depends on a helper: whatever goes wrong with one, the first connection reads all by itself. Only a refused [`export`] is the end of its transaction, and it goes without helpers from then on |
//! | E3 | a helper waits for a lock no longer than any read does: behind a migration that waits for the first connection, which waits for the helper, neither would end |

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
    read::{schema::Names, transaction::ReadStart},
};

/// Opening one takes no longer than reading alone would.
const OPENING: Duration = Duration::from_secs(1);

const DOING: &str = "reading on a further connection";

/// What a server without room for the snapshot's file refuses, or one that knows no such thing.
pub(crate) const EXPORTING: &str = "exporting a snapshot";

/// Lets others import the snapshot of the transaction under way; `None` where no helper is wanted.
pub(crate) async fn export(
    client: &Client,
    config: &Config,
    start: &ReadStart,
) -> Result<Option<String>, Error> {
    // A standby may refuse.
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

/// Opens the connections that the configuration allows besides the first. Those that could not be are left out.
pub(crate) async fn open(
    config: &Config,
    names: &Names,
    start: &ReadStart,
    exported: Option<&str>,
) -> Vec<Connection> {
    let Some(exported) = exported else {
        return Vec::new();
    };
    // The first connection waits in its transaction, and must not be taken for dead.
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
    let connection = Connection::open(&config.connect).await?;
    let import = names.import.replace("{}", &literal(exported));
    let client = &connection.client;
    let begin = client.batch_execute(&import).await;
    begin.map_err(Error::database(DOING))?;
    // Of several hosts another may have answered.
    let rows = client.query_typed(&names.peek, &[]).await;
    let rows = rows.map_err(Error::database(DOING))?;
    let column = |index| rows.first().and_then(|row| row.try_get(index).ok());
    let same =
        column(0) == Some(start.cut.snapshot.as_str()) && column(3) == Some(start.server.as_str());
    match same {
        true => Ok(connection),
        false => Err(Error::unexpected(DOING, "another server answers")),
    }
}
