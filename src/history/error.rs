//! Why a history cannot be read.

use crate::error::Error;

/// Why [`History::read`](super::History::read) has no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// As many questions are under way as may be. Worth trying again.
    #[error(
        "{most} questions for the history of markets are under way; try again later, or allow more connections"
    )]
    Busy {
        /// How many.
        most: usize,
    },
    /// The answer took too long. Worth trying again, for fewer snapshots or a shorter time.
    #[error(
        "the history was not read within {seconds} s; ask for a shorter time, or allow more time"
    )]
    TimedOut {
        /// The time limit of [`History::new`](super::History::new).
        seconds: f64,
    },
    /// Somebody holds a lock on a table, such as a migration. The question gave way. Worth trying again.
    #[error("a table of the odds is locked, such as by a migration; try again later")]
    Locked,
    /// The answer would be too large.
    #[error(
        "the history has more than {most} market rows; ask for one line, one bookmaker, fewer snapshots or a shorter time"
    )]
    TooLarge {
        /// The most rows of an answer, for each of the two tables.
        most: usize,
    },
    /// An index is missing, without which the database would read a whole table.
    #[error(
        "{table} has no index that begins with {column}, without which a history would read all of it; its owner can \
         create one: {create}"
    )]
    NoIndex {
        /// The table or partition, with its schema.
        table: String,
        /// The column.
        column: String,
        /// The statement that makes the index, while readers and writers go on.
        create: String,
    },
    /// The database is away, or refuses the question.
    #[error(transparent)]
    Database(#[from] Error),
}

impl HistoryError {
    /// The SQLSTATE with which the server refused a statement.
    pub(super) fn sqlstate(&self) -> Option<&str> {
        match self {
            HistoryError::Database(Error::Database {
                sqlstate: Some(sqlstate),
                ..
            }) => Some(sqlstate),
            _ => None,
        }
    }
}
