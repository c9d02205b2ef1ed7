//! The tools' connection to a database: short transactions in the simple protocol, which every pooler passes on.
//! Settings are for one transaction only, because clients of a pooler share the server's session.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use oddscache::{Config, Error};
use serde::de::DeserializeOwned;
use tokio::{
    task::JoinHandle,
    time::{error::Elapsed, timeout},
};
use tokio_postgres::{Client, SimpleQueryMessage};

/// The time for connecting, as a multiple of the time for one query.
const CONNECT: u32 = 6;

const READ_ONLY: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL search_path = pg_catalog, pg_temp";

/// Why the database did not answer a query.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Trouble {
    pub(crate) text: String,
    pub(crate) sqlstate: Option<String>,
}

impl Trouble {
    pub(crate) fn new(text: impl Into<String>) -> Trouble {
        Trouble {
            text: text.into(),
            sqlstate: None,
        }
    }

    pub(crate) fn is(&self, sqlstate: &str) -> bool {
        self.sqlstate.as_deref() == Some(sqlstate)
    }

    /// Whether the role lacks a right.
    pub(crate) fn is_lack_of_rights(&self) -> bool {
        self.is("42501")
    }

    /// The error of a login. Its text ends with the way out, as the library's errors do.
    fn of_login(error: Error) -> Trouble {
        let sqlstate = match error {
            Error::TooManyConnections { .. } => Some("53300".to_owned()),
            _ => None,
        };
        Trouble {
            text: error.to_string(),
            sqlstate,
        }
    }

    fn late(doing: &str, bound: Duration) -> impl FnOnce(Elapsed) -> Trouble {
        let text = format!("{doing}: no answer within {} s", bound.as_secs_f32());
        move |_| Trouble::new(text)
    }
}

impl From<tokio_postgres::Error> for Trouble {
    /// Keeps the whole chain of causes, which the driver's own `Display` leaves out.
    fn from(error: tokio_postgres::Error) -> Trouble {
        if let Some(server) = error.as_db_error() {
            let code = server.code().code();
            return Trouble {
                text: format!("{} (SQLSTATE {code})", server.message()),
                sqlstate: Some(code.to_owned()),
            };
        }
        Trouble::new(format!("{:#}", anyhow::Error::new(error)))
    }
}

pub(crate) use oddscache::sql::{literal, quote as identifier};

/// A connection that ends when dropped. Every call has a time-out. After one time-out all further calls fail at once.
pub(crate) struct Session {
    client: Client,
    bound: Duration,
    settings_after_begin: &'static str,
    /// True after a time-out.
    dead: AtomicBool,
    /// The connection's last error, which says more than "connection closed".
    lost: Arc<Mutex<Option<Trouble>>>,
    task: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Session {
    /// The one place where the tools connect. `purpose` is a part of the connection's name.
    pub(crate) async fn open(
        config: &Config,
        purpose: &str,
        bound: Duration,
    ) -> Result<Session, Trouble> {
        // Longer than for a query, because the first of several hosts may not answer.
        let patience = bound * CONNECT;
        let (client, mut connection) = timeout(patience, config.open_for(purpose))
            .await
            .map_err(Trouble::late("connecting", patience))?
            .map_err(Trouble::of_login)?;
        let settings_after_begin = connection.settings_after_begin();
        let lost = Arc::new(Mutex::new(None));
        let why = Arc::clone(&lost);
        let task = tokio::spawn(async move {
            while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let Err(error) = message {
                    let mut why = why.lock().unwrap_or_else(PoisonError::into_inner);
                    *why = Some(Trouble::from(error));
                    return;
                }
            }
        });
        Ok(Session {
            client,
            bound,
            settings_after_begin,
            dead: AtomicBool::new(false),
            lost,
            task,
        })
    }

    /// Runs statements, and returns all their rows.
    pub(crate) async fn run(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Trouble> {
        if self.dead.load(Ordering::Acquire) {
            return Err(Trouble::new(
                "the connection gave no answer to an earlier query",
            ));
        }
        // Longer than the server's statement_timeout, whose error says more.
        let messages = match timeout(self.bound * 2, self.client.simple_query(sql)).await {
            Ok(Ok(messages)) => messages,
            Ok(Err(error)) => {
                let closed = error.is_closed();
                let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
                let lost = lost.clone().filter(|_| closed);
                return Err(lost.unwrap_or_else(|| Trouble::from(error)));
            }
            Err(late) => {
                self.dead.store(true, Ordering::Release);
                return Err(Trouble::late("asking the server", self.bound * 2)(late));
            }
        };
        let row = |message: SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => {
                let cell = |at| row.get(at).map(str::to_owned);
                Some((0..row.len()).map(cell).collect())
            }
            _ => None,
        };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    /// Runs a script in a read-only transaction of its own, and returns all rows it gives.
    pub(crate) async fn script(&self, text: &str) -> Result<Vec<Vec<Option<String>>>, Trouble> {
        self.transaction(READ_ONLY, text, "ROLLBACK").await
    }

    /// Runs `sql` in a transaction. `before` begins it, and `after` ends it. After an error, ROLLBACK ends it.
    async fn transaction(
        &self,
        before: &str,
        sql: &str,
        after: &str,
    ) -> Result<Vec<Vec<Option<String>>>, Trouble> {
        let limits = self.limits();
        // In two messages: the server parses a whole message before it runs the first statement. In one message `sql`
        // would be parsed under the role's own standard_conforming_strings.
        let rows = async {
            self.run(&format!("{before}; {limits}")).await?;
            self.run(&format!("{sql}; {after}")).await
        };
        let rows = rows.await;
        if rows.is_err() {
            self.roll_back().await;
        }
        rows
    }

    /// Statements that replace the role's own settings and time-outs for a transaction. They must come in its first
    /// message.
    pub(crate) fn limits(&self) -> String {
        let millis = self.bound.as_millis().clamp(1, 600_000);
        format!(
            "{}SET LOCAL idle_in_transaction_session_timeout = {millis}; \
             SET LOCAL statement_timeout = {millis}; SET LOCAL lock_timeout = {millis}",
            self.settings_after_begin
        )
    }

    async fn roll_back(&self) {
        // If it fails, there is no connection, and so no transaction.
        let _ = self.run("ROLLBACK").await;
    }

    /// Runs a query in a read-only transaction of its own. Reads each row as JSON, by the names of its columns.
    pub(crate) async fn rows<T: DeserializeOwned>(&self, sql: &str) -> Result<Vec<T>, Trouble> {
        self.rows_after(READ_ONLY, sql).await
    }

    /// The same as `rows`, after other statements. The first of them begins the transaction.
    pub(crate) async fn rows_after<T: DeserializeOwned>(
        &self,
        before: &str,
        sql: &str,
    ) -> Result<Vec<T>, Trouble> {
        self.rows_between(before, sql, "ROLLBACK").await
    }

    /// The same as `rows_after`, and commits.
    pub(crate) async fn commit_after<T: DeserializeOwned>(
        &self,
        before: &str,
        sql: &str,
    ) -> Result<Vec<T>, Trouble> {
        self.rows_between(before, sql, "COMMIT").await
    }

    async fn rows_between<T: DeserializeOwned>(
        &self,
        before: &str,
        sql: &str,
        after: &str,
    ) -> Result<Vec<T>, Trouble> {
        let sql = format!("SELECT to_jsonb(q) FROM ({sql}) AS q");
        let rows = self.transaction(before, &sql, after).await?;
        let cells = rows.iter().flatten().flatten();
        let read = |cell: &String| {
            serde_json::from_str(cell).map_err(|error| {
                Trouble::new(format!("the server's answer is not understood: {error}"))
            })
        };
        cells.map(read).collect()
    }

    /// The only row of a query.
    pub(crate) async fn row<T: DeserializeOwned>(&self, sql: &str) -> Result<T, Trouble> {
        self.row_after(READ_ONLY, sql).await
    }

    /// The same as `row`, after other statements. The first of them begins the transaction.
    pub(crate) async fn row_after<T: DeserializeOwned>(
        &self,
        before: &str,
        sql: &str,
    ) -> Result<T, Trouble> {
        let row = self.rows_after(before, sql).await?.into_iter().next();
        row.ok_or_else(|| Trouble::new("the server gave no row"))
    }
}
