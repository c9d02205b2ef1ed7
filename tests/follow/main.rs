//! The followed cache equals the oracle after warmup and after every kind of change.

mod audit;
mod bell;
mod bounds;
mod dead_peers;
mod faults;
mod handles;
mod holes;
mod locks;
mod partitions;
mod rows;
mod settings;
mod spans;
mod tables;
mod timings;
mod transactions;
mod versions;

use oddscache_testkit::{Database, followed::Followed};

/// How the cache learns of a change.
#[derive(Debug, Clone, Copy, PartialEq)]
enum By {
    /// It reads the keys again that the log names.
    Keys,
    /// It reads everything again.
    Reload,
}

/// Follows the seed and runs the steps, one transaction each. After each step
/// - the cache must equal the oracle;
/// - the oracle must have changed, because otherwise the step proves nothing;
/// - the cache must have learned of it as `by` says: a cache that always reads everything would be equal, too.
async fn steps(by: By, steps: &[&str]) {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let mut before = followed.check("the seed").await;
    for sql in steps {
        let reloads = followed.cache.counters().reloads;
        let after = followed.step(sql).await;
        assert_ne!(before, after, "{sql}: changes nothing that the cache holds");
        let reloaded = followed.cache.counters().reloads > reloads;
        assert_eq!(reloaded, by == By::Reload, "{sql}: read everything again?");
        before = after;
    }
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
