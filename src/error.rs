use std::{error::Error as StdError, io, time::Duration};

use tokio_postgres::error::SqlState;

/// What can go wrong. Each variant names the object and the way out. None carries a password or data of a row.
///
/// Variants are for programs, texts for people. Lookups do not fail. [`Error::TooStale`] and [`Error::NotShown`] come
/// from the two calls that demand freshness, all others from connecting and following. Errors can be cloned, so that
/// [`Follower::run`](crate::follower::Follower::run) and every caller of
/// [`OddsCache::ready`](crate::cache::OddsCache::ready) return the same one.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is invalid or contradicts itself.
    #[error("configuration: {0}")]
    Config(String),
    /// The database did not answer, or the connection broke. Worth trying again.
    #[error(
        "cannot reach the database at {target}: {reason}; check that it runs and that host, port and TLS settings are \
         right"
    )]
    Unreachable {
        /// Hosts and database.
        target: String,
        /// What the network or the server said.
        reason: String,
    },
    /// The role, the database or the server has as many connections as its limit allows (SQLSTATE 53300). Waiting may
    /// help.
    #[error(
        "no connection is left at {target}: {reason}; end idle sessions, or raise the limit that is reached: \
         ALTER ROLE {role} CONNECTION LIMIT n, ALTER DATABASE {database} CONNECTION LIMIT n, or the server's \
         max_connections, of which some are reserved"
    )]
    TooManyConnections {
        /// Hosts and database.
        target: String,
        /// What the server said. It names the limit, in the server's language.
        reason: String,
        /// The role, quoted as in SQL.
        role: String,
        /// The database, quoted as in SQL.
        database: String,
    },
    /// The server refused the role or its password, or knows no such database.
    #[error(
        "the database at {target} refused the login: {reason}; check user, password, database name and pg_hba.conf"
    )]
    Refused {
        /// Hosts and database.
        target: String,
        /// What the server said.
        reason: String,
    },
    /// [`Config::password_with`](crate::config::Config::password_with) gave no password, or not within
    /// `connect_timeout`. Worth trying again.
    #[error("no password for the database at {target}: {reason}; check what password_with asks")]
    Password {
        /// Hosts and database.
        target: String,
        /// What the function's error says, with its causes. Never a password, unless that error contains one.
        reason: String,
    },
    /// There is no TLS connection to the server, and waiting does not help: the server offers no TLS; its certificate
    /// is not trusted, has expired or is for another host; or it refuses the client certificate.
    #[error("no TLS connection to the database at {target}: {reason}")]
    Tls {
        /// Hosts and database.
        target: String,
        /// What is wrong, and the way out.
        reason: String,
    },
    /// The server is older than any that the change feed can be installed on: see
    /// [`SERVER_VERSIONS`](crate::postgres::server_version::SERVER_VERSIONS).
    #[error(
        "the server is PostgreSQL {found}; oddscache needs PostgreSQL {oldest} or newer, so upgrade the server"
    )]
    ServerVersion {
        /// Its major version.
        found: u32,
        /// The oldest major version that is supported.
        oldest: u32,
    },
    /// A table that the cache reads does not exist.
    #[error(
        "table {table} does not exist; set the application's schema (app_schema) if it lies in another one"
    )]
    MissingTable {
        /// The table, with its schema.
        table: String,
    },
    /// A table lacks a column that the cache needs.
    #[error(
        "table {table} has no column {column}, which oddscache needs; is this the application's database, and migrated?"
    )]
    MissingColumn {
        /// The table, with its schema.
        table: String,
        /// The column.
        column: String,
    },
    /// A column has a type that the cache cannot read.
    #[error("column {table}.{column} is of type {found}; oddscache reads {expected} there")]
    WrongType {
        /// The table, with its schema.
        table: String,
        /// The column.
        column: String,
        /// Its type.
        found: String,
        /// The types that the cache can read there.
        expected: &'static str,
    },
    /// The role lacks a right.
    #[error(
        "role {role} lacks {privilege} on {object}; let the owner run `oddscache sql grants --apply` (sql/grants.sql)"
    )]
    MissingRight {
        /// The role.
        role: String,
        /// SELECT, USAGE or EXECUTE.
        privilege: &'static str,
        /// The schema, table or function.
        object: String,
    },
    /// Row level security hides rows from the role, so it may see less than is committed.
    #[error(
        "row level security applies to role {role} on table {table}, so rows may be hidden from the cache; give the \
         role BYPASSRLS, or allow it (allow_row_security) if its policies show it every row"
    )]
    RowSecurity {
        /// The table, with its schema.
        table: String,
        /// The role.
        role: String,
    },
    /// The change feed is not installed in this database.
    #[error(
        "the change feed is not installed: schema {schema} has no {object}; let the owner of the tables run \
         `oddscache sql install --apply` (sql/install.sql)"
    )]
    FeedMissing {
        /// The schema of the change feed.
        schema: String,
        /// The object that is missing.
        object: &'static str,
    },
    /// The change feed is of a version that this library does not follow: see
    /// [`FEED_VERSIONS`](crate::sql::FEED_VERSIONS).
    #[error(
        "the change feed in schema {schema} is of version {found}, and this oddscache follows versions {oldest} to \
         {newest}; {}",
        feed_way_out(*found, *newest)
    )]
    FeedVersion {
        /// The schema of the change feed.
        schema: String,
        /// The installed version.
        found: i32,
        /// The oldest version that this library follows.
        oldest: i32,
        /// The newest, which this library's `install.sql` installs.
        newest: i32,
    },
    /// The change feed was installed for other tables.
    #[error(
        "the change feed in schema {schema} was installed for the tables in schema {found}, not for those in {expected}"
    )]
    FeedElsewhere {
        /// The schema of the change feed.
        schema: String,
        /// The application schema it was installed for.
        found: String,
        /// The application schema that was configured.
        expected: String,
    },
    /// The database answered with an error, or with something that oddscache does not understand.
    #[error("{doing}: {reason}")]
    Database {
        /// The step that failed.
        doing: &'static str,
        /// SQLSTATE and message.
        reason: String,
        /// SQLSTATE, if the server sent one.
        sqlstate: Option<String>,
        /// Whether the connection broke.
        disconnected: bool,
    },
    /// The server cannot send a row of the application's tables: a value is out of range or damaged, or text is not in
    /// the encoding of the database. A follower finds such rows and goes on without them: see
    /// [`Status::Degraded`](crate::Status::Degraded). If more than 20,000 events or snapshots have such rows, its read
    /// fails with this error.
    #[error("{doing}: rows cannot be read: {reason}; repair or delete them")]
    UnreadableRow {
        /// The step that failed.
        doing: &'static str,
        /// SQLSTATE and message.
        reason: String,
        /// SQLSTATE.
        sqlstate: String,
    },
    /// The database did not answer in time.
    #[error("{doing}: no answer within {seconds} s")]
    TimedOut {
        /// The step that failed.
        doing: &'static str,
        /// The time limit.
        seconds: u64,
    },
    /// A notification that was sent did not arrive at the connection that listens.
    #[error(
        "a notification was sent but did not arrive; is a pooler in between that hands out connections by the \
         transaction? LISTEN needs a session of its own: connect to the server itself for it (listen_from, \
         --listen-url). Or is the notification queue half full (select pg_notification_queue_usage())?"
    )]
    NotificationLost,
    /// A pooler hands out the server's sessions by the transaction, so no connection can LISTEN.
    #[error(
        "a pooler in between hands out connections by the transaction, so notifications do not arrive; LISTEN needs a \
         session of its own: connect to the server itself for it (listen_from, --listen-url)"
    )]
    Pooled,
    /// The connection that listens reached another database than the one that is read.
    #[error(
        "notifications come from another database (cluster and name: {found}) than the one that is read ({expected}); \
         check listen_from"
    )]
    OtherListenDatabase {
        /// System identifier of the cluster and name of the database that it reached.
        found: String,
        /// The same for the database that is read.
        expected: String,
    },
    /// The view did not contain the transaction in time.
    #[error("transaction {xid} did not show within {} ms; {status}", timeout.as_millis())]
    NotShown {
        /// The transaction.
        xid: u64,
        /// How long the call waited.
        timeout: Duration,
        /// The status of the cache, in words.
        status: String,
    },
    /// No transaction of the database can have this id yet.
    #[error(
        "transaction {xid} has not begun: the server's ids have come to {next}; ask pg_current_xact_id() on the server \
         that the cache follows, in the transaction to wait for"
    )]
    NotBegun {
        /// The transaction.
        xid: u64,
        /// One more than the greatest id of a transaction that has ended.
        next: u64,
    },
    /// The view is older than the caller accepts.
    #[error("the latest view {}, more than the {} ms allowed; {status}", old(age), max_age.as_millis())]
    TooStale {
        /// The age of the view; `Duration::MAX` before the first warmup.
        age: Duration,
        /// The age that the caller accepts.
        max_age: Duration,
        /// The status of the cache, in words.
        status: String,
    },
    /// The relay cannot be used: NATS cannot be reached, refuses the login or a right, or has no JetStream; or nobody
    /// publishes.
    #[error("the relay at {target}: {reason}")]
    Relay {
        /// Servers and name of the relay.
        target: String,
        /// What is wrong. Never contains a secret.
        reason: String,
    },
    /// The follower was dropped or ended before the cache was warm.
    #[error("the follower was stopped before the cache was warm")]
    FollowerStopped,
}

impl Error {
    /// Whether trying again may help although nobody changes anything: after trouble with the network, a restart, a
    /// lock or a conflict. Allocates nothing.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Unreachable { .. }
            | Error::Relay { .. }
            | Error::TooManyConnections { .. }
            | Error::Password { .. }
            | Error::TimedOut { .. } => true,
            Error::Database {
                disconnected: true, ..
            } => true,
            // Other classes need somebody to act: undefined objects, missing rights, wrong types.
            Error::Database {
                sqlstate: Some(code),
                ..
            } => {
                matches!(
                    code.get(..2),
                    Some("08" | "25" | "40" | "53" | "55" | "57" | "58" | "XX")
                )
            }
            _ => false,
        }
    }

    /// Whether the same read may succeed on the same connection: after a lock time-out, a statement time-out, or a
    /// conflict with recovery on a standby.
    pub(crate) fn is_conflict(&self) -> bool {
        let conflicts = ["55P03", "40001", "40P01", "57014"];
        matches!(self.code(), Some(code) if conflicts.contains(&code))
    }

    /// Whether the connection has ended, or is about to: the server's last message may come before its end is noticed.
    pub(crate) fn ends_connection(&self) -> bool {
        match self {
            Error::Database {
                disconnected: true, ..
            } => true,
            // Terminated by an administrator or at a shutdown, after a crash, by a time-out of idle sessions.
            _ => matches!(self.code(), Some("57P01" | "57P02" | "57P05" | "25P03")),
        }
    }

    /// Whether the server refused the statement only because an earlier one in the transaction had failed.
    pub(crate) fn is_consequence(&self) -> bool {
        self.code() == Some("25P02")
    }

    /// The SQLSTATE that the server sent.
    fn code(&self) -> Option<&str> {
        match self {
            Error::Database { sqlstate, .. } => sqlstate.as_deref(),
            _ => None,
        }
    }

    /// Whether the server reported the error in a statement, so that the connection is still usable.
    pub(crate) fn is_of_a_statement(&self) -> bool {
        matches!(
            self,
            Error::UnreadableRow { .. }
                | Error::Database {
                    sqlstate: Some(_),
                    disconnected: false,
                    ..
                }
        )
    }

    /// The error of a statement that reads rows of the application's tables. It is [`Error::UnreadableRow`], unless the
    /// SQLSTATE is of a class that says otherwise: the connection, the transaction, the catalog, rights or resources.
    pub(crate) fn of_rows(doing: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Error {
        const OTHER_CLASSES: [&str; 14] = [
            "08", "0A", "25", "26", "28", "34", "3B", "3D", "3F", "40", "42", "53", "55", "57",
        ];
        move |error| match Error::database(doing)(error) {
            Error::Database {
                doing,
                reason,
                sqlstate: Some(sqlstate),
                disconnected: false,
            } if !OTHER_CLASSES.contains(&sqlstate.get(..2).unwrap_or_default()) => {
                Error::UnreadableRow {
                    doing,
                    reason,
                    sqlstate,
                }
            }
            error => error,
        }
    }

    /// Whether the server refused the step with this name.
    pub(crate) fn is_of(&self, what: &str) -> bool {
        matches!(self, Error::Database { doing, sqlstate: Some(_), .. } if *doing == what)
    }

    /// Whether the session does not know a prepared statement, because a pooler handed out another session.
    pub(crate) fn is_unprepared(&self) -> bool {
        self.code() == Some("26000")
    }

    pub(crate) fn database(doing: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Error {
        move |error| {
            let mut reason = reason(&error);
            if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
                reason.push_str("; an administrator can GRANT that right to the role");
            }
            // All errors of PgBouncer have the SQLSTATE 08P01, so only the text identifies this one. Waiting does not
            // resolve it.
            if reason.contains("statement pooling mode") {
                return Error::Config(format!(
                    "the pooler in between lets no transaction through ({reason}); set its pool_mode to transaction or \
                     session, or connect to the server itself"
                ));
            }
            Error::Database {
                doing,
                reason,
                sqlstate: error.code().map(|code| code.code().to_owned()),
                disconnected: error.is_closed()
                    || causes(&error).any(|cause| cause.is::<io::Error>()),
            }
        }
    }

    /// An error that a retry of the same read resolves.
    pub(crate) fn conflict(doing: &'static str, reason: &str) -> Error {
        let serialization_failure = Some("40001".to_owned());
        Error::Database {
            doing,
            reason: reason.to_owned(),
            sqlstate: serialization_failure,
            disconnected: false,
        }
    }

    pub(crate) fn unexpected(doing: &'static str, reason: impl Into<String>) -> Error {
        Error::Database {
            doing,
            reason: reason.into(),
            sqlstate: None,
            disconnected: false,
        }
    }
}

fn feed_way_out(found: i32, newest: i32) -> &'static str {
    match found > newest {
        true => "upgrade oddscache here",
        false => {
            "let the owner of the tables run `oddscache sql install --apply` (sql/install.sql) of this oddscache"
        }
    }
}

fn old(age: &Duration) -> String {
    match *age {
        Duration::MAX => "was never proven current".to_owned(),
        age => format!("is {} ms old", age.as_millis()),
    }
}

/// The causes of an error, the nearest first.
pub(crate) fn causes<'e>(
    error: &'e (dyn StdError + 'static),
) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(error.source(), |cause| (*cause).source())
}

/// The error with its whole chain of causes.
pub(crate) fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        text.push_str(": ");
        text.push_str(&cause.to_string());
    }
    text
}

/// The error with its whole chain of causes, which the driver's `Display` leaves out. Replaces the server's message
/// about a value that it cannot convert, because that message quotes the value.
pub(crate) fn reason(error: &tokio_postgres::Error) -> String {
    if let Some(server) = error.as_db_error() {
        let code = server.code().code();
        let message = if code.starts_with("22") {
            "a value could not be converted"
        } else {
            server.message()
        };
        return format!("{message} (SQLSTATE {code})");
    }
    with_causes(error)
}
