use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{
    error::Error,
    metrics::reload::{ReloadReason, Reloads},
};

/// What the cache is doing. The last view stays readable in every state; its age tells how old it is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Status {
    /// Before the first warmup. Views are empty.
    Warming,
    /// Following and listening, and no notification is known to be lost. While many small commits come, the follower
    /// reads every 5 to 20 ms instead of waiting for a notification, because notifications would slow the writers down.
    Live,
    /// Following by polling only, because notifications do not arrive: the follower cannot LISTEN, or it found a change
    /// whose notification did not arrive within 2 s. Changes show after the poll interval at the latest. After a lost
    /// notification the status goes back with the next one that arrives.
    PollingOnly {
        /// Why notifications do not arrive, as far as known.
        reason: String,
    },
    /// Following, but not every committed change arrives: the change feed does not log every change, or the server
    /// cannot send a row. The follower follows everything else as usual. The status goes back by itself after the
    /// repair.
    ///
    /// While not every change is logged, a view is the state of the last read of everything, with those later changes
    /// that were logged. So it may mix two committed states. Its cut and its age are those of that read, so
    /// [`State::age`](crate::State::age), [`OddsCache::view_within`](crate::OddsCache::view_within) and
    /// [`OddsCache::wait_for`](crate::OddsCache::wait_for) stay true.
    ///
    /// [`State::unreadable`](crate::State::unreadable) names the rows that a view lacks.
    Degraded {
        /// Since when, by the local clock. UTC.
        since: DateTime<Utc>,
        /// What is wrong, each with its repair. Never empty.
        faults: Vec<Fault>,
        /// A change that is not logged shows within about this time. For at most a twentieth of the time, the follower
        /// looks again and again for what changed so: the latest snapshots of all events, and market rows that were
        /// written. If only partitions of `odds_snapshots` have no triggers, it looks up their latest snapshots. Without
        /// the feed it reads everything. The bound is computed from how long the last such read took, so one that finds
        /// far more to read may exceed it. `None` if every change is logged, and the only faults are rows.
        bound: Option<Duration>,
    },
    /// Reading everything again. The old view stays readable meanwhile.
    Resyncing {
        /// Why everything is read again.
        reason: ReloadReason,
        /// The same in words, with the table or the SQLSTATE concerned.
        detail: String,
    },
    /// Cannot read: there is no connection, or a lock prevents the read. The follower tries again after pauses. This
    /// state may also come before the first warmup.
    Disconnected {
        /// Since when, by the local clock. UTC.
        since: DateTime<Utc>,
        /// The error of the last attempt.
        error: Error,
    },
    /// The follower has ended.
    Ended {
        /// The error that ended it; `None` if it was dropped.
        error: Option<Error>,
    },
    /// A [`Writer`](crate::writer::Writer) feeds the cache. Nobody follows a database.
    Detached,
}

impl Status {
    /// All values of [`Status::name`].
    pub const NAMES: [&'static str; 8] = [
        "warming",
        "live",
        "polling_only",
        "degraded",
        "resyncing",
        "disconnected",
        "ended",
        "detached",
    ];

    /// The state as one word, for machines.
    pub fn name(&self) -> &'static str {
        match self {
            Status::Warming => "warming",
            Status::Live => "live",
            Status::PollingOnly { .. } => "polling_only",
            Status::Degraded { .. } => "degraded",
            Status::Resyncing { .. } => "resyncing",
            Status::Disconnected { .. } => "disconnected",
            Status::Ended { .. } => "ended",
            Status::Detached => "detached",
        }
    }
}

/// Equal if both print the same: same state, and same reason or error text.
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
            Status::Degraded {
                since,
                faults,
                bound,
            } => {
                write!(f, "degraded since {}", rfc3339(since))?;
                for (nth, fault) in faults.iter().enumerate() {
                    write!(f, "{} {fault}", if nth == 0 { ":" } else { ";" })?;
                }
                match bound {
                    Some(bound) => write!(
                        f,
                        "; a change that is not logged shows within {} s",
                        bound.as_secs() + 1
                    ),
                    None => Ok(()),
                }
            }
            Status::Resyncing { detail, .. } => write!(f, "resyncing: {detail}"),
            Status::Disconnected { since, error } => {
                write!(f, "disconnected since {}: {error}", rfc3339(since))
            }
            Status::Ended { error: Some(error) } => write!(f, "ended: {error}"),
            Status::Ended { error: None } => f.write_str("ended"),
            Status::Detached => f.write_str("detached"),
        }
    }
}

fn rfc3339(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// Why the cache is [degraded](Status::Degraded).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Fault {
    /// What is wrong: a trigger, or a row that cannot be read. Names the object, never data of a row.
    pub what: String,
    /// The statement, the command or the step that repairs it.
    pub repair: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (repair: {})", self.what, self.repair)
    }
}

/// What the cache has done since it was made. All counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// Transactions that read the change log or everything.
    pub reads: u64,
    /// How often a notification ended a wait. Several that came at once count once.
    pub notifications: u64,
    /// How often the follower read without a notification because it was time: after the poll interval, for the audit,
    /// or between many small commits.
    pub polls: u64,
    /// How often the follower read because a handle requested it: to wait for a transaction, or to read everything
    /// again.
    pub requested_reads: u64,
    /// How often the follower found that notifications do not arrive: a read found a change whose notification did not
    /// come. Counts again only after one has arrived.
    pub lost_notifications: u64,
    /// Rows of the change log that were read.
    pub log_rows: u64,
    /// Snapshots whose markets were read.
    pub snapshots_read: u64,
    /// Rows of the application's tables that were read, including those of audits and reloads.
    pub rows_read: u64,
    /// How many of these rows were malformed: market rows, and snapshots without a time. Those of audits are not
    /// counted.
    pub malformed_rows_read: u64,
    /// Rows that the server could not send: see [`Status::Degraded`]. A row counts when a read finds it, and again only
    /// if it could be read in between.
    pub unreadable_rows: u64,
    /// States that were published.
    pub published: u64,
    /// Events that were dropped because they left the window: their kickoff lay too far back.
    pub evicted_events: u64,
    /// How often everything was read, including the first warmup, or all headers and the markets that may have changed;
    /// see [`ReloadReason`].
    pub reloads: u64,
    /// The same by reason.
    pub reloads_by_reason: Reloads,
    /// How often the reading connection was opened again, after the first time.
    pub reconnects: u64,
    /// How often the follower then proved that the server still had what was read before, and went on in the same epoch.
    /// Otherwise it read everything into a new epoch.
    pub resumed: u64,
    /// Reads and connections that failed and were tried again.
    pub failures: u64,
    /// Events whose markets the audit read again and compared.
    pub audited_events: u64,
    /// Events of which the audit compared the kickoff and the headers of the latest snapshots: ids and times.
    pub audited_headers: u64,
    /// How often the audit compared everything of all events.
    pub audit_passes: u64,
    /// How often the audit compared the headers of all events.
    pub audit_headers_passes: u64,
    /// Events that the audit found to differ from the database, because some change was not logged. Should stay 0.
    pub audit_mismatches: u64,
    /// Publications that were passed on by the relay: by a publisher those sent, by a subscriber those applied.
    pub relay_deltas: u64,
    /// Bytes of these publications and of states.
    pub relay_bytes: u64,
    /// Whole states sent or read.
    pub relay_states: u64,
    /// Answers: by a publisher those given, by a subscriber those received.
    pub relay_answers: u64,
    /// How often a subscriber missed a change and read the whole state instead.
    pub relay_gaps: u64,
    /// Messages that were malformed, or of a publisher that no longer leads. They are ignored.
    pub relay_refused: u64,
    /// How often a subscriber's state differed from the publisher's. The subscriber then read the whole state. Should
    /// stay 0.
    pub relay_mismatches: u64,
}

/// How long the passes of the audit take. As of its last step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AuditPasses {
    /// Compares the kickoffs of all events, and the ids and times of their latest snapshots.
    pub headers: AuditPass,
    /// Compares the markets of some events: those that changed lately, and those near their kickoff. The audit makes it
    /// only if the full pass takes longer than seven times [`audit_cycle`](crate::config::Config::audit_cycle).
    pub likely: AuditPass,
    /// Compares everything of all events.
    pub full: AuditPass,
}

impl AuditPasses {
    /// The passes under their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, AuditPass)> {
        let AuditPasses {
            headers,
            likely,
            full,
        } = *self;
        [("headers", headers), ("likely", likely), ("full", full)].into_iter()
    }
}

/// The duration of one kind of pass, in seconds, with the rests between its steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AuditPass {
    /// Of the last pass that ended. `None` before.
    pub last_seconds: Option<f64>,
    /// Of the pass under way, estimated from its steps so far. Before its first step: of the last one.
    pub expected_seconds: Option<f64>,
}

/// The installed change feed, and which transactions its log covers. As of the last read. All fields are 0 before the
/// first warmup, and in a cache that a [`Writer`](crate::writer::Writer) feeds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ChangeLog {
    /// The log may have lost the rows of transactions with smaller ids. Grows when somebody prunes it.
    pub pruned_below: u64,
    /// The smallest transaction id that the server had not assigned yet, or whose transaction had not ended.
    pub next_xid: u64,
    /// The version of the installed feed, one of [`FEED_VERSIONS`](crate::sql::FEED_VERSIONS). Below
    /// [`FEED_VERSION`](crate::sql::FEED_VERSION), `oddscache sql install --apply` upgrades it under running caches.
    pub feed_version: i32,
}

impl ChangeLog {
    /// How many transactions the log may cover. Counts all transactions of the server, whatever they wrote.
    pub fn unpruned_transactions(&self) -> u64 {
        self.next_xid.saturating_sub(self.pruned_below)
    }
}
