//! How many files and sockets this process may have open. Each connection takes one, and so does each to the database.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::http::limits::Limits;

/// What all else takes: connections to the database, files, standard streams, those that are turned away.
const OTHERS: u64 = 128;

/// Raises the limit to the most that this process may have: the usual 1,024 are a relic of `select`.
///
/// Returns what is in force then; `None`: no limit.
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

/// Where so many connections do not fit, one too many would not be told so: nobody could be accepted, nor could the
/// database be reached again.
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
