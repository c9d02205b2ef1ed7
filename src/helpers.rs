//! Further connections for reading everything: they import the snapshot of the first, and read a share of the markets.
//!
//! | invariant | |
//! |---|---|
//! | H1 | a helper reads the same state: it imports the snapshot of a transaction that holds all locks since before it was taken |
//! | H2 | nothing depends on a helper: whatever goes wrong with one, the first connection reads all by itself |
//! | H3 | a helper waits for a lock no longer than any read does: behind a migration that waits for the first connection, which waits for the helper, neither would end |

use std::time::Duration;

use futures_util::future::join_all;
use tokio_postgres::Client;

use crate::{
    Config, Error,
    begin::Begun,
    catalog::{Names, literal},
    connection::{Connection, within},
};

/// Opening one takes no longer than reading alone would.
const OPENING: Duration = Duration::from_secs(1);

const DOING: &str = "reading on a further connection";

/// Opens the connections that the configuration allows besides the first, whose transaction has begun. Those that could
/// not be are left out.
pub(crate) async fn open(
    client: &Client,
    config: &Config,
    names: &Names,
    begun: &Begun,
) -> Result<Vec<Connection>, Error> {
    // A standby may refuse to export a snapshot, and that would be the end of the transaction.
    let wanted = match begun.cut.standby {
        true => 0,
        false => config.warmup_connections.saturating_sub(1),
    };
    if wanted == 0 {
        return Ok(Vec::new());
    }
    let export = client.query_typed("SELECT pg_export_snapshot()", &[]);
    let rows = export.await.map_err(Error::database(DOING))?;
    let exported: &str = rows
        .first()
        .ok_or_else(|| Error::unexpected(DOING, "no answer"))?
        .try_get(0)
        .map_err(Error::database(DOING))?;
    let helper = async || {
        let opened = within(OPENING, DOING, import(config, names, begun, exported)).await;
        opened
            .inspect_err(|error| tracing::debug!(%error, "reading with fewer connections"))
            .ok()
    };
    let opened = join_all((0..wanted).map(|_| helper())).await;
    Ok(opened.into_iter().flatten().collect())
}

async fn import(
    config: &Config,
    names: &Names,
    begun: &Begun,
    exported: &str,
) -> Result<Connection, Error> {
    let connection = Connection::open(config).await?;
    let import = names.import.replace("{}", &literal(exported));
    let client = &connection.client;
    let begin = client.batch_execute(&import).await;
    begin.map_err(Error::database(DOING))?;
    // Of several hosts another may have answered.
    let rows = client.query_typed(&names.peek, &[]).await;
    let rows = rows.map_err(Error::database(DOING))?;
    let column = |index| rows.first().and_then(|row| row.try_get(index).ok());
    let same =
        column(0) == Some(begun.cut.snapshot.as_str()) && column(3) == Some(begun.server.as_str());
    match same {
        true => Ok(connection),
        false => Err(Error::unexpected(DOING, "another server answers")),
    }
}
