//! Statements that are asked again and again: parsed and planned once, where the server's session stays ours.
//!
//! They are prepared in SQL, under names that nobody else has, not in the protocol: a driver counts its names, so that behind
//! a pooler in transaction mode one client would run the statement of another. Where the session turns out to be another
//! (SQLSTATE 26000) the read is made again without. What is not prepared may be asked for as arrays: [`Answer`].

use std::fmt::Write;

use bytes::BytesMut;
use futures_util::TryStreamExt;
use tokio_postgres::{
    Client, Row, RowStream,
    types::{FromSql, IsNull, ToSql, Type, to_sql_checked},
};

use crate::{error::Error, model::Micros};

/// A query, and the types of its parameters.
#[derive(Debug)]
pub(crate) struct Statement {
    name: &'static str,
    sql: String,
    /// The same in one row, with an array for each column.
    arrays: Option<String>,
    types: Vec<Type>,
}

/// A value for a parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg<'a> {
    Ids(&'a [i64]),
    Time(Micros),
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
            Arg::Text(text) => text.to_sql(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl Arg<'_> {
    /// As a constant in SQL, whose type the context gives. No text comes from elsewhere than the server's own ids.
    fn write(&self, sql: &mut String) {
        // Infallible into a String.
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
            Arg::Time(time) => write!(
                sql,
                "'{}+00'",
                time.to_utc().format("%Y-%m-%d %H:%M:%S%.6f")
            ),
            Arg::Text(text) => write!(sql, "{}", crate::postgres::quote::literal(text)),
        };
    }
}

/// The names under which a session knows our statements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prepared {
    prefix: String,
}

const DOING: &str = "preparing statements";

impl Prepared {
    /// Of one follower.
    pub(crate) fn new() -> Prepared {
        Prepared {
            prefix: format!("oddscache_{:032x}_", fastrand::u128(..)),
        }
    }

    /// Prepares statements in the session at hand, in place of those it had.
    pub(crate) async fn prepare(
        &self,
        client: &Client,
        statements: impl IntoIterator<Item = &Statement>,
    ) -> Result<(), Error> {
        let prefix = &self.prefix;
        let old = format!("SELECT name FROM pg_prepared_statements WHERE name LIKE '{prefix}%'");
        let rows = client.query_typed(&old, &[]).await;
        let mut sql = String::new();
        for row in rows.map_err(Error::database(DOING))? {
            let name: &str = row.try_get(0).map_err(Error::database(DOING))?;
            let _ = write!(sql, "DEALLOCATE {name};");
        }
        for Statement {
            name,
            sql: query,
            types,
            ..
        } in statements
        {
            let types: Vec<&str> = types.iter().map(Type::name).collect();
            let types = match types.as_slice() {
                [] => String::new(),
                types => format!("({})", types.join(", ")),
            };
            let _ = write!(sql, "PREPARE {prefix}{name}{types} AS {query};");
        }
        client
            .batch_execute(&sql)
            .await
            .map_err(Error::database(DOING))
    }
}

impl Statement {
    pub(crate) fn new(
        name: &'static str,
        sql: String,
        types: impl IntoIterator<Item = Type>,
    ) -> Statement {
        let types = types.into_iter().collect();
        Statement {
            name,
            sql,
            arrays: None,
            types,
        }
    }

    /// For [`Statement::answer`] by so many columns.
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

    /// Asks it: as prepared, if it is.
    pub(crate) async fn stream(
        &self,
        client: &Client,
        prepared: Option<&Prepared>,
        args: &[Arg<'_>],
    ) -> Result<RowStream, tokio_postgres::Error> {
        let Some(Prepared { prefix }) = prepared else {
            return self.ask(client, &self.sql, args).await;
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

    async fn ask(
        &self,
        client: &Client,
        sql: &str,
        args: &[Arg<'_>],
    ) -> Result<RowStream, tokio_postgres::Error> {
        let args = args.iter().copied().zip(self.types.iter().cloned());
        client.query_typed_raw(sql, args).await
    }

    /// The answer by columns. What is prepared is asked for little, row by row; else as arrays, for what a driver does for
    /// each row costs several times what is in it, though asking for arrays takes the server a little longer.
    pub(crate) async fn answer(
        &self,
        doing: &'static str,
        client: &Client,
        prepared: Option<&Prepared>,
        args: &[Arg<'_>],
    ) -> Result<Answer, Error> {
        let Some(sql) = self.arrays.as_ref().filter(|_| prepared.is_none()) else {
            let rows = self.rows(client, prepared, args).await;
            return Ok(Answer::Rows(rows.map_err(Error::database(doing))?));
        };
        let arrays = async { self.ask(client, sql, args).await?.try_collect().await };
        let rows: Vec<Row> = arrays.await.map_err(Error::database(doing))?;
        match <[Row; 1]>::try_from(rows) {
            Ok([row]) => Ok(Answer::Arrays(row)),
            // Not to be taken for nothing.
            Err(rows) => Err(Error::unexpected(
                doing,
                format!("{} rows of arrays", rows.len()),
            )),
        }
    }

    /// All rows of the answer.
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

/// An answer, to be taken column by column.
#[derive(Debug)]
pub(crate) enum Answer {
    Rows(Vec<Row>),
    /// One row of arrays; of nulls where there was nothing to put into them.
    Arrays(Row),
}

impl Answer {
    /// The values of a column; those of all columns are in the same order.
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
