//! The followed cache equals the oracle after warmup and after every kind of change.

mod audit;
mod bounds;
mod catalog;
mod continuity;
mod dead_peers;
mod degraded;
mod faults;
mod handles;
mod holes;
mod large;
mod locks;
mod names;
mod notifications;
mod partitions;

mod row_versions;
mod rows;
mod settings;
mod spans;
mod tables;
mod timings;
mod transactions;
mod unlogged;
mod unreadable;
mod versions;

use oddscache::ReloadReason;
use oddscache_testkit::followed::Followed;

/// How the cache learns of a change.
#[derive(Debug, Clone, Copy, PartialEq)]
enum By {
    /// It reads again the keys that the log names.
    Keys,
    /// It reads a table, or blocks of snapshots, because the log names no keys.
    Wide,
    /// It reads everything again.
    Reload,
}

/// Follows the seed and runs the steps, one transaction each.
async fn steps(by: By, steps: &[&str]) {
    let followed = Followed::seeded().await;
    for sql in steps {
        step(&followed, by, sql).await;
    }
}

/// Runs a step. After it
/// - the cache must equal the oracle;
/// - the oracle must have changed, because otherwise the step proves nothing;
/// - the cache must have learned of it as `by` says: a cache that always reads everything would be equal, too.
async fn step(followed: &Followed, by: By, sql: &str) {
    followed.check("before").await;
    let counts = || {
        let counters = followed.cache.counters();
        let wide = counters.reloads_by_reason.of(ReloadReason::WholeTable);
        (counters.reloads - wide, wide)
    };
    let (reloads, wide) = counts();
    followed.changes(sql).await;
    let (reloads, wide) = (counts().0 - reloads, counts().1 - wide);
    let learned = match (reloads, wide) {
        (0, 0) => By::Keys,
        (0, _) => By::Wide,
        _ => By::Reload,
    };
    assert_eq!(learned, by, "{sql}");
}

/// Defines tests that are lists of [`steps`].
macro_rules! changes {
    ($by:expr; $($name:ident: [$($sql:expr),+ $(,)?];)+) => {
        $(#[tokio::test]
        async fn $name() {
            $crate::steps($by, &[$($sql),+]).await;
        })+
    };
}
pub(crate) use changes;
