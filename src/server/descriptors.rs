//! How many files and sockets this process may have open. Each HTTP or database connection takes one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::http::limits::Limits;

/// How many open files everything but HTTP connections takes: database connections, files, standard streams.
const OTHERS: usize = 64;

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

/// Lowers the limits of HTTP connections to fit the limit of open files. Otherwise clients could use up all files, and
/// the service could neither accept a health check nor connect to the database again. `of_operators` connections of
/// another address come on top.
pub(crate) fn fit(limits: &mut Limits, open_files: Option<u64>, of_operators: usize) {
    let Some(open_files) = open_files.and_then(|most| usize::try_from(most).ok()) else {
        return;
    };
    limits.most_beyond = limits.most_beyond.min(open_files / 4);
    let left = open_files.saturating_sub(limits.most_beyond + OTHERS + of_operators);
    limits.most_connections = limits.most_connections.min(left).max(1);
}

/// Warns if [`fit`] left fewer connections than `wanted`.
pub(crate) fn warn_if_few(
    limits: &Limits,
    wanted: usize,
    open_files: Option<u64>,
    of_operators: usize,
) {
    if limits.most_connections < wanted {
        let needed = wanted + Limits::MOST_BEYOND + OTHERS + of_operators;
        tracing::warn!(
            open_files,
            needed,
            "the limit of open files leaves room for {} HTTP connections at a time: lower --most-connections, or raise \
             the limit (ulimit -n, LimitNOFILE)",
            limits.most_connections
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_everything_else() {
        for (wanted, open_files, usual, beyond) in [
            (1024, None, 1024, 256),
            (1024, Some(524_288), 1024, 256),
            (1024, Some(1344), 1024, 256),
            (1024, Some(1024), 704, 256),
            (50, Some(1024), 50, 256),
            (1024, Some(160), 56, 40),
            (1024, Some(64), 1, 16),
        ] {
            let mut limits = Limits {
                most_connections: wanted,
                ..Limits::default()
            };
            fit(&mut limits, open_files, 0);
            let found = (limits.most_connections, limits.most_beyond);
            assert_eq!(found, (usual, beyond), "{wanted}, {open_files:?}");
        }
    }
}
