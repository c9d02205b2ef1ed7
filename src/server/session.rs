//! A connection for looking at a database: short read-only transactions in the simple protocol, which every pooler passes
//! on. Nothing is set for longer than a transaction, for behind a pooler the server's session is everybody's.

use std::{
    error::Error as StdError,
    future::poll_fn,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use oddscache::Config;
use serde::de::DeserializeOwned;
use tokio::{
    task::JoinHandle,
    time::{error::Elapsed, timeout},
};
use tokio_postgres::{Client, SimpleQueryMessage};

/// So many times what one question may take is what connecting may take.
const CONNECT: u32 = 6;

/// Why something could not be looked at.
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

    /// The role may not do it.
    pub(crate) fn is_lack_of_rights(&self) -> bool {
        self.is("42501")
    }

    fn late(doing: &str, bound: Duration) -> impl FnOnce(Elapsed) -> Trouble {
        let text = format!("{doing}: no answer within {} s", bound.as_secs_f32());
        move |_| Trouble::new(text)
    }
}

impl From<tokio_postgres::Error> for Trouble {
    /// With the whole chain of causes, which the driver's own `Display` leaves out.
    fn from(error: tokio_postgres::Error) -> Trouble {
        if let Some(server) = error.as_db_error() {
            let code = server.code().code();
            return Trouble {
                text: format!("{} (SQLSTATE {code})", server.message()),
                sqlstate: Some(code.to_owned()),
            };
        }
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        Trouble::new(text)
    }
}

pub(crate) use oddscache::sql::{literal, quote as identifier};

/// Ends its connection when dropped. Every call is bounded; after one that was not answered the others fail at once.
pub(crate) struct Session {
    client: Client,
    bound: Duration,
    without_transaction_timeout: &'static str,
    dead: AtomicBool,
    /// The last error of the connection, which says more than "connection closed".
    lost: Arc<Mutex<Option<Trouble>>>,
    task: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Session {
    /// The one place where the tools that look at a database connect to it.
    pub(crate) async fn open(config: &Config, bound: Duration) -> Result<Session, Trouble> {
        // There may be several hosts, of which the first ones do not answer.
        let patience = bound * CONNECT;
        let (client, mut wire) = timeout(patience, config.open())
            .await
            .map_err(Trouble::late("connecting", patience))?
            .map_err(|error| Trouble::new(error.to_string()))?;
        let without_transaction_timeout = wire.without_transaction_timeout();
        let lost = Arc::new(Mutex::new(None));
        let why = Arc::clone(&lost);
        let task = tokio::spawn(async move {
            while let Some(message) = poll_fn(|cx| wire.poll_message(cx)).await {
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
            without_transaction_timeout,
            dead: AtomicBool::new(false),
            lost,
            task,
        })
    }

    /// Runs statements as they are, and returns all rows they give.
    pub(crate) async fn run(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Trouble> {
        if self.dead.load(Ordering::Acquire) {
            return Err(Trouble::new("the connection gave no answer before"));
        }
        // The server is given less time than we take, so that its own words are heard.
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
        self.transaction("BEGIN READ ONLY", text).await
    }

    /// Runs statements after others, of which the first begins a transaction, and rolls it back.
    async fn transaction(
        &self,
        before: &str,
        sql: &str,
    ) -> Result<Vec<Vec<Option<String>>>, Trouble> {
        let limits = self.limits();
        let rows = self
            .run(&format!("{before}; {limits}; {sql}; ROLLBACK"))
            .await;
        if rows.is_err() {
            self.roll_back().await;
        }
        rows
    }

    /// Statements that bound a transaction, whatever the role's own time-outs are. They must come in its first message. No
    /// time-out interrupts the server while it compiles a query.
    pub(crate) fn limits(&self) -> String {
        let millis = self.bound.as_millis().clamp(1, 600_000);
        format!(
            "{}SET LOCAL jit = off; SET LOCAL idle_in_transaction_session_timeout = {millis}; \
             SET LOCAL statement_timeout = {millis}; SET LOCAL lock_timeout = {millis}",
            self.without_transaction_timeout
        )
    }

    async fn roll_back(&self) {
        // Where it fails there is no transaction, for there is no connection.
        let _ = self.run("ROLLBACK").await;
    }

    /// Runs a query in a read-only transaction of its own, each row read as JSON under its columns' names.
    pub(crate) async fn rows<T: DeserializeOwned>(&self, sql: &str) -> Result<Vec<T>, Trouble> {
        self.rows_after(
            "BEGIN READ ONLY; SET LOCAL search_path = pg_catalog, pg_temp",
            sql,
        )
        .await
    }

    /// The same after other statements, of which the first begins the transaction.
    pub(crate) async fn rows_after<T: DeserializeOwned>(
        &self,
        before: &str,
        sql: &str,
    ) -> Result<Vec<T>, Trouble> {
        let sql = format!("SELECT to_jsonb(q) FROM ({sql}) AS q");
        let rows = self.transaction(before, &sql).await?;
        let cells = rows.iter().flatten().flatten();
        let read = |cell: &String| {
            serde_json::from_str(cell).map_err(|error| {
                Trouble::new(format!("the server's answer is not understood: {error}"))
            })
        };
        cells.map(read).collect()
    }

    /// The one row that a query must give.
    pub(crate) async fn row<T: DeserializeOwned>(&self, sql: &str) -> Result<T, Trouble> {
        let row = self.rows(sql).await?.into_iter().next();
        row.ok_or_else(|| Trouble::new("the server gave no row"))
    }
}
