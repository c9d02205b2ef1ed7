//! How to go on after an error, and how long to wait first. Pure: no I/O, no clock.

use std::time::Duration;

use crate::{backoff::Backoff, error::Error};

/// How to go on with the same connection after a read failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// At once, with a read that looks for the row that the server cannot send. An error of a row does not end such a
    /// read.
    LookForRows,
    /// After a pause, because of a lock or a conflict.
    After(Duration),
}

/// Pauses that grow as long as reads fail.
#[derive(Debug)]
pub(crate) struct Retry {
    /// Between connections. A read of changes resets it. A warmup does not: if reads failed right after each warmup,
    /// the follower would warm up again and again without growing pauses.
    connections: Backoff,
    /// After lock time-outs and conflicts.
    locks: Backoff,
}

impl Retry {
    pub(crate) fn new() -> Retry {
        Retry {
            connections: Backoff::for_connections(),
            locks: Backoff::for_locks(),
        }
    }

    /// How to read again on a connection that is still open. `None` if that does not help. `is_looking` says whether
    /// the failed read already looked for rows that cannot be read.
    pub(crate) fn same_connection(&mut self, error: &Error, is_looking: bool) -> Option<Again> {
        if matches!(error, Error::UnreadableRow { .. }) && !is_looking {
            return Some(Again::LookForRows);
        }
        error.is_conflict().then(|| Again::After(self.locks.next()))
    }

    /// How long to wait before the next connection.
    pub(crate) fn reconnect(&mut self) -> Duration {
        self.connections.next()
    }

    /// Notes a read of everything.
    pub(crate) fn warmed_up(&mut self) {
        self.locks = Backoff::for_locks();
    }

    /// Notes a read of changes.
    pub(crate) fn caught_up(&mut self) {
        *self = Retry::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(sqlstate: Option<&str>, disconnected: bool) -> Error {
        Error::Database {
            doing: "reading",
            reason: String::new(),
            sqlstate: sqlstate.map(str::to_owned),
            disconnected,
        }
    }

    /// An error of each kind, and each class of SQLSTATE that is treated in its own way.
    fn errors() -> Vec<Error> {
        let text = String::new;
        let sqlstates = [
            "55P03", "40001", "40P01", "57014", "25P02", "26000", "42P01", "53300", "57P01",
            "XX000",
        ];
        let mut errors: Vec<Error> = sqlstates.map(|code| database(Some(code), false)).into();
        errors.extend([
            database(None, false),
            database(None, true),
            Error::Config(text()),
            Error::Unreachable {
                target: text(),
                reason: text(),
            },
            Error::Refused {
                target: text(),
                reason: text(),
            },
            Error::Password {
                target: text(),
                reason: text(),
            },
            Error::Tls {
                target: text(),
                reason: text(),
            },
            Error::ServerVersion {
                found: 13,
                oldest: 14,
            },
            Error::MissingTable { table: text() },
            Error::MissingColumn {
                table: text(),
                column: text(),
            },
            Error::WrongType {
                table: text(),
                column: text(),
                found: text(),
                expected: "",
            },
            Error::MissingRight {
                role: text(),
                privilege: "SELECT",
                object: text(),
            },
            Error::RowSecurity {
                table: text(),
                role: text(),
            },
            Error::FeedMissing {
                schema: text(),
                object: "",
            },
            Error::FeedVersion {
                schema: text(),
                found: 1,
                oldest: 2,
                newest: 3,
            },
            Error::FeedElsewhere {
                schema: text(),
                found: text(),
                expected: text(),
            },
            Error::UnreadableRow {
                doing: "reading",
                reason: text(),
                sqlstate: "22003".to_owned(),
            },
            Error::TimedOut {
                doing: "reading",
                seconds: 10,
            },
            Error::NotificationLost,
            Error::Pooled,
            Error::OtherListenDatabase {
                found: text(),
                expected: text(),
            },
            Error::NotShown {
                xid: 1,
                timeout: Duration::ZERO,
                status: text(),
            },
            Error::NotBegun { xid: 1, next: 1 },
            Error::TooStale {
                age: Duration::ZERO,
                max_age: Duration::ZERO,
                status: text(),
            },
            Error::FollowerStopped,
        ]);
        errors
    }

    /// After each kind of error the pauses between tries grow: at most 30 tries in the first minute and 24 in each
    /// further one, and at most 18 and 12 reconnections, each with its read of everything.
    #[test]
    fn whatever_fails_again_and_again_is_tried_ever_more_seldom() {
        let minute = Duration::from_secs(60);
        for error in errors() {
            let (mut retry, mut is_looking) = (Retry::new(), false);
            let (mut elapsed, mut tries, mut connections) = (Duration::ZERO, [0; 3], [0; 3]);
            while elapsed < minute * 3 {
                // The worst case: a try itself takes no time.
                let nth = usize::try_from(elapsed.as_secs() / 60).expect("small");
                tries[nth] += 1;
                elapsed += match retry.same_connection(&error, is_looking) {
                    Some(Again::LookForRows) => {
                        is_looking = true;
                        Duration::ZERO
                    }
                    Some(Again::After(pause)) => pause,
                    None => {
                        connections[nth] += 1;
                        // The warmup may succeed, so that only what follows fails.
                        retry.warmed_up();
                        retry.reconnect()
                    }
                };
            }
            assert!(
                tries[0] <= 30 && tries[1] <= 24 && tries[2] <= 24,
                "{error:?}: {tries:?}"
            );
            let [first, second, third] = connections;
            assert!(
                first <= 18 && second <= 12 && third <= 12,
                "{error:?}: {connections:?}"
            );
        }
    }

    #[test]
    fn a_read_of_changes_ends_the_long_pauses() {
        let (conflict, mut retry) = (database(Some("40001"), false), Retry::new());
        for _ in 0..20 {
            retry.reconnect();
            retry.same_connection(&conflict, false);
        }
        retry.caught_up();
        assert!(retry.reconnect() <= Duration::from_millis(100));
        let again = retry.same_connection(&conflict, false);
        assert!(matches!(again, Some(Again::After(pause)) if pause <= Duration::from_millis(100)));
    }
}
