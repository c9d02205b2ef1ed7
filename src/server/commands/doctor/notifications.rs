//! Checks whether notifications arrive. The library runs, one time, the statements that a follower runs for them.

use oddscache::Error;
use tokio::time::timeout;

use super::{
    context::Context,
    finding::{Finding, Level},
    server::Server,
};

/// The time for connecting three times at most, listening and a notification, as a multiple of the time for one query.
const PATIENCE: u32 = 6;

const POLLS: &str =
    "the cache polls instead: changes show within its poll interval (1 s), and nothing is missed";

pub(super) async fn check(context: &Context<'_>, server: &Server) -> Finding {
    const ID: &str = "notifications";
    if server.standby && context.listen.is_none() {
        return Finding::info(ID, "the server is a standby: it cannot LISTEN, and the cache polls it")
            .why("changes show within the poll interval (1 s), after the standby has replayed them; nothing is missed")
            .fix("for less delay, listen at the primary: --listen-url (ODDSCACHE_LISTEN_URL)");
    }
    let config = match context.arguments.follow.config() {
        Ok(config) => config,
        Err(error) => return Finding::fail(ID, error.to_string()),
    };
    let bound = context.arguments.check_timeout * PATIENCE;
    let error = match timeout(bound, oddscache::check_notifications(&config)).await {
        Ok(Ok(took)) => {
            let millis = took.as_secs_f64() * 1e3;
            let what = format!(
                "LISTEN, the lock and NOTIFY work as a follower uses them; a notification took {millis:.1} ms"
            );
            return Finding::ok(ID, what);
        }
        Ok(Err(error)) => error,
        Err(_) => {
            let seconds = bound.as_secs_f64().ceil();
            return Finding::warn(ID, format!("no notification within {seconds:.0} s")).why(POLLS);
        }
    };
    match &error {
        Error::Pooled => Finding::warn(
            "notifications.pooler",
            "the connection goes through a pooler in transaction mode, which does not support LISTEN",
        )
        .why(POLLS)
        .fix("--listen-url (ODDSCACHE_LISTEN_URL) of the server itself, or a pool with pool_mode = session"),
        Error::NotificationLost => Finding::warn(
            ID,
            "a notification was sent on one connection and did not arrive on another",
        )
        .why(POLLS)
        .fix(
            "see whether the connection goes through a pooler, and whether a listener stays in a transaction \
             (SELECT pg_notification_queue_usage())",
        ),
        // Another check reports what keeps a follower from starting.
        Error::FeedMissing { .. }
        | Error::FeedVersion { .. }
        | Error::FeedElsewhere { .. }
        | Error::MissingTable { .. }
        | Error::MissingRight { .. }
        | Error::RowSecurity { .. } => Finding::info(ID, "not tried: a follower would end before it listens"),
        error => Finding::of_error(ID, Level::Warn, &error.to_string()).why(POLLS),
    }
}
