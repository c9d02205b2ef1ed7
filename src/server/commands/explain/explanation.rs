//! What `explain` says about an event.

use serde::Serialize;

use super::{compare::Difference, database::Facts, http::Service};

/// The result of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// The service holds what the database says, or both have nothing.
    Agrees,
    /// It holds something else.
    Differs,
    /// There is no service to compare with.
    DatabaseOnly,
}

/// All that `explain` reports. The names of the fields are those of `--json`, and stay.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    pub(crate) event_id: i64,
    pub(crate) verdict: Verdict,
    /// A sentence that says why.
    pub(crate) reason: String,
    /// Where they differ: the service's value and the database's.
    pub(crate) differences: Vec<Difference>,
    pub(crate) database: Facts,
    /// What the service says; null where there is none.
    pub(crate) service: Option<Service>,
}
