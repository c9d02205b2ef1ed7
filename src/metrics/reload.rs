//! Why everything is read again, and how often for each reason.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Serialize, Serializer, ser::SerializeMap};

/// Why everything is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReloadReason {
    /// The first warmup.
    First,
    /// The connection was lost: what had been read may have been taken back.
    ConnectionLost,
    /// Rows of the change log were pruned that had not been read.
    Pruned,
    /// Tables, partitions or triggers are others than before.
    Catalog,
    /// All of a table changed: TRUNCATE, or a statement of more rows than the log lists.
    WholeTable,
    /// Too many changes to read them one by one.
    TooManyRows,
    /// A trigger met trouble, and asked for it.
    Trouble,
    /// [`OddsCache::resync`](crate::OddsCache::resync), or `oddscache.resync()` in the database.
    Asked,
    /// The audit found a difference, which this repaired.
    Audit,
    /// Another server answered, or the same after a restart or a promotion. Behind a pooler a lost connection looks so.
    ServerChanged,
    /// The server had handed out fewer transaction ids than before: a machine was put back to an earlier state as it ran.
    WentBack,
    /// The server's clock went back.
    ClockWentBack,
    /// A row of the change log could not be understood.
    NotUnderstood,
}

impl ReloadReason {
    /// All of them, each at the place of its discriminant.
    pub const ALL: [ReloadReason; 13] = [
        ReloadReason::First,
        ReloadReason::ConnectionLost,
        ReloadReason::Pruned,
        ReloadReason::Catalog,
        ReloadReason::WholeTable,
        ReloadReason::TooManyRows,
        ReloadReason::Trouble,
        ReloadReason::Asked,
        ReloadReason::Audit,
        ReloadReason::ServerChanged,
        ReloadReason::WentBack,
        ReloadReason::ClockWentBack,
        ReloadReason::NotUnderstood,
    ];

    /// One word for machines: a label in `/metrics`, a key in `/v1/stats`.
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
            ReloadReason::Asked => "asked",
            ReloadReason::Audit => "audit",
            ReloadReason::ServerChanged => "server_changed",
            ReloadReason::WentBack => "went_back",
            ReloadReason::ClockWentBack => "clock_went_back",
            ReloadReason::NotUnderstood => "not_understood",
        }
    }

    /// Whether what was read before may have been taken back, so that the state is replaced rather than moved forward.
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

/// A reason, and what it was about: the table, or the SQLSTATE that a trigger met.
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
            ReloadReason::ConnectionLost => "connection lost",
            ReloadReason::Pruned => "change log pruned beyond the cursor",
            ReloadReason::Catalog => "tables, partitions or triggers changed",
            ReloadReason::WholeTable => return write!(f, "all of {detail} changed"),
            ReloadReason::TooManyRows => "too many changes to read them one by one",
            ReloadReason::Trouble => return write!(f, "a trigger met trouble: {detail}"),
            ReloadReason::Asked => "asked for",
            ReloadReason::Audit => "the audit found a difference",
            ReloadReason::ServerChanged => {
                "another server answers, or the same after a restart or a promotion"
            }
            ReloadReason::WentBack => "the server is in an earlier state than before",
            ReloadReason::ClockWentBack => "the server's clock went back",
            ReloadReason::NotUnderstood => "a log row could not be understood",
        })
    }
}

/// How often everything was read, by reason. Counts only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reloads([u64; ReloadReason::ALL.len()]);

impl Reloads {
    /// How often it was for this reason.
    #[must_use]
    pub fn of(&self, reason: ReloadReason) -> u64 {
        self.0[reason as usize]
    }

    /// Each reason with its count.
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

/// [`Reloads`] as they count.
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
    fn each_reason_stands_at_its_place_under_a_name_of_its_own() {
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
