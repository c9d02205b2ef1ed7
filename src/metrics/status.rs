use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{error::Error, metrics::reload::Reloads};

/// What the cache is doing. The view stays readable in every state; its age tells how old it is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Status {
    /// Not warm yet: views are empty.
    Warming,
    /// Following, woken by notifications, of which one came through within the last 15 s. Under many small commits it is not
    /// woken, and reads every 5 to 20 ms instead: notifications would hold up the writers.
    Live,
    /// Following by polling only, since notifications do not arrive: changes show after the poll interval at the latest.
    PollingOnly {
        /// Why, as far as it is known.
        reason: String,
    },
    /// Reading everything again, for the given reason, beside the old view.
    Resyncing {
        /// Why.
        reason: String,
    },
    /// Not following, or kept from reading by a lock: trying again, with pauses. Also before the first warmup.
    Disconnected {
        /// Since when, by the local clock. UTC.
        since: DateTime<Utc>,
        /// What was wrong last.
        error: Error,
    },
    /// The follower has ended, with this error unless it was dropped.
    Ended {
        /// Why.
        error: Option<Error>,
    },
    /// Fed by a [`Writer`](crate::writer::Writer); nobody follows a database.
    Detached,
}

impl Status {
    /// Every [`Status::name`] there is.
    pub const NAMES: [&'static str; 7] = [
        "warming",
        "live",
        "polling_only",
        "resyncing",
        "disconnected",
        "ended",
        "detached",
    ];

    /// The state alone, as one word for machines.
    pub fn name(&self) -> &'static str {
        match self {
            Status::Warming => "warming",
            Status::Live => "live",
            Status::PollingOnly { .. } => "polling_only",
            Status::Resyncing { .. } => "resyncing",
            Status::Disconnected { .. } => "disconnected",
            Status::Ended { .. } => "ended",
            Status::Detached => "detached",
        }
    }
}

/// Same state, and for errors the same text.
impl PartialEq for Status {
    fn eq(&self, other: &Status) -> bool {
        self.to_string() == other.to_string()
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Status::Warming => f.write_str("warming"),
            Status::Live => f.write_str("live"),
            Status::PollingOnly { reason } => write!(f, "polling only: {reason}"),
            Status::Resyncing { reason } => write!(f, "resyncing: {reason}"),
            Status::Disconnected { since, error } => {
                write!(
                    f,
                    "disconnected since {}: {error}",
                    since.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
                )
            }
            Status::Ended { error: Some(error) } => write!(f, "ended: {error}"),
            Status::Ended { error: None } => f.write_str("ended"),
            Status::Detached => f.write_str("detached"),
        }
    }
}

/// How much has been done since the cache was made. All only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// Transactions that read the change log, or everything.
    pub reads: u64,
    /// Times a notification came (several at once count once).
    pub notifications: u64,
    /// Times it looked without one, since it was time to: the poll interval, the audit, or a pace set by many small commits.
    pub polls: u64,
    /// Times it looked since a handle asked: to wait for a transaction, or to read everything again.
    pub asks: u64,
    /// Heartbeats sent to find out whether notifications arrive, for want of others.
    pub heartbeats: u64,
    /// Rows of the change log that were read.
    pub log_rows: u64,
    /// Snapshots whose markets were read.
    pub snapshots_read: u64,
    /// Rows of the application's tables that were read, those of the audit and of reads of everything included.
    pub rows_read: u64,
    /// Market rows among them that did not read as they should, and snapshots without a time. The audit's are left out.
    pub malformed_rows_read: u64,
    /// States published.
    pub published: u64,
    /// Events dropped for their kickoff lay too far back.
    pub evicted_events: u64,
    /// Times everything was read, the first warmup included.
    pub reloads: u64,
    /// The same by reason.
    pub reloads_by_reason: Reloads,
    /// Times the connection that reads was opened anew, after the first.
    pub reconnects: u64,
    /// Reads and connections that failed and were tried again.
    pub failures: u64,
    /// Events that the audit read again and compared.
    pub audited_events: u64,
    /// Times the audit went through all events.
    pub audit_passes: u64,
    /// Events that the audit found to differ from the database: changes that no trigger saw. Should stay 0.
    pub audit_mismatches: u64,
}

/// What the follower knows of the change feed and its log. As of the last read; all 0 before the first warmup, and in a
/// cache that is fed by a [`Writer`](crate::writer::Writer).
///
/// The log holds all that was logged by transactions from `pruned_below` on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ChangeLog {
    /// What transactions with smaller ids logged may have been deleted. Stays where it is as long as nobody prunes.
    pub pruned_below: u64,
    /// The first transaction id that had not been handed out, or whose transaction had not ended.
    pub next_xid: u64,
    /// The version of the installed feed, one of [`FEED_VERSIONS`](crate::sql::FEED_VERSIONS). Below
    /// [`FEED_VERSION`](crate::sql::FEED_VERSION), `oddscache sql install --apply` upgrades it under running caches.
    pub feed_version: i32,
}

impl ChangeLog {
    /// How many transactions' changes the log may hold: those of the whole server, whatever they wrote.
    pub fn unpruned_transactions(&self) -> u64 {
        self.next_xid.saturating_sub(self.pruned_below)
    }
}
