//! What a session must be for notifications to arrive in it: the connection's own, and in the right database.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::SimpleQueryMessage;

use crate::{
    config::Config,
    error::Error,
    postgres::{
        connection::{Access, Connection, within},
        hosts::Target,
        quote::quote,
    },
    read::preflight::DATABASE,
};

/// A session of our own answers within this time. If it does not, a pooler has given it to another connection.
const SESSION_TIMEOUT: Duration = Duration::from_millis(500);

pub(super) const LISTEN: &str = "LISTEN";

pub(super) async fn execute(
    connection: &Connection,
    sql: &str,
    doing: &'static str,
) -> Result<(), Error> {
    let execute = connection.client.batch_execute(sql).await;
    execute.map_err(Error::database(doing))
}

/// Sends LISTEN, and ends listening to any other channel.
pub(super) async fn listen(connection: &Connection, channel: &str) -> Result<(), Error> {
    let sql = format!("UNLISTEN *; LISTEN {}", quote(channel));
    execute(connection, &sql, LISTEN).await
}

/// A second connection to the same server, for [`own_session`].
pub(super) async fn open_check(config: &Config, target: &Target) -> Result<Connection, Error> {
    Connection::open(&config.connect.only(target), "check").await
}

/// Checks that the connection keeps its server session while another connection is in a transaction (Q1). A pooler in
/// transaction mode gives the session to that other one; LISTEN would then stay behind in a session that others use. Or
/// it resets the session first, which takes a moment. The other one then gets another session, and the connection its own
/// again, without what it has set there.
///
/// Then replaces the time-outs of the role, the database and the server in this session.
pub(super) async fn own_session(
    connection: &Connection,
    other: &Connection,
    bound: Duration,
) -> Result<(), Error> {
    let mark = format!("{:032x}", fastrand::u128(..));
    let set = format!("set_config('oddscache.session', '{mark}', false)");
    let before = within(bound, LISTEN, session(connection, &set, bound)).await?;
    let begin = other.begin(Access::Read, bound);
    within(SESSION_TIMEOUT * 2, LISTEN, execute(other, &begin, LISTEN)).await?;
    // A pooler with a single session keeps this query waiting while the other connection holds that session.
    let is_set = "current_setting('oddscache.session', true)";
    let now = timeout(SESSION_TIMEOUT, session(connection, is_set, bound)).await;
    // Otherwise a pooler would close the session, and the server would log that.
    within(
        SESSION_TIMEOUT * 2,
        LISTEN,
        execute(other, "COMMIT", LISTEN),
    )
    .await?;
    if now.map_err(|_| Error::Pooled)?? != before {
        return Err(Error::Pooled);
    }
    let bounds = connection.session_bounds(bound);
    within(bound, LISTEN, execute(connection, &bounds, LISTEN)).await
}

/// Checks that the listening connection is in the database that is read, or in the same database of its primary.
pub(super) async fn same_database(
    connection: &Connection,
    expected: &str,
    bound: Duration,
) -> Result<(), Error> {
    // A transaction, for the time-outs that `begin` sets.
    execute(connection, &connection.begin(Access::Read, bound), LISTEN).await?;
    let rows = connection.client.query_typed(DATABASE, &[]).await;
    let rows = rows.map_err(Error::database(LISTEN))?;
    execute(connection, "COMMIT", LISTEN).await?;
    let found: Option<String> = rows
        .first()
        .map(|row| row.try_get(0))
        .transpose()
        .map_err(Error::database(LISTEN))?;
    if found.as_deref() == Some(expected) {
        return Ok(());
    }
    Err(Error::OtherListenDatabase {
        found: found.unwrap_or_default(),
        expected: expected.to_owned(),
    })
}

/// The process id of the server session that answers, and the value of an expression there.
async fn session(
    connection: &Connection,
    expression: &str,
    bound: Duration,
) -> Result<[Option<String>; 2], Error> {
    // A transaction, for the settings and time-outs that `begin` sets.
    let begin = connection.begin(Access::Read, bound);
    let sql = format!("{begin}; SELECT pg_catalog.pg_backend_pid(), {expression}; COMMIT");
    let answer = connection.client.simple_query(&sql).await;
    let answer = answer.map_err(Error::database(LISTEN))?;
    let id = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some([0, 1].map(|index| row.get(index).map(str::to_owned))),
        _ => None,
    });
    id.ok_or_else(|| Error::unexpected(LISTEN, "no answer"))
}
