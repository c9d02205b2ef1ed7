//! How long the audit takes to compare everything, with its default budget.

use std::time::Duration;

use oddscache::{Config, OddsCache};
use tokio::time::timeout;

use crate::{
    line::{Line, time},
    world::{PATIENCE, World, runtime, until},
};

/// The longest pass over headers that is waited for.
const LONGEST: Duration = Duration::from_secs(20 * 60);

/// Prints how long a pass over all headers takes. The full pass takes hours if there are many events, so its time is the
/// one that the status expects.
pub(crate) async fn measure(world: &World) {
    let config = Config::new(&world.dsn)
        .expect("a dsn")
        .warmup_timeout(PATIENCE);
    let runtime = runtime(2);
    let (cache, follower) = OddsCache::connect(config);
    runtime.spawn(follower.run());
    cache.ready().await.expect("warm");
    let passed = until("a pass", || cache.counters().audit_headers_passes > 0);
    let in_time = timeout(LONGEST, passed).await.is_ok();
    let (counters, audit) = (cache.counters(), cache.audit());
    let seconds = match in_time {
        true => audit.headers.last_seconds,
        false => audit.headers.expected_seconds,
    };
    let of = |seconds: Option<f64>| seconds.map_or("unknown".to_owned(), time);
    Line::seconds(
        "audit: a pass over the headers of all events",
        seconds.unwrap_or(f64::NAN),
    )
    .beside_seconds(120.0, "`audit_cycle`")
    .note(format!(
        "{} headers and {} events compared, {} differed; likely pass: {}; full pass expected: {}",
        counters.audited_headers,
        counters.audited_events,
        counters.audit_mismatches,
        of(audit.likely.last_seconds),
        of(audit.full.expected_seconds),
    ))
    .print();
    runtime.shutdown_background();
}
