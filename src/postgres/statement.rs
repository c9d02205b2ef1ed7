//! Statements that the follower runs again and again. The server parses and plans them once for each session.
//!
//! They are prepared by SQL under names that nobody else uses, not by the protocol. A driver only numbers its
//! statements, so behind a pooler in transaction mode one client could run the statement of another. If the pooler
//! hands out another session (SQLSTATE 26000), the read is repeated with unprepared statements. An unprepared statement
//! may return arrays: see [`Answer`].
//!
//! # Invariants
//! - PS1: The text of a [lasting](Statement::lasting) statement depends on the configuration alone, and it reads only the
//!   server's own catalogs. So it stays right as long as its session, and stays prepared.
//! - PS2: All others are prepared anew when the application's tables changed, even if their texts did not. The server may
//!   have planned them meanwhile under an older snapshot, for instance with a partition that DETACH CONCURRENTLY is
//!   removing.

use std::{collections::HashSet, fmt::Write};

use bytes::BytesMut;
use futures_util::{TryStreamExt, future::try_join_all};
use tokio_postgres::{
    Client, Row, RowStream,
    types::{FromSql, IsNull, ToSql, Type, to_sql_checked},
};

use crate::{error::Error, model::Micros};

/// A query with the types of its parameters.
#[derive(Debug)]
pub(crate) struct Statement {
    name: &'static str,
    sql: String,
    /// The same query, returning one row with an array for each column.
    arrays: Option<String>,
    types: Vec<Type>,
    /// See PS1.
    lasts: bool,
}

/// The value of a parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg<'a> {
    Ids(&'a [i64]),
    Time(Micros),
    Times(&'a [Micros]),
    Text(&'a str),
}

impl ToSql for Arg<'_> {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Arg::Ids(ids) => ids.to_sql(ty, out),
            Arg::Time(time) => time.to_postgres().to_sql(ty, out),
            Arg::Times(times) => {
                // An array of times has the binary form of one of integers; `ty` names the type of its elements.
                let micros: Vec<i64> = times.iter().map(|time| time.to_postgres()).collect();
                micros.to_sql(ty, out)
            }
            Arg::Text(text) => text.to_sql(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl Arg<'_> {
    /// Writes the value as an SQL constant. The context gives its type.
    fn write(&self, sql: &mut String) {
        // Writing to a String cannot fail.
        let _ = match self {
            Arg::Ids(ids) => {
                sql.push_str("'{");
                for (index, id) in ids.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    let _ = write!(sql, "{comma}{id}");
                }
                sql.push_str("}'");
                Ok(())
            }
            Arg::Time(time) => write!(sql, "'{}'", constant(*time)),
            Arg::Times(times) => {
                sql.push_str("'{");
                for (index, time) in times.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    let _ = write!(sql, "{comma}\"{}\"", constant(*time));
                }
                sql.push_str("}'");
                Ok(())
            }
            Arg::Text(text) => write!(sql, "{}", crate::postgres::quote::literal(text)),
        };
    }
}

/// A time as PostgreSQL reads it.
fn constant(time: Micros) -> impl std::fmt::Display {
    time.to_utc().format("%Y-%m-%d %H:%M:%S%.6f+00")
}

/// The names under which a session knows the prepared statements of one follower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prepared {
    prefix: String,
}

const DOING: &str = "preparing statements";

impl Prepared {
    /// New names: random, so that no other follower uses them.
    pub(crate) fn new() -> Prepared {
        Prepared {
            prefix: format!("oddscache_{:032x}_", fastrand::u128(..)),
        }
    }

    /// Prepares statements in the current session. Drops those that this follower prepared there before, but keeps the
    /// lasting ones.
    pub(crate) async fn prepare(
        &self,
        client: &Client,
        statements: impl IntoIterator<Item = &Statement>,
    ) -> Result<(), Error> {
        let prefix = &self.prefix;
        let old = format!("SELECT name FROM pg_prepared_statements WHERE name LIKE '{prefix}%'");
        let rows = client.query_typed(&old, &[]).await;
        let rows = rows.map_err(Error::database(DOING))?;
        let known = rows.iter().map(|row| row.try_get(0));
        let known: Result<HashSet<&str>, _> = known.collect();
        let mut known = known.map_err(Error::database(DOING))?;
        let mut prepare = Vec::new();
        for Statement {
            name,
            sql: query,
            types,
            lasts,
            ..
        } in statements
        {
            let name = format!("{prefix}{name}");
            if *lasts && known.remove(name.as_str()) {
                continue;
            }
            let types: Vec<&str> = types.iter().map(Type::name).collect();
            let types = match types.as_slice() {
                [] => String::new(),
                types => format!("({})", types.join(", ")),
            };
            prepare.push(format!("PREPARE {name}{types} AS {query}"));
        }
        let drop = known.iter().map(|name| format!("DEALLOCATE {name}"));
        let batches: Vec<String> = drop.chain(prepare).collect();
        // Sent at once, so they take one round trip. In one batch, the server would keep all of its text with each.
        let batches = batches.iter().map(|sql| client.batch_execute(sql));
        let done = try_join_all(batches).await;
        done.map(|_| ()).map_err(Error::database(DOING))
    }
}

impl Statement {
    pub(crate) fn new(
        name: &'static str,
        sql: String,
        types: impl IntoIterator<Item = Type>,
    ) -> Statement {
        Statement {
            name,
            sql,
            arrays: None,
            types: types.into_iter().collect(),
            lasts: false,
        }
    }

    /// One without parameters that stays prepared. The caller sees to it that PS1 holds.
    pub(crate) fn lasting(name: &'static str, sql: String) -> Statement {
        Statement {
            lasts: true,
            ..Statement::new(name, sql, [])
        }
    }

    /// Lets [`Statement::answer`] return arrays. `columns` is the number of columns.
    pub(crate) fn of_columns(mut self, columns: usize) -> Statement {
        let list = |column: &dyn Fn(usize) -> String| {
            let columns: Vec<String> = (0..columns).map(column).collect();
            columns.join(", ")
        };
        self.arrays = Some(format!(
            "SELECT {} FROM ({}) AS r ({})",
            list(&|column| format!("array_agg(c{column})")),
            self.sql,
            list(&|column| format!("c{column}"))
        ));
        self
    }

    /// Runs the statement and streams its rows. Uses the prepared one if there is one.
    pub(crate) async fn stream(
        &self,
        client: &Client,
        prepared: Option<&Prepared>,
        args: &[Arg<'_>],
    ) -> Result<RowStream, tokio_postgres::Error> {
        let Some(Prepared { prefix }) = prepared else {
            return self.run(client, &self.sql, args).await;
        };
        let mut sql = format!("EXECUTE {prefix}{}", self.name);
        for (index, arg) in args.iter().enumerate() {
            sql.push_str(if index == 0 { "(" } else { ", " });
            arg.write(&mut sql);
        }
        if !args.is_empty() {
            sql.push(')');
        }
        let none: [(Arg<'_>, Type); 0] = [];
        client.query_typed_raw(&sql, none).await
    }

    async fn run(
        &self,
        client: &Client,
        sql: &str,
        args: &[Arg<'_>],
    ) -> Result<RowStream, tokio_postgres::Error> {
        let args = args.iter().copied().zip(self.types.iter().cloned());
        client.query_typed_raw(sql, args).await
    }

    /// Runs the statement and returns its answer by columns. A prepared statement returns few rows, so it returns them
    /// as they are. An unprepared one returns arrays: for many rows, the driver's work per row costs several times its
    /// work for the values, while arrays cost the server little.
    pub(crate) async fn answer(
        &self,
        doing: &'static str,
        client: &Client,
        prepared: Option<&Prepared>,
        args: &[Arg<'_>],
    ) -> Result<Answer, Error> {
        let Some(sql) = self.arrays.as_ref().filter(|_| prepared.is_none()) else {
            let rows = self.rows(client, prepared, args).await;
            return Ok(Answer::Rows(rows.map_err(Error::of_rows(doing))?));
        };
        let arrays = async { self.run(client, sql, args).await?.try_collect().await };
        let rows: Vec<Row> = arrays.await.map_err(Error::of_rows(doing))?;
        match <[Row; 1]>::try_from(rows) {
            Ok([row]) => Ok(Answer::Arrays(row)),
            // Treat an answer of another shape as an error, not as an empty table.
            Err(rows) => Err(Error::unexpected(
                doing,
                format!("{} rows instead of one row of arrays", rows.len()),
            )),
        }
    }

    /// Runs a statement without parameters and returns all rows. `doing` is for the error.
    pub(crate) async fn all(
        &self,
        doing: &'static str,
        client: &Client,
        prepared: Option<&Prepared>,
    ) -> Result<Vec<Row>, Error> {
        let rows = self.rows(client, prepared, &[]).await;
        rows.map_err(Error::database(doing))
    }

    /// Runs the statement and returns all rows.
    pub(crate) async fn rows(
        &self,
        client: &Client,
        prepared: Option<&Prepared>,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.stream(client, prepared, args)
            .await?
            .try_collect()
            .await
    }
}

/// An answer, to be read column by column.
#[derive(Debug)]
pub(crate) enum Answer {
    Rows(Vec<Row>),
    /// One row with an array for each column. A null stands for an empty array.
    Arrays(Row),
}

impl Answer {
    /// The values of a column. All columns have the same order of rows.
    pub(crate) fn column<'a, T: FromSql<'a>>(
        &'a self,
        index: usize,
    ) -> Result<Vec<T>, tokio_postgres::Error> {
        match self {
            Answer::Rows(rows) => rows.iter().map(|row| row.try_get(index)).collect(),
            Answer::Arrays(row) => {
                let array = row.try_get::<_, Option<Vec<T>>>(index)?;
                Ok(array.unwrap_or_default())
            }
        }
    }
}
