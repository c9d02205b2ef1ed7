//! How much of the cache's state an address tells.

use oddscache::{Error, Status};
use serde_json::{Map, Value, json};

/// How much an address tells of the cache's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Detail {
    /// Everything: names of servers, roles and triggers, and the text of errors.
    #[default]
    Full,
    /// What the page shows, without such names. For the public address, if there is one for operators.
    Brief,
}

/// The fields of [`Detail::Brief`], and of those that are objects the keys: what `page/*.js` reads.
pub(super) const OF_PAGE: [(&str, &[&str]); 14] = [
    ("version", &[]),
    ("status", &[]),
    ("degraded", &[]),
    ("as_of", &[]),
    ("age_ms", &[]),
    ("epoch", &[]),
    ("betpawa_events", &[]),
    ("competitor_events", &[]),
    ("total_snapshots", &[]),
    ("total_markets", &[]),
    ("memory_bytes", &[]),
    (
        "counters",
        &[
            "published",
            "snapshots_read",
            "reads",
            "log_rows",
            "reloads",
            "failures",
            "audited_events",
            "audit_passes",
            "audit_mismatches",
            "relay_deltas",
            "relay_states",
            "relay_gaps",
            "relay_answers",
            "relay_mismatches",
        ],
    ),
    ("timings", &["commit_to_visible"]),
    ("change_log", &["next_xid", "pruned_below"]),
];

impl Detail {
    /// The status in words. Briefly without its reason, which may name servers.
    pub(crate) fn status(self, status: &Status) -> String {
        let since = |name: &str, since: &chrono::DateTime<chrono::Utc>| {
            let since = since.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
            format!("{name} since {since}")
        };
        match (self, status) {
            (Detail::Full, status) => status.to_string(),
            (Detail::Brief, Status::Degraded { since: at, .. }) => since("degraded", at),
            (Detail::Brief, Status::Disconnected { since: at, .. }) => since("disconnected", at),
            (Detail::Brief, status) => status.name().replace('_', " "),
        }
    }

    /// The text of an error that a reader gets, with the status as [`Detail::status`] has it.
    pub(crate) fn error(self, error: Error, status: &Status) -> String {
        let brief = || self.status(status);
        let error = match (self, error) {
            (Detail::Full, error) => error,
            (Detail::Brief, Error::NotShown { xid, timeout, .. }) => Error::NotShown {
                xid,
                timeout,
                status: brief(),
            },
            (Detail::Brief, Error::TooStale { age, max_age, .. }) => Error::TooStale {
                age,
                max_age,
                status: brief(),
            },
            (Detail::Brief, _) => return brief(),
        };
        error.to_string()
    }

    /// The field `degraded`: the faults, since when, and the bound. Null unless the cache is degraded.
    pub(crate) fn degraded(self, status: &Status) -> Value {
        let Status::Degraded {
            since,
            faults,
            bound,
        } = status
        else {
            return Value::Null;
        };
        let bound = bound.map(|bound| u64::try_from(bound.as_millis()).unwrap_or(u64::MAX));
        let faults = match self {
            Detail::Full => json!(faults),
            Detail::Brief => json!([{
                "what": format!("{} faults, which the operators' address names", faults.len()),
                "repair": "the operator's",
            }]),
        };
        json!({ "since": since, "bound_ms": bound, "faults": faults })
    }

    /// Leaves out what the address does not tell.
    pub(super) fn only(self, mut stats: Map<String, Value>) -> Map<String, Value> {
        if self == Detail::Full {
            return stats;
        }
        let fields = OF_PAGE.into_iter().filter_map(|(field, keys)| {
            let mut value = stats.remove(field)?;
            if let (Some(object), false) = (value.as_object_mut(), keys.is_empty()) {
                object.retain(|key, _| keys.contains(&key.as_str()));
            }
            Some((field.to_owned(), value))
        });
        fields.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_brief_names_no_server() {
        let error = Error::TooStale {
            age: Duration::from_secs(9),
            max_age: Duration::from_secs(1),
            status: "disconnected: cannot reach the database at secret-host".to_owned(),
        };
        let status = Status::PollingOnly {
            reason: "secret-host".to_owned(),
        };
        let said = [
            Detail::Brief.status(&status),
            Detail::Brief.error(error.clone(), &status),
            Detail::Brief.error(Error::Config("secret-host".to_owned()), &status),
        ];
        for text in said {
            assert!(
                text.contains("polling only") && !text.contains("secret"),
                "{text}"
            );
        }
        assert!(Detail::Full.error(error, &status).contains("secret-host"));
    }
}
