//! Why the follower reads everything or much of it, and how often for each reason.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Serialize, Serializer, ser::SerializeMap};

/// Why the follower reads everything, or more than the changes that the log names.
///
/// For [`WholeTable`](ReloadReason::WholeTable), for [`FeedNotWhole`](ReloadReason::FeedNotWhole) as long as there is a
/// feed, and for some of [`Catalog`](ReloadReason::Catalog), it looks up the latest snapshots of all events, and reads only
/// the markets that may have changed. For any other reason it reads everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReloadReason {
    /// The first warmup.
    First,
    /// The connection was lost, and nothing proved that the server still has what was read before.
    ConnectionLost,
    /// Rows of the change log were pruned before they were read. At a subscriber of a relay: a change did not come, or did
    /// not fit.
    Pruned,
    /// Tables, partitions or triggers changed.
    Catalog,
    /// A whole table changed, or many snapshots: by TRUNCATE, or by a statement that changed more than the log lists.
    WholeTable,
    /// There were too many changes to read them one by one.
    TooManyRows,
    /// A trigger met an error and logged that everything must be read.
    Trouble,
    /// A handle ([`OddsCache::resync`](crate::OddsCache::resync)) or the database (`oddscache.resync()`) requested it.
    Requested,
    /// The audit found a difference. The reload repaired it. At a subscriber of a relay: its digest differed from the
    /// publisher's.
    Audit,
    /// Another server answered, or the same one after a restart or a promotion. Behind a pooler, a lost connection
    /// looks the same.
    ServerChanged,
    /// The server had assigned fewer transaction ids than before: somebody restored it or put its machine back, or a
    /// failover or a crash lost transactions. A restart that lost none is [`ReloadReason::ServerChanged`].
    WentBack,
    /// The server's clock went back.
    ClockWentBack,
    /// The follower did not understand a row of the change log.
    NotUnderstood,
    /// The change feed is not whole: it does not log every change. Market rows that somebody wrote are found without
    /// reading the others. See [`Status::Degraded`](crate::Status::Degraded).
    FeedNotWhole,
}

impl ReloadReason {
    /// All reasons, each at the index of its discriminant.
    pub const ALL: [ReloadReason; 14] = [
        ReloadReason::First,
        ReloadReason::ConnectionLost,
        ReloadReason::Pruned,
        ReloadReason::Catalog,
        ReloadReason::WholeTable,
        ReloadReason::TooManyRows,
        ReloadReason::Trouble,
        ReloadReason::Requested,
        ReloadReason::Audit,
        ReloadReason::ServerChanged,
        ReloadReason::WentBack,
        ReloadReason::ClockWentBack,
        ReloadReason::NotUnderstood,
        ReloadReason::FeedNotWhole,
    ];

    /// A fixed word for machines: a label in `/metrics` and a key in `/v1/stats`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ReloadReason::First => "first",
            ReloadReason::ConnectionLost => "connection_lost",
            ReloadReason::Pruned => "pruned",
            ReloadReason::Catalog => "catalog",
            ReloadReason::WholeTable => "whole_table",
            ReloadReason::TooManyRows => "too_many_rows",
            ReloadReason::Trouble => "trouble",
            ReloadReason::Requested => "requested",
            ReloadReason::Audit => "audit",
            ReloadReason::ServerChanged => "server_changed",
            ReloadReason::WentBack => "went_back",
            ReloadReason::ClockWentBack => "clock_went_back",
            ReloadReason::NotUnderstood => "not_understood",
            ReloadReason::FeedNotWhole => "feed_not_whole",
        }
    }

    /// What to do if the follower reads everything for this reason again and again. For the log.
    pub(crate) fn way_out(self) -> &'static str {
        match self {
            ReloadReason::First | ReloadReason::ConnectionLost => "see who ends its connections",
            ReloadReason::Pruned => "prune the log less often, or keep its rows for longer",
            ReloadReason::Catalog => "see which DDL repeats on the tables, partitions or triggers",
            ReloadReason::WholeTable | ReloadReason::TooManyRows => {
                "see which TRUNCATE or which large statement repeats, and split it"
            }
            ReloadReason::Trouble => "see 'could not be logged' in the server's log",
            ReloadReason::Requested => "see who calls resync()",
            ReloadReason::Audit => "see who disables triggers",
            ReloadReason::ServerChanged => "see whether several servers answer behind one address",
            ReloadReason::WentBack => "see who restores the server",
            ReloadReason::ClockWentBack => "see who sets the server's clock",
            ReloadReason::NotUnderstood => "upgrade oddscache",
            ReloadReason::FeedNotWhole => "run `oddscache doctor`",
        }
    }

    /// Whether the server may have taken back what was read before. The state is then replaced, rather than moved
    /// forward.
    pub(crate) fn is_new_epoch(self) -> bool {
        matches!(
            self,
            ReloadReason::First
                | ReloadReason::ConnectionLost
                | ReloadReason::ServerChanged
                | ReloadReason::WentBack
                | ReloadReason::ClockWentBack
        )
    }
}

/// A reason with its detail: the table concerned, or the SQLSTATE that a trigger met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reload {
    pub(crate) reason: ReloadReason,
    detail: String,
}

impl Reload {
    pub(crate) fn about(reason: ReloadReason, detail: impl Into<String>) -> Reload {
        let detail = detail.into();
        Reload { reason, detail }
    }
}

impl From<ReloadReason> for Reload {
    fn from(reason: ReloadReason) -> Reload {
        Reload::about(reason, "")
    }
}

impl fmt::Display for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = &self.detail;
        f.write_str(match self.reason {
            ReloadReason::First => "first warmup",
            ReloadReason::ConnectionLost if detail.is_empty() => "connection lost",
            ReloadReason::ConnectionLost => return write!(f, "connection lost; {detail}"),
            ReloadReason::Pruned => "change log pruned beyond the cursor",
            ReloadReason::Catalog => "tables, partitions or triggers changed",
            ReloadReason::WholeTable => return write!(f, "all of {detail} changed"),
            ReloadReason::TooManyRows => "too many changes to read them one by one",
            ReloadReason::Trouble => return write!(f, "a trigger met an error: {detail}"),
            ReloadReason::Requested => "requested",
            ReloadReason::Audit => "the audit found a difference",
            ReloadReason::ServerChanged => {
                "another server answers, or the same after a restart or a promotion"
            }
            ReloadReason::WentBack => "the server went back to an earlier state",
            ReloadReason::ClockWentBack => "the server's clock went back",
            ReloadReason::NotUnderstood => "a row of the change log was not understood",
            ReloadReason::FeedNotWhole => "the change feed does not log every change",
        })
    }
}

/// How often everything was read, or a whole table, by reason. The counts only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reloads([u64; ReloadReason::ALL.len()]);

impl Reloads {
    /// How often everything was read for this reason.
    #[must_use]
    pub fn of(&self, reason: ReloadReason) -> u64 {
        self.0[reason as usize]
    }

    /// Each reason with its count. Allocates nothing.
    pub fn iter(&self) -> impl Iterator<Item = (ReloadReason, u64)> {
        ReloadReason::ALL
            .into_iter()
            .map(|reason| (reason, self.of(reason)))
    }
}

/// A map from [`ReloadReason::name`] to the count.
impl Serialize for Reloads {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (reason, count) in self.iter() {
            map.serialize_entry(reason.name(), &count)?;
        }
        map.end()
    }
}

/// [`Reloads`] that can be counted up.
#[derive(Debug, Default)]
pub(crate) struct CountingReloads([AtomicU64; ReloadReason::ALL.len()]);

impl CountingReloads {
    pub(crate) fn of(&self, reason: ReloadReason) -> &AtomicU64 {
        &self.0[reason as usize]
    }

    pub(crate) fn get(&self) -> Reloads {
        Reloads(std::array::from_fn(|at| self.0[at].load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_index_and_name() {
        let mut names: Vec<&str> = Vec::new();
        for (at, reason) in ReloadReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at, "{reason:?}");
            names.push(reason.name());
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ReloadReason::ALL.len());
    }
}
