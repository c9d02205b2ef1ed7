//! Which run of which server a state was read from.

use serde::{Deserialize, Serialize};

/// Identifies the server and its run. `CUT` in `crate::read::schema` says what these values are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Server {
    /// The start of the postmaster, the system identifier and the timeline.
    pub(crate) identity: String,
    /// The time of the oldest reset of statistics. Every crash resets all statistics, even one that the postmaster
    /// survives.
    pub(crate) stats_reset: Option<String>,
    /// The WAL location of the last checkpoint. `None` on a standby.
    pub(crate) checkpoint: Option<String>,
}

impl Server {
    /// Whether the server has run without a crash or restart since it gave the answer `before`. If not, it may have
    /// lost commits that were read.
    ///
    /// A reset of all statistics is a sign of a crash, but somebody may also have reset them by hand. Recovery from a
    /// crash ends with a checkpoint, before any session can read. So if there was no checkpoint since, there was no
    /// crash. A standby shows no checkpoint, so there this is false after any reset.
    pub(crate) fn has_run_on_since(&self, before: &Server) -> bool {
        let no_checkpoint = self.checkpoint.is_some() && self.checkpoint == before.checkpoint;
        self.identity == before.identity
            && (self.stats_reset == before.stats_reset || no_checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_of_statistics_alone_is_no_crash() {
        let server = |stats_reset: &str, checkpoint: Option<&str>| Server {
            identity: "here".to_owned(),
            stats_reset: Some(stats_reset.to_owned()),
            checkpoint: checkpoint.map(str::to_owned),
        };
        let before = server("1", Some("A"));
        assert!(server("1", Some("A")).has_run_on_since(&before));
        assert!(
            server("1", Some("B")).has_run_on_since(&before),
            "a checkpoint"
        );
        assert!(server("2", Some("A")).has_run_on_since(&before), "a reset");
        assert!(!server("2", Some("B")).has_run_on_since(&before), "a crash");
        let elsewhere = Server {
            identity: "there".to_owned(),
            ..before.clone()
        };
        assert!(!elsewhere.has_run_on_since(&before));
        let standby = server("1", None);
        assert!(server("1", None).has_run_on_since(&standby));
        assert!(
            !server("2", None).has_run_on_since(&standby),
            "nothing tells them apart"
        );
    }
}
