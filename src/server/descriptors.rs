//! How many files and sockets this process may have open. Each HTTP or database connection takes one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::http::limits::Limits;

/// Descriptors for everything but the HTTP connections within the limit: database connections, files, standard streams,
/// and HTTP connections beyond the limit.
const OTHERS: u64 = 128;

/// Raises the limit to the most that this process may have. The usual 1,024 are a relic of `select`.
///
/// Returns the limit in force; `None` is no limit.
pub(crate) fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::debug!(%error, "the limit of open files stays as it was");
            current
        }
    }
}

/// Warns if HTTP connections can use up all descriptors. The service could then neither accept a client nor connect to
/// the database again.
pub(crate) fn warn_if_few(limits: &Limits, open_files: Option<u64>) {
    let needed = limits.most_connections as u64 + OTHERS;
    if let Some(open_files) = open_files.filter(|most| *most < needed) {
        tracing::warn!(
            open_files,
            needed,
            "clients can use up all files that this process may have open, and then the database cannot be reached again: \
             lower --most-connections, or raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
}
