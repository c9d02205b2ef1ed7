//! Do notifications arrive? The library does once what a follower does, by the same statements.

use oddscache::Error;
use tokio::time::timeout;

use super::{context::Context, finding::Finding, server::Server};

/// So many times what one question may take is what connecting three times, listening and a notification may take.
const PATIENCE: u32 = 6;

const POLLS: &str =
    "the cache polls instead: changes show within its poll interval (1 s), and nothing is missed";

pub(super) async fn check(context: &Context<'_>, server: &Server) -> Finding {
    if server.standby && context.bell.is_none() {
        return Finding::info("bell", "the server is a standby: it cannot LISTEN, and the cache polls it")
            .why("changes show within the poll interval (1 s), after the standby has replayed them; nothing is missed")
            .mend("for less delay listen at the primary: --bell-url (ODDSCACHE_BELL_URL)");
    }
    let config = match context.arguments.follow.config() {
        Ok(config) => config,
        Err(error) => return Finding::fail("bell", error.to_string()),
    };
    let bound = context.arguments.check_timeout * PATIENCE;
    let error = match timeout(bound, oddscache::check_notifications(&config)).await {
        Ok(Ok(took)) => {
            let millis = took.as_secs_f64() * 1e3;
            return Finding::ok(
                "bell",
                format!(
                    "LISTEN, the lock, the heartbeat and NOTIFY work as a follower uses them; a notification took \
                     {millis:.1} ms"
                ),
            );
        }
        Ok(Err(error)) => error,
        Err(_) => {
            return Finding::warn(
                "bell",
                format!("no notification within {:.0} s", bound.as_secs_f64().ceil()),
            )
            .why(POLLS);
        }
    };
    match &error {
        Error::Pooled => {
            Finding::warn("bell.pooler", "a pooler in transaction mode is between: LISTEN does not work through it")
                .why(POLLS)
                .mend("listen past it: --bell-url (ODDSCACHE_BELL_URL) of the server itself, or a pool with pool_mode = session")
        }
        Error::Mute => Finding::warn("bell", "a notification was sent on one connection and did not arrive on another")
            .why(POLLS)
            .mend(
                "see whether a pooler is between, and whether a listener sits in a transaction (SELECT \
                 pg_notification_queue_usage())",
            ),
        // What keeps a follower from starting has its finding elsewhere.
        Error::FeedMissing { .. }
        | Error::FeedVersion { .. }
        | Error::FeedElsewhere { .. }
        | Error::MissingTable { .. }
        | Error::MissingRight { .. }
        | Error::RowSecurity { .. }
        | Error::Subscribed { .. }
        | Error::Trigger { .. } => {
            Finding::info("bell", "not tried: a follower would end before it listens")
        }
        error => {
            let text = error.to_string();
            // The library's errors end with the way out.
            let (what, mend) = text.rsplit_once("; ").unwrap_or((&text, ""));
            let finding = Finding::warn("bell", what).why(POLLS);
            if mend.is_empty() { finding } else { finding.mend(mend) }
        }
    }
}
