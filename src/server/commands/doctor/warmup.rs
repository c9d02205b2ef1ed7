//! Tries a warmup, as a cache that starts does.

use std::time::Instant;

use tokio::time::timeout;

use super::{
    context::Context,
    finding::{Finding, Level},
};

/// The time for reading everything once, as a multiple of the time for one query. A real cache has --warmup-timeout.
const WARMUP: u32 = 12;

/// Reads everything once, with the library itself. An error would keep a cache from starting; its text names the fix.
pub(super) async fn check(context: &Context<'_>) -> Finding {
    let config = match context.arguments.follow.config() {
        Ok(config) => config,
        Err(error) => return Finding::fail("warmup", error.to_string()),
    };
    let bound = context.arguments.check_timeout * WARMUP;
    let began = Instant::now();
    let view = match timeout(bound, oddscache::warm_up(config)).await {
        Ok(Ok(view)) => view,
        Ok(Err(error)) if error.is_transient() => {
            return Finding::warn("warmup", format!("could not be done now: {error}"))
                .why("a cache tries again by itself; if it keeps failing, something holds a lock on a table or cancels the reads")
                .fix("SELECT pid, mode, relation::regclass FROM pg_locks WHERE mode = 'AccessExclusiveLock'");
        }
        Ok(Err(error)) => {
            let text = format!("a cache cannot start: {error}");
            return Finding::of_error("warmup", Level::Fail, &text)
                .why("`oddscache serve` would end with this error, or try again for ever");
        }
        Err(_) => {
            return Finding::warn("warmup", format!("did not end within {:.0} s", bound.as_secs_f64().ceil()))
                .why("meanwhile a cache that starts serves nothing, and one that reads again serves its old state")
                .fix(
                    "oddscache sql indexes --apply (sql/indexes.sql), VACUUM (ANALYZE) of the tables; or end what locks them: \
                     SELECT pid, relation::regclass FROM pg_locks WHERE mode = 'AccessExclusiveLock'",
                );
        }
    };
    let stats = view.stats();
    let what = format!(
        "a cache would start within {:.1} s: {} events, {} snapshots, {} markets, {:.1} MiB",
        began.elapsed().as_secs_f64(),
        view.len(),
        stats.total_snapshots,
        stats.total_markets,
        stats.memory_bytes as f64 / f64::from(1 << 20),
    );
    if let [fault, others @ ..] = view.unreadable() {
        let others = match others.len() {
            0 => String::new(),
            count => format!(", and {count} more"),
        };
        return Finding::warn("warmup", format!("{what}; {}{others}", fault.what))
            .why("the server cannot send the row. Until it is repaired, a cache goes on without it, and is degraded")
            .fix("correct or delete the row");
    }
    if stats.malformed_rows > 0 {
        return Finding::warn(
            "warmup",
            format!("{what}; {} malformed rows", stats.malformed_rows),
        )
        .why("of a malformed row only what could be read is served")
        .fix("the log of `oddscache serve` names them; fix what writes them");
    }
    if view.is_empty() {
        return Finding::info("warmup", format!("{what}; nothing is within the window")).why(
            "only events with a kickoff after now less the lookback, and with a snapshot, are held",
        );
    }
    Finding::ok("warmup", what)
}
